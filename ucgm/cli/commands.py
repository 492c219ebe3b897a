"""The commands of ``ucgm``: names, functions, errors as one line with the remedy and exit code 2.

``ucgm --help`` and ``ucgm COMMAND --help`` import nothing heavy.  Settings of a training are
layered by :mod:`ucgm.runs.layers`; options of the other commands are the arguments of their
functions (:mod:`ucgm.cli.options`).
"""

import difflib
import importlib
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from ucgm.cli.options import take_option
from ucgm.runtime.terminal import printable_output

# Commands that are one function: module and name.
_FUNCTIONS = {
    "sample": ("ucgm.generation.command", "sample_run"),
    "ui": ("ucgm.cli.ui", "ui"),
    "benchmark": ("ucgm.evaluation.benchmark", "benchmark"),
    "evaluate": ("ucgm.evaluation.evaluate", "evaluate"),
    "reference": ("ucgm.evaluation.evaluate", "make_reference"),
    "compare": ("ucgm.evaluation.compare", "compare_run"),
    "condense": ("ucgm.condense.command", "condense"),
    "tune-sampler": ("ucgm.evaluation.tuning.tune", "tune_sampler"),
    "encode": ("ucgm.data.encoding.command", "encode_data"),
    "data": ("ucgm.data.encoding.check", "describe_data"),
    "import": ("ucgm.runs.imported", "import_run"),
    "export": ("ucgm.integrations.export", "export_run"),
    "models": ("ucgm.nn.cost", "print_models"),
    "ema": ("ucgm.runs.averages", "make_averages"),
    "plot": ("ucgm.training.plot", "plot_runs"),
    "presets": ("ucgm.runs.presets", "print_presets"),
    "demo": ("ucgm.cli.demo", "demo"),
}
# Those whose name follows ``condense``.
_OF_SETS = {
    "evaluate": ("ucgm.condense.evaluate", "evaluate_set"),
    "restore": ("ucgm.condense.restore", "restore"),
}
COMMANDS = ("train", *_FUNCTIONS)


@printable_output()
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
    # Deprecations inside torch, of forward-mode differentiation and of the processes' gradients.
    warnings.filterwarnings("ignore", message="`(torch.jit.script|broadcast_buffers)`")
    try:
        if {"-h", "--help"} & set(rest):
            print(_help_of(command), end="")
            return
        own, rest = take_option(rest, "import")
        if own is not None:
            from ucgm.runs.config import allow_module

            sys.path.insert(0, str(Path.cwd()))
            allow_module(own)
        _train(rest) if command == "train" and "--help-all" not in rest else _call(command, rest)
    except (MemoryError, RecursionError) as error:
        _fail(f"ucgm {command}", f"{type(error).__name__}: this is more than the machine can hold")
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, RuntimeError) and not _raised_here(error):
            traceback.print_exc()
        denied = error.filename if isinstance(error, PermissionError) else None
        _fail(f"ucgm {command}", f"no permission for {denied}" if denied else str(error))


def _raised_here(error: Exception) -> bool:
    """Whether a ``raise`` statement made the error: the message of another needs its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (last.line or "").startswith("raise ")


def _help_of(command: str) -> str:
    return files("ucgm.cli").joinpath("help_texts", f"{command}.txt").read_text()


def _usage() -> str:
    """Every command with the beginning of its help, up to the first stop."""
    said = {name: _help_of(name).split("\n\n")[1] for name in COMMANDS}
    said = {name: re.split(r"[.:;](?:\s|$)", text)[0] for name, text in said.items()}
    return "\n".join(
        (
            "usage: ucgm COMMAND [options]\n",
            "Continuous generative models: one objective, one sampler, one backbone.\n",
            *(f"  {name:<14}{text}" for name, text in said.items()),
            "\n`ucgm COMMAND --help` lists the options of a command.",
        )
    )


def _fail(program: str, message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    line = " ".join(message.split())
    line = line if len(line) < 1500 else f"{line[:1000]} ... {line[-400:]}"
    print(f"{program}: error: {line}", file=sys.stderr)
    raise SystemExit(2)


def _train(words: list[str]) -> None:
    """``ucgm train [--config FILE ...] --run-dir RUN [--section.key value ...]``."""
    from ucgm.runs.config import to_yaml
    from ucgm.runs.fitted import describe_fitted
    from ucgm.runs.layers import layers_of, training_config

    run_dir, words = take_option(words, "run_dir")
    if "--print-config" in words:  # what is fitted to the data is not there without them
        words.remove("--print-config")
        print(to_yaml(training_config(layers_of(words))[0]), end="")
        return
    layers = layers_of(words)
    config, fitted = training_config(layers, None if run_dir is None else Path(run_dir))
    if run_dir is None:
        raise ValueError("--run-dir is missing: name the folder of the run")
    if fitted is not None:
        print(describe_fitted(config, fitted), flush=True)

    from ucgm.training.loop import train

    train(config, run_dir)


def _call(command: str, words: list[str]) -> None:
    """A command that is one function."""
    if command == "train":
        from ucgm.cli.settings import help_of_settings

        print(help_of_settings())
        return
    from ucgm.cli.options import call

    module, name = _FUNCTIONS[command]
    if command == "condense" and words and words[0] in _OF_SETS:
        (module, name), words = _OF_SETS[words[0]], words[1:]
    call(getattr(importlib.import_module(module), name), f"ucgm {command}", words)
