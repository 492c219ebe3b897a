"""Optimizers, built from their settings (:class:`ucgm.runs.settings.OptimizerConfig`).

AdamW (arXiv 1711.05101) is torch's, the others are below, in its fused kernels.  With g the
gradient and n the step,

    RAdam  AdamW's step times r_n, without a second moment in the first few   (arXiv 1908.03265)
    Lion   c = lerp(m, g, 1 - beta_1)                             (arXiv 2302.06675, algorithm 2)
           w <- w - lr (sign c + decay w)
           m <- lerp(m, g, 1 - beta_2)
    Muon   m <- lerp(m, g, 1 - 0.95),   u = lerp(g, m, 0.95)     (kellerjordan.github.io/posts/muon)
           w <- (1 - lr decay) w - lr 0.2 sqrt(max(rows, columns)) U V^T,   u = U S V^T

U V^T comes from five Newton-Schulz iterations in bfloat16.  The factor in front of it gives the
update the size of AdamW's (arXiv 2502.16982, section 2.2), so that one learning rate serves both.

A step changes nothing where ``optimizer.found_inf``, a float32 scalar on the device, is 1: the
kernels look at it, and the host does not wait.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.runs.settings import OptimizerConfig
from ucgm.runtime.sharding import gather, load_shard, local_shard


def build_optimizer(
    config: OptimizerConfig, parameters: Mapping[nn.Parameter, str]
) -> torch.optim.Optimizer:
    """The optimizer of named ``parameters``, with fused kernels.

    Raises:
        ValueError: Muon, where the network has no matrices for it.
    """
    common: dict[str, Any] = dict(
        lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    if config.name == "muon":
        return Muon(*_split_for_muon(parameters), common)
    kinds = {"adamw": torch.optim.AdamW, "radam": RAdam, "lion": Lion}
    return kinds[config.name](list(parameters), fused=True, **common)


def _descend(
    weights: list[Tensor],
    direction: list[Tensor],
    lr: float | Tensor,
    found_inf: Tensor | None,
    decay: float = 0.0,
    sign: float = 1.0,
) -> None:
    """w <- w - lr (sign d + decay w) for tensors of any shape, unless ``found_inf`` is 1."""
    constants = dict(momentum=0.0, dampening=0.0, nesterov=False, is_first_step=False)
    fused: Any = torch._fused_sgd_
    fused(
        weights,
        direction,
        [],
        lr=lr,
        weight_decay=decay,
        maximize=sign < 0,
        found_inf=found_inf,
        **constants,
    )


def _follow(
    averages: list[Tensor], values: list[Tensor], weight: float, found_inf: Tensor | None
) -> None:
    """m <- lerp(m, g, weight) for tensors of any shape, unless ``found_inf`` is 1."""
    _descend(averages, values, weight, found_inf, decay=1.0, sign=-1.0)


class _Fused(torch.optim.Optimizer):
    """Steps of the parameters that have a gradient, each of this process's part of them."""

    found_inf: Tensor | None = None

    def __init__(self, parameters: Sequence[nn.Parameter], **defaults: Any) -> None:
        super().__init__(parameters, defaults)

    def _given(self, group: dict[str, Any], *names: str) -> list[list[Tensor]]:
        """Weights, gradients and named moments of a group, which begin at zero."""
        given = [p for p in group["params"] if p.grad is not None]
        for p in given:
            for name in names:
                if name not in self.state[p]:
                    # Fused kernels count the steps of a parameter in a scalar beside it.
                    scalar = name == "step"
                    new = torch.zeros((), device=p.device) if scalar else torch.zeros_like(p)
                    self.state[p][name] = new
        moments = [[self.state[p][name] for p in given] for name in names]
        lists = [list(given), [p.grad for p in given], *moments]
        return [[local_shard(value) for value in values] for values in lists]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """One step; a ``closure`` is not called."""
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                self.update(group)

    def update(self, group: dict[str, Any]) -> None:
        """One step of a group, some of whose parameters have a gradient."""
        raise NotImplementedError


class RAdam(_Fused):
    """RAdam (arXiv 1908.03265) as AdamW with a learning rate that the device looks up.

    While the second moment cannot be trusted (5 steps at beta_2 = 0.999) the update is the first
    moment alone.  The epsilon is AdamW's.
    """

    _table: Tensor | None = None
    _calls = 0

    def update(self, group: dict[str, Any]) -> None:
        """One step of a group."""
        weights, gradients, first, second, steps = self._given(
            group, "exp_avg", "exp_avg_sq", "step"
        )
        lr, (one, two), bad = group["lr"], group["betas"], self.found_inf
        if self._table is None:
            self._table = rectification(one, two).to(weights[0].device)
        number = steps[0].long().clamp(max=self._table.shape[1] - 1)
        factors = self._table.index_select(1, number.reshape(1))[:, 0]
        if group["weight_decay"]:
            kept = lr * group["weight_decay"] * (1.0 if bad is None else 1.0 - bad)
            torch._foreach_mul_(weights, 1.0 - kept)
        settings = dict(beta1=one, beta2=two, weight_decay=0.0, eps=group["eps"])
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            weights,
            gradients,
            first,
            second,
            [],
            steps,
            lr=lr * factors[0],
            amsgrad=False,
            maximize=False,
            found_inf=bad,
            **settings,
        )
        if bad is not None:
            torch._foreach_sub_(steps, [bad] * len(steps))
        # The host does not know how many of its calls were steps; these are enough.
        if self._calls < 100:
            self._calls += 1
            _descend(weights, first, lr * factors[1], bad)


