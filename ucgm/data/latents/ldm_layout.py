"""The LDM checkpoint layout of an AutoencoderKL, as VA-VAE is published, to that of diffusers.

The names of CompVis/latent-diffusion (2112.10752) become those of AutoencoderKL by the rules below.
Attention made of 1x1 convolutions becomes linear layers, so weights lose the two last axes.
Widths, depth, latent channels and the levels that have attention are read from the tensors
themselves, so no second configuration can disagree with them.  The conversion of diffusers knows no
attention inside a level, which VA-VAE has, and drops names that it does not know.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ucgm.runtime.reading import read_tensors

_OURS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# In this order; a level of the decoder counts from the other end.
_RULES = (
    (r"\.up\.", ".up_blocks."),
    (r"\.down\.", ".down_blocks."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.(q|k|v)\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def read_ldm_state(path: Path) -> dict[str, Tensor]:
    """The autoencoder's tensors of a checkpoint file; those of losses and teachers are left out.

    Args:
        path: safetensors, or a torch file of tensors, flat or under ``state_dict``.

    Raises:
        ValueError: not such a file, or one that would have to run code.
    """
    content = read_tensors(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        state = {}
    state = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for prefix in ("first_stage_model.", "vae.", "module."):
        if any(key.startswith(prefix + "encoder.") for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = {k: v for k, v in state.items() if k.startswith(_OURS)}
    if "encoder.down.0.block.0.conv1.weight" not in state:
        raise ValueError(
            f"{path} has no autoencoder in the LDM layout (encoder.down.0.block.0...): give a "
            "folder in the diffusers layout instead."
        )
    return state


def ldm_arguments(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL for these weights, tensors of any shape by name."""
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    blocks = _count(state, r"encoder\.down\.0\.block\.(\d+)")
    down, up = [], []
    for level in range(levels):
        has = f"encoder.down.{level}.attn.0.q.weight" in state
        down.append("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D")
        has = f"decoder.up.{levels - 1 - level}.attn.0.q.weight" in state
        up.append("AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D")
    widths = [len(state[f"encoder.down.{n}.block.0.conv1.weight"]) for n in range(levels)]
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": len(state["decoder.conv_out.weight"]),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": tuple(widths),
        "layers_per_block": blocks,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
        "scaling_factor": 1.0,
    }


def ldm_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, of any shape, under diffusers' names; unknown names stay."""
    last = _count(state, r"decoder\.up\.(\d+)\.") - 1
    converted = {}
    for name, value in state.items():
        name = re.sub(r"\.up\.(\d+)", lambda level: f".up.{last - int(level[1])}", name)
        for pattern, new in _RULES:
            name = re.sub(pattern, new, name)
        square = ".attentions." in name and value.ndim == 4
        converted[name] = value[:, :, 0, 0] if square else value
    return converted


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """One more than the largest number that ``pattern`` finds in a name; 0 without one."""
    return 1 + max(
        (int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1
    )
