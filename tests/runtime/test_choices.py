"""Settings that are one of a few words."""

from dataclasses import dataclass
from typing import Literal

import pytest

from ucgm.runtime.choices import check_choices, choices_of

Colour = Literal["red", "green"]


@dataclass
class Paint:
    name: str = "any"
    colour: Colour = "red"
    second: Colour | None = None


def test_a_literal_annotation_is_the_list_of_what_is_allowed():
    for paint in (Paint(), Paint("x", "green", "red")):
        check_choices(paint, "paint")
    with pytest.raises(ValueError, match=r"^paint.colour must be one of red, green, got 'blue'$"):
        check_choices(Paint(colour="blue"), "paint")
    with pytest.raises(ValueError, match=r"^paint.second must be one of None, red, green, got 1$"):
        check_choices(Paint(second=1), "paint")
    assert choices_of(int | None) == () == choices_of(tuple[float, ...])
