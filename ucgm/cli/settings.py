"""Every setting of a training as text: what ``ucgm train --help-all`` prints."""

import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import docstring_parser

from ucgm.nn import DiTConfig
from ucgm.runs.config import POLYMORPHIC, Config, subclasses
from ucgm.runs.fitted import FITTED
from ucgm.runs.layers import training_config

_BEGIN = """\
Every setting of a training. It is written as a flag, --SECTION.KEY VALUE, or in a file for
--config, SECTION: {KEY: VALUE}. Defaults are in parentheses: those of the preset multi_step, with
which a training begins; `ucgm presets NAME` has those of another. Where it says (fitted), the
default follows from the data, the device, the network and the length, and is printed before the
training starts.

  --run-dir RUN
      folder of the run; the same one continues (required)
  --config FILE
      settings in YAML; several are layered, the last wins
  --import MODULE
      a module of your own whose classes settings may name
  --print-config
      print the settings, without those that are fitted, and end"""
_METAVARS = {bool: "BOOL", int: "N", float: "X", str: "TEXT"}


def help_of_settings() -> str:
    """Every setting with its meaning and its default, section by section."""
    config, hints, lines = training_config([])[0], typing.get_type_hints(Config), [_BEGIN]
    for name, meaning in _meanings(Config).items():
        hint, value = hints[name], getattr(config, name)
        lines.append(f"\n{name}: {meaning}")
        if hint not in POLYMORPHIC:
            lines += _rows(name, hint, value)
            continue
        lines += _row(f"{name} CLASS", "which", type(value).__name__)
        for cls in [hint, *subclasses(hint)]:
            rows = list(_rows(name, cls, None, [*vars(cls).get("__annotations__", ())]))
            if rows:
                about = (cls.__doc__ or "").partition("\n")[0]
                title = f"--{name} {' | '.join(_choices(cls))}: {about}"
                lines += ["", textwrap.fill(title, 98, initial_indent="  ", subsequent_indent="  ")]
                lines += rows
    return "\n".join(lines)


def _rows(prefix: str, cls: Any, value: Any, names: list[str] | None = None) -> Iterator[str]:
    """The fields of a dataclass, or those with these ``names``; ``value`` is one, or None."""
    hints, meanings = typing.get_type_hints(cls), _meanings(cls)
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}.{field.name}", hints[field.name]
        if not field.init or (names is not None and field.name not in names):
            continue
        if name == "sampler.transport":  # that of the objective
            continue
        default = _default(field) if value is None else getattr(value, field.name)
        # A network that is named has a size of its own.
        open_choice = name in FITTED and (prefix != "model" or issubclass(DiTConfig, cls))
        shown = "fitted" if open_choice else _shown(default)
        meaning, kind = meanings.get(field.name, ""), _kinds(hint)[0]
        if kind in POLYMORPHIC:
            choices = ", ".join(_choices(kind, with_fields=True))
            yield from _row(f"{name} CLASS", f"{meaning} One of {choices}.", shown)
        elif dataclasses.is_dataclass(kind) and default is not None and shown != "[]":
            yield from _rows(name, kind, default)
        elif dataclasses.is_dataclass(kind):
            keys = ", ".join(f.name for f in dataclasses.fields(kind))
            yield from _row(f"{name} {{{keys}}}", meaning, shown)
        else:
            yield from _row(f"{name} {_metavar(hint)}", meaning, shown)


def _row(option: str, meaning: str, default: str) -> Iterator[str]:
    """An option, and below it what it means."""
    margin = " " * 6
    text = f"{meaning.rstrip('.')} ({default})".replace("``", "`")
    yield f"  --{option}"
    yield textwrap.fill(text, 98, initial_indent=margin, subsequent_indent=margin)


def _meanings(cls: type) -> dict[str, str]:
    """Docstrings of the fields of a class and its bases, each as one line."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        try:
            params = docstring_parser.parse_from_object(base).params
        except (OSError, TypeError):  # a class without a file, of a notebook
            params = docstring_parser.parse(base.__doc__ or "").params
        found |= {p.arg_name: " ".join((p.description or "").split()) for p in params}
    return found


def _choices(cls: type, with_fields: bool = False) -> Iterator[str]:
    """The classes that a setting may name, and of what they are set."""
    for sub in [cls, *subclasses(cls)]:
        fields = [f.name for f in dataclasses.fields(sub)] if with_fields else []
        if sub not in POLYMORPHIC and not inspect.isabstract(sub):
            yield sub.__name__ + (f"({', '.join(fields)})" if fields else "")


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, or the arguments of a generic one, without None."""
    return [k for k in typing.get_args(hint) or (hint,) if k is not type(None)]


def _metavar(hint: Any) -> str:
    """What stands for a value of a type: the choices, or a word for the kind."""
    kinds = _kinds(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, kinds))
    if typing.get_origin(hint) is tuple:
        return f"[{_metavar(kinds[0])},...]"
    return _metavar(kinds[0]) if kinds[0] is not hint else _METAVARS.get(hint, "VALUE")


def _default(field: Any) -> Any:
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def _shown(value: Any) -> str:
    """A default as it is written in a file."""
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(str(value), str(value))
