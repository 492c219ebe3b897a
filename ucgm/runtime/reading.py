"""Files that somebody else may have made, read as plain values: YAML, JSON, tensors without code.

Every reader has errors of its own.  :func:`reading` makes one line of them that names the file, and
keeps apart a file that is damaged from one that may not be read, which nobody should delete.
"""

import argparse
import contextlib
import json
import pickle
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from ucgm.runtime.values import checked

_LARGEST_YAML = 1 << 18
_MOST_VALUES = 20_000
_DEEPEST = 40


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads ``path``, which must be a regular file: a pipe never ends.

    Raises:
        FileNotFoundError: it is not there.
        OSError: the system does not let it be read; the message says so in words.
        ValueError: it is something else, or damaged: any other error of the reader.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is no regular file")
        path.open("rb").close()  # safetensors calls a file without permission missing
        yield
    except OSError as error:
        raise _in_words(error, path) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, SafetensorError):
            size = path.stat().st_size
            reason = f"it has {size:,} bytes and is truncated, or no safetensors file ({reason})"
        elif not isinstance(error, ValueError):
            reason = f"{type(error).__name__} {reason}"
        named = reason if str(path) in reason else f"{path} cannot be read: {reason}"
        raise ValueError(named) from error


def _in_words(error: OSError, path: Path) -> OSError:
    if isinstance(error, PermissionError):
        return PermissionError(f"no permission to read {error.filename or path}")
    if error.strerror is None:
        return error
    return type(error)(f"{error.filename or path} cannot be read: {error.strerror}")


def listed(folder: Path, pattern: str) -> list[Path]:
    """What matches ``pattern`` in a folder, by name; nothing where there is no folder.

    Raises:
        PermissionError: the folder may not be read, which is not the same as empty.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.match(pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _in_words(error, folder) from error


def read_json(path: Path, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file, with ``fields`` as :func:`check_fields` takes them.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it holds something else.
    """
    with reading(path):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__} in place of a JSON object.")
        check_fields(content, fields or {})
    return content


def check_fields(value: Any, shape: Any, where: str = "") -> None:
    """Refuse a value of a JSON file that is not of a shape.

    Args:
        value: from the file.
        shape: of an object, its fields (there may be others); of a list of any length, that of its
            items in brackets; int for a count; else an annotation, see
            :func:`ucgm.runtime.values.checked`.
        where: its place in the file, for errors.

    Raises:
        ValueError: naming the field.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {value!r:.60}")
        for name, inner in shape.items():
            place = f"{where}.{name}" if where else name
            if name not in value:
                raise ValueError(f"{place} is missing")
            check_fields(value[name], inner, place)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r:.60}")
        for number, item in enumerate(value):
            check_fields(item, shape[0], f"{where}[{number}]")
    elif shape is int and (type(value) is not int or not 0 <= value < 2**63):
        raise ValueError(f"{where} must be a count, got {value!r:.60}")
    else:
        checked(shape, value, where)


def read_tensors(path: Path, remedy: str = "") -> dict[str, Any]:
    """The dictionary in a safetensors file, or in a torch file that needs no code.

    Args:
        path: the file.
        remedy: what else may be done about a file that needs code, for the error.

    Raises:
        OSError: not there, or not to be read.
        ValueError: damaged, or to be read only by running code.
    """
    with reading(path):
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load(path, remedy)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} in place of named tensors")
    return {name: value for name, value in content.items() if isinstance(name, str)}


def _load(path: Path, remedy: str) -> Any:
    """What torch.save wrote."""
    try:
        # A namespace of arguments is plain data; training checkpoints of DiT, SiT, REPA hold one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it calls {called[1]}" if called else "or it is damaged, or no weight file at all"
        raise ValueError(
            f"{path} was not loaded: it is no plain file of tensors, and reading it would run code "
            f"stored in it ({reason}). Convert it to safetensors where you trust it{remedy}"
        ) from error


class Word(str):
    """A value as it was typed on the command line: it is read as what its setting needs."""

    def read(self, where: str) -> Any:
        """The value in YAML's sense, such as a number, a list, or null."""
        return parse_yaml(self, f"--{where}") if self.strip() else str(self)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a configuration: no more than a person would write.

    Raises:
        ValueError: the file is not there, not readable, too large, or holds no sections.
    """
    try:
        with reading(path):
            size = path.stat().st_size
            if size > _LARGEST_YAML:
                raise ValueError(f"{path} is too large for a configuration ({size:,} bytes)")
            content = parse_yaml(path.read_text(), str(path))
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections such as model: and train:")
    return content


def parse_yaml(text: str, name: str) -> Any:
    """Plain values of a text; PyYAML's safe loader runs no code.

    Raises:
        ValueError: naming ``name``.
    """
    try:
        content = yaml.safe_load(text)
        refuse_bomb(content, _MOST_VALUES)
    except Exception as error:  # PyYAML's own, and those of numbers and dates that are none
        raise ValueError(f"{name} is not readable YAML: {' '.join(str(error).split())}") from error
    return content


def refuse_bomb(value: Any, most: int) -> None:
    """Refuse plain values that are more than ``most``, or deeper than a person would write.

    Raises:
        ValueError: they are, or a key is no text.
    """
    waiting, count = [(value, 0)], 0
    while waiting:  # YAML's aliases may stand for many
        (value, depth), count = waiting.pop(), count + 1
        if count > most or depth > _DEEPEST:
            raise ValueError("it expands to too many values, or too deep")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"{key!r} is no name of a setting")
            value = list(value.values())
        if isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
