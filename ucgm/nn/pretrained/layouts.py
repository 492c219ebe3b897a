"""Parameter names of public checkpoints, translated to ours; and settings read off the shapes.

Ours are the names of DiT, which SiT, REPA, LightningDiT, TiT and JiT share; DDT and EDM2 keep their
own. Translated here: the diffusers layout of DiT (q, k, v apart; the same embedder in every block),
REPA's legacy `decoder_blocks.k` (= blocks.(k + number of blocks)), REPA-E's batch-norm statistics
of the latents, EDM2's preconditioner around the U-Net.
"""

import math
import re
from typing import Any

import torch

from ucgm.nn.configs import SIZES
from ucgm.nn.pretrained.tokens import Evidence, State, read_tokens, translate_tokens
from ucgm.nn.pretrained.tokens import depth_of as _depth
from ucgm.nn.pretrained.tokens import require as _require
from ucgm.nn.pretrained.tokens import swiglu_ratio as _swiglu_ratio

_NOT_NEEDED = {
    "repa": ("projectors.", "logvar_linear."),
    "repae": ("projectors.", "bn."),
    "lightningdit": ("feat_rope.",),
    "tit": ("feat_rope.",),
    "edm2": ("logvar_",),
    "rae_dit": ("feat_rope.",),
    "rae_ddt": ("enc_feat_rope.", "dec_feat_rope."),
    "mf_rae": ("enc_feat_rope.", "dec_feat_rope."),
    "dmf": ("logvar_linear.",),
    "raev2": ("enc_rope.", "dec_rope.", "rope."),
}

_DIFFUSERS = [
    (r"pos_embed\.proj\.", "x_embedder.proj."),
    (r"proj_out_1\.", "final_layer.adaLN_modulation.1."),
    (r"proj_out_2\.", "final_layer.linear."),
    (r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.", "y_embedder."),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.adaLN_modulation.1."),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
]


def translate(architecture: str, state: State) -> State:
    """Return `state` under our names; nothing is dropped."""
    if architecture == "dit" and any(key.startswith("transformer_blocks.") for key in state):
        return _from_diffusers(state)
    if architecture == "edm2":
        return {key.removeprefix("unet."): value for key, value in state.items()}
    if architecture in ("repa", "repae"):
        depth, legacy = _depth(state), re.compile(r"^decoder_blocks\.(\d+)\.")
        return {
            legacy.sub(lambda match: f"blocks.{int(match[1]) + depth}.", key): value
            for key, value in state.items()
        }
    if architecture in ("meanflow_sit", "mf_rae"):
        return {re.sub(r"^r_embedder\.", "h_embedder.", key): v for key, v in state.items()}
    if architecture in ("imf", "pmf", "raev2"):
        return translate_tokens(state)
    return state


def drop(architecture: str, state: State) -> tuple[State, list[str]]:
    """Split `state` into what the network needs and the names of what it does not."""
    dropped = [key for key in state if key.startswith(_NOT_NEEDED.get(architecture, ()))]
    return {key: value for key, value in state.items() if key not in dropped}, dropped


