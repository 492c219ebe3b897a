"""One experiment as a tree of frozen dataclasses, each defined beside the part it configures.

``to_dict`` and ``from_dict`` are the file format of a run's ``config.yaml``: plain values, and for
a field whose class is a choice ``{class_path: ucgm.nn.DiTConfig, init_args: {...}}`` with the path
under which the class is public, whatever file it is in.  Reading imports nothing else.
"""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ucgm.data import DataConfig, Digits
from ucgm.nn import DiTConfig, NetworkConfig
from ucgm.objective import Objective
from ucgm.objective.destinations import Destination
from ucgm.objective.times import TimeDistribution
from ucgm.runs.settings import AlignmentConfig, EMAConfig, OptimizerConfig, TrainConfig
from ucgm.runtime.earlier import current_names
from ucgm.runtime.reading import Word, read_yaml, reading
from ucgm.runtime.values import check_values, checked
from ucgm.sampler import Guidance, Sampler
from ucgm.transport import Transport

POLYMORPHIC = (Transport, TimeDistribution, Destination, NetworkConfig, DataConfig)
# Packages that export the classes a file may name.
_PUBLIC = ("transport", "objective", "nn", "data", "integrations")
# What other frameworks call a setting.
_ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "batch_size": "train.global_batch",
    "epochs": "train.steps",
    "num_epochs": "train.steps",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "max_train_steps": "train.steps",
    "iterations": "train.steps",
    "gradient_accumulation_steps": "train.accumulation",
    "max_grad_norm": "train.grad_clip",
    "resolution": "data.size",
    "image_size": "data.size",
}
# Modules of the user's own that were named with --import.
_ALLOWED: set[str] = set()


@dataclass(frozen=True)
class Config:
    """A complete experiment."""

    model: NetworkConfig = DiTConfig(size="XL/2")
    """the network."""
    objective: Objective = field(default_factory=Objective)
    """what it learns."""
    data: DataConfig = Digits()
    """what it learns from."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """how weights are updated."""
    ema: EMAConfig = EMAConfig()
    """which averages of the weights are kept."""
    train: TrainConfig = TrainConfig()
    """how long and how often."""
    sampler: Sampler = field(default_factory=Sampler)
    """default sampler of previews, ``ucgm sample`` and ``ucgm benchmark``."""
    guidance: Guidance = Guidance()
    """default guidance in sampling."""
    alignment: AlignmentConfig = AlignmentConfig()
    """whose features the network follows, where the objective has this term."""

    def __post_init__(self) -> None:
        """The sampler always uses the path the model was trained on."""
        check_values(self)
        own = dataclasses.replace(self.sampler, transport=self.objective.transport)
        object.__setattr__(self, "sampler", own)


def to_dict(value: Any) -> Any:
    """Plain values of a configuration, ready for YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Sampler):
            fields.pop("transport")
        if isinstance(value, POLYMORPHIC):
            return {"class_path": class_path(type(value)), "init_args": fields}
        return fields
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return value


def class_path(cls: type) -> str:
    """The path under which a class is public, such as ``ucgm.nn.DiTConfig``."""
    module = cls.__module__
    if module.startswith("ucgm."):
        module = ".".join(module.split(".")[:2])
    return f"{module}.{cls.__qualname__}"


def allow_module(name: str) -> None:
    """Import a module of the user's own, whose classes configurations may then name.

    Raises:
        ValueError: it cannot be imported.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"--import {name} fails: {type(error).__name__}: {error}") from error
    _ALLOWED.add(name)


def is_allowed(name: str) -> bool:
    """Whether ``--import`` named the module ``name``."""
    return name in _ALLOWED


def _choice(expected: type, path: Any, where: str) -> type[Any]:
    """The class named by ``class_path``: of a package of ours, or of a module that was allowed.

    Nothing is imported because a file names it.
    """
    path = str(path) if isinstance(path, Word) else path
    if not isinstance(path, str):
        raise ValueError(f"{where}.class_path must be the name of a class, got {path!r}")
    package, _, name = path.rpartition(".")
    packages = [f"ucgm.{public}" for public in _PUBLIC]
    if package and package not in packages and package not in _ALLOWED:
        raise ValueError(
            f"{where}: class_path {path!r} is not part of ucgm and is not imported; to use a class "
            "of your own, name its module with --import"
        )
    for module in [package] if package else [*packages, *_ALLOWED]:
        cls = getattr(importlib.import_module(module), name, None)
        if isinstance(cls, type) and issubclass(cls, expected):
            return cls
    known = sorted({cls.__name__ for cls in subclasses(expected)})
    near = difflib.get_close_matches(name, known, 1, 0.45)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
    raise ValueError(f"{where}: class_path {path!r} is not a {expected.__name__}{hint}")


def subclasses(cls: type) -> Iterator[type]:
    """All that derive from a class, here or in a module of the user's."""
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def from_dict(expected: Any, value: Any, where: str = "") -> Any:
    """The inverse of :func:`to_dict` for the type ``expected``: every value is checked.

    Raises:
        ValueError: an unknown key, a value of another type, a number that is not finite, or a class
            that does not fit, with its place in the file.
    """
    arguments = typing.get_args(expected)
    if arguments[1:] == (...,) and dataclasses.is_dataclass(arguments[0]):
        return _sections(arguments[0], value, where)
    kinds = [kind for kind in arguments or (expected,) if kind is not type(None)]
    if isinstance(value, Word):
        read = None if expected is str else value.read(where)
        value = str(value) if kinds == [str] and read is not None or expected is str else read
    if len(kinds) == 1 and isinstance(kinds[0], type) and dataclasses.is_dataclass(kinds[0]):
        if value is None and kinds[0] is not expected:
            return None
        return _section(kinds[0], value, where)
    return checked(expected, value, where, text=True)