def rectification(one: float, two: float) -> Tensor:
    """RAdam's two factors of lr after n = 0, 1, ... steps, (2, N): of AdamW, of the first moment.

    One of them is 0; both are those of the last column from there on.
    """
    longest = 2.0 / (1.0 - two) - 1.0
    # Until beta_2^n is nothing beside 1, or for a million steps.
    n = torch.arange(1.0, min(2.0 + 20.0 / (1.0 - two), 1e6), dtype=torch.float64)
    rho = longest - 2.0 * n * two**n / (1.0 - two**n)
    share = (rho - 4.0) * (rho - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * rho)
    trusted = rho > 5.0
    adaptive = torch.where(trusted, share.clamp(min=0.0).sqrt(), 0.0)
    return torch.stack((adaptive, torch.where(trusted, 0.0, 1.0 / (1.0 - one**n)))).float()


class Lion(_Fused):
    """Lion (arXiv 2302.06675, algorithm 2); every weight moves by ``lr`` in every step.

    ``betas`` are those of the update and the momentum.
    """

    def update(self, group: dict[str, Any]) -> None:
        """One step of a group."""
        weights, gradients, momenta = self._given(group, "momentum")
        one, two = group["betas"]
        direction = list(torch._foreach_lerp(momenta, gradients, 1.0 - one))
        torch._foreach_sign_(direction)
        _descend(weights, direction, group["lr"], self.found_inf, group["weight_decay"])
        _follow(momenta, gradients, 1.0 - two, self.found_inf)


class Muon(_Fused):
    """Muon for the matrices of the blocks and AdamW for the rest, as one optimizer with one state.

    ``common`` has lr, betas, eps and weight_decay.  Of sharded matrices every process gathers the
    updates and keeps its rows of the result.
    """

    def __init__(
        self, hidden: Sequence[nn.Parameter], others: Sequence[nn.Parameter], common: dict[str, Any]
    ) -> None:
        self.rest = torch.optim.AdamW(others, fused=True, **common)
        groups = [dict(common, params=list(hidden), fused=True), *self.rest.param_groups]
        torch.optim.Optimizer.__init__(self, groups, {})

    def update(self, group: dict[str, Any]) -> None:
        """One step of the matrices, or of the rest."""
        if group is not self.param_groups[0]:
            # Groups and state are those of this object, which saves and restores them.
            self.rest.param_groups, self.rest.state = [group], self.state
            self.rest.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
            return self.rest.step()
        weights, gradients, momenta = self._given(group, "momentum_buffer")
        _follow(momenta, gradients, 1.0 - _MOMENTUM, self.found_inf)
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        given = [p for p in group["params"] if p.grad is not None]
        updates = [torch.lerp(p.grad, self.state[p]["momentum_buffer"], _MOMENTUM) for p in given]
        for i, p in enumerate(given):
            alike[p.shape].append(i)
        for shape, members in alike.items():
            whole = orthogonal(torch.stack([gather(updates[i]).bfloat16() for i in members]))
            for i, value in zip(members, whole, strict=True):
                load_shard(updates[i], value.float() * (0.2 * max(shape) ** 0.5))
        direction = [local_shard(u) for u in updates]
        _descend(weights, direction, group["lr"], self.found_inf, group["weight_decay"])


_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonal(x: Tensor) -> Tensor:
    """U V^T of matrices U S V^T (N, rows, columns), the singular values near 1 and not exact.

    Five iterations a X + (b X X^T + c (X X^T)^2) X (kellerjordan.github.io/posts/muon).
    """
    wide = x.mT if x.shape[1] > x.shape[2] else x
    a, b, c = _QUINTIC
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if x.shape[1] > x.shape[2] else wide


def _split_for_muon(
    parameters: Mapping[nn.Parameter, str],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices (rows, columns) of the blocks; embeddings, biases, norms and all the rest."""
    inside = re.compile(r"(^|\.)blocks\.\d+\.")
    hidden = [p for p, name in parameters.items() if p.ndim == 2 and inside.search(name)]
    if not hidden:
        raise ValueError(
            "optimizer.name = muon is for the matrices of transformer blocks, and this network "
            "has none: choose adamw"
        )
    chosen: set[Tensor] = set(hidden)
    return hidden, [p for p in parameters if p not in chosen]
