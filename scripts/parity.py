"""Every preset as shipped against the formula of its public code, on the same random numbers.

    python scripts/parity.py [NAME ...]        prints the table; without names writes it

Each preset draws rows from its own laws; some of them are replaced by rows that laws rarely give
(t near 0, t = 1, s near t).  ``Objective.terms`` and the formula of ``published.py`` or
``published_maps.py`` then get the same small network, in float64, and are compared: the regression
target of every row and the weighted loss of the first 40, relative to the row, and the gradient of
the loss of all.  A setting in which the preset departs from the public code on purpose is a
declared deviation: it is printed, and set back for the comparison.  The exit code is 1 if a
difference is above its limit.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import published as public
import published_maps as maps
import torch
from published import Batch, Published
from torch import Tensor, nn

from ucgm.nn.network import Network
from ucgm.objective import Data, Draw, LogVariance, Objective, SameTime, TwinFlowSplit, preset

PAGE = Path(__file__).parents[1] / "docs" / "results" / "parity.md"
ROWS, ALONE, CHANNELS, SIDE, CLASSES = 96, 40, 3, 2, 5
LIMIT = 1e-7
F64 = torch.float64


class Toy(nn.Module):
    """A smooth random function; every input matters: x, t, y, and s and guidance where given."""

    def __init__(self, seed: int, nearby: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size, width, embedded, features = CHANNELS * SIDE**2, 32, 4, 10

        def random(*shape: int) -> nn.Parameter:
            values, change = (torch.randn(*shape, generator=generator, dtype=F64) for _ in "ab")
            return nn.Parameter(values + nearby * change)

        self.embedding = random(CLASSES + 1, embedded)
        self.inner = random(width, size + embedded + features)
        self.bias = random(width)
        self.map, self.velocity = random(size, width), random(size, width)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        s: Tensor | None = None,
        guidance: Tensor | None = None,
        heads: str = "map",
    ) -> Any:
        """F (B, ...) of the map, of the velocity head, or ``both``."""
        gap = torch.zeros_like(t) if s is None else t - s
        scale, low, high = torch.ones_like(t), torch.zeros_like(t), torch.ones_like(t)
        if guidance is not None:
            scale, low, high = guidance.T if guidance.ndim == 2 else (guidance, low, high)
        times = [t, gap, torch.sin(3 * t), torch.cos(2 * gap), t * gap, 1 / scale, t / scale]
        times += [low, high, low * t * high]
        inputs = torch.cat((x.flatten(1), self.embedding[y], torch.stack(times, 1)), 1)
        hidden = torch.tanh(1.2 * inputs @ self.inner.T / inputs.shape[1] ** 0.5 + self.bias)
        # States beyond the clamps have predictions beyond them.
        u, v = ((hidden @ m.T / 4).reshape(x.shape) - 0.8 * x for m in (self.map, self.velocity))
        return {"map": u, "velocity": v, "both": (u, v)}[heads]


@dataclass
class Networks:
    """What a step may use: the trained network, its average, a teacher, the variance head.

    The average is near the network, as in a run: else clamps of a difference over a small step
    would leave nothing to compare.
    """

    online: Toy = field(default_factory=lambda: Toy(1))
    average: Toy = field(default_factory=lambda: Toy(1, nearby=3e-3))
    teacher: Toy = field(default_factory=lambda: Toy(3))
    two_time: bool = False

    def __post_init__(self) -> None:
        self.variance = LogVariance(two_time=self.two_time).double()
        weight = self.variance.linear.weight
        with torch.no_grad():
            weight.copy_(torch.linspace(-1, 1, weight.numel(), dtype=F64).cos()[None])

    @property
    def parameters(self) -> list[Tensor]:
        """Of the trained network and the head."""
        return [*self.online.parameters(), *self.variance.parameters()]


Formula = Callable[[Networks, Batch, float], Published]


@dataclass(frozen=True)
class Case:
    """How one preset is compared.

    source: the public code; formula: of the networks, the numbers and the progress of the run;
    settings: the declared deviations set back; deviations: the same in words; kept: (B,) rows of a
    batch that are compared, where a deviation is one of rows; progress: shares of the run; network:
    what the preset's convention makes of a network.
    """

    source: str
    formula: Formula
    settings: dict[str, Any] = field(default_factory=dict)
    deviations: str = ""
    kept: Callable[[Batch, float], Tensor] | None = None
    progress: tuple[float, ...] = (1.0,)
    network: Callable[[Toy], public.Net] = lambda toy: toy


def doublings(progress: float) -> int:
    """How often ect has doubled the closeness of its anchor: eight stages of the run."""
    return int(8 * min(progress, 0.999))


def above_edm_floor(b: Batch, progress: float) -> Tensor:
    """(B,) rows whose anchor under ect is data, or at a noise level that EDM has."""
    earlier = public.ect_anchor(public.edm_level(b.t), doublings(progress))
    return ((earlier == 0) | (earlier > public.edm_level(torch.zeros(())))) & (b.t > 0)


def says_data(net: Toy) -> public.Net:
    """F of a network that says the data, by the convention ``jit`` of ucgm."""
    convention: Any = SimpleNamespace(convention="jit", noise_scale=1.0)
    return lambda x, t, y: Network.field(convention, net(x, t, y), x, t)


def scaled(net: Toy) -> public.Net:
    """F of a network with ``guidance_output``, whose prediction is times its guidance scale."""
    return lambda x, t, y, s, guidance: public.wide(guidance) * net(x, t, y, s, guidance)


def over(found: Published, factor: float) -> Published:
    """The same with a loss ``factor`` times smaller."""
    return found._replace(rows=found.rows / factor)


CASES: dict[str, Case] = {
    "ddpm": Case(
        "DiT (facebookresearch/DiT), formula",
        lambda n, b, p: public.vp(n.online, b, "eps"),
        deviations="continuous schedule: 1,000 discrete steps there; no learned variance",
    ),
    "v_prediction": Case("arXiv 2202.00512, formula", lambda n, b, p: public.vp(n.online, b, "v")),
    "edm": Case(
        "NVlabs/edm training/loss.py",
        lambda n, b, p: public.edm(n.online, b),
        deviations="mean over elements: the sum there",
    ),
    "edm2": Case(
        "NVlabs/edm2 training/training_loop.py",
        lambda n, b, p: public.edm(n.online, b, n.variance),
        deviations="mean over elements: the sum there; the variance head starts at zero",
    ),
    "flow_matching": Case("willisma/SiT transport", lambda n, b, p: public.sit(n.online, b)),
    "lightningdit": Case(
        "hustvl/LightningDiT transport",
        lambda n, b, p: public.sit(n.online, b, with_cosine=True),
        {"cosine_floor": 1e-8},
        "cosine_floor 0.1: 1e-8 there",
    ),
    "ot_cfm": Case(
        "atong01/conditional-flow-matching torchcfm",
        lambda n, b, p: public.ot_cfm(n.online, b),
        deviations="the plan's permutation: rows sampled from the plan with replacement there",
    ),
    "ucgm_multi": Case(
        "LINs-lab/UCGM methodes",
        lambda n, b, p: public.ucgm(n.online, b, 0.0, 0.47, uncond=n.average, with_cosine=True),
        {"cosine_floor": 1e-8, "pseudo_huber_c": 0.0},
        "cosine_floor 0.1: 1e-8 there; pseudo_huber_c 0.001: 0 there; pi / 2 exact: 1.57 there",
    ),
    "ucgm_lambda": Case(
        "LINs-lab/UCGM methodes",
        lambda n, b, p: public.ucgm(n.online, b, 0.5, 0.0),
        {"pseudo_huber_c": 0.0},
        "pseudo_huber_c 0.001: 0 there; pi / 2 exact: 1.57 there; ratio and lambda unpublished",
    ),
    "ucgm_few": Case(
        "LINs-lab/UCGM methodes",
        lambda n, b, p: public.ucgm(n.online, b, 1.0, 2.0, teacher=n.teacher, huber=5.0),
        deviations="pi / 2 exact: 1.57 there; finite differences one-sided within 0.005 of the "
        "ends: outside [0, 1] there",
        kept=lambda b, p: (b.t > 0.005) & (b.t < 0.995),
    ),
    "ect": Case(
        "locuslab/ect training/loss.py",
        lambda n, b, p: public.ect(n.online, b, doublings(p)),
        deviations="levels within EDM's 0.0017 to 78, below them is data: 0.8 % of the rows are "
        "outside there; the closeness doubles by the share of the run",
        kept=above_edm_floor,
        progress=(0.0, 0.5, 1.0),
    ),
    "scm": Case(
        "NVlabs/FastGen sCM.py",
        lambda n, b, p: public.scm(n.online, b, n.variance, min(1.0, p / 0.025)),
        deviations="the variance head starts at zero",
        progress=(0.0, 0.0125, 1.0),
    ),
    "scd": Case(
        "NVlabs/FastGen sCM.py",
        lambda n, b, p: public.scm(n.online, b, n.variance, min(1.0, p / 0.025), n.teacher),
        deviations="the variance head starts at zero",
        progress=(0.0, 0.0125, 1.0),
    ),
    "meanflow": Case(
        "Gsunshine/meanflow meanflow.py", lambda n, b, p: maps.meanflow(n.online, b, 1.0, 0.5)
    ),
    "pixel_meanflow": Case(
        "Gsunshine/py-meanflow models/meanflow.py",
        lambda n, b, p: maps.meanflow(n.online, b, 1.0, 0.0, power=0.75, epsilon=1e-3),
        deviations="labels may be given: none there",
    ),
    "decoupled_meanflow": Case(
        "kyungmnlee/dmf loss.py",
        lambda n, b, p: maps.decoupled_meanflow(n.online, b, n.variance),
        deviations="each row in one of the two terms: in both there; each log-variance with its "
        "own row: with all rows there",
    ),
    "imf": Case("Lyy-iiis/imeanflow imf.py", lambda n, b, p: maps.imf(n.online, b)),
    "alpha_flow": Case(
        "snap-research/alphaflow loss.py",
        lambda n, b, p: maps.alpha_flow(
            n.online, b, maps.alpha_of(p, 0.0, 1.0), 1.0, 0.5, (0.0, 1.0)
        ),
        progress=(0.0, 0.4, 0.6, 1.0),
    ),
    "terminal_velocity": Case(
        "lumalabs/tvm training/wrapper.py",
        lambda n, b, p: maps.terminal_velocity(n.online, n.average, b, 2.0, scaled_output=True),
        network=scaled,
    ),
    "lsd": Case(
        "nmboffi/flow-maps py/common/losses.py (forks)",
        lambda n, b, p: maps.lsd(n.online, b, n.variance),
        deviations="the variance head starts at zero",
    ),
    "shortcut": Case(
        "kvfrans/shortcut-models targets_shortcut.py",
        lambda n, b, p: maps.shortcut(n.online, n.average, b, scale=1.5),
        deviations="no noise at t = 0: 1e-5 of it there",
    ),
    "rcgm": Case(
        "inclusionAI/TwinFlow tutorials/mnist/methodes.py",
        lambda n, b, p: maps.rcgm(n.online, n.average, b, 0.5),
        deviations="t = 1, which has no probability, is not guided: it is there",
        kept=lambda b, p: b.t < 1,
    ),
    "twinflow": Case(
        "inclusionAI/TwinFlow src/methodes/twinflow",
        lambda n, b, p: over(maps.twinflow(n.online, n.average, b, 0.8), 1.01**0.5),
        deviations="the loss over sqrt(1.01)",
    ),
    "facm": Case(
        "ali-vilab/FACM losses.py",
        lambda n, b, p: maps.facm(n.online, b, teacher=n.teacher),
        {"cosine_floor": 1e-8},
        "cosine_floor 0.1: 1e-8 there; the second time tells the tasks apart: time 2 - tau there",
    ),
    "soflow": Case(
        "zlab-princeton/SoFlow models.py",
        lambda n, b, p: maps.soflow(n.online, b, p),
        progress=(0.0, 0.5, 1.0),
    ),
    "tim": Case(
        "WZDTHU/TiM tim/schedulers/transition.py",
        lambda n, b, p: maps.tim(n.online, b),
        {"cosine_floor": 1e-8},
        "cosine_floor 0.1: 1e-8 there; the term with features is a setting, alignment",
    ),
    "jit": Case(
        "LTH14/JiT denoiser.py (fork)",
        lambda n, b, p: public.jit(n.online, b),
        deviations="the target below t = 0.05, one row of 700,000, over t: over 0.05 there",
        kept=lambda b, p: b.t >= 0.05,
        network=says_data,
    ),
}

# Times that the laws rarely give, ends of intervals among them, and gaps of pairs: none, below and
# above every finite step.
EDGES = tuple(
    (t, gap)
    for t, gaps in {
        1.0: (1.0, 0.5, 0.0),
        0.9999: (0.004, 0.0),
        0.985: (0.97, 0.012),
        0.88: (0.006, 0.3),
        0.875: (0.4,),
        0.75: (0.3,),
        0.7: (0.2,),
        0.7501: (1e-3, 0.02),
        0.7499: (1e-3, 0.7499),
        0.45: (1e-5, 0.0095),
        0.02: (0.0101, 0.0),
        2e-3: (1e-3, 2e-3),
    }.items()
    for gap in gaps
)


def with_edges(objective: Objective) -> Objective:
    """The objective with the first rows of its pairs (t, s) replaced by :data:`EDGES`.

    Pairs on a grid of their own stay; of a TwinFlow batch the rows of any jump are replaced.  Gaps
    that the law excludes are left out.
    """
    law = objective.destination or (SameTime() if objective.diffusion else Data())
    kind = type(law).__name__
    if kind == "Dyadic":
        return objective
    least = 1e-4 if kind == "Apart" else 1e-9
    equal = kind not in ("Below", "GapFirst", "TwinFlowSplit")

    class Edged(type(law)):
        def pair(self, t: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            late, early = (v.clone() for v in super().pair(t, u, *rest))
            free = torch.ones_like(t, dtype=torch.bool)
            if isinstance(law, TwinFlowSplit):
                free = law.part(u) == 2
            edges = [(edge, gap) for edge, gap in EDGES if gap >= least or (gap == 0 and equal)]
            for i, (edge, gap) in zip(free.nonzero().flatten().tolist(), edges, strict=False):
                late[i] = edge
                early[i] = {"SameTime": edge, "Data": 0.0}.get(kind, edge - gap)
            return late, early

    values = {f.name: getattr(law, f.name) for f in fields(law)}
    return replace(objective, destination=Edged(**values))


def cut(value: Any, index: Any) -> Any:
    """Rows ``index`` of everything in a draw that has rows."""
    if torch.is_tensor(value):
        return value[index]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(cut(v, index) for v in value))
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value)]
        return replace(value, **{n: cut(getattr(value, n), index) for n in names})
    return value


def drawn(objective: Objective, seed: int, progress: float) -> tuple[Draw, Tensor]:
    """A draw of :data:`ROWS` rows, edges among them, and its labels (B,) before any was dropped."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.7 * torch.randn(ROWS, CHANNELS, SIDE, SIDE, generator=generator, dtype=F64)
    x[::5] *= 6.0  # states and targets beyond the clamps
    y = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    return with_edges(objective).draw(x, y, CLASSES, generator, progress), y


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in a row, relative to the row (or to 1e-3 of the largest row)."""
    ours, theirs = (v.detach().reshape(len(v), -1) for v in (ours, theirs))
    size = theirs.abs().amax(1)
    scale = torch.maximum(size, 1e-3 * size.max())
    worst = float(((ours - theirs).abs().amax(1) / scale).max())
    return worst if worst < float("inf") else float("inf")  # not a number is no agreement


def compare(name: str, seed: int, **changed: Any) -> dict[str, float]:
    """Largest relative differences over the progress of the run: target, rows, gradient.

    ``changed`` settings of the preset show that the comparison notices them.
    """
    case = CASES[name]
    shipped = preset(name, **case.settings, **changed)
    worst = {"target": 0.0, "rows": 0.0, "gradient": 0.0}
    for progress in case.progress:
        draw, y = drawn(shipped, seed, progress)
        batch = batch_of(draw, y)
        if case.kept is not None:
            kept = case.kept(batch, progress)
            draw, batch = cut(draw, kept), cut(batch, kept)
        for key, value in differences(case, shipped, draw, batch, progress).items():
            worst[key] = max(worst[key], value)
    return worst


def batch_of(draw: Draw, y: Tensor) -> Batch:
    """The numbers of ``draw`` for a formula, with the labels (B,) before they were dropped."""
    more = draw.guidance, getattr(draw, "flow_time", None), draw.twin
    return Batch(draw.x, draw.z, draw.t, draw.s, y, draw.dropped, CLASSES, *more)


def differences(
    case: Case, objective: Objective, draw: Draw, batch: Batch, progress: float
) -> dict[str, float]:
    """Relative differences of target, rows and gradient between the objective and the formula."""
    nets = Networks(two_time=objective.two_time)
    network, average, teacher = map(case.network, (nets.online, nets.average, nets.teacher))

    def terms(draw: Draw) -> Any:
        passes = {"target": average, "teacher": teacher, "log_variance": nets.variance}
        return objective.terms(network, draw, **passes, progress=progress)

    ours, theirs = terms(draw), case.formula(nets, batch, progress)
    # The weighted loss of a row is the loss of the batch that is this row.
    rows = torch.stack([terms(cut(draw, slice(i, i + 1))).loss for i in range(ALONE)])
    gradients = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(loss, nets.parameters, materialize_grads=True)
            ]
        )
        for loss in (ours.loss, theirs.loss)
    ]
    return {
        "target": relative(ours.target, theirs.target),
        "rows": relative(rows, theirs.rows[:ALONE]),
        "gradient": relative(*(g[None] for g in gradients)),
    }


HEAD = """# Presets against public code

Written by `python scripts/parity.py`: largest relative difference between a preset as shipped and
the formula of the public code, in float64, over rows of the preset's own laws and edge rows (t = 1,
s near t, dropped labels, inside and outside the guidance interval). Limit: {limit:g}. A declared
deviation is a choice of the preset: it is set back for the comparison.

| preset | public code read | target | rows | gradient | declared deviations |
|---|---|---|---|---|---|
"""


def start(name: str) -> str:
    """The first cells of a preset's row of the table."""
    return f"| `{name}` | {CASES[name].source}"


def end(name: str) -> str:
    """Its last cell."""
    return f"{CASES[name].deviations or 'none'} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="presets; default: all")
    names = parser.parse_args().names
    lines, worst = [], 0.0
    for name in names or CASES:
        found = compare(name, seed=0)
        worst = max(worst, *found.values())
        lines.append(" | ".join((start(name), *(f"{v:.0e}" for v in found.values()), end(name))))
        print(lines[-1])
    if not names:
        PAGE.write_text(HEAD.format(limit=LIMIT) + "\n".join(lines) + "\n")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
