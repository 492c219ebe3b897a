"""``ucgm presets``: every method, or one with its whole recipe and the source of each value."""

import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ucgm.objective import POST_TRAINING, PRESETS, Objective, preset
from ucgm.objective.presets import count_passes
from ucgm.runs.config import Config, flat
from ucgm.runs.layers import config_of
from ucgm.runs.recipes import recipe_of

# What is said of every preset, also where its recipe is silent.
_ALWAYS = ("sampler.steps", "sampler.solver", "sampler.grid.gap", "ema.target_decay")
_WIDTH = 100


def print_presets(name: str = "", markdown: bool = False) -> None:
    """Print every preset with its passes; or one with its settings, and where they come from.

    Passes are per row of the batch: ``gradient`` a forward and its backward, ``forward`` without
    gradient, ``tangent`` a forward with its derivative; a row that a pass skips counts 0.

    Args:
        name: of a preset, for its whole recipe.
        markdown: print the table of docs/objective.md.

    Raises:
        ValueError: no preset of this name.
    """
    if markdown:
        print(preset_table())
    elif name:
        print("\n".join(_recipe_lines(name, preset(name))))
    else:
        for key, (title, objective) in (PRESETS | POST_TRAINING).items():
            print(f"{key:<20} {_passes(objective)}\n{textwrap.indent(title, '    ')}")
        print("\n`ucgm presets NAME` prints the settings, optimizer, averages and sampler of one.")


def preset_table() -> str:
    """The presets as Markdown: method, passes per row of the batch, settings."""
    lines = ["| preset | method | passes | settings |", "|---|---|---|---|"]
    for name, (title, objective) in PRESETS.items():
        changes = "<br>".join(f"`{k} = {v}`" for k, v in _settings(objective))
        lines.append(f"| `{name}` | {title} | {_passes(objective)} | {changes} |")
    return "\n".join(lines)


def _passes(objective: Objective) -> str:
    counts = count_passes(objective)
    return ", ".join(f"{value:.2f} {kind}" for kind, value in counts.items() if value)


def _settings(objective: Objective) -> Iterator[tuple[str, Any]]:
    """The settings in which an objective differs from flow matching."""
    plain = Objective()
    for name in (f.name for f in fields(Objective) if f.name != "preset"):
        if getattr(objective, name) != getattr(plain, name):
            yield name, getattr(objective, name)


def _recipe_lines(name: str, objective: Objective) -> Iterator[str]:
    """A preset in columns: setting, value, source."""
    yield from textwrap.wrap(f"{name}: {(PRESETS | POST_TRAINING)[name].title}", _WIDTH)
    yield f"passes per row of the batch: {_passes(objective)}"
    yield "\nobjective, as in the source above"
    settings = dict(_settings(objective)) | {"label_dropout": objective.label_dropout}
    for key, value in settings.items():
        yield from _row(key, value, "")
    recipe, defaults = recipe_of(name), flat(Config())
    asked = flat(config_of(["--objective.preset", name, "--model.size", "B/2"]))
    inputs = {k: v for k, v in asked.items() if k.startswith("model.") and v != defaults.get(k)}
    rows = {k: (v, "the objective needs it") for k, v in inputs.items() if k != "model.size"}
    rows |= {k: (defaults[k], "ours: the default") for k in _ALWAYS} | recipe
    if not objective.needs_target and "ema.target_decay" not in recipe:
        del rows["ema.target_decay"]
    for section in ("model", "sampler", "guidance", "optimizer", "train", "ema"):
        own = {k: row for k, row in rows.items() if k.startswith(f"{section}.")}
        if own:
            yield f"\n{section}"
        for key, (value, source) in own.items():
            yield from _row(key.partition(".")[2], value, source)


def _row(key: str, value: Any, source: str) -> list[str]:
    """A setting; a long source goes on in its column."""
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    shown = shown.lower() if value is None or isinstance(value, bool) else shown
    start = f"  {key:<22}{shown:<16}"
    if not source:
        return textwrap.wrap(start.rstrip(), _WIDTH, subsequent_indent=" " * 24)
    return textwrap.wrap(start + source, _WIDTH, subsequent_indent=" " * 40, break_on_hyphens=False)
