"""Train every preset on a one-dimensional mixture and compare with the closed form.

The data are a mixture of two Gaussians, so for every path the conditional mean of F (the field),
its M-estimates under the robust losses, and the probability-flow map (quantile to quantile) are
known.  Each row, at times of the preset's own law, names what is compared: ``field`` is F at s = t,
``map`` is X(x; t->s) at the destinations the preset learns, ``samples`` the sorted samples of a
64-step solve.  Errors are root mean squares over the standard deviation of what is compared.

    python scripts/oracle_1d.py [NAME ...] [--steps 6000]

Guidance is off, since the data have no labels.  Robust losses of a noisy target are biased by
design: ``field*`` compares with the closed-form M-estimate (a median for p = 1/2), and the line
above it has the distance from the mean that was learned and the one that was predicted.
"""

import argparse
import dataclasses
import itertools
import time

import torch
from mixture_1d import DEVIATION, MEANS, WEIGHTS, field, flow, mean_field, quantile
from torch import Tensor, nn

from ucgm.objective import LogVariance, Objective, preset
from ucgm.objective.destinations import Data
from ucgm.training.ema import EMA


class Net(nn.Module):
    """A small two-time network for one number, ``network(x_t, t, y, s)``."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("waves", torch.pi * torch.arange(1, 5) / 2)
        sizes = [1 + 2 + 16, width, width, width, 1]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers[:-1])

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """F (B, 1, 1, 1)."""
        s = t if s is None else s
        angles = torch.stack((t, t - s), 1)[:, :, None] * self.waves
        features = torch.cat((angles.sin().flatten(1), angles.cos().flatten(1)), 1)
        flat = x.flatten(1)
        inputs = torch.cat((flat, t[:, None], (t - s)[:, None], features), 1)
        return self.body(inputs).reshape(x.shape)


def train(
    objective: Objective, steps: int, gaussian: bool = False, start: nn.Module | None = None
) -> nn.Module:
    """The EMA network after ``steps`` of the objective on the mixture (or on N(0, 1))."""
    torch.manual_seed(0)
    network = Net()
    if start is not None:
        network.load_state_dict(start.state_dict())
    head = LogVariance(two_time=objective.two_time) if objective.log_variance else None
    ema, target = EMA(network, 0.999), EMA(network, 0.99)
    modules = [m for m in (network, head) if m is not None]
    rate = 2e-3 if start is None else 1e-3
    optimizer = torch.optim.Adam([p for m in modules for p in m.parameters()], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    # The optimal assignment costs the cube of the batch.
    batch = 128 if objective.coupling == "optimal_transport" else 1024

    def teacher(x: Tensor, t: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        known = mean_field(objective.transport, x.flatten().double(), t.double())
        return known.to(x).reshape(x.shape)

    for step in range(steps):
        kind = torch.rand(batch, generator=generator) < WEIGHTS[1]
        noise = torch.randn(batch, generator=generator)
        x = noise if gaussian else torch.where(kind, MEANS[1], MEANS[0]) + DEVIATION * noise
        draw = objective.draw(x.reshape(-1, 1, 1, 1), None, None, generator, step / steps)
        terms = objective.terms(
            network,
            draw,
            target=target.network,
            teacher=teacher,
            log_variance=head,
            progress=step / steps,
        )
        optimizer.zero_grad()
        terms.loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        target.update()
    return ema.network


@torch.no_grad()
def error(objective: Objective, network: nn.Module, what: str) -> float:
    """Root mean square error of the network, over the deviation of what it should be."""
    path, n = objective.transport, 4096
    g = torch.Generator().manual_seed(2)
    u, v = (torch.rand(n, generator=g, dtype=torch.float64) for _ in range(2))
    t = objective.time_law.quantile(0.01 + 0.98 * u, path).clamp(0.01, 0.99)
    s = torch.zeros_like(t)
    if what == "map" and not isinstance(objective.destination, Data | None):
        w = torch.rand(n, 3, generator=g, dtype=torch.float64)
        t, s = objective.destination.pair(t, w, objective.time_law, path)
        t, s, v = (c[s < t] for c in (t, s, v))
    x = quantile(path, 1e-3 + 0.998 * v, t)

    def said(points: Tensor, now: Tensor, to: Tensor) -> Tensor:
        # A network of one time was never shown another.
        later = to.float() if objective.two_time else None
        f = network(points.float().reshape(-1, 1, 1, 1), now.float(), None, later)
        return f.flatten().double()

    if what == "samples":
        state, times = (
            torch.special.ndtri((torch.arange(n) + 0.5).double() / n),
            torch.linspace(1, 0, 65),
        )
        for now, later in itertools.pairwise(times):
            now, later = (torch.full((n,), float(c), dtype=torch.float64) for c in (now, later))
            state = path.jump(state, said(state, now, now), now, later)
        wanted = quantile(path, (torch.arange(n) + 0.5).double() / n, torch.zeros(n))
        return rms(state.sort().values - wanted) / wanted.std().item()
    if what.startswith("field"):
        learned, mean = said(x, t, t), mean_field(path, x, t)
        if what == "field":
            return rms(learned - mean) / mean.std().item()
        power, eps = objective.loss_power, objective.loss_epsilon
        if objective.pseudo_huber_c is not None:
            power, eps = 0.5, objective.pseudo_huber_c**2
        robust, only = field(path, x, t, power, eps)
        biases = [
            f"{rms((f - mean)[only]) / mean[only].std().item():.3f}" for f in (learned, robust)
        ]
        share = only.double().mean().item()
        print(f"{'':19}bias {biases[0]}, predicted {biases[1]} (one root: {share:.0%} of points)")
        return rms((learned - robust)[only]) / robust[only].std().item()
    wanted = flow(path, x, t, s)
    return rms(path.jump(x, said(x, t, s), t, s) - wanted) / wanted.std().item()


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.square().mean().sqrt().item()


OFF = dict(field="data")
NO_SCALE = dict(guidance_range=None, guidance_interval=False, over_scale=False, velocity_head=0.0)
EXACT = dict(field="distillation", enhancement_ratio=1.0)
# name -> (note, settings, what is compared)
ROWS: dict[str, list[tuple[str, dict, str]]] = {
    **{name: [("", {}, "field")] for name in ("ddpm", "v_prediction", "edm", "edm2")},
    **{name: [("", {}, "field")] for name in ("flow_matching", "lightningdit", "jit")},
    "ot_cfm": [("", {}, "samples")],
    "ucgm_multi": [
        ("as published, against its M-estimate", OFF, "field*"),
        ("squared error", OFF | dict(pseudo_huber_c=None), "field"),
    ],
    "ucgm_few": [("exact teacher", EXACT, "map")],
    # In one dimension the norm of its loss is an absolute value, whose minimiser is a median.
    "ect": [("squared error", dict(pseudo_huber_c=None), "map")],
    "scm": [
        ("exact teacher", EXACT, "map"),
        ("exact teacher, no normalisation", EXACT | dict(normalize=None), "map"),
    ],
    "scd": [("exact teacher", EXACT, "map")],
    "meanflow": [
        ("squared error", OFF | dict(loss_power=0.0), "map"),
        ("eps = 1, against its M-estimate", OFF | dict(loss_epsilon=1.0), "field*"),
        ("as published, against its M-estimate", OFF, "field*"),
    ],
    "imf": [("squared error, no guidance", OFF | NO_SCALE | dict(loss_power=0.0), "map")],
    "pixel_meanflow": [("squared error", dict(loss_power=0.0), "map")],
    "decoupled_meanflow": [("squared error", OFF | dict(log_variance=False, log_loss=None), "map")],
    "alpha_flow": [("squared error", OFF | dict(loss_power=0.0), "map")],
    "soflow": [("squared error", OFF | dict(loss_power=0.0), "map")],
    "tim": [("squared error", dict(loss_power=0.0, cosine_loss=False), "map")],
    "terminal_velocity": [("no guidance", OFF | NO_SCALE, "map")],
    # With its learned weight it diverges here: a network that runs away is its own target, and the
    # weight follows it.  The published network has normalised weights.
    "lsd": [("squared error, no learned weight", dict(log_variance=False), "map")],
    "shortcut": [("", {}, "map")],
    "rcgm": [("exact teacher", EXACT, "map")],
    "facm": [("exact teacher", EXACT, "map")],
    "twinflow": [
        ("exact teacher", EXACT, "map"),
        ("exact teacher, no matching", EXACT | dict(matching=0.0), "map"),
    ],
}
# Consistency models start from a diffusion model on their path, as their papers do.
TUNED = ("ucgm_few", "ect", "scm", "scd", "facm")
# T4: one-step deviation of the lambda family on N(0, 1), a product over lambda^k, in closed form.
BIASED = {0.5: 0.62001, 0.9: 0.93445}


def begin(objective: Objective, steps: int) -> nn.Module:
    """A diffusion model on the objective's path, from the exact field."""
    settings = dict(transport=objective.transport, label_dropout=0.0, **EXACT)
    return train(preset("flow_matching", **settings), steps // 4)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*ROWS, "ucgm_lambda"])
    parser.add_argument("--steps", type=int, default=6000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'preset':<19}{'setting':<40}{'compared':<10}{'error':>8}{'seconds':>9}")
    for name in arguments.names:
        if name == "ucgm_lambda":
            lambda_family(arguments.steps)
            continue
        trained: dict[str, nn.Module] = {}
        for note, settings, what in ROWS[name]:
            time_variable = time.perf_counter()
            objective = preset(name, label_dropout=0.0, **settings)
            key = repr(objective)
            if key not in trained:
                start = begin(objective, arguments.steps) if name in TUNED else None
                trained[key] = train(objective, arguments.steps, start=start)
            value = error(objective, trained[key], what)
            seconds = time.perf_counter() - time_variable
            print(f"{name:<19}{note:<40}{what:<10}{value:>8.4f}{seconds:>9.0f}", flush=True)


def lambda_family(steps: int) -> None:
    """One-step deviation at lambda < 1 against its closed form."""
    for ratio, predicted in BIASED.items():
        start = time.perf_counter()
        plain = dict(pseudo_huber_c=None, clamp=None, time_weight=None, field="data")
        objective = preset("ucgm_lambda", consistency_ratio=ratio, step_rule="exact", **plain)
        objective = dataclasses.replace(objective, label_dropout=0.0)
        network = train(objective, steps, gaussian=True)
        z = torch.special.ndtri((torch.arange(4096) + 0.5) / 4096).reshape(-1, 1, 1, 1)
        one = torch.ones(4096)
        with torch.no_grad():
            x = objective.transport.jump(z, network(z, one, None, one), one, 0 * one)
        seconds = time.perf_counter() - start
        note = f"lambda {ratio}: deviation {x.std():.3f}, predicted {predicted:.3f}"
        value = abs(x.std().item() - predicted) / predicted
        print(f"{'ucgm_lambda':<19}{note:<50}{value:>8.4f}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
