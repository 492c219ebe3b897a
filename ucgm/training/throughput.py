"""How hard a training works its machine: counted work of a step over a measured peak.

The work of one row is what the objective's passes multiply (counted, not declared), with f the
floating-point operations of the matrix products of one forward pass of one sample:

    3 f   a pass with gradient: forward, and twice as much backward
    1 f   a pass without
    2 f   a pass that carries a tangent

Recomputed activations are not counted: they are work of the machine, not of the step.  The peak is
what one square linear layer reaches on this device, in this precision, in this process, now; a
share of it can be compared between machines, where a data sheet's peak cannot.
"""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ucgm.data.loader import BatchPlan
from ucgm.nn import NetworkConfig
from ucgm.nn.cost import cost
from ucgm.objective import Objective
from ucgm.objective.presets import count_passes

_WEIGHT = {"gradient": 3.0, "forward": 1.0, "tangent": 2.0}
_KINDS = {
    "gradient": "forward and backward",
    "forward": "forward without gradient",
    "tangent": "forward with a derivative",
}


@dataclass(frozen=True)
class Work:
    """What a row of a batch costs."""

    passes: dict[str, float]
    """passes by kind (gradient, forward, tangent)."""
    flops: float
    """floating-point operations, forward and backward."""
    parameters: int
    """of the network."""
    teachers: int = 0
    """parameters of teachers that are other networks."""

    def of_step(self, plan: BatchPlan) -> float:
        """Operations of an optimizer step of one process."""
        return self.flops * plan.micro_batch * plan.accumulation

    @property
    def trained(self) -> float:
        """Operations of one pass with gradient."""
        weighted = sum(_WEIGHT[kind] * n for kind, n in self.passes.items())
        return _WEIGHT["gradient"] * self.flops / weighted

    def describe(self) -> str:
        """A few words for the log."""
        kinds = ", ".join(f"{round(n, 2):g} {_KINDS[kind]}" for kind, n in self.passes.items() if n)
        return f"{kinds}, {self.flops / 1e9:,.3g} GFLOP"


def count_work(
    model: NetworkConfig,
    shape: tuple[int, int, int],
    num_classes: int,
    objective: Objective,
    teachers: Sequence[NetworkConfig] = (),
) -> Work:
    """Count the work of one row with fake tensors and a counting network: no arithmetic.

    ``teachers`` are those that are not the network itself.
    """
    taught: list[float] = []
    passes = count_passes(objective, teachers=len(teachers), taught=taught)
    found = cost(model, shape, num_classes)
    weighted = sum(_WEIGHT[kind] * n for kind, n in passes.items())
    gmacs = found.gmacs * weighted
    if (
        objective.velocity_head or objective.exit_head
    ):  # the pass with gradient runs both heads, the others one of them
        both = cost(model, shape, num_classes, heads="both").gmacs
        gmacs += _WEIGHT["gradient"] * (both - found.gmacs)
    others = [cost(teacher, shape, num_classes) for teacher in teachers]
    gmacs += sum(n * (o.gmacs - found.gmacs) for n, o in zip(taught, others, strict=False))
    return Work(passes, 2e9 * gmacs, found.parameters, sum(o.parameters for o in others))


@torch.no_grad()
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square linear layer; takes a tenth of a second."""
    size, repeats = (8192, 10) if device.type == "cuda" else (512, 4)
    layer = torch.nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    tokens = torch.randn(size, size, device=device).to(dtype)
    finish = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
    best = 0.0
    for _ in range(3):  # the first warms up
        finish()
        start = time.perf_counter()
        for _ in range(repeats):
            layer(tokens)
        finish()
        best = max(best, 2.0 * size**3 * repeats / (time.perf_counter() - start))
    return best


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: what tensors held on a GPU, or this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
