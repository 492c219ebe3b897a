"""Files that somebody else may have made: JSON objects, and tensors without code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it holds something else.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} in place of a JSON object.")
    return content


def check_fields(values: Mapping[str, Any], fields: Mapping[str, type], where: str) -> None:
    """Refuse an object whose fields are missing or of other types; numbers count something.

    Raises:
        ValueError: naming the field.
    """
    for name, kind in fields.items():
        value = values.get(name)
        # bool is an int to isinstance, and true is no count.
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            needed = "a count" if kind is int else f"of type {kind.__name__}"
            raise ValueError(f"{where} has {name} {value!r:.60}; it must be {needed}.")


def read_tensors(path: Path) -> dict[str, Any]:
    """The dictionary in a safetensors file, or in a torch file that needs no code.

    Raises:
        ValueError: not there, not readable, damaged, or to be read only by running code.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        path.open("rb").close()  # safetensors calls a file without permission missing
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} in place of named tensors")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # safetensors, pickle, zip files and torch have their own errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}). A checkpoint with pickled objects "
            "runs code when it is loaded: open it where that is harmless and save its tensors as "
            "safetensors."
        ) from error
    return {name: value for name, value in content.items() if isinstance(name, str)}
