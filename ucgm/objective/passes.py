"""Network passes: which module runs, on which rows, in which precision, under which dropout mask.

Every evaluation of a network during training goes through :class:`Passes`: the one that carries the
gradient through the wrapper of data-parallel training (whose hooks it needs), all others through
the bare module.

A pass of a sharded network is a collective: its processes must all make it or all leave it, and
each has other rows.  Such a network says with ``network.any_rank(condition)`` whether a condition
holds on any process; one that has no rows of its own for the pass takes its first row along and
forgets the result.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.objective.draw import Draw
from ucgm.transport import expand

Network = Callable[..., Tensor]
Source = Literal["online", "target", "teacher"]
Heads = Literal["map", "velocity", "exit", "both"]


class Passes:
    """The networks of one step and how they are called; no pass changes it.

    With active dropout every pass of the step starts from one random state, so all passes of a
    sample see one mask and the global generator advances once; passes are then made for all rows,
    because a mask drawn for fewer rows would be another one.

    Args:
        draw: of the step; TwinFlow's own samples have negative times, which tell the network.
        two_time: whether the networks take s as well as t.
        network: the trained one, which may say with ``any_rank`` who shares it.
        target: its EMA; None: the network itself.
        teacher: none, one, or several, which are averaged.
    """

    def __init__(
        self,
        draw: Draw,
        two_time: bool,
        network: Network,
        target: Network | None,
        teacher: Network | Sequence[Network] | None,
    ) -> None:
        teachers = list(teacher) if isinstance(teacher, Sequence) else [teacher] if teacher else []
        self.networks = {"online": [network], "target": [target or network], "teacher": teachers}
        self.two_time, self.device, self.guidance = two_time, draw.x.device, draw.guidance
        self.any_rank: Callable[[bool], bool] = getattr(network, "any_rank", bool)
        self.sign = self.random_state = None
        if draw.twin is not None:
            own = (draw.twin.part == 3).to(self.device, non_blocking=True)
            self.sign = torch.where(own, -1.0, 1.0).to(draw.t)
        if _has_active_dropout(network):
            cuda = self.device.type == "cuda"
            on_device = torch.cuda.get_rng_state(self.device) if cuda else None
            self.random_state = torch.get_rng_state(), on_device

    def index(self, rows: Tensor) -> Tensor | None:
        """Indices on the device of a CPU mask (B,); None: all rows."""
        if self.random_state is not None or bool(rows.all()):
            return None
        return rows.nonzero().flatten().to(self.device, non_blocking=True)

    def anywhere(self, rows: Tensor) -> bool:
        """Whether any process makes a pass for its ``rows``, a CPU mask (B,)."""
        return self.any_rank(bool(rows.any()))

    def refuse_fewer_teachers(self, needed: int, field: str) -> None:
        """Refuse a field that asks for more teachers than there are."""
        if needed > len(self.networks["teacher"]):
            raise ValueError(
                f"objective.field = {field!r} needs a teacher, or {needed}: start from a trained "
                "run, or name them in train.teacher"
            )

    def gradient(
        self, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor, twice: bool, heads: Heads
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The pass with gradient: F at (t, s); F at (t, t) or None; the second head's or None.

        Args:
            x: (B, ...) states.
            t: (B,) times.
            y: (B,) labels.
            s: (B,) destinations.
            twice: make it at (t, t) as well, in one doubled pass.
            heads: ``both``, or ``map`` for F alone.
        """
        if not twice:
            out = self.call("online", x, t, y, s, wrapped=True, heads=heads)
            return (out[0], None, out[1]) if heads == "both" else (out, None, None)
        both = torch.arange(len(x), device=x.device).repeat(2)
        inputs = (x[both], t[both], take(y, both), torch.cat((s, t)), both)
        out = self.call("online", *inputs, wrapped=True)
        return *out.chunk(2), None

    def call(
        self,
        source: Source,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        s: Tensor,
        index: Tensor | None = None,
        signed: bool = True,
        wrapped: bool = False,
        scale: Tensor | None = None,
        heads: Heads = "map",
        teacher: int | None = None,
    ) -> Any:
        """A pass for rows that are already selected; its result is in full precision.

        Args:
            source: which network.
            x: (R, ...) states.
            t: (R,) times.
            y: (R,) labels.
            s: (R,) destinations; they reach networks with a second time only.
            index: (R,) which rows of the draw these are; None: all.
            signed: give own samples of TwinFlow their negative times.
            wrapped: with gradient, through the wrapper of data-parallel training, if there is one.
            scale: (R,) guidance scales, at every time, in place of the drawn ones.
            heads: what is wanted of a network with a second head: F, the other, or both.
            teacher: which of several teachers; None: the mean of all.
        """
        if self.sign is not None and signed:
            sign = take(self.sign, index)
            t, s = sign * t, sign * s
        inputs = (x, t, y, s) if self.two_time else (x, t, y)
        extra: dict[str, Any] = {}
        if self.guidance is not None:
            extra["guidance"] = take(self.guidance, index)
            if scale is not None:  # at every time: in the form of the drawn, (R,) or (R, 3)
                every = torch.stack((scale, torch.zeros_like(scale), torch.ones_like(scale)), 1)
                extra["guidance"] = scale if self.guidance.ndim == 1 else every
        networks = self.networks[source]
        if teacher is not None and source == "teacher":
            networks = networks[teacher : teacher + 1]
        modules = (n if wrapped else getattr(n, "module", n) for n in networks)
        if heads != "map":
            modules = (partial(module, heads=heads) for module in modules)
        results = [self._run(module, inputs, extra) for module in modules]
        if heads == "both":
            return tuple(full_precision(part) for part in results[0])
        results = [full_precision(r) for r in results]
        return results[0] if len(results) == 1 else torch.stack(results).mean(0)

    def on_rows(
        self,
        source: Source,
        rows: Tensor,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        s: Tensor,
        scale: Tensor | None = None,
        heads: Heads = "map",
        teacher: int | None = None,
    ) -> Tensor:
        """A pass for ``rows``, a CPU mask (B,), 0 on the others; x (B, ...), the others (B,)."""
        nothing = torch.zeros_like(x)
        if not self.anywhere(rows):
            return nothing
        index = self.index(stand_in(rows))
        x, t, y, s, scale = (take(v, index) for v in (x, t, y, s, scale))
        part = self.call(source, x, t, y, s, index, scale=scale, heads=heads, teacher=teacher)
        return place(nothing, rows, index, part)

    def _run(self, module: Network, inputs: tuple[Any, ...], extra: dict[str, Any]) -> Tensor:
        if self.random_state is not None:
            cpu, cuda = self.random_state
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self.device)
        elif self.device.type == "cpu" and self.any_rank is bool:  # no collective
            return in_slices(module, *inputs, **extra)
        return module(*inputs, **extra)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """What passes under a forward derivative need.

    Fused attention kernels have none, and a compiled block that is called under one is never
    compiled again, for any other pass.  The other attention would widen half precision.
    """
    half = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(half)


