"""Layers of settings: defaults, the preset of the objective, files in order, then flags.

A layer is a tree of the sections it changes.  A section whose class is a choice is written

    {class_path: Linear, init_args: {...}}    or short    Linear    or    {path: images}

and keeps the settings of the layers below as long as the class stays the same.  A layer that names
a preset starts the objective afresh from that preset.  All layers end in
:func:`ucgm.runs.config.from_dict`, which knows the types and is the only reader of settings.
"""

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ucgm.objective import Objective, preset
from ucgm.runs.config import POLYMORPHIC, Config, from_dict, to_dict
from ucgm.runs.yaml_files import Word, read_yaml
from ucgm.runtime.earlier import current_names


def config_of(words: Sequence[str], base: Config | None = None) -> Config:
    """The configuration of ``--config FILE`` and ``--section.key VALUE`` in their order.

    Args:
        words: of the command line.
        base: what they change; None: the built-in defaults.

    Raises:
        ValueError: an unreadable file, or a setting that is unknown or has no meaning.
    """
    return layered(_layers(words), base)


def layered(layers: Iterable[dict[str, Any]], base: Config | None = None) -> Config:
    """One configuration of several layers, the last of which wins.

    Raises:
        ValueError: see :func:`ucgm.runs.config.from_dict`.
    """
    tree: dict[str, Any] = {"objective": to_dict(Objective())} if base is None else to_dict(base)
    for layer in layers:
        objective = layer.get("objective")
        if isinstance(objective, dict) and "preset" in objective:
            tree["objective"] = to_dict(preset(str(objective["preset"])))
        if isinstance(layer.get("sampler"), dict) and "transport" in layer["sampler"]:
            raise ValueError("sampler.transport is that of the objective: set objective.transport")
        tree = _merged(Config, tree, layer)
    return from_dict(Config, _completed(tree))


def _layers(words: Sequence[str]) -> Iterable[dict[str, Any]]:
    """A tree for each file and each flag."""
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise ValueError(f"unexpected word {word!r}: settings are written --section.key VALUE")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ValueError(f"{name} needs a value")
            value = waiting.pop(0)
        keys = name[2:].replace("-", "_").split(".")
        if keys == ["config"]:
            try:
                yield current_names(read_yaml(Path(value)))
            except ValueError as error:
                raise ValueError(f"--config: {error}") from error
            continue
        tree: Any = Word(value)
        for key in reversed(keys):
            tree = {key: tree}
        yield current_names(tree)


def _completed(tree: dict[str, Any]) -> dict[str, Any]:
    """Sections that name no class are settings of the class that is the default there."""
    defaults = to_dict(Config())
    result = dict(tree)
    for name, section in tree.items():
        default = defaults.get(name)
        if isinstance(default, dict) and "class_path" in default and isinstance(section, dict):
            if "class_path" not in section:
                settings = default["init_args"] | section.get("init_args", {})
                result[name] = {"class_path": default["class_path"], "init_args": settings}
    return result


def _merged(hint: Any, below: Any, above: Any) -> Any:
    """The value of a layer over that of the layers below."""
    cls = next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)
    cls = next((t for t in (hint, *typing.get_args(hint)) if t in POLYMORPHIC), cls)
    if cls is None:
        return above
    if isinstance(above, Word):
        above = above.read("")
    if cls in POLYMORPHIC:
        return _merged_choice(below, above)
    if not isinstance(above, dict) or not isinstance(below, dict):
        below = {}
    if not isinstance(above, dict):
        return above
    hints = typing.get_type_hints(cls)
    return below | {k: _merged(hints.get(k), below.get(k), v) for k, v in above.items()}


def _merged_choice(below: Any, above: Any) -> Any:
    """The same for a section whose class is a choice."""
    if isinstance(above, Word):
        above = above.read("")
    if isinstance(above, str):
        above = {"class_path": str(above)}
    if not isinstance(above, dict):
        return above
    below = {"class_path": below} if isinstance(below, str) else below or {}
    given = above.get("init_args")
    if not (given is None or isinstance(given, dict)):
        return above
    short = {k: v for k, v in above.items() if k not in ("class_path", "init_args")}
    settings = (given or {}) | short
    path, before = above.get("class_path", below.get("class_path")), below.get("class_path")
    if str(path).rpartition(".")[2] == str(before).rpartition(".")[2]:
        settings = _deep(below.get("init_args") or {}, settings)
    return ({} if path is None else {"class_path": path}) | {"init_args": settings}


def _deep(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of one class: inner sections are merged as well."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            choice = "class_path" in inner or "class_path" in value
            value = _merged_choice(inner, value) if choice else _deep(inner, value)
        result[key] = value
    return result
