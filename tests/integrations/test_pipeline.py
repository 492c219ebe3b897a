"""UCGMPipeline: labels, guidance, generators, decoding, saving; adapters; the import of names."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tests.integrations.tiny import dit_pipeline, fill, tiny_vae
from ucgm import DiffusersNetwork, DiT, Guided, Linear, Sampler, UCGMPipeline, UCGMScheduler
from ucgm.nn import DiTConfig
from ucgm.runtime.randomness import RowRandom

NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "great white shark"}


def network(shape=(4, 8, 8), num_classes=3):
    return fill(DiTConfig(size="T/2").build(shape, num_classes), 0.1)


def pipeline(model=None, vae="tiny", scheduler=None, **settings):
    settings = {"id2label": NAMES} | settings
    pipe = UCGMPipeline(
        network() if model is None else model,
        tiny_vae() if vae == "tiny" else vae,
        scheduler or UCGMScheduler(extrapolation=0.3),
        **settings,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def test_samples_are_those_of_the_native_sampler():
    pipe = pipeline()
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    out = pipe(
        ["goldfish", "Tinca tinca", 2],
        num_inference_steps=5,
        guidance_scale=2.0,
        guidance_interval=(0.2, 0.7),
        latents=z,
        output_type="latent",
    ).images
    guided = Guided(pipe.model, 2.0, (0.2, 0.7), null_label=3)
    expected = Sampler(Linear(), 5, extrapolation=0.3)(guided, z, torch.tensor([1, 0, 2]))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    whole = pipe([1, 0, 2], 5, 2.0, latents=z, output_type="latent").images
    assert (whole - out).abs().max() > 1e-4


@pytest.mark.parametrize("stochasticity", [0.0, 0.6])
def test_each_image_has_its_own_generator(stochasticity):
    pipe = pipeline(scheduler=UCGMScheduler(stochasticity=stochasticity))

    def draw(labels, *seeds):
        return pipe(labels, 4, generator=generators(*seeds), output_type="latent").images

    together, alone = draw([0, 1, 2], 5, 6, 7), draw([2, 1], 7, 6)
    torch.testing.assert_close(together[[2, 1]], alone, rtol=0, atol=1e-5)
    assert (together[2] - draw([2], 8)[0]).abs().max() > 0.1


def test_guidance_that_the_pipeline_was_saved_with(tmp_path):
    """Scale, interval and channels are those of calls that do not say, on disk too."""
    model = network()
    pipe = pipeline(model, guidance_scale=2.5, guidance_interval=(0.1, 0.8), guidance_channels=3)
    z = torch.randn(1, 4, 8, 8)
    own = pipe(0, 4, latents=z, output_type="latent").images
    told = pipeline(model)(0, 4, 2.5, (0.1, 0.8), 3, latents=z, output_type="latent").images
    assert torch.equal(own, told)
    every = pipeline(model)(0, 4, 2.5, (0.1, 0.8), latents=z, output_type="latent").images
    assert (own - every).abs().max() > 1e-2
    pipe.save_pretrained(tmp_path)
    again = UCGMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    loaded = again(0, 4, latents=z, output_type="latent").images
    torch.testing.assert_close(loaded, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(output_type):
    images = pipeline()([0, 1], 2, output_type=output_type).images
    first = images[0]
    shapes = {"pil": (8, 8), "np": (8, 8, 3), "pt": (3, 8, 8), "latent": (4, 8, 8)}
    assert len(images) == 2
    assert (first.size if output_type == "pil" else first.shape) == shapes[output_type]
    assert isinstance(pipeline()(0, 1, output_type=output_type, return_dict=False), tuple)


def test_latents_are_brought_back_to_the_autoencoders_scale():
    vae = tiny_vae(scaling_factor=0.5, shift_factor=0.1)
    seen = []
    decode = vae.decode
    vae.decode = lambda z, **more: seen.append(z) or decode(z, **more)
    x = torch.randn(2, 4, 8, 8)
    pipeline(vae=vae).decode(x)
    torch.testing.assert_close(seen[-1], x / 0.5 + 0.1)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    pipeline(vae=vae, latent_mean=mean, latent_std=std).decode(x)
    columns = [torch.tensor(v)[:, None, None] for v in (mean, std)]
    torch.testing.assert_close(seen[-1], x * columns[1] + columns[0])


def test_models_of_pixels_and_without_classes():
    pipe = pipeline(network((1, 8, 8), 0), vae=None, id2label=None)
    out = pipe(num_images=3, num_inference_steps=2, generator=generators(1, 2, 3))
    assert len(out.images) == 3 and out.images[0].mode == "L"
    pixels = pipe(num_images=1, num_inference_steps=2, generator=generators(1), output_type="np")
    levels = np.asarray(out.images[0]).astype(float) / 255
    assert np.abs(pixels.images[0, ..., 0] - levels).max() < 1 / 255
    with pytest.raises(ValueError, match="no classes"):
        pipe([1])
    # A conditional model without labels draws from its null class.
    labelled = pipeline()
    z = torch.randn(1, 4, 8, 8)
    null = Sampler(Linear(), 3, extrapolation=0.3)(labelled.model, z, torch.tensor([3]))
    out = labelled(num_inference_steps=3, guidance_scale=3.0, latents=z, output_type="latent")
    torch.testing.assert_close(out.images, null, rtol=0, atol=1e-5)


def test_half_precision_weights():
    pipe = pipeline()
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    exact = pipe(1, 3, latents=z, output_type="latent").images
    rough = pipe.to(torch.bfloat16)(1, 3, latents=z, output_type="latent").images
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.1


def test_save_and_load(tmp_path):
    pipe = pipeline(
        latent_mean=[0.0] * 4, latent_std=[2.0] * 4, guidance_scale=1.5, scheduler=UCGMScheduler(
            solver="adams", order=2, warp=(1.1, 0.9, 1.0), transport="Trig")
    )  # fmt: skip
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["model"] == ["ucgm", "DiT"] and index["scheduler"] == ["ucgm", "UCGMScheduler"]
    again = UCGMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.model, DiT) and not again.model.training
    assert again.scheduler.sampler(5) == pipe.scheduler.sampler(5)
    images = [
        p(["goldfish", 2], 3, generator=generators(1, 2), output_type="pt").images
        for p in (pipe, again)
    ]
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)
    assert callable(again.push_to_hub)


def test_pipeline_without_an_autoencoder_is_saved_too(tmp_path):
    pipe = pipeline(network((1, 8, 8), 3), vae=None)
    pipe.save_pretrained(tmp_path)
    again = UCGMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    images = [p(0, 2, generator=generators(1), output_type="pt").images for p in (pipe, again)]
    assert again.vae is None
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


CODE = """
import sys, ucgm
assert "torch" not in sys.modules and "diffusers" not in sys.modules
pipe = ucgm.UCGMPipeline.from_pretrained(sys.argv[1])
from diffusers import DiTPipeline
other = DiTPipeline.from_pretrained(sys.argv[2])
print(type(pipe.model).__name__, type(other.scheduler).__name__, other.scheduler.config.seed)
"""


def test_another_process_needs_import_ucgm_and_nothing_else(tmp_path):
    pipeline().save_pretrained(tmp_path / "ours")
    theirs = dit_pipeline()
    theirs.scheduler = UCGMScheduler.from_config(theirs.scheduler.config, seed=7)
    theirs.save_pretrained(tmp_path / "theirs")
    command = [sys.executable, "-c", CODE, tmp_path / "ours", tmp_path / "theirs"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["DiT", "UCGMScheduler", "7"], result.stderr


def test_bad_input():
    pipe = pipeline()
    with pytest.raises(ValueError, match="class 3 is out of range: choose from 0 to 2"):
        pipe([0, 3])
    with pytest.raises(ValueError, match="no class named 'cat'; the first names are tench"):
        pipe("cat")
    with pytest.raises(ValueError, match="1 generators were given for 2 images"):
        pipe([0, 1], generator=generators(1))
    with pytest.raises(ValueError, match="output_type"):
        pipe(0, output_type="jpeg")
    with pytest.raises(ValueError, match="interval"):
        pipe(0, guidance_scale=2.0, guidance_interval=(0.9, 0.1))
    with pytest.raises(ValueError, match="steps"):
        pipe(0, num_inference_steps=0)
    for other in (FlowMatchEulerDiscreteScheduler(), DDIMScheduler()):
        with pytest.raises(ValueError, match="use UCGMScheduler.from_config"):
            pipeline(scheduler=other)
    with pytest.raises(ValueError, match="both latent_mean and latent_std"):
        pipeline(latent_mean=[0.0] * 4)


def test_adapter_of_a_class_conditional_transformer():
    transformer = dit_pipeline().transformer
    adapted = DiffusersNetwork(transformer)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 1.0])
    y = torch.tensor([4, 1000])
    direct = transformer(x, timestep=1000 * t - 1, class_labels=y).sample[:, :4]
    torch.testing.assert_close(adapted(x, t, y), direct)
    with pytest.raises(ValueError, match="one time"):
        adapted(x, t, y, t)
    with pytest.raises(ValueError, match="different numbers of rows"):
        DiffusersNetwork(transformer, {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="labels must be 0 to 999"):
        Sampler(Linear(), 1)(adapted, x, y + 1)
    random = RowRandom.for_samples(0, torch.arange(2))
    own = DiffusersNetwork(transformer, timestep=lambda t: 500.0 * t)
    assert torch.isfinite(Sampler(Linear(), 3, stochasticity=0.5)(own, x, y, random)).all()
