"""The LDM checkpoint layout of an AutoencoderKL, as VA-VAE is published, to that of diffusers.

    LDM (CompVis/latent-diffusion, 2112.10752)       diffusers AutoencoderKL
    encoder.down.L.block.i                           encoder.down_blocks.L.resnets.i
    encoder.down.L.attn.i                            encoder.down_blocks.L.attentions.i
    encoder.down.L.downsample.conv                   encoder.down_blocks.L.downsamplers.0.conv
    decoder.up.L.*                                   decoder.up_blocks.(levels - 1 - L).*
    mid.block_1, mid.block_2, mid.attn_1             mid_block.resnets.0, .1, mid_block.attentions.0
    norm_out                                         conv_norm_out
    inside a block: nin_shortcut                     conv_shortcut
    inside an attention: norm, q, k, v, proj_out     group_norm, to_q, to_k, to_v, to_out.0

LDM attention is made of 1x1 convolutions, diffusers' of linear layers: their weights lose the two
last axes.  Widths, depth, latent channels and the levels that have attention are read from the
tensors themselves, so no second configuration can disagree with them.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_OURS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def read_ldm_state(path: Path) -> dict[str, Tensor]:
    """The autoencoder's tensors of a checkpoint file; those of losses and teachers are left out.

    Args:
        path: safetensors, or a torch file of tensors, flat or under ``state_dict``.

    Raises:
        ValueError: not such a file, or one that would have to run code.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}). A checkpoint "
            "with pickled objects runs code when it is loaded: open it where that is harmless and "
            "save its state_dict as safetensors."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    for prefix in ("first_stage_model.", "vae.", "module."):
        if any(key.startswith(prefix + "encoder.") for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = {k: v for k, v in state.items() if k.startswith(_OURS) and isinstance(v, Tensor)}
    if "encoder.down.0.block.0.conv1.weight" not in state:
        raise ValueError(
            f"{path} has no autoencoder in the LDM layout (encoder.down.0.block.0...): give a "
            "folder in the diffusers layout instead."
        )
    return state


def ldm_arguments(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL for these weights, tensors of any shape by name."""
    levels = 1 + max(int(m[1]) for k in state if (m := re.match(r"encoder\.down\.(\d+)\.", k)))
    blocks = 1 + max(
        int(m[1]) for k in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)", k))
    )
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
    """The same tensors, of any shape, under diffusers' names."""
    levels = 1 + max(int(m[1]) for k in state if (m := re.match(r"decoder\.up\.(\d+)\.", k)))
    converted = {}
    for key, value in state.items():
        name = _rename(key, levels)
        if ".attentions." in name and value.ndim == 4:
            value = value[:, :, 0, 0]
        converted[name] = value
    return converted


def _rename(key: str, levels: int) -> str:
    """One LDM name to diffusers'; names without a rule stay, and are refused when loading."""
    key = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", key)
    key = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", key)
    key = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    key = key.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    key = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", key)
    key = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", key)
    key = key.replace(".downsample.conv.", ".downsamplers.0.conv.")
    key = key.replace(".upsample.conv.", ".upsamplers.0.conv.")
    key = key.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
    inside = re.match(r"(.*\.attentions\.\d+)\.(norm|q|k|v|proj_out)\.(weight|bias)$", key)
    return f"{inside[1]}.{_ATTENTION[inside[2]]}.{inside[3]}" if inside else key
