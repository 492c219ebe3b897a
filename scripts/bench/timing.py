"""One timer for all that is compared here: two calls in turns, and the ratio of neighbours.

A busy machine changes from second to second, so a time alone means little.  Of two calls made one
after the other, ours first and theirs first in turn, the ratio does; and processor time, of this
process and its children, is disturbed less than wall time.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

SHORTEST = 0.05  # seconds of a measurement: shorter calls are repeated


class Pair(NamedTuple):
    """The same work done by ours and by theirs, two calls without arguments."""

    name: str
    against: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


class Ratios(NamedTuple):
    """Ours over theirs: a ratio of every pair of neighbours, and the median seconds of a call."""

    wall: list[float]
    processor: list[float]
    ours_s: float
    theirs_s: float

    @property
    def slower(self) -> bool:
        """Whether three quarters of the pairs say so, by the wall clock and by processor time."""
        return all(statistics.quantiles(r, n=4)[0] > 1.0 for r in (self.wall, self.processor))


def children_seconds() -> float:
    """Processor time of the processes that this one has started and that are running."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(child.cpu_times()[:2]) for child in children)


def measure(call: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Wall and processor seconds of one call, the mean of ``repeats``."""
    children, processor, wall = children_seconds(), time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return wall / repeats, (processor + children_seconds() - children) / repeats


def compare(pair: Pair, seconds: float = 10.0, fewest: int = 5, most: int = 25) -> Ratios:
    """Time both sides in turns for about ``seconds``, after two calls of each that do not count."""
    sides = pair.ours, pair.theirs
    once = [min(measure(side)[0], measure(side)[0]) for side in sides]
    repeats = [max(1, math.ceil(SHORTEST / t)) for t in once]
    of_a_pair = sum(n * t for n, t in zip(repeats, once, strict=True))
    found = []
    for i in range(min(most, max(fewest, int(seconds / of_a_pair)))):
        order = (0, 1) if i % 2 == 0 else (1, 0)
        times = {k: measure(sides[k], repeats[k]) for k in order}
        found.append((times[0], times[1]))
    wall, processor = ([a[k] / max(b[k], 1e-9) for a, b in found] for k in (0, 1))
    ours, theirs = (statistics.median(p[k][0] for p in found) for k in (0, 1))
    return Ratios(wall, processor, ours, theirs)


HEADER = (
    "| what | against | wall time | processor time | ours | theirs | pairs |",
    "|---|---|---|---|---|---|---|",
)


def line(pair: Pair, found: Ratios) -> str:
    """A row of the table under ``HEADER``."""
    ratios = [
        f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})"
        for r in (found.wall, found.processor)
    ]
    times = [f"{1e3 * s:,.1f} ms" for s in (found.ours_s, found.theirs_s)]
    cells = pair.name, pair.against, *ratios, *times, str(len(found.wall))
    return f"| {' | '.join(cells)} |"
