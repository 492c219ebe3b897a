"""Layers of settings, from the lowest: each is a tree of the sections it changes.

    defaults   of the classes
    start      a training with ``train.init``: network and data of the run it starts from
    preset     its objective, sampler, optimizer and averages (:mod:`ucgm.runs.recipes`)
    fitted     a training without a size: network, length, batch, rate for the data and the device
    files      in their order
    flags      in their order

The preset and what is fitted lie below the file that names the preset, above the files before it.
A section whose class is a choice is written

    {class_path: Linear, init_args: {...}}    or short    Linear    or    {path: images}

and keeps the settings of the layers below as long as the class stays the same.  All layers end in
:func:`ucgm.runs.config.from_dict`, which knows the types and is the only reader of settings.
"""

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ucgm.objective import Objective, preset
from ucgm.runs.config import POLYMORPHIC, Config, from_dict, read_config, to_dict
from ucgm.runs.recipes import Layer, fitted_layer, preset_layer
from ucgm.runtime.earlier import current_names
from ucgm.runtime.processes import best_device
from ucgm.runtime.reading import Word, read_yaml

# Settings of a network that give it a size.
_SIZE = {"class_path", "size", "hidden_size", "depth", "channels", "model_channels"}


def config_of(words: Sequence[str], base: Config | None = None) -> Config:
    """The configuration of ``--config FILE`` and ``--section.key VALUE``.

    Args:
        words: of the command line.
        base: what they change; None: the built-in defaults.

    Raises:
        ValueError: an unreadable file, or a setting that is unknown or has no meaning.
    """
    return layered(layers_of(words), base)


def training_config(
    layers: Iterable[Layer], run_dir: Path | None = None
) -> tuple[Config, Layer | None]:
    """The configuration of a training, and what was fitted to the data and the device in it.

    Args:
        layers: of the user, in their order.
        run_dir: of the run; one that exists goes on with what was fitted when it began, and with
            its own configuration where no layer names a preset.  None: nothing is fitted.

    Raises:
        ValueError: see :func:`ucgm.runs.config.from_dict`; no run to start from.
    """
    layers, stored = list(layers), None
    if run_dir is not None and (run_dir / "config.yaml").exists():
        stored = read_config(run_dir / "config.yaml")
    if stored is not None and not any("preset" in _section(layer, "objective") for layer in layers):
        return layered(layers, stored), None
    sized = any(not _SIZE.isdisjoint(_section(layer, "model")) for layer in layers)
    if sized and any("data" in layer for layer in layers):
        return layered(layers), None
    start = _start(layers)
    config = layered(layers, start=start)
    if sized or run_dir is None:
        return config, None
    device = best_device() if stored is None else "cpu"
    fitted = fitted_layer(config.data.open(), device, tuning=start is not None)
    if stored is not None:
        fitted = _of_run(fitted, to_dict(stored))
    config = layered(layers, start=start, fitted=fitted)
    return config, fitted if stored is None else None


def layered(
    layers: Iterable[Layer],
    base: Config | None = None,
    start: Config | None = None,
    fitted: Layer | None = None,
) -> Config:
    """One configuration of several layers, the last of which wins.

    Args:
        layers: of the user.
        base: what they change; None: the built-in defaults.
        start: the run that a training starts from.
        fitted: what is chosen for the data and the device.

    Raises:
        ValueError: see :func:`ucgm.runs.config.from_dict`.
    """
    layers = list(layers)
    tree: Layer = {"objective": to_dict(Objective())} if base is None else to_dict(base)
    if start is not None:
        tree |= {"model": to_dict(start.model), "data": to_dict(start.data)}
    named = [i for i, layer in enumerate(layers) if "preset" in _section(layer, "objective")]
    for i, layer in enumerate(layers or [{}]):
        if i in named:
            chosen = preset(str(layer["objective"]["preset"]))
            tree["objective"] = to_dict(chosen)
            if i == named[-1]:
                tree = _merged(Config, tree, preset_layer(chosen))
        if fitted and i == (named[-1] if named else 0):
            tree = _merged(Config, tree, fitted)
        if "transport" in _section(layer, "sampler"):
            raise ValueError("sampler.transport is that of the objective: set objective.transport")
        tree = _merged(Config, tree, layer)
    config = from_dict(Config, _completed(tree))
    given = {key for layer in layers for key in _section(layer, "model")}
    return config if base is not None else _with_inputs(config, given)


def _with_inputs(config: Config, given: set[str]) -> Config:
    """The network takes what the objective gives it, unless the setting was ``given``."""
    objective, model = config.objective, config.model
    inputs = {
        "second_time": objective.two_time,
        "guidance_input": objective.guidance_range is not None,
    }
    missing = {
        name: True
        for name, needed in inputs.items()
        if needed and name not in given and getattr(model, name, True) is False
    }
    return dataclasses.replace(config, model=dataclasses.replace(model, **missing))


def layers_of(words: Sequence[str]) -> list[Layer]:
    """A layer for each file, and one for all flags.

    Raises:
        ValueError: an unreadable file, or a word that is no setting.
    """
    files: list[Layer] = []
    flags: Layer = {}
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
                files.append(current_names(read_yaml(Path(value))))
            except ValueError as error:
                raise ValueError(f"--config: {error}") from error
            continue
        tree: Any = Word(value)
        for key in reversed(keys):
            tree = {key: tree}
        flags = _merged(Config, flags, current_names(tree))
    return [*files, flags] if flags else files


def _section(layer: Layer, name: str) -> Layer:
    """The settings of a section that a layer names; the class counts as ``class_path``."""
    found = layer.get(name, {})
    if not isinstance(found, dict):
        return {"class_path": found}
    inner = found.get("init_args")
    return found | (inner if isinstance(inner, dict) else {})


def _start(layers: list[Layer]) -> Config | None:
    """Configuration of the run that ``train.init`` names."""
    named = [init for layer in layers if (init := _section(layer, "train").get("init"))]
    if not named or str(named[-1]) == "null":
        return None
    return read_config(Path(str(named[-1])) / "config.yaml")


def _of_run(fitted: Layer, run: Layer) -> Layer:
    """The settings of ``fitted`` as a run has them."""
    return {
        section: run[section] if section == "model" else {key: run[section][key] for key in part}
        for section, part in fitted.items()
    }


def _completed(tree: Layer) -> Layer:
    """Sections that name no class are settings of the class that is the default there."""
    defaults = to_dict(Config())
    result = {"model": {}} | tree
    for name, section in result.items():
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
    below = {"class_path": below} if isinstance(below, str) else below
    below = below if isinstance(below, dict) else {}
    given = above.get("init_args")
    if not (given is None or isinstance(given, dict)):
        return above
    short = {k: v for k, v in above.items() if k not in ("class_path", "init_args")}
    settings = (given or {}) | short
    path, before = above.get("class_path", below.get("class_path")), below.get("class_path")
    if str(path).rpartition(".")[2] == str(before).rpartition(".")[2]:
        inner = below.get("init_args")
        settings = _deep(inner if isinstance(inner, dict) else {}, settings)
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
