"""Weight files, read without running code, down to one flat dictionary of tensors.

A checkpoint may hold several networks and many wrappers. The order of choice is

    which="ema":    "ema" > "state_dict" with prefix "ema_denoiser." > "state_dict" > "model" > flat
    which="model":  "model" > "state_dict" with prefix "denoiser." > "state_dict" > flat

then the prefixes of wrappers are stripped: "module." (DDP), "_orig_mod." (torch.compile), "net.",
and those of FSDP and checkpointing.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_checkpoint(path: str | Path, unsafe_pickle: bool = False) -> dict[str, Any]:
    """Return what a weight file, or a folder of safetensors or .bin shards, contains.

    Raises ValueError for a file that needs code to load, unless `unsafe_pickle`: then the file
    may run anything it likes, as any pickle may.
    """
    path = Path(path)
    if path.is_dir():
        shards = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        if not shards:
            raise ValueError(f"{path} has no .safetensors or .bin file: name the weight file")
        merged: dict[str, Any] = {}
        for shard in shards:
            merged |= read_checkpoint(shard, unsafe_pickle)
        return merged
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a weight file or a folder of shards")
    if path.suffix == ".safetensors":
        return load_file(path)
    if unsafe_pickle:
        return _unpickle(path)
    try:
        # A namespace of arguments is plain data; training checkpoints of DiT, SiT, REPA hold one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it calls {called[1]}" if called else "or it is damaged, or no weight file at all"
        raise ValueError(
            f"{path} was not loaded: it is no plain file of tensors, and reading it would run code "
            f"stored in it ({reason}). Convert it to safetensors where you trust it, or, if you "
            "trust whoever made the file, allow it with --unsafe-pickle (unsafe_pickle=True)"
        ) from error


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
    state, dropped = checkpoint, []
    while not all(isinstance(value, Tensor) for value in state.values()):
        order = ("ema", "state_dict", "model") if which == "ema" else ("model", "state_dict")
        chosen = next((name for name in order if isinstance(state.get(name), Mapping)), None)
        if chosen is None:
            raise ValueError(
                f"no weights found: the file holds {', '.join(map(str, list(state)[:12]))}, but "
                f"none of {', '.join(order)}; pass the dictionary of tensors itself"
            )
        dropped += [str(name) for name in state if name != chosen]
        state = state[chosen]
    if not state:
        raise ValueError("the state dictionary is empty")
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