def _sections(cls: Any, value: Any, where: str) -> tuple[Any, ...]:
    """A list of dataclasses of one kind."""
    value = value.read(where) if isinstance(value, Word) else value
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list of sections, got {value!r:.80}")
    return tuple(from_dict(cls, item, f"{where}[{i}]") for i, item in enumerate(value))


def class_and_settings(section: Any) -> tuple[Any, Any]:
    """``class_path`` and ``init_args`` of a section, in full or in one of the short forms."""
    if not isinstance(section, dict):
        return section, {}
    short = {k: v for k, v in section.items() if k not in ("class_path", "init_args")}
    given = section.get("init_args") or {}
    return section.get("class_path"), given | short if isinstance(given, dict) else given


def _section(cls: type[Any], value: Any, where: str) -> Any:
    """A dataclass from its section; where the class is a choice the section names it."""
    chosen = issubclass(cls, POLYMORPHIC)
    if chosen and isinstance(value, str | dict):
        path, value = class_and_settings(value)
        cls = _choice(cls, path or "", where)
    if not isinstance(value, dict):
        place = f"{where}.init_args" if chosen else where or "the file"
        raise ValueError(f"{place} must hold settings, got {value!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in _settings_of(cls):
            raise ValueError(_unknown(cls, str(key), where))
    return cls(**{k: from_dict(hints[k], v, f"{prefix}{k}") for k, v in value.items()})


def _unknown(cls: type[Any], key: str, where: str) -> str:
    """What is said of a ``key`` that a section does not have: another class, or another name."""
    prefix, names = f"{where}." if where else "", _settings_of(cls)
    base = next((base for base in POLYMORPHIC if issubclass(cls, base)), None)
    owners = [sub.__name__ for sub in subclasses(base) if key in _settings_of(sub)] if base else []
    if owners:
        others = f" or --{where} ".join(dict.fromkeys(owners))
        return f"{prefix}{key} needs --{where} {others}; it is {cls.__name__} here"
    meant = _ELSEWHERE.get(key, "")
    last = meant.rpartition(".")[2]
    near = [prefix + name for name in difflib.get_close_matches(key, names, 1, 0.5)]
    if last in names:
        near = [prefix + last]
    elif "." not in where:
        sections = typing.get_type_hints(Config).items()
        same = [f"{name}.{key}" for name, kind in sections if key in _settings_of(kind)]
        near = [meant] if meant else same or near
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
    return f"unknown setting {prefix}{key}; {hint}"


def _settings_of(cls: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(cls) if f.init}


def to_yaml(config: Config) -> str:
    """A configuration as text."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(to_yaml(config))


def read_config(path: Path) -> Config:
    """Read a resolved configuration; a ValueError names the file and the place."""
    try:
        with reading(path):
            content = current_names(read_yaml(path))
    except (FileNotFoundError, NotADirectoryError):
        beside = sorted(str(found.parent) for found in path.parent.parent.glob(f"*/{path.name}"))
        hint = f" There are {', '.join(beside[:5])}." if beside else ""
        raise ValueError(f"{path} does not exist: is {path.parent} a run folder?{hint}") from None
    try:
        return from_dict(Config, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a tree of mappings, such as a configuration, by its dotted key."""
    tree = to_dict(tree) if isinstance(tree, Config) else tree
    if not isinstance(tree, dict):
        return {prefix: tree}
    result: dict[str, Any] = {}
    for key, inner in tree.items():
        result |= flat(inner, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    return result


def differences(old: Config, new: Config) -> list[str]:
    """Dotted keys with both values, for every setting in which two configurations differ."""
    one, two = flat(old), flat(new)
    return [
        f"{key}: {one.get(key)} in the run, {two.get(key)} now"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]
