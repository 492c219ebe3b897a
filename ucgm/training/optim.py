"""Optimizers, built from their settings (:class:`ucgm.runs.settings.OptimizerConfig`).

AdamW (arXiv 1711.05101) and RAdam (arXiv 1908.03265) are torch's; Lion is below; Muon is torch's
for the matrices of the blocks, with AdamW for all else.  With g the gradient and n the step,

    Lion   c = lerp(m, g, 1 - beta_1)                             (arXiv 2302.06675, algorithm 2)
           w <- w - lr (sign c + decay w)
           m <- lerp(m, g, 1 - beta_2)
    Muon   m <- lerp(m, g, 1 - 0.95),   u = lerp(g, m, 0.95)     (kellerjordan.github.io/posts/muon)
           w <- (1 - lr decay) w - lr 0.2 sqrt(max(rows, columns)) U V^T,   u = U S V^T

U V^T comes from five Newton-Schulz iterations in bfloat16.  The factor in front of it gives the
update the size of AdamW's (arXiv 2502.16982, section 2.2), so that one learning rate serves both.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.runs.settings import OptimizerConfig
from ucgm.runtime.sharding import local_shard


def build_optimizer(
    config: OptimizerConfig, parameters: Mapping[nn.Parameter, str]
) -> torch.optim.Optimizer:
    """The optimizer of named ``parameters``, with fused or foreach kernels.

    Raises:
        ValueError: Muon, where torch or the network does not have it or weights are sharded.
    """
    common: dict[str, Any] = dict(
        lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    every = list(parameters)
    if config.name == "adamw":
        return torch.optim.AdamW(every, fused=True, **common)
    if config.name == "radam":
        return torch.optim.RAdam(every, foreach=True, decoupled_weight_decay=True, **common)
    if config.name == "lion":
        return Lion(every, config.lr, config.betas, config.weight_decay)
    return Muon(*_split_for_muon(parameters), common)


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675, algorithm 2) with foreach kernels; weights may be sharded.

    Every weight moves by ``lr`` in every step; ``betas`` are those of the update and the momentum.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """One step; a ``closure`` is not called."""
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for p in given:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            weights = [local_shard(p) for p in given]
            gradients = [local_shard(p.grad) for p in given]
            momenta = [local_shard(self.state[p]["momentum"]) for p in given]
            if not weights:
                continue
            lr, (one, two) = group["lr"], group["betas"]
            update = torch._foreach_lerp(momenta, gradients, 1.0 - one)
            torch._foreach_sign_(update)
            torch._foreach_mul_(weights, 1.0 - lr * group["weight_decay"])
            torch._foreach_add_(weights, update, alpha=-lr)
            torch._foreach_lerp_(momenta, gradients, 1.0 - two)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks and AdamW for the rest, as one optimizer with one state.

    ``common`` has lr, betas, eps and weight_decay.
    """

    def __init__(
        self, hidden: Sequence[nn.Parameter], others: Sequence[nn.Parameter], common: dict[str, Any]
    ) -> None:
        lr, decay = common["lr"], common["weight_decay"]
        matrices = torch.optim.Muon(hidden, lr, decay, adjust_lr_fn="match_rms_adamw")
        rest = torch.optim.AdamW(others, fused=True, **common)
        self.parts = (matrices, rest)
        super().__init__([*matrices.param_groups, *rest.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """One step of both; a ``closure`` is not called."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            # Groups and state are those of this object, which saves and restores them.
            part.param_groups, part.state = [group], self.state
            part.step()


def _split_for_muon(
    parameters: Mapping[nn.Parameter, str],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices (rows, columns) of the blocks; embeddings, biases, norms and all the rest."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer.name = muon needs torch 2.9 or newer, this is {torch.__version__}: "
            "pip install -U torch, or choose adamw"
        )
    if any(local_shard(p) is not p for p in parameters):
        raise ValueError(
            "optimizer.name = muon needs whole matrices, and train.sharding spreads their rows "
            "over processes: set train.sharding to none, or choose adamw or lion"
        )
    inside = re.compile(r"(^|\.)blocks\.\d+\.")
    hidden = [p for p, name in parameters.items() if p.ndim == 2 and inside.search(name)]
    if not hidden:
        raise ValueError(
            "optimizer.name = muon is for the matrices of transformer blocks, and this network "
            "has none: choose adamw"
        )
    chosen: set[Tensor] = set(hidden)
    return hidden, [p for p in parameters if p not in chosen]
