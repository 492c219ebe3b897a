"""The scheduler in the pipelines of diffusers as they are, against the native sampler."""

import pytest
import torch
from diffusers import DDIMScheduler

from tests.integrations.tiny import (
    dit_pipeline,
    flux_pipeline,
    prompts,
    sd3_pipeline,
    with_transformers,
)
from ucgm import DiffusersNetwork, DiscreteVP, Grid, Guided, Linear, Sampler, UCGMScheduler
from ucgm.runtime.randomness import RowRandom

SOLVERS = {
    "ucgm": {"extrapolation": 0.4, "warp": (1.1, 0.9, 1.0), "gap": (0.01, 0.02)},
    "heun": {"order": 2, "gap": (0.02, 0.01)},
    "dpmpp": {"solver": "adams", "order": 2, "variable": "data", "time_variable": "log_snr",
              "integration": "midpoint"},
    "state": {"solver": "adams", "extrapolation": 0.5},
    "unipc": {"solver": "unipc", "order": 2, "variable": "noise", "time_variable": "sigma",
              "gap": (0.02, 0.01)},
    "noisy": {"stochasticity": 0.5, "seed": 3},
}  # fmt: skip
each_solver = pytest.mark.parametrize("name", SOLVERS)


def native(transport, steps, settings, shift=1.0):
    values = {k: v for k, v in settings.items() if k not in ("warp", "gap", "seed")}
    grid = {k: v for k, v in settings.items() if k in ("warp", "gap")}
    return Sampler(transport, steps, grid=Grid(**grid, shift=shift), **values)


def close(a, b):
    """To 1e-5 of the size of the states."""
    assert torch.isfinite(a).all() and b.std() > 0.05
    assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))


@each_solver
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_dit(name, scale):
    pipe = dit_pipeline()
    settings = SOLVERS[name]
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, schedule=None, **settings)
    kept = []
    pipe.vae.decode = lambda latents: kept.append(latents) or type("O", (), {"sample": latents})
    pipe.set_progress_bar_config(disable=True)
    y = torch.tensor([3, 700, 7])
    pipe(y.tolist(), scale, torch.Generator().manual_seed(5), 6, output_type="pt")

    network = DiffusersNetwork(pipe.transformer)
    assert network.num_classes == 1000
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    sampler = native(DiscreteVP(), 6, settings)
    random = RowRandom.for_samples(3, torch.arange(3))
    guided = Guided(network, scale, null_label=1000) if scale != 1 else network
    close(kept[0] * pipe.vae.config.scaling_factor, sampler(guided, z, y, random))


@with_transformers
@each_solver
def test_sd3(name):
    pipe, settings, table = sd3_pipeline(), SOLVERS[name], prompts()
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, schedule=None, **settings)
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    rows = table["encoder_hidden_states"], table["pooled_projections"]
    out = pipe(
        prompt_embeds=rows[0][:2],
        pooled_prompt_embeds=rows[1][:2],
        negative_prompt_embeds=rows[0][2:].expand(2, -1, -1),
        negative_pooled_prompt_embeds=rows[1][2:].expand(2, -1),
        latents=z,
        height=8,
        width=8,
        num_inference_steps=6,
        guidance_scale=2.5,
        output_type="latent",
    ).images
    network = Guided(DiffusersNetwork(pipe.transformer, table), 2.5, null_label=2)
    sampler = native(Linear(), 6, settings, shift=3.0)
    random = RowRandom.for_samples(3, torch.arange(2))
    close(out, sampler(network, z, torch.arange(2), random))


@with_transformers
@each_solver
def test_flux(name):
    pipe, settings, table = flux_pipeline(), SOLVERS[name], prompts()
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, schedule=None, **settings)
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(5))
    rows = table["encoder_hidden_states"], table["pooled_projections"]
    seen = {}
    forward = pipe.transformer.forward

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return forward(*args, **kwargs)

    pipe.transformer.forward = spy
    out = pipe(
        prompt_embeds=rows[0][:2],
        pooled_prompt_embeds=rows[1][:2],
        latents=z,
        height=8,
        width=8,
        num_inference_steps=6,
        output_type="latent",
    ).images
    pipe.transformer.forward = forward
    fixed = {key: seen[key] for key in ("txt_ids", "img_ids")}
    network = DiffusersNetwork(pipe.transformer, table, fixed)
    # mu of 16 tokens: the line through (256, 0.5) and (4096, 1.15).
    mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
    sampler = native(Linear(), 6, settings, shift=float(torch.tensor(mu).double().exp()))
    random = RowRandom.for_samples(3, torch.arange(2))
    close(out, sampler(network, z, torch.arange(2), random))


