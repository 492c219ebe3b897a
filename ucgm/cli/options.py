"""Options of the commands that are one function: its arguments, by the parser of jsonargparse.

The fields of an argument that is a dataclass are options like the others; an argument ``changes``
collects ``--config FILE``, ``--sampler.KEY VALUE`` and ``--guidance.KEY VALUE`` as they are, for
:mod:`ucgm.runs.layers`.
"""

import argparse
import dataclasses
import difflib
import inspect
import itertools
import json
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

from ucgm.runtime.values import checked

_CHANGES = re.compile(r"--(config$|sampler\.|guidance\.)")


def call(function: Callable[..., Any], program: str, words: Sequence[str]) -> Any:
    """Call ``function`` with the arguments that ``words`` give.

    Raises:
        ValueError: an option that is unknown or has no meaning, with the nearest one.
    """
    import jsonargparse

    hints = typing.get_type_hints(function, include_extras=True)
    names = list(inspect.signature(function).parameters)
    groups = {k: group for k in names if (group := _dataclass_of(hints.get(k)))}
    for key, group in groups.items():
        hints = {k: hint for k, hint in hints.items() if k != key} | typing.get_type_hints(
            group, include_extras=True
        )
    given: dict[str, Any] = {}
    if "changes" in names:
        given["changes"], words = _split(words, _CHANGES)
    if names[:1] == ["name"] and words and not words[0].startswith("-"):  # presets NAME
        words = [f"--name={words[0]}", *words[1:]]
    lists = [k for k, hint in hints.items() if re.search(r"\b(list|tuple)\[", str(hint))]
    if names[:1] == lists[:1]:  # plot RUN RUN ...
        first = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        words = ([json.dumps(first)] if first else []) + list(words[len(first) :])
    switches = [k for k, hint in hints.items() if hint is bool]
    parser = _parser(prog=program)
    parser.add_function_arguments(function, as_positional=True, skip={*groups, *given})
    for group in groups.values():
        parser.add_class_arguments(group, as_group=False)
    try:
        parsed = parser.parse_args(join_options(words, lists, switches))
    except (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(_explain(str(error), parser)) from None
    values = parser.instantiate(parsed).as_dict()
    values = {k: checked(hints[k], value, k) for k, value in values.items()}
    for key, group in groups.items():
        fields = [field.name for field in dataclasses.fields(group)]
        values[key] = group(**{name: values.pop(name) for name in fields})
    return function(**values, **given)


def take_option(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of the option ``name`` (its last), and the other words."""
    taken, others = _split(words, re.compile(f"--+{name.replace('_', '[-_]')}$"))
    value = None
    for word, following in itertools.pairwise([*taken, "--"]):
        if word.startswith("--"):
            _, equals, value = word.partition("=")
            if not equals and following.startswith("--"):
                raise ValueError(f"--{name.replace('_', '-')} needs a value")
        else:
            value = word
    return value, others


def _split(words: Sequence[str], wanted: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The ``wanted`` options, each with its value, and the other words."""
    taken: list[str] = []
    others: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        option = wanted.match(word.partition("=")[0])
        (taken if option else others).append(word)
        if option and "=" not in word and waiting and not waiting[0].startswith("--"):
            taken.append(waiting.pop(0))
    return taken, others


def _dataclass_of(hint: Any) -> Any:
    """The dataclass of ``Dataclass | None``; None for other types, such as ``str | Dataclass``."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]) else None


def _parser(**options: Any) -> Any:
    """A parser that raises instead of exiting."""
    import jsonargparse

    from ucgm.runs.config import POLYMORPHIC

    jsonargparse.set_parsing_settings(
        subclasses_enabled=list(POLYMORPHIC), docstring_parse_attribute_docstrings=True
    )
    return jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)


def _explain(message: str, parser: Any) -> str:
    """A parser's message with the nearest option."""
    found = re.search(r"unrecognized arguments: --([\w.]+)", message)
    if not found:
        return message
    placed = [action.dest for action in parser._actions if not action.option_strings]
    if found[1] in placed:
        return f"{found[1]} is given by its place, without --{found[1]}: see --help"
    known = {
        name.lstrip("-")
        for action in parser._actions
        for name in action.option_strings
        if not name.endswith(("help", "print_config"))
    }
    near = difflib.get_close_matches(found[1], known, 1, 0.5)
    hint = f"; did you mean --{near[0].replace('_', '-')}?" if near else ""
    return f"unknown option --{found[1].replace('_', '-')}{hint}"


def join_options(
    words: Sequence[str], lists: Sequence[str] = (), switches: Sequence[str] = ()
) -> list[str]:
    """``--run-dir`` as ``--run_dir``, ``--steps 1 2`` and ``--steps 1,2`` as ``--steps [1,2]``,
    ``--on`` as true.
    """
    result: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not word.startswith("--"):
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "--help" if name == "--help-all" else "--" + name[2:].replace("-", "_")
        if name[2:] in switches and words[i : i + 1] not in (["true"], ["false"]) and not equals:
            result.append(name + "=true")
            continue
        if equals or name[2:] not in lists:
            result.append(name + equals + value)
            continue
        values: list[str] = []
        while i < len(words) and not words[i].startswith("--"):
            numbers = re.fullmatch(r"-?\d+(,-?\d+)+", words[i])
            values += words[i].split(",") if numbers else [words[i]]
            i += 1
        if not values or values[0][:1] != "[":
            plain = (v if re.fullmatch(r"[\w.+/:-]+", v) else json.dumps(v) for v in values)
            values = [f"[{','.join(plain)}]"]
        result += [name, *values]
    return result