def full_precision(x: Tensor) -> Tensor:
    """x (B, ...) in float32 or wider: residuals and losses are never formed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def in_slices(module: Network, *inputs: Any, **extra: Any) -> Tensor:
    """A pass without gradient on a CPU, in slices of 2^15 values of x (8 rows of 4x32x32).

    Activations of a whole batch, beside the graph of the gradient, would be new pages of memory
    every time: slices that reuse theirs save a sixth of the pass.  Other passes are made whole.
    """
    x = inputs[0]
    rows = max(1, (1 << 15) // max(1, x[:1].numel()))
    if len(x) <= rows or kinds_of_pass(*inputs) != ["forward"]:
        return module(*inputs, **extra)
    slices = [slice(i, i + rows) for i in range(0, len(x), rows)]
    parts = [
        module(*(take(v, k) for v in inputs), **{n: take(v, k) for n, v in extra.items()})
        for k in slices
    ]
    return torch.cat(parts)


def kinds_of_pass(*inputs: Any) -> list[str]:
    """What a pass makes: the ``gradient``, a ``tangent``, both, or the ``forward`` alone."""
    dual = any(
        v.is_floating_point() and forward_ad.unpack_dual(v).tangent is not None
        for v in inputs
        if v is not None
    )
    kinds = ["gradient"] * torch.is_grad_enabled() + ["tangent"] * dual
    return kinds or ["forward"]


def _has_active_dropout(network: Network) -> bool:
    if not isinstance(network, nn.Module):
        return False
    dropout = nn.modules.dropout._DropoutNd
    return any(isinstance(m, dropout) and m.training and m.p > 0 for m in network.modules())


def stand_in(rows: Tensor) -> Tensor:
    """The mask ``rows`` (B,), or the first row where it is empty."""
    return rows if bool(rows.any()) else torch.arange(len(rows)) == 0


def take(x: Any, index: Tensor | slice | None) -> Any:
    """Rows ``index`` (R,) of a tensor; all for None, None for None."""
    return x if x is None or index is None else x[index]


def place(x: Tensor, rows: Tensor, index: Tensor | None, part: Tensor) -> Tensor:
    """``x`` (B, ...) with ``part`` on the ``rows``, a CPU mask (B,).

    ``part`` (R, ...) was made for the rows ``index`` (R,): None is all of them, and a row more than
    ``rows`` has is that of :func:`stand_in`.
    """
    part = part.to(x.dtype)
    if index is not None:
        return x if len(index) > int(rows.sum()) else x.index_copy(0, index, part)
    if bool(rows.all()):
        return part
    return torch.where(expand(rows.to(x.device, non_blocking=True), x), part, x)
