"""Names and settings of the networks whose conditions are tokens: iMF, pMF, RAEv2.

Theirs have q, k, v apart, and so the two maps into a SwiGLU; ours have one matrix of each. iMF's
blocks of u follow the shared ones in our `blocks`, those of v are our `v_blocks`. This module also
has what every reader of settings needs.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
Evidence = dict[str, tuple[Any, str]]
"""Setting -> (value that fits, key that shows it)."""

_NAMES = [
    (r"(?<!_layer)\.linear\.(weight|bias)$", r".\1"),
    (r"\.embedding\.weight$", ".weight"),
    (r"^ctx_embedder\.learnable_tokens$|^class_tokens$", "tokens.label"),
    (r"^ctx_embedder\.", "y_embedder."),
    (r"^cfg_w_embedder\.learnable_tokens$", "tokens.omega"),
    (r"^cfg_w_embedder\.", "omega_embedder."),
    (r"^t_embedder\.learnable_tokens$", "tokens.time"),
    (r"^(\w+)_tokens$", r"tokens.\1"),
    (r"^cfg_t_start_embedder\.", "t_min_embedder."),
    (r"^cfg_t_end_embedder\.", "t_max_embedder."),
    (r"^shared_blocks\.", "blocks."),
    (r"^v_heads\.", "v_blocks."),
    (r"^u_final_layer\.", "final_layer."),
    (r"^v_final_layer\.", "velocity_layer."),
    (r"^base_final_layer\.", "exit_head."),
    (r"^((?:\w+_layer|exit_head))\.norm\.", r"\1.norm_final."),
    (r"\.adaln_modulation\.", ".adaLN_modulation."),
    (r"\.attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
]


def depth_of(state: State, blocks: str = "blocks") -> int:
    """One more than the largest i of `blocks.i.` in a state of any shapes; 0 without any."""
    matches = (re.match(rf"{blocks}\.(\d+)\.", key) for key in state)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def require(state: State, architecture: str, *keys: str) -> list[tuple[int, ...]]:
    """The shapes of tensors that weights of `architecture` must have."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(
            f"these are not the weights of {architecture}: {', '.join(missing)} is missing; "
            f"the file has {', '.join(list(state)[:6])}, ..."
        )
    return [tuple(state[key].shape) for key in keys]


def swiglu_ratio(hidden: int, width: int) -> float:
    """Ratio r with int(2/3 int(width r)) = hidden, 4 if it fits."""
    candidates = (4.0, 1.5 * hidden / width, (math.ceil(1.5 * hidden) + 0.5) / width)
    return next((r for r in candidates if int(2 / 3 * int(width * r)) == hidden), candidates[1])


def translate_tokens(state: State) -> State:
    """Return `state` under our names."""
    shared, out = depth_of(state, "shared_blocks"), {}
    for key, value in state.items():
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        later = re.match(r"u_heads\.(\d+)\.(.*)", key)
        out[f"blocks.{int(later[1]) + shared}.{later[2]}" if later else key] = value
    # iMF multiplies by w3 and returns through w2, RAEv2 the other way round.
    gate, back = ("w3", "w2") if shared else ("w2", "w3")
    return _join(_join(out, "attn", "qkv", ("q", "k", "v")), "mlp", "w12", ("w1", gate), back)


def _join(
    state: State, part: str, name: str, names: tuple[str, ...], back: str | None = None
) -> State:
    """`names` of every `part` in one matrix called `name`; `back` becomes w3."""
    out: State = {}
    for key, value in state.items():
        match = re.match(rf"(.*\.{part}\.)(\w+)\.(weight|bias)$", key)
        if match and match[2] == names[0]:
            keys = [f"{match[1]}{other}.{match[3]}" for other in names]
            require(state, "a network of tokens", *keys)
            out[f"{match[1]}{name}.{match[3]}"] = torch.cat([state[other] for other in keys])
        elif match and match[2] == back:
            out[f"{match[1]}w3.{match[3]}"] = value
        elif not (match and match[2] in names):
            out[key] = value
    return out


def read_tokens(architecture: str, state: State) -> Evidence:
    """Return the settings that the shapes of a translated `state` show."""
    narrow, plain, wide = "x_embedder.proj1.weight", "x_embedder.proj.weight", "s_embedder."
    first = narrow if narrow in state else plain
    first = f"{wide}proj.weight" if f"{wide}proj.weight" in state else first
    mlp, table, qk = "blocks.0.mlp.w12.weight", "y_embedder.embedding_table.weight", "q_norm.weight"
    head = f"blocks.0.attn.{qk}"
    shapes = require(state, architecture, first, mlp, "tokens.time", head)
    (rows, channels, patch, *_), (hidden, width), (tokens, *_), (size,) = shapes
    depth = depth_of(state)
    out: Evidence = {
        "num_classes": (state[table].shape[0] - 1 if table in state else 0, table),
        "hidden_size": (width, mlp),
        "in_channels": (channels, first),
        "patch_size": (patch, first),
        "num_heads": (width // size, head),
        "mlp_ratio": (swiglu_ratio(hidden // 2, width), mlp),
        "time_tokens": (tokens, "tokens.time"),
        "depth": (depth, f"blocks.{depth - 1}"),
    }
    counts = {"label": "class", "omega": "guidance", "t_min": "interval"}
    for name, setting in counts.items():
        if (key := f"tokens.{name}") in state:
            out[f"{setting}_tokens"] = (state[key].shape[0], key)
    if architecture == "raev2":
        return out | _read_raev2(state, depth, first)
    second = depth_of(state, "v_blocks")
    out["velocity_blocks"] = (second, f"v_blocks.{second - 1}")
    if narrow in state:
        out["bottleneck"] = (rows, narrow)
    if (key := "pos_embed") in state:
        front = sum(len(v) for k, v in state.items() if k.startswith("tokens."))
        out["learned_positions"] = (True, key)
        out["input_size"] = (math.isqrt(state[key].shape[1] - front) * patch, key)
    if architecture == "pmf":  # as published: sizes B, H with patches of 16 and B, L with 32
        loud = {(1280, 16): 2.0, (768, 32): 2.0, (1024, 32): 4.0, (1280, 32): 4.0}
        out["noise_scale"] = (loud.get((width, patch), 1.0), "")
    return out


def _read_raev2(state: State, depth: int, first: str) -> Evidence:
    modulated = [i for i in range(depth) if f"blocks.{i}.adaLN_modulation.1.weight" in state]
    encoder = depth - len(modulated)
    out: Evidence = {"depth": (encoder, f"blocks.{encoder - 1}"), "head_width": (None, "")}
    if modulated:
        wide, size = "x_embedder.proj.weight", f"blocks.{depth - 1}.attn.q_norm.weight"
        ((width, *_), (head,)) = require(state, "RAEv2", wide, size)
        out |= {"head_width": (width, wide), "head_depth": (len(modulated), f"blocks.{depth - 1}")}
        out["head_heads"] = (width // head, size)
    if (key := "exit_head.linear.weight") in state and encoder == 28:
        out["exit_layer"] = (8, "")  # as published
    elif key not in state:
        out["exit_layer"] = (None, f"no {key}")
    if (key := "omega_embedder.W") in state:
        out["guidance_input"] = (True, key)
    if (key := "repa_projector.weight") in state:
        out["features"] = (state[key].shape[0], key)
    for key in ("rope.freqs_cos", "enc_rope.freqs_cos"):
        if key in state:
            front = sum(len(v) for k, v in state.items() if k.startswith("tokens."))
            patch = state[first].shape[-1]
            out["input_size"] = (math.isqrt(state[key].shape[0] - front) * patch, key)
    return out