def _from_diffusers(state: State) -> State:
    """Rename DiTTransformer2DModel's parameters; q, k, v become one matrix."""
    out: State = {}
    for key, value in state.items():
        replica = re.match(r"transformer_blocks\.[1-9]\d*\.norm1\.emb\.(.*)", key)
        if replica:
            first = state.get(f"transformer_blocks.0.norm1.emb.{replica[1]}")
            if first is None or not torch.equal(first, value):
                raise ValueError(
                    f"{key} differs from that of block 0: the blocks of a DiT share one embedder, "
                    "so these weights were trained otherwise and cannot be loaded"
                )
            continue
        part = re.match(r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])\.(weight|bias)", key)
        if part:
            if part[2] == "q":
                names = [key.replace("to_q", f"to_{letter}") for letter in "qkv"]
                out[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = torch.cat([state[n] for n in names])
            continue
        for pattern, name in _DIFFUSERS:
            key = re.sub(rf"^{pattern}", name, key)
        out["pos_embed" if key == "pos_embed.pos_embed" else key] = value
    return out


def read_settings(architecture: str, state: State, given: dict[str, Any]) -> Evidence:
    """Return the settings that the shapes of a translated `state` show."""
    if architecture == "ddt":
        return _read_ddt(state, given)
    if architecture in ("rae_ddt", "mf_rae"):
        return _read_rae(state)
    if architecture in ("imf", "pmf", "raev2"):
        return read_tokens(architecture, state)
    return _read_edm2(state) if architecture == "edm2" else _read_dit(state)


def _read_embedders(state: State) -> Evidence:
    table = "y_embedder.embedding_table.weight"
    out: Evidence = {"num_classes": (0, f"no {table}")}
    if table in state:
        out["num_classes"] = (state[table].shape[0] - 1, table)
    inputs = {"h": "second_time", "g": "guidance_input", "low": "guidance_interval"}
    for prefix, name in inputs.items():
        if (key := f"{prefix}_embedder.mlp.0.weight") in state:
            out[name] = (True, key)
    return out


def _read_dit(state: State) -> Evidence:
    patches, head = "x_embedder.proj.weight", "final_layer.linear.weight"
    narrow, context = "x_embedder.proj1.weight", "in_context_posemb"
    patches = narrow if narrow in state else patches
    modulation = "blocks.0.adaLN_modulation.1.weight"
    shapes = _require(state, "a DiT", patches, head, modulation)
    if len(shapes[0]) != 4:
        raise ValueError(f"{patches} has shape {shapes[0]}, a DiT has (D, C, p, p): is it DDT?")
    (first, channels, patch, *_), (rows, *_), (parts, *_) = shapes
    width = state[modulation].shape[-1] if narrow in state else first
    depth, second = _depth(state), _depth(state, "v_blocks")
    out: Evidence = _read_embedders(state) | {
        "velocity_blocks": (second, f"v_blocks.{second - 1}" if second else ""),
        "hidden_size": (width, modulation if narrow in state else patches),
        "in_channels": (channels, patches),
        "patch_size": (patch, patches),
        "depth": (depth, f"blocks.{depth - 1}"),
        "learn_sigma": (rows == 2 * channels * patch**2, head),
        "shift": (parts == 6 * width, modulation),
    }
    if narrow in state:
        out["bottleneck"] = (first, narrow)
        if patch == 32:  # as published, at 512 pixels
            out["noise_scale"] = (2.0, "")
    if context in state:
        out["context_tokens"] = (state[context].shape[1], context)
    for key in ("pos_embed", "feat_rope.freqs_cos"):
        if key in state:
            tokens = state[key].shape[-2]
            out.setdefault("input_size", (math.isqrt(tokens) * patch, key))
    out |= _read_heads(state, width, depth, "feat_rope.freqs_cos", "blocks.0.attn.q_norm.weight")
    gelu, swiglu = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.w12.weight"
    if gelu in state:
        out |= {"mlp": ("gelu", gelu), "mlp_ratio": (state[gelu].shape[0] / width, gelu)}
    elif swiglu in state:
        ratio = _swiglu_ratio(state[swiglu].shape[0] // 2, width)
        out |= {"mlp": ("swiglu", swiglu), "mlp_ratio": (ratio, swiglu)}
    norm, qk = "blocks.0.norm1.weight", "blocks.0.attn.q_norm.weight"
    out["norm_affine"] = (norm in state, norm if norm in state else f"no {norm}")
    if norm in state:
        out["norm"] = ("layer" if "blocks.0.norm1.bias" in state else "rms", norm)
    if qk in state:
        out |= {"qk_norm": (True, qk), "qk_norm_affine": (True, qk)}
    if "t_embedder.W" in state:
        out["fourier_time"] = (True, "t_embedder.W")
    if (feature := "cls_projectors.weight") in state:
        out["feature_token"] = (True, feature)
    if "feat_rope.freqs_cos" in state:
        out["rope"] = (True, "feat_rope.freqs_cos")
    return out


def _read_heads(state: State, width: int, depth: int, *keys: str) -> Evidence:
    """Heads from the size of a head, or from the published size with this width and depth."""
    for key in keys:
        if key in state:
            return {"num_heads": (width // state[key].shape[-1], key)}
    for name in ("S", "B", "L", "XL", "H", "1p0B", "1p6B"):
        if SIZES[name][:2] == (width, depth):
            return {"num_heads": (SIZES[name][2], "")}
    return {}


def _read_ddt(state: State, given: dict[str, Any]) -> Evidence:
    embed, mlp = "s_embedder.proj.weight", "blocks.0.mlp.w1.weight"
    head = "blocks.0.attn.q_norm.weight"
    (width, features), (head_dim,), (hidden, _) = _require(state, "DDT", embed, head, mlp)
    depth = _depth(state)
    out: Evidence = _read_embedders(state) | {
        "hidden_size": (width, embed),
        "depth": (depth, f"blocks.{depth - 1}"),
        "num_heads": (width // head_dim, head),
        "mlp_ratio": (_swiglu_ratio(hidden, width), mlp),
    }
    # The file shows in_channels * patch_size^2 only; published networks have patches of 2.
    patch = given.get("patch_size", 2)
    if "in_channels" in given and "patch_size" not in given:
        patch = math.isqrt(features // given["in_channels"])
    out |= {"patch_size": (patch, embed), "in_channels": (features // patch**2, embed)}
    encoder = {12: 8, 24: 20, 28: 22}.get(depth)
    if encoder and "encoder_depth" not in given:
        out["encoder_depth"] = (encoder, "")
    return out


def _read_rae(state: State) -> Evidence:
    narrow, wide = "s_embedder.proj.weight", "x_embedder.proj.weight"
    shapes = _require(state, "DiT-DH", narrow, wide, "blocks.0.mlp.w12.weight")
    (width, channels, patch, *_), (head_width, *_), (hidden, *_) = shapes
    norms = [f"blocks.{i}.norm1.weight" for i in range(_depth(state))]
    qk = "blocks.0.attn.q_norm.weight"
    out: Evidence = _read_embedders(state) | {
        "hidden_size": (width, narrow),
        "in_channels": (channels, narrow),
        "patch_size": (patch, narrow),
        "head_width": (head_width, wide),
        "mlp_ratio": (_swiglu_ratio(hidden // 2, width), "blocks.0.mlp.w12.weight"),
        "qk_norm": (qk in state, qk if qk in state else f"no {qk}"),
    }
    if "pos_embed" in state:
        out["input_size"] = (math.isqrt(state["pos_embed"].shape[1]) * patch, "pos_embed")
    if (fourier := "h_embedder.W") in state:
        out["fourier_gap"] = (True, fourier)
    head = 2  # as published, where one width for both does not show it
    if width != head_width:
        head = sum(state[name].shape[0] == head_width for name in norms if name in state)
    out |= {"depth": (len(norms) - head, norms[0]), "head_depth": (head, norms[-1])}
    out |= _read_heads(state, width, len(norms) - head, "enc_feat_rope.freqs_cos", qk)
    for key in ("dec_feat_rope.freqs_cos", qk.replace("0", str(len(norms) - 1))):
        if key in state:
            out.setdefault("head_heads", (head_width // state[key].shape[-1], key))
    return out


def _read_edm2(state: State) -> Evidence:
    first = next(
        (key for key in state if re.match(r"enc\.\d+x\d+_conv\.weight", key)), "enc.*_conv"
    )
    ((width, channels, *_),) = _require(state, "EDM2", first)
    pattern = r"enc\.(\d+)x\d+_block(\d+)\.(conv_res1|attn_qkv)\.weight"
    blocks = [
        (int(match[1]), int(match[2]), match[3], value.shape[0])
        for key, value in state.items()
        if (match := re.match(pattern, key))
    ]
    convolutions = [block for block in blocks if block[2] == "conv_res1"]
    widths = {side: rows // width for side, index, _, rows in convolutions if index == 0}
    attention = {side for side, _, kind, _ in blocks if kind == "attn_qkv"}
    label = "emb_label.weight"
    out: Evidence = {
        "input_size": (int(re.findall(r"\d+", first)[0]), first),
        "in_channels": (channels - 1, first),
        "model_channels": (width, first),
        "channel_mult": (tuple(widths[k] for k in sorted(widths, reverse=True)), "enc.*_block0"),
        "num_blocks": (1 + max((b[1] for b in convolutions), default=-1), "enc.*_block*"),
        "attention": (tuple(sorted(attention, reverse=True)), "enc.*.attn_qkv.weight"),
        "num_classes": (state[label].shape[1] if label in state else 0, label),
    }
    if "h_gain" in state:
        out["second_time"] = (True, "h_gain")
    return out
