"""Weight files, read without running code, down to one flat dictionary of tensors.

A checkpoint may hold several networks and many wrappers. The order of choice is

    which="ema":    "ema" > "model_ema1" > "state_dict" > "model" > flat
    which="model":  "model" > "state_dict" > flat

of which, where there are such, only the keys with prefix "ema_denoiser." or "denoiser." count. Then
the prefixes of wrappers are stripped: "module." (DDP), "_orig_mod." (torch.compile), "net.", and
those of FSDP and checkpointing.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.runtime.reading import listed, read_tensors, reading


def read_checkpoint(path: str | Path, unsafe_pickle: bool = False) -> dict[str, Any]:
    """Return what a weight file, or a folder of safetensors or .bin shards, contains.

    Raises ValueError for a file that needs code to load, unless `unsafe_pickle`: then the file
    may run anything it likes, as any pickle may.
    """
    path = Path(path)
    if path.is_dir():
        shards = listed(path, "*.safetensors") or listed(path, "*.bin")
        if not shards:
            raise ValueError(f"{path} has no .safetensors or .bin file: name the weight file")
        merged: dict[str, Any] = {}
        for shard in shards:
            merged |= read_checkpoint(shard, unsafe_pickle)
        return merged
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a weight file or a folder of shards")
    if unsafe_pickle and path.suffix != ".safetensors":
        with reading(path):
            return _unpickle(path)
    return read_tensors(
        path,
        ", or, if you trust whoever made the file, allow it with --unsafe-pickle "
        "(unsafe_pickle=True)",
    )


def _unpickle(path: Path) -> dict[str, Any]:
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            content = pickle.load(file)
    else:
        content = torch.load(path, map_location="cpu", weights_only=False)
    if isinstance(content, nn.Module):
        return content.state_dict()
    return {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in content.items()}


def unwrap(
    checkpoint: Mapping[str, Any], which: str = "ema"
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the flat state of the network `which`, and the names of the entries left behind."""
    if which not in ("ema", "model"):
        raise ValueError(f'which must be "ema" or "model", got {which!r}')
    state, dropped, within = checkpoint, [], []
    while not all(isinstance(value, Tensor) for value in state.values()):
        if any(state is outer for outer in within):
            raise ValueError("no weights found: the file contains itself")
        within.append(state)
        order = (
            ("ema", "model_ema1", "state_dict", "model")
            if which == "ema"
            else ("model", "state_dict")
        )
        chosen = next((name for name in order if isinstance(state.get(name), Mapping)), None)
        if chosen is None:
            raise ValueError(
                f"no weights found: the file holds {', '.join(map(str, list(state)[:12]))}, but "
                f"none of {', '.join(order)}; pass the dictionary of tensors itself"
            )
        dropped += [str(name) for name in state if name != chosen]
        state = state[chosen]
    if not state or not all(isinstance(name, str) for name in state):
        raise ValueError(
            "no weights found: the state dictionary is empty, or its keys are no names"
        )
    flat = {strip(key): value for key, value in state.items()}
    halves = ("ema_denoiser.", "denoiser.") if which == "ema" else ("denoiser.", "ema_denoiser.")
    for prefix in halves:
        inside = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
        if inside:
            dropped += [key for key in flat if not key.startswith(prefix)]
            return {strip(key): value for key, value in inside.items()}, dropped
    return flat, dropped


def strip(key: str) -> str:
    """Remove the prefixes of wrappers from a parameter name."""
    key = re.sub(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", "", key)
    return re.sub(r"^(module\.)*(net\.)*", "", key)
