"""Layers of settings, from the lowest: each is a tree of the sections it changes.

    defaults   of the classes
    start      a training with ``train.init``: network and data of the run it starts from; of a
               post-training (fd_post, mmd_post) also its objective, sampler and guidance
    preset     its objective, and its recipe: sampler, optimizer ... (:mod:`ucgm.runs.recipes`)
    fitted     network, length, batch, rate for the data and the device: of a training without a
               size, and of the presets that follow them (:mod:`ucgm.runs.fitted`)
    files      in their order
    flags      in their order

The preset and what is fitted lie below the file that names the preset, above the files before it;
batch, rate, warm-up and decay of its recipe lie below all files, which know their own budget.  A
run that exists goes on with what its preset brought when it began.
A section whose class is a choice is written

    {class_path: Linear, init_args: {...}}    or short    Linear    or    {path: images}

and keeps the settings of the layers below as long as the class stays the same.  All layers end in
:func:`ucgm.runs.config.from_dict`, which knows the types and is the only reader of settings.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ucgm.objective import POST_TRAINING, Objective, preset
from ucgm.objective.presets import of_samples
from ucgm.runs.config import Config, class_and_settings, from_dict, read_config, to_dict
from ucgm.runs.fitted import DEFAULTS, Layer, fitted_layer
from ucgm.runs.recipes import model_inputs, preset_layers
from ucgm.runs.remote import Remote, local_run
from ucgm.runtime.earlier import current_names
from ucgm.runtime.processes import best_device
from ucgm.runtime.reading import Word, read_yaml

# Sections whose class is a choice, and settings of a network that give it a size.
_CHOICES = ("model", "data")
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
        run_dir: of the run; one that exists goes on with what was fitted and what the preset
            brought when it began, and with its own configuration where no layer names a preset.
            None: nothing is fitted.

    Raises:
        ValueError: see :func:`ucgm.runs.config.from_dict`; no run to start from.
    """
    layers, stored, mirror = list(layers), None, _named(layers, "mirror")
    if run_dir is not None and (run_dir / "config.yaml").exists():
        stored = read_config(run_dir / "config.yaml")
    elif run_dir is not None and mirror is not None:
        stored = Remote(mirror, run_dir).config_there()
    objectives = [_section(layer, "objective") for layer in layers]
    presets = [section["preset"] for section in objectives if "preset" in section]
    if stored is not None and not presets:
        return layered(layers, stored), None
    if not presets:
        layers = [{"objective": {"preset": DEFAULTS[0]}}, *layers]
    published = bool(presets) and str(presets[-1]) not in DEFAULTS
    sized = any(not _SIZE.isdisjoint(_section(layer, "model")) for layer in layers)
    if published and sized and any("data" in layer for layer in layers):
        return layered(layers, run=stored), None
    init = _named(layers, "init")
    start = None if init is None else read_config(local_run(init) / "config.yaml")
    config = layered(layers, start=start, run=stored)
    if run_dir is None or (sized and published):
        return config, None
    device = best_device() if stored is None else "cpu"
    given = {f"{name}.{key}" for layer in layers for name in layer for key in _section(layer, name)}
    fitted = fitted_layer(config.data.open(), device, config, sized, given)
    if stored is not None:
        fitted = _of_run(fitted, to_dict(stored))
    config = layered(layers, start=start, fitted=fitted, run=stored)
    return config, fitted if stored is None else None


