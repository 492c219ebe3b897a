"""A plan made ready for the device: what to keep of each evaluation, and one update per step.

The plan says x_{i+1} = sum_j (a_j x_{i-j} + b_j F_{i-j}) + n eps.  Where all later uses of
evaluation i are multiples of one combination (a x_i + b F_i), which holds for every method with a
history of one estimate, that one tensor is kept instead of two; and F_i itself where a = 0.  A
tensor is dropped by the update that needs it last, so memory does not grow with the steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ucgm.runtime.randomness import RowRandom
from ucgm.sampler.plan import Pair, Step

Key = tuple[int, int]  # evaluation, which of its combinations


class Update(NamedTuple):
    """x <- a x + b F + sum w_k kept_k + noise eps, then keep and drop."""

    a: float
    b: float
    old: tuple[tuple[Key, float], ...]
    noise: float
    keep: tuple[tuple[Key, Pair], ...]
    drop: tuple[Key, ...]


def compile_plan(plan: Sequence[Step]) -> tuple[Update, ...]:
    """The updates of a plan."""
    uses: list[dict[int, Pair]] = [{} for _ in plan]
    for i, step in enumerate(plan):
        for j, pair in enumerate(step.weights[1:], start=1):
            if pair != (0.0, 0.0):
                uses[i - j][i] = pair
    bases = [_bases(list(use.values())) for use in uses]
    old: list[list[tuple[Key, float]]] = [[] for _ in plan]
    drop: list[list[Key]] = [[] for _ in plan]
    for k, use in enumerate(uses):
        for i, pair in use.items():
            old[i] += [
                ((k, n), weight)
                for n, weight in enumerate(_coordinates(pair, bases[k]))
                if weight != 0.0
            ]
        if use:
            drop[max(use)] += [(k, n) for n in range(len(bases[k]))]
    return tuple(
        Update(
            *step.weights[0],
            tuple(old[i]),
            step.noise,
            tuple(((i, n), pair) for n, pair in enumerate(bases[i])),
            tuple(drop[i]),
        )
        for i, step in enumerate(plan)
    )


def _bases(pairs: list[Pair]) -> list[Pair]:
    """The fewest combinations of x and F that all ``pairs`` are multiples of, or sums."""
    if not pairs:
        return []
    a, b = max(pairs, key=lambda pair: abs(pair[0]) + abs(pair[1]))
    size = abs(a) + abs(b)
    for other in pairs:
        cross = a * other[1] - b * other[0]
        if abs(cross) > 1e-12 * size * (abs(other[0]) + abs(other[1])):
            return [(1.0, 0.0), (0.0, 1.0)]
    if abs(a) <= 1e-14 * abs(b):
        return [(0.0, 1.0)]
    return [(a / b, 1.0)] if abs(b) >= abs(a) else [(1.0, b / a)]


def _coordinates(pair: Pair, bases: list[Pair]) -> list[float]:
    """The weights with which ``bases`` add up to ``pair``."""
    if len(bases) == 2:
        return [*pair]
    return [pair[1] if bases[0][1] == 1.0 else pair[0]]


class Memory:
    """The tensors that one trajectory has to keep between evaluations.

    A prediction may be kept as it is, so a network must not write into what it has returned.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        self.updates = updates
        self.kept: dict[Key, Tensor] = {}

    def advance(self, i: int, x: Tensor, prediction: Tensor, random: RowRandom | None) -> Tensor:
        """The state (B, ...) after evaluation ``i``, which saw ``x`` and gave ``prediction``
        (B, ...).

        A prediction in half precision is widened inside the sums.
        """
        update = self.updates[i]
        if prediction.dtype.itemsize > x.dtype.itemsize:
            prediction = prediction.to(x.dtype)
        out = combine(x, prediction, update.a, update.b)
        for key, weight in update.old:
            out.add_(self.kept[key], alpha=weight)
        if update.noise and random is not None:
            out.add_(random.normal(*x.shape[1:], dtype=x.dtype), alpha=update.noise)
        for key in update.drop:
            del self.kept[key]
        for key, (a, b) in update.keep:
            if (a, b) == (0.0, 1.0):
                self.kept[key] = prediction
            elif (a, b) == (1.0, 0.0):
                self.kept[key] = x
            else:
                self.kept[key] = combine(x, prediction, a, b)
        return out


def combine(x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
    """a x + b F, of any shape, in a new tensor, in one pass when a or b is 1."""
    if abs(a - 1.0) < 1e-13:
        return torch.add(x, prediction, alpha=b)
    if b == 1.0:
        return torch.add(prediction, x, alpha=a)
    return torch.mul(x, a).add_(prediction, alpha=b)
