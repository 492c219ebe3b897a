"""Presets: the published methods, to start from, and what they cost.

docs/objective.md derives them.  A preset here is the objective alone; its optimizer, batch,
averages and sampler are in :mod:`ucgm.runs.recipes`, and ``ucgm presets`` prints all of it.
"""

import difflib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ucgm.objective.draw import Draw
from ucgm.objective.flow_maps import FLOW_MAPS
from ucgm.objective.losses import LogVariance
from ucgm.objective.methods import SINGLE_TIME, Method
from ucgm.objective.objective import Objective
from ucgm.objective.passes import kinds_of_pass
from ucgm.objective.sets import SetTerm
from ucgm.runtime.randomness import RowRandom

PRESETS = SINGLE_TIME | FLOW_MAPS

_POST = Objective(sets=(SetTerm(),), residual_weight=0.0, label_dropout=0.0)
POST_TRAINING = {
    "fd_post": Method(
        "Post-training of a 1- to 4-step model by Frechet distance (FD-loss, arXiv 2604.28190).",
        _POST,
    ),
    "mmd_post": Method(
        "Post-training of a 1- to 4-step model by kernel distance (iRDM, arXiv 2607.02375).",
        replace(_POST, sets=(SetTerm(distance="mmd", queue=0),)),
    ),
}
"""What is done to a trained model: the rest of the objective is that of its run."""


def preset(name: str, **settings: Any) -> Objective:
    """The objective of a published method, with some of its settings replaced.

    Args:
        name: one of ``PRESETS`` or ``POST_TRAINING``.
        settings: fields of :class:`Objective`.

    Raises:
        ValueError: an unknown name or field, or a value without a meaning.
    """
    known = PRESETS | POST_TRAINING
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    if name == "ucgm_paper" and settings.get("consistency_ratio", 0.0) != 0.0:
        settings = {"field": "teacher", **settings}
    try:
        return replace(known[name].objective, **{"preset": name, **settings})
    except TypeError as error:
        raise ValueError(f"preset {name!r}: {error}") from error


def of_samples(before: Objective, post: Objective) -> Objective:
    """The objective ``post`` of a post-training, on the path and times of the one ``before`` it."""
    names = ("preset", "sets", "residual_weight", "label_dropout")
    return replace(before, **{name: getattr(post, name) for name in names})


def count_passes(
    objective: Objective, rows: int = 4096, teachers: int = 1, taught: list[float] | None = None
) -> dict[str, float]:
    """Passes of a step per row, counted over a batch of ``rows`` and not declared.

    Args:
        objective: whose passes; samples of ``sets`` are taken to have one step.
        rows: of the batch.
        teachers: how many there are; as many as are needed, if these are more.
        taught: gets the passes of each teacher.

    Returns:
        ``gradient`` (a forward and its backward), ``forward`` (without gradient) and ``tangent`` (a
        forward with its derivative) passes; a row that a pass skips counts 0.
    """
    # Neither makes a pass; an assignment of many rows takes long, and features are not here.
    objective = replace(objective, coupling="independent", alignment=0.0)
    x, y = torch.zeros(rows, 1, 1, 1), torch.zeros(rows, dtype=torch.int64)
    keys = RowRandom.for_rows(0, 0, torch.arange(rows))
    draw = objective.draw(x, y, 1, keys)

    rows_of: dict[str, int] = {"gradient": 0, "forward": 0, "tangent": 0}

    def network(*inputs: Any, guidance: Tensor | None = None, heads: str = "map") -> Any:
        for kind in kinds_of_pass(*inputs):
            rows_of[kind] += len(inputs[0])
        f = torch.zeros_like(inputs[0])
        return (f, f) if heads == "both" else f

    counts = [0.0] * max(teachers, objective.teachers)

    def teacher_of(k: int) -> Any:
        def teacher(*inputs: Tensor, **more: Any) -> Any:
            counts[k] += len(inputs[0]) / rows
            return network(*inputs, **more)

        return teacher

    teaching = [teacher_of(k) for k in range(len(counts))]
    variance = LogVariance(two_time=objective.two_time) if objective.log_variance else None

    def one_step(_: Any, draw: Draw) -> Tensor:
        return network(draw.z, draw.t, draw.y).mean()

    objective.terms(
        network, draw, target=network, teacher=teaching, log_variance=variance, sets=one_step
    )
    if taught is not None:
        taught += counts
    return {kind: count / rows for kind, count in rows_of.items()}
