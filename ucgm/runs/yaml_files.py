"""YAML from strangers: a regular file of plain values, no more than a person would write.

PyYAML's safe loader runs no code, but a pipe never ends, and a few lines of aliases expand to more
than the memory holds.
"""

import stat
from pathlib import Path
from typing import Any

import yaml

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 20_000
_DEEPEST = 40


class Word(str):
    """A value as it was typed on the command line: it is read as what its setting needs."""

    def read(self, where: str) -> Any:
        """The value in YAML's sense, such as a number, a list, or null."""
        return parse_yaml(self, f"--{where}") if self.strip() else str(self)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a file.

    Raises:
        ValueError: the file is not there, not readable, too large, or holds no sections.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if found.st_size > _LARGEST_FILE:
            raise ValueError(f"{path} is too large for a configuration ({found.st_size:,} bytes)")
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections such as model: and train:")
    return content


def parse_yaml(text: str, name: str) -> Any:
    """Plain values of a text.

    Raises:
        ValueError: naming ``name``.
    """
    try:
        content = yaml.safe_load(text)
        left = [_MOST_VALUES]
        _count(content, left, 0)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not readable YAML: {error}") from error
    return content


def _count(value: Any, left: list[int], depth: int) -> None:
    """Refuse what expands to more values, or deeper, than a configuration can be."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise ValueError("it expands to too many values, or too deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{key!r} is no name of a setting")
            _count(inner, left, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _count(inner, left, depth + 1)