def layered(
    layers: Iterable[Layer],
    base: Config | None = None,
    start: Config | None = None,
    fitted: Layer | None = None,
    run: Config | None = None,
) -> Config:
    """One configuration of several layers, the last of which wins.

    Args:
        layers: of the user.
        base: what they change; None: the built-in defaults.
        start: the run that a training starts from.
        fitted: what is chosen for the data and the device.
        run: a run that goes on; what the preset brings is that of the run.

    Raises:
        ValueError: see :func:`ucgm.runs.config.from_dict`.
    """
    layers = list(layers)
    tree: Layer = {"objective": to_dict(Objective()), "model": {}, "data": {}}
    if base is not None:
        tree = to_dict(base)
    if start is not None:
        tree |= {"model": to_dict(start.model), "data": to_dict(start.data)}
    named = [i for i, layer in enumerate(layers) if "preset" in _section(layer, "objective")]
    method: Layer = {}
    if named:
        name = str(layers[named[-1]]["objective"]["preset"])
        chosen, budget, method = _of_preset(name, run, start)
        tree = _merged(tree, budget) if base is None else tree
    for i, layer in enumerate(layers or [{}]):
        if i in named:
            tree["objective"] = to_dict(preset(str(layer["objective"]["preset"])))
        if named and i == named[-1]:
            tree = _merged(tree | {"objective": to_dict(chosen)}, method)
        if fitted and i == (named[-1] if named else 0):
            tree = _merged(tree, fitted)
        if "transport" in _section(layer, "sampler"):
            raise ValueError("sampler.transport is that of the objective: set objective.transport")
        solver = _section(layer, "sampler").get("solver")
        below = tree.get("sampler", {})
        if solver is not None and isinstance(below, dict) and str(solver) != below.get("solver"):
            # As with a class: what another solver does not read is not carried over.
            tree["sampler"] = {k: v for k, v in below.items() if k in ("steps", "grid", "restart")}
        tree = _merged(tree, layer)
    for name, section in to_dict(Config()).items():  # settings of the class that is the default
        if "class_path" in section and class_and_settings(tree[name])[0] is None:
            tree[name] = _merged(section, tree[name])
    config = from_dict(Config, tree)
    if base is not None:
        return config
    given = {key for layer in layers for key in _section(layer, "model")}
    same = run is not None and run.objective.preset == config.objective.preset
    config = _with_inputs(config, given, run if same else None)
    if run is not None or any("warmup_steps" in _section(layer, "optimizer") for layer in layers):
        return config
    # The published warm-up belongs to the published length.
    warmup = min(config.optimizer.warmup_steps, config.train.steps // 20)
    shortened = dataclasses.replace(config.optimizer, warmup_steps=warmup)
    return dataclasses.replace(config, optimizer=shortened)


def _of_preset(
    name: str, run: Config | None, start: Config | None
) -> tuple[Objective, Layer, Layer]:
    """What a preset brings: its objective, and the two layers of its recipe.

    Args:
        name: of the preset.
        run: one that goes on; where it has this preset, it keeps what that brought.
        start: the run that a training starts from, of which a post-training keeps what it can.
    """
    objective, layers = preset(name), preset_layers(name)
    if run is not None and run.objective.preset == name:
        objective, layers = run.objective, [_of_run(layer, to_dict(run)) for layer in layers]
    budget, method = layers
    if start is not None and run is None and name in POST_TRAINING:
        objective = of_samples(start.objective, objective)
        own = {"sampler": to_dict(start.sampler), "guidance": to_dict(start.guidance)}
        budget = budget | own
    return objective, budget, method


def _with_inputs(config: Config, given: set[str], run: Config | None) -> Config:
    """The network takes what the objective gives it, unless the setting was ``given``.

    Args:
        config: without it.
        given: settings of the network that the user named.
        run: one of the same preset that goes on, and keeps what it has.

    Raises:
        ValueError: a network that cannot say what the preset learns.
    """
    objective, model = config.objective, config.model
    kind = model.defaults()[1]  # of a setting that is null
    missing = {
        name: value
        for name, value in objective.network_inputs.items()
        if name not in given and not (getattr(model, name, value) or kind.get(name))
    }
    if config.train.keep_blocks and "depth" not in given and hasattr(model, "depth"):
        missing["depth"] = len(config.train.keep_blocks)
    depth = missing.get("depth") or getattr(model, "depth", None)
    depth = depth or kind.get("depth", 1)
    if "exit_layer" in missing:
        missing["exit_layer"] = max(1, depth // 4)
    for name, value in model_inputs(objective.preset, depth).items():
        if not hasattr(model, name):
            raise ValueError(
                f"the preset {objective.preset} needs model.{name} {value}, which "
                f"{type(model).__name__} does not have: choose another network"
            )
        if name not in given:
            missing[name] = value if run is None else getattr(run.model, name, value)
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
        flags = _merged(flags, current_names(tree))
    return [*files, flags] if flags else files


def _section(layer: Layer, name: str) -> Layer:
    """The settings of a section that a layer names; the class counts as ``class_path``."""
    path, settings = class_and_settings(layer.get(name, {}))
    named = {} if path is None else {"class_path": path}
    return named | (settings if isinstance(settings, dict) else {})


def _named(layers: Iterable[Layer], setting: str) -> str | None:
    """What ``train.setting`` names."""
    named = [value for layer in layers if (value := _section(layer, "train").get(setting))]
    return None if not named or str(named[-1]) == "null" else str(named[-1])


def _of_run(fitted: Layer, run: Layer) -> Layer:
    """The settings of ``fitted`` as a run has them."""
    return {
        section: run[section] if section in _CHOICES else {key: run[section][key] for key in part}
        for section, part in fitted.items()
    }


def _merged(below: Any, above: Any) -> Any:
    """The value of a layer over that of the layers below."""
    if isinstance(above, Word) and isinstance(below, dict):
        above = above.read("")
    if isinstance(above, str) and isinstance(below, dict) and "class_path" in below:
        above = {"class_path": str(above)}
    if isinstance(below, str) and isinstance(above, dict):
        below = {"class_path": below}
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if {"class_path", "init_args"}.isdisjoint(below.keys() | above.keys()):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    (before, kept), (path, settings) = class_and_settings(below), class_and_settings(above)
    path = before if path is None else path
    if before is None or str(path).rpartition(".")[2] == str(before).rpartition(".")[2]:
        settings = _merged(kept, settings)
    return {"class_path": path, "init_args": settings}
