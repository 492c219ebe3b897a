"""Tiny diffusers pipelines with random weights: the real classes, a few thousand parameters."""

import importlib.util

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

# The pipelines of SD3 and Flux are there only beside transformers.
with_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers"
)


def fill(module, scale=0.15):
    """Random weights everywhere: zero-initialised outputs would hide every mistake."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tiny_vae(latent_channels=4, **config):
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        **config,
    )
    return vae.eval()


def dit_pipeline():
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return DiTPipeline(fill(transformer), tiny_vae(), DDIMScheduler())


def sd3_pipeline(**scheduler):
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        out_channels=4,
    )
    return StableDiffusion3Pipeline(
        transformer=fill(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, **scheduler),
        vae=tiny_vae(shift_factor=0.06),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux_pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=tiny_vae(shift_factor=0.06),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=fill(transformer),
    )


def prompts(count=2, tokens=5):
    """Embeddings of ``count`` prompts and, last, of the empty one."""
    generator = torch.Generator().manual_seed(3)
    return {
        "encoder_hidden_states": torch.randn(count + 1, tokens, 12, generator=generator),
        "pooled_projections": torch.randn(count + 1, 10, generator=generator),
    }
