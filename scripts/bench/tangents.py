"""Error of a trained network's tangent in the arithmetic of a GPU, against float64:

    python scripts/bench/tangents.py RUN [--rows 64]

T = dX/dt along the field z - x of the run's data, as ``ucgm_few`` and ``meanflow`` form it: by a
forward derivative under autocast to bfloat16, and by central differences whose matrix products see
ten bits of mantissa (TF32, emulated here: each factor is rounded, sums are float32).  The network
is that of RUN with its averaged weights; nothing is written.
"""

import argparse
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ucgm.objective.passes import forward_mode
from ucgm.objective.residual import difference_tangent, jvp_tangent
from ucgm.runs.checkpoint import load_run
from ucgm.transport import Linear


def round_to_ten_bits(x: Tensor) -> Tensor:
    """A float32 tensor of any shape with 10 bits of mantissa, to the nearest."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class EmulatedTF32(TorchDispatchMode):
    """Float32 products as the tensor cores of a GPU make them, but for the order of their sums."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        name = func.__name__.split(".")[0]
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(name)
        if first is not None and args[first].dtype == torch.float32:
            args = (*args[:first], *(round_to_ten_bits(x) for x in args[first:]))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def tangent_errors(
    network: nn.Module, x: Tensor, y: Tensor | None, widths: tuple[float, ...] = (0.005, 0.01)
) -> Iterator[tuple[str, float]]:
    """(name, error relative to the tangent) of ``network`` on data x (B, C, H, W), y (B,)."""
    generator = torch.Generator().manual_seed(0)
    z, path = torch.randn(x.shape, generator=generator), Linear()
    t, s = 0.01 + 0.98 * torch.rand(len(x), generator=generator), torch.zeros(len(x))
    at = (path.mix(x, z, t), t, s, z - x)
    wide = copy.deepcopy(network).double()
    two = getattr(network, "second_time", False)

    def passes(module: nn.Module, half: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        def evaluate(x: Tensor, time: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = module(x, time, y, s.to(time.dtype)) if two else module(x, time, y)
            return found if found.dtype == torch.float64 else found.float()

        return evaluate

    with forward_mode():
        exact = jvp_tangent(path, passes(wide), *(v.double() for v in at))
        half = jvp_tangent(path, passes(network, half=True), *at)

    def error(found: Tensor) -> float:
        return float((found.double() - exact).norm() / exact.norm())

    yield "jvp bf16", error(half)
    for width in widths:
        with EmulatedTF32(), sdpa_kernel(SDPBackend.MATH):
            yield f"TF32 {width}", error(difference_tangent(path, passes(network), *at, width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    data = run.config.data.open()
    stored, y = data.read(list(range(min(arguments.rows, len(data)))))
    labels = y if data.num_classes else None
    for name, error in tangent_errors(run.network.eval(), data.prepare(stored), labels):
        print(f"{name:12} {100 * error:.2f} %")


if __name__ == "__main__":
    main()
