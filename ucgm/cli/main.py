"""The command line; the only file that knows the argument parser.

``ucgm --help`` imports nothing heavy: a command's parser is built when the command is chosen.
Settings are layered: defaults, the preset of the objective, the ``--config`` files in order, then
flags.  Every error a user can make ends as one line with the remedy and exit code 2.
"""

import dataclasses
import difflib
import importlib
import inspect
import itertools
import json
import re
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ucgm.cli.options import _dataclass_of, _expand_presets, _options, _parse, _parser

COMMANDS = {
    "train": "train a model, or tune one into a few-step model (--train.init RUN)",
    "sample": "draw images from a run",
    "benchmark": "quality against the number of sampling steps, as tables and pictures",
    "evaluate": "score images from anywhere against a reference",
    "reference": "statistics of real images, for benchmarks",
    "compare": "benchmarks of several runs side by side",
    "tune-sampler": "find the sampler of a run for a number of network passes per image",
    "encode": "images to latent shards, with the codec and the statistics beside them",
    "data": "describe and check a data set: counts, statistics, a grid, every shard",
    "import": "public weights to a run that sample, benchmark and train take",
    "export": "a run to the diffusers layout",
    "models": "sizes, parameters and multiply-adds of the published networks",
    "ema": "averages of other lengths, from the snapshots of a training",
    "plot": "training curves of runs against each other",
    "presets": "list the training objectives",
    "demo": "the whole road on the embedded digits, in a few minutes",
}

# Commands that are one function: module and name.
_FUNCTIONS = {
    "sample": ("ucgm.generation.command", "sample_run"),
    "benchmark": ("ucgm.evaluation.benchmark", "benchmark_run"),
    "evaluate": ("ucgm.evaluation.evaluate", "evaluate_run"),
    "reference": ("ucgm.evaluation.evaluate", "reference_run"),
    "compare": ("ucgm.evaluation.compare", "compare_run"),
    "tune-sampler": ("ucgm.evaluation.tuning.tune", "tune_sampler"),
    "encode": ("ucgm.data.encoding.command", "encode_data"),
    "data": ("ucgm.data.encoding.check", "describe_data"),
    "import": ("ucgm.runs.imported", "import_run"),
    "export": ("ucgm.integrations.export", "export_run"),
    "models": ("ucgm.nn.cost", "print_models"),
    "ema": ("ucgm.runs.averages", "make_averages"),
    "plot": ("ucgm.training.plot", "plot_runs"),
    "presets": ("ucgm.objective.presets", "print_presets"),
    "demo": ("ucgm.cli.demo", "demo"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exits with 2 and one line on bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    command, rest = words[0], words[1:]
    if command == "--version":
        from importlib.metadata import version

        print(version("ucgm"))
        return
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        _fail("ucgm", f"no command {command!r}{hint} There are: {', '.join(COMMANDS)}")
    # Forward-mode differentiation makes torch warn about a deprecation inside torch.
    warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)
    try:
        _train(rest) if command == "train" else _call(command, rest)
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and not _said_by_us(error):
            traceback.print_exc()
        _fail(f"ucgm {command}", str(error))


def _said_by_us(error: Exception) -> bool:
    """Whether a ``raise`` of this package made the error, and not an operation of torch.

    The message of the one is all there is to say; that of the other needs its place.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (last.line or "").startswith("raise ")


def _usage() -> str:
    lines = [f"  {name:<14}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ucgm COMMAND [options]",
            "",
            "Continuous generative models: one objective, one sampler, one backbone.",
            "",
            *lines,
            "",
            "`ucgm COMMAND --help` lists the options of a command.",
        ]
    )


def _fail(program: str, message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _train(words: list[str]) -> None:
    """``ucgm train --config FILE ... --run-dir DIR [--section.key value ...]``."""
    from ucgm.runs.config import Config

    words = _options(words)
    parser = _parser(prog="ucgm train", description="Train, tune, or continue a run.")
    parser.add_argument("--config", action="config", help="YAML file; several are layered")
    parser.add_argument("--run_dir", type=str, help="folder of the run; the same one resumes")
    parser.add_class_arguments(Config, as_group=False)
    parser.link_arguments("objective.transport", "sampler.transport", apply_on="parse")
    settings = _parse(parser, _expand_presets(words))
    if settings.run_dir is None:
        raise ValueError("--run-dir is missing: name the folder of the run")
    values = parser.instantiate(settings)
    config = Config(**{f.name: getattr(values, f.name) for f in dataclasses.fields(Config)})

    from ucgm.training.loop import train

    train(config, settings.run_dir)


def _call(command: str, words: list[str]) -> None:
    """A command that is one function: its signature is the option list.

    The fields of an argument that is a dataclass are options like the others.
    """
    module, name = _FUNCTIONS[command]
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    hints = typing.get_type_hints(function)
    names = list(inspect.signature(function).parameters)
    groups = {k: group for k in names if (group := _dataclass_of(hints.get(k)))}
    for key, group in groups.items():
        hints = {k: hint for k, hint in hints.items() if k != key} | typing.get_type_hints(group)
    lists = [k for k, hint in hints.items() if re.search(r"\b(list|tuple)\[", str(hint))]
    if names[:1] == lists[:1]:  # plot RUN RUN ...
        first = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        words = ([json.dumps(first)] if first else []) + words[len(first) :]
    switches = [k for k, hint in hints.items() if hint is bool]
    parser = _parser(prog=f"ucgm {command}")
    parser.add_function_arguments(function, as_positional=True, skip=set(groups))
    for group in groups.values():
        parser.add_class_arguments(group, as_group=False)
    settings = _parse(parser, _options(words, lists, switches))
    values = parser.instantiate(settings).as_dict()
    for key, group in groups.items():
        fields = [field.name for field in dataclasses.fields(group)]
        values[key] = group(**{name: values.pop(name) for name in fields})
    function(**values)
