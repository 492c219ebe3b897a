"""What a training step costs in network passes, counted and not declared."""

from dataclasses import replace

import torch
from torch import Tensor

from ucgm.objective.losses import LogVariance
from ucgm.objective.objective import Objective
from ucgm.runtime.randomness import RowRandom


def count_passes(objective: Objective, rows: int = 4096, progress: float = 1.0) -> dict[str, float]:
    """Passes of a step per row of the batch, by kind, counted over a batch of ``rows``.

    Returns:
        ``gradient`` (a forward and its backward), ``forward`` (without gradient) and ``tangent`` (a
        forward with its derivative) passes; a row that a pass skips counts 0.
    """
    # Neither makes a pass; an assignment of many rows takes long, and features are not here.
    objective = replace(objective, coupling="independent", alignment=0.0)
    x, y = torch.zeros(rows, 1, 1, 1), torch.zeros(rows, dtype=torch.int64)
    keys = RowRandom.for_rows(0, 0, torch.arange(rows))
    draw = objective.draw(x, y, 1, keys, progress)

    def network(x: Tensor, t: Tensor, y: Tensor, *_: Tensor, **__: Tensor) -> Tensor:
        return torch.zeros_like(x)

    heads = (LogVariance() if objective.log_variance else None, None)
    passes = objective.terms_and_passes(network, draw, network, network, heads, progress)[1]
    return {kind: count / rows for kind, count in passes.rows.items()}
