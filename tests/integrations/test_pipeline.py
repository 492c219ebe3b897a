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
from ucgm.sampler import GuidanceInput

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


def test_guidance_as_an_input(tmp_path):
    """The scale and its interval reach the network, from disk too; no label: scale 1."""
    config = DiTConfig(size="T/2", guidance_input=True, guidance_interval=True)
    model = fill(config.build((4, 8, 8), 3), 0.1)
    kind = dict(guidance_scale=2.0, guidance_interval=(0.4, 0.6), guidance_input=True)
    pipeline(model, **kind).save_pretrained(tmp_path)
    pipe = UCGMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    z, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 2])
    sampler = Sampler(Linear(), 3, extrapolation=0.3)
    for labels, guided in (
        ([0, 2], GuidanceInput(model, 2.0, (0.4, 0.6))),
        (None, model),
    ):
        rows = y if labels else torch.full_like(y, 3)
        out = pipe(labels, 3, num_images=2, latents=z, output_type="latent").images
        torch.testing.assert_close(out, sampler(guided, z, rows), rtol=0, atol=1e-5)
    assert (sampler(model, z, y) - sampler(GuidanceInput(model, 2.0), z, y)).abs().max() > 1e-3


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


def test_from_pipe_shares_the_parts_and_keeps_the_settings():
    pipe = pipeline(guidance_scale=2, guidance_interval=(0.1, 0.8), latent_mean=[0, 0, 0, 0],
                    latent_std=[1, 2, 3, 4])  # fmt: skip
    again = UCGMPipeline.from_pipe(pipe)
    assert all(again.components[name] is part for name, part in pipe.components.items())
    assert dict(again.config) == dict(pipe.config) and again.labels == pipe.labels
    pixels = UCGMPipeline.from_pipe(pipeline(network((1, 8, 8), 0), vae=None, id2label=None))
    assert pixels.vae is None
    other = UCGMPipeline.from_pipe(pipe, scheduler=UCGMScheduler(order=2), guidance_scale=1.0)
    assert other.scheduler.order == 2 and other.config.guidance_scale == 1.0


QUIET = """
import sys, ucgm
for folder in sys.argv[1:]:
    ucgm.UCGMPipeline.from_pretrained(folder)
"""


def test_loading_prints_nothing(tmp_path):
    pipeline(guidance_scale=2, latent_mean=[0, 0, 0, 0], latent_std=[1] * 4, scheduler=(
        UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    )).save_pretrained(tmp_path / "latents")  # fmt: skip
    pipeline(network((1, 8, 8), 0), vae=None, id2label=None).save_pretrained(tmp_path / "pixels")
    command = [sys.executable, "-W", "ignore", "-c", QUIET, tmp_path / "latents",
               tmp_path / "pixels"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.split("\n") if "Loading" not in line]  # its bar
    assert result.returncode == 0 and result.stdout == "" and not "".join(lines).strip(), lines


def test_numbers_of_images_and_kinds_of_labels():
    pipe = pipeline()

    z = torch.randn(4, 4, 8, 8)
    expected = pipe([1, 1, 1, 1], 2, latents=z, output_type="latent").images
    for labels, more in (
        (1, {"num_images": 4}),
        ("goldfish", {"num_images_per_prompt": 4}),
        ([1], {"num_images": 2, "num_images_per_prompt": 2}),
        (np.int64(1), {"num_images": 4}),
        (np.array([1, 1, 1, 1]), {}),
        (torch.tensor(1), {"num_images": np.int64(4)}),
        (torch.tensor([1, 1]), {"num_images": 2, "num_images_per_prompt": 2}),
    ):
        out = pipe(labels, 2, latents=z, output_type="latent", **more).images
        assert torch.equal(out, expected)
    mixed = pipe([1, 2], 2, latents=z, num_images_per_prompt=2, output_type="latent").images
    apart = pipe([1, 1, 2, 2], 2, latents=z, output_type="latent").images
    assert torch.equal(mixed, apart) and not torch.equal(mixed, expected)
    null = pipe(num_images=2, num_images_per_prompt=2, num_inference_steps=2, latents=z)
    assert len(null.images) == 4
    for labels, more, message in (
        ([1, 2], {"num_images": 3}, "num_images is 3 for 2 labels: give num_images_per_prompt"),
        (1, {"num_images": 0}, "num_images must be at least 1"),
        (1, {"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a whole number"),
        (0.7, {}, "class must be a whole number"),
        (True, {}, "class must be a whole number"),
        (torch.tensor([0.7]), {}, "class must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(labels, 2, **more)


@pytest.mark.parametrize("settings", [{}, {"order": 2}, {"solver": "adams", "order": 2}], ids=str)
def test_callbacks_after_each_evaluation(settings):
    pipe = pipeline(scheduler=UCGMScheduler(**settings))
    z = torch.randn(1, 4, 8, 8)
    whole = pipe(1, 4, latents=z, output_type="latent").images
    seen = []

    def watch(owner, i, t, tensors):
        assert owner is pipe and i == len(seen)
        seen.append((float(t), tensors["latents"]))
        return {}

    out = pipe(1, 4, latents=z, output_type="latent", callback_on_step_end=watch).images
    pipe.scheduler.set_timesteps(4)
    assert torch.equal(out, whole) and torch.equal(seen[-1][1], whole)
    assert len(seen) == pipe.num_timesteps == len(pipe.scheduler.timesteps)
    np.testing.assert_allclose([t for t, _ in seen], pipe.scheduler.timesteps, rtol=1e-6)

    def stop(owner, i, t, tensors):
        owner._interrupt = i == 1
        return tensors

    out = pipe(1, 4, latents=z, output_type="latent", callback_on_step_end=stop).images
    assert torch.equal(out, seen[1][1])

    def change(owner, i, t, tensors):
        return {"latents": torch.zeros_like(z)} if i == pipe.num_timesteps - 1 else tensors

    out = pipe(1, 4, latents=z, output_type="latent", callback_on_step_end=change).images
    assert not out.any()
    if not settings:  # nothing but the state is remembered: a new state is a new start

        def begin(owner, i, t, tensors):
            return {"latents": seen[0][1]} if i == 0 else tensors

        other = pipe(1, 4, latents=-z, output_type="latent", callback_on_step_end=begin).images
        assert torch.equal(other, whole)
    with pytest.raises(ValueError, match="callbacks have the tensor latents, not prompt_embeds"):
        pipe(1, 2, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_one_image_is_that_of_a_batch_and_parts_may_have_their_own_types(tmp_path):
    pipe = pipeline()
    batch = pipe([0, 1, 2], 4, generator=generators(1, 2, 3), output_type="np").images
    single = pipe([1], 4, generator=generators(2), output_type="np").images
    assert np.abs(batch[1] - single[0]).max() < 1e-5
    pipe.save_pretrained(tmp_path)
    types = {"model": torch.bfloat16, "default": torch.float32}
    mixed = UCGMPipeline.from_pretrained(tmp_path, torch_dtype=types)
    assert mixed.model.dtype == torch.bfloat16 and mixed.vae.dtype == torch.float32
    mixed.set_progress_bar_config(disable=True)
    rough = mixed([1], 4, generator=generators(2), output_type="np").images
    assert 0 < np.abs(rough - single).max() < 0.1


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
        pipe.scheduler = other
        with pytest.raises(ValueError, match="use UCGMScheduler.from_config"):
            pipe(0, 2)
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
