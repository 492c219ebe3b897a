"""One check of every setting: its annotation says which values it may have.

    steps: Annotated[int, Range(1)]     a whole number, at least 1
    colour: Literal["red", "green"]     one of a few words
    width: Positive | None              a finite number above 0, or nothing

It is made wherever settings come from: a file, the command line, or Python.
"""

import dataclasses
import math
import os
import re
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


class Range(NamedTuple):
    """Numbers that have a meaning: from ``low`` (``above``: it is none of them) to ``high``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __repr__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


# Larger numbers are none that anybody means, and overflow float32 when they are multiplied.
LARGE = 1e6
Number = Annotated[float, Range(-LARGE, LARGE)]
Share = Annotated[float, Range(0.0, 1.0)]
NotNegative = Annotated[float, Range(0.0, LARGE)]
Positive = Annotated[float, Range(0.0, LARGE, above=True)]
Count = Annotated[int, Range(1, 10**9)]
Side = Annotated[int, Range(1, 16_384)]  # of an image or latent; attention over more overflows
RISING = "rising"  # a list that does not fall
Interval = Annotated[tuple[Share, Share], RISING]


def check_values(instance: Any, where: str = "") -> None:
    """Refuse a dataclass with a value that its annotation does not allow; lists become tuples.

    Args:
        instance: a dataclass, frozen or not.
        where: section of the configuration, which messages put before the name of the field; its
            class when left out.

    Raises:
        ValueError: the field, what it may be, and what it is.
    """
    hints, where = _hints(type(instance)), where or type(instance).__name__
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        right = checked(hints[field.name], value, f"{where}.{field.name}")
        if right is not value:
            object.__setattr__(instance, field.name, right)


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def checked(hint: Any, value: Any, where: str, text: bool = False) -> Any:
    """``value`` if the annotation ``hint`` allows it, as a tuple or number of that type.

    Args:
        hint: numbers, words, texts, tuples, dataclasses, and choices of these; anything else is
            not looked at.
        value: of any type.
        where: names the setting in errors.
        text: whether numbers may be texts, as YAML takes 1e-4 for one.

    Raises:
        ValueError: see above.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, where, text)
    if origin is tuple:
        return _items(arguments, value, where, text)
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in arguments):
            words = ", ".join(map(str, arguments))
            raise ValueError(f"{where} must be one of {words}, got {_shown(value)}")
        return value
    limits = Range()
    if RISING in arguments:
        items = checked(arguments[0], value, where, text)
        if list(items) != sorted(items):
            raise ValueError(f"{where} must rise, got {_shown(value)}")
        return items
    if origin is Annotated:
        hint = arguments[0]
        limits = next((note for note in arguments[1:] if isinstance(note, Range)), limits)
    if hint in _KINDS:
        return _plain(hint, value, where, limits, text)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint):
        raise ValueError(f"{where} must be a {hint.__name__}, got {_shown(value)}")
    return value


def _plain(kind: type, value: Any, where: str, limits: Range, text: bool) -> Any:
    """A bool, whole number, finite number or text."""
    if kind is str and isinstance(value, str | os.PathLike):
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    number: Any = float(value) if text and _is_number(value) else value
    whole, real = (
        issubclass(type(number), k) and type(number) is not bool for k in (Integral, Real)
    )
    if kind is int and real and (whole or float(number).is_integer()):
        number = int(number)
    elif kind is float and real and abs(number) < 2.0**1023:  # nan is not
        number = float(number)
    else:
        raise ValueError(f"{where} must be {_KINDS[kind]}, got {_shown(value)}")
    if number < limits.low or (limits.above and number == limits.low):
        least = "above" if limits.above else "at least"
        raise ValueError(f"{where} must be {least} {limits.low:g}, got {_shown(value)}")
    if number > limits.high:
        raise ValueError(f"{where} must be at most {limits.high:g}, got {_shown(value)}")
    return number


def _is_number(value: Any) -> bool:
    """Whether a text is a number, such as 1e-4, which YAML takes for a text."""
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None


def _one_of(options: tuple[Any, ...], value: Any, where: str, text: bool) -> Any:
    """The first option that fits."""
    if value is None and NoneType in options:
        return None
    *others, last = (option for option in options if option is not NoneType)
    for option in others:
        try:
            return checked(option, value, where, text)
        except ValueError:
            continue
    try:
        return checked(last, value, where, text)
    except ValueError as error:
        raise ValueError(f"{error}{'; null leaves it out' * (NoneType in options)}") from None


def _items(hints: tuple[Any, ...], value: Any, where: str, text: bool) -> tuple[Any, ...]:
    """A list of values of their types."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {_shown(value)}")
    if hints[-1:] == (...,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{where} must be a list of {len(hints)} values, got {_shown(value)}")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(checked(hint, item, f"{where}[{i}]", text) for i, (hint, item) in pairs)


def _shown(value: Any) -> str:
    """A value in a message: no list of a million numbers, no number of a million digits."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
