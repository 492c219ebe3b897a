"""One experiment as a tree of frozen dataclasses, each defined beside the part it configures.

``to_dict`` and ``from_dict`` are the file format of a run's ``config.yaml``: plain values, and for
a field whose class is a choice ``{class_path: ucgm.nn.DiTConfig, init_args: {...}}`` with the path
under which the class is public, whatever file it is in.  Reading imports nothing else.
"""

import dataclasses
import importlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ucgm.data import DataConfig, Digits
from ucgm.nn import DiTConfig, NetworkConfig
from ucgm.objective import Objective
from ucgm.objective.times import Destination, TimeDistribution
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.runtime.earlier import current_names
from ucgm.sampler import Guidance, Sampler
from ucgm.transport import Transport

POLYMORPHIC = (Transport, TimeDistribution, Destination, NetworkConfig, DataConfig)
# Packages that export the classes a file may name.
_PUBLIC = ("transport", "objective", "nn", "data", "integrations")


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

    def __post_init__(self) -> None:
        """The sampler always uses the path the model was trained on."""
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
    package = ".".join(cls.__module__.split(".")[:2]) if cls.__module__ else ""
    return f"{package}.{cls.__qualname__}"


def _choice(expected: type, path: str, where: str) -> type[Any]:
    """The class named by ``class_path``, which a package of ours must export."""
    package, _, name = path.rpartition(".")
    if package not in {f"ucgm.{public}" for public in _PUBLIC}:
        raise ValueError(f"{where}: class_path {path!r} is not part of ucgm and is not imported")
    cls = getattr(importlib.import_module(package), name, None)
    if not (isinstance(cls, type) and issubclass(cls, expected)):
        raise ValueError(f"{where}: class_path {path!r} is not a {expected.__name__}")
    return cls


def from_dict(expected: Any, value: Any, where: str = "config") -> Any:
    """The inverse of :func:`to_dict` for the type ``expected``.

    Raises:
        ValueError: an unknown key or a class that does not fit, with its place in the file.
    """
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        options = [t for t in typing.get_args(expected) if t is not type(None)]
        return None if value is None else from_dict(options[0], value, where)
    if origin is tuple:
        return tuple(value)
    if not (isinstance(expected, type) and dataclasses.is_dataclass(expected)):
        return value
    cls: type[Any] = expected
    if isinstance(value, dict) and issubclass(cls, POLYMORPHIC):
        cls = _choice(cls, value.get("class_path", ""), where)
        value = value.get("init_args") or {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a section, got {value!r}")
    hints = typing.get_type_hints(cls)
    unknown = value.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)} for {cls.__name__}")
    return cls(**{k: from_dict(hints[k], v, f"{where}.{k}") for k, v in value.items()})


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def read_config(path: Path) -> Config:
    """Read a resolved configuration; a ValueError names the file and the place."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: is {path.parent} a run folder?") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    return from_dict(Config, current_names(content), str(path))


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key."""

    def walk(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        result: dict[str, Any] = {}
        for key, inner in value.items():
            name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
            result |= walk(inner, name)
        return result

    return walk(to_dict(config), "")


def differences(old: Config, new: Config) -> list[str]:
    """Dotted keys with both values, for every setting in which two configurations differ."""
    one, two = flat(old), flat(new)
    return [
        f"{key}: {one.get(key)} in the run, {two.get(key)} now"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]
