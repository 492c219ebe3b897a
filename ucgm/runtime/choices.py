"""One check of every setting that is one of a few words: its annotation is the list."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Values that ``Literal[...]`` or ``Literal[...] | None`` allows; empty for other types."""
    if get_origin(annotation) in (Union, UnionType):
        members = get_args(annotation)
        literals = [value for member in members for value in choices_of(member)]
        optional = (None,) if type(None) in members else ()
        return (*optional, *literals) if literals else ()
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def check_choices(instance: Any, where: str) -> None:
    """Refuse a value that the ``Literal`` annotation of its field does not list.

    Args:
        instance: a dataclass, or any object with annotated attributes.
        where: section of the configuration, which the message puts before the name of the field.

    Raises:
        ValueError: the field, what it may be, and what it is.
    """
    for name, annotation in get_type_hints(type(instance)).items():
        allowed, value = choices_of(annotation), getattr(instance, name)
        if allowed and value not in allowed:
            raise ValueError(
                f"{where}.{name} must be one of {', '.join(map(str, allowed))}, got {value!r}"
            )