@with_transformers
def test_sd3_image_to_image_begins_in_the_middle():
    """The last steps of the plan, without a history, from the noised image."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    base, table = sd3_pipeline(), prompts()
    settings = SOLVERS["state"]
    pipe = StableDiffusion3Img2ImgPipeline(**base.components)
    pipe.scheduler = UCGMScheduler.from_config(base.scheduler.config, schedule=None, **settings)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 8, 8)
    starts = []
    scale_noise = pipe.scheduler.scale_noise
    pipe.scheduler.scale_noise = lambda *a: starts.append(scale_noise(*a)) or starts[0]
    out = pipe(
        image=image,
        strength=0.5,
        prompt_embeds=table["encoder_hidden_states"][:1],
        pooled_prompt_embeds=table["pooled_projections"][:1],
        height=8,
        width=8,
        num_inference_steps=6,
        guidance_scale=1.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    times = native(Linear(), 6, settings, shift=3.0).grid.times(6)[3:-1]
    sampler = Sampler(Linear(), 3, **settings, grid=Grid(explicit=tuple(times.tolist())))
    network = DiffusersNetwork(pipe.transformer, table)
    close(out, sampler(network, starts[0], torch.tensor([0])))


@with_transformers
@pytest.mark.parametrize("make", [sd3_pipeline, flux_pipeline])
def test_a_saved_pipeline_finds_the_scheduler(make, tmp_path):
    pipe = make()
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, extrapolation=0.4, seed=1)
    pipe.save_pretrained(tmp_path)
    nothing = {name: None for name, part in pipe.components.items() if part is None}
    again = type(pipe).from_pretrained(tmp_path, **nothing)
    assert isinstance(again.scheduler, UCGMScheduler)
    assert again.scheduler.config.extrapolation == 0.4
    assert again.scheduler.config.shift == pipe.scheduler.config.shift
    assert again.scheduler.config.use_dynamic_shifting == pipe.scheduler.config.use_dynamic_shifting
    assert '"ucgm",' in (tmp_path / "model_index.json").read_text()


def latents_of(pipe, kept):
    """Keep what a pipeline of DiT hands to its autoencoder."""
    pipe.vae.decode = lambda latents: kept.append(latents) or type("O", (), {"sample": latents})


def test_the_images_of_dit_are_those_of_its_own_scheduler():
    kept = []
    for ours in (False, True):
        pipe = dit_pipeline()
        pipe.scheduler = DDIMScheduler(clip_sample=False)
        if ours:
            pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
        latents_of(pipe, kept)
        pipe.set_progress_bar_config(disable=True)
        pipe([3, 700], 2.0, torch.Generator().manual_seed(5), 8, output_type="pt")
    close(kept[1], kept[0])


@with_transformers
@pytest.mark.parametrize(
    "make, shape", [(sd3_pipeline, (2, 4, 8, 8)), (flux_pipeline, (2, 16, 16))]
)
def test_the_images_of_flow_models_are_those_of_their_own_scheduler(make, shape):
    table, found = prompts(), []
    for ours in (False, True):
        pipe = make()
        if ours:
            pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        more = {"guidance_scale": 1.0} if make is sd3_pipeline else {}
        out = pipe(
            prompt_embeds=table["encoder_hidden_states"][:2],
            pooled_prompt_embeds=table["pooled_projections"][:2],
            latents=torch.randn(shape, generator=torch.Generator().manual_seed(5)),
            height=8,
            width=8,
            num_inference_steps=6,
            output_type="latent",
            **more,
        )
        found.append(out.images)
    close(found[1], found[0])
