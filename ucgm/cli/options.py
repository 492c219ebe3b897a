"""Options of a command: from words to settings, and from a parser's error to one line."""

import argparse
import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Sequence
from typing import Any

import yaml


def _parser(**options: Any) -> Any:
    """A parser that raises instead of exiting, and that reads class choices by their type."""
    import jsonargparse

    from ucgm.runs.config import POLYMORPHIC

    jsonargparse.set_parsing_settings(
        subclasses_enabled=list(POLYMORPHIC), docstring_parse_attribute_docstrings=True
    )
    return jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)


def _parse(parser: Any, words: Sequence[str]) -> Any:
    """Namespace of ``words``; errors become one ValueError that names the nearest option."""
    import jsonargparse

    try:
        return parser.parse_args(list(words))
    except (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(_explain(str(error), parser)) from None


def _explain(message: str, parser: Any) -> str:
    """A parser's message with the nearest valid key."""
    known = {
        name.lstrip("-")
        for action in parser._actions
        for name in (*action.option_strings, action.dest)
        if not name.endswith((".help", "help", "print_config"))
    } | _choice_fields()
    key = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if key:
        wrong = f"{key[1]}.{key[2]}"
    else:
        flag = re.search(r"unrecognized arguments: --([\w.]+)", message)
        plain = re.search(r"[Oo]ption '([\w.]+)' is not accepted", message)
        found = flag or plain or re.search(r"Key '([\w.]+)' is not expected", message)
        if not found:
            return message
        wrong = found[1]
    near = difflib.get_close_matches(wrong, known, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown setting {wrong}{hint}"


def _choice_fields() -> set[str]:
    """Names of the settings of every class that a ``class_path`` may name."""
    from ucgm.runs.config import POLYMORPHIC

    found, todo = set(), list(POLYMORPHIC)
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        found |= {f.name for f in dataclasses.fields(cls)}
    return found


def _options(
    words: Sequence[str], lists: Sequence[str] = (), switches: Sequence[str] = ()
) -> list[str]:
    """``--run-dir`` as ``--run_dir``, ``--steps 1 2`` as ``--steps [1,2]``, ``--on`` as true."""
    result: list[str] = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not word.startswith("--"):
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_")
        if name[2:] in switches and words[i : i + 1] not in (["true"], ["false"]) and not equals:
            result.append(name + "=true")
            continue
        if equals or name[2:] not in lists:
            result.append(name + equals + value)
            continue
        values = []
        while i < len(words) and not words[i].startswith("--"):
            values.append(words[i])
            i += 1
        if not values or values[0][:1] != "[":
            plain = (v if re.fullmatch(r"[\w.+/:-]+", v) else json.dumps(v) for v in values)
            values = [f"[{','.join(plain)}]"]
        result += [name, *values]
    return result


def _expand_presets(words: Sequence[str]) -> list[str]:
    """Put a preset's settings in front of whatever names it, and files in today's names.

    So a file that names a preset starts the objective afresh, its own keys and all later ones
    override the preset, and a short delta over a longer file means what it says.
    """
    from ucgm.objective import preset
    from ucgm.runs.config import to_dict
    from ucgm.runtime.earlier import current_names

    result: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        if option not in ("--config", "--objective.preset") or not (equals or waiting):
            result.append(word)
            continue
        value = value if equals else waiting.pop(0)
        name = value
        if option == "--config":
            content = _read_yaml(value)
            section = content.get("objective")
            name = section.get("preset") if isinstance(section, dict) else None
            current = current_names(content)
            if current != content:
                value = yaml.safe_dump(current)
        if name is not None:
            result += ["--config", yaml.safe_dump({"objective": to_dict(preset(name))})]
        result += [option, value]
    return result


def _read_yaml(path: str) -> dict[str, Any]:
    """The sections of a configuration file."""
    try:
        with open(path) as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ValueError(f"cannot read --config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not readable YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold sections such as model: and train:")
    return content


def _dataclass_of(hint: Any) -> Any:
    """The dataclass of ``Dataclass | None``; None for other types."""
    return next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))), None)
