"""The loop that scripts/bench/training.py compares with: a training as it is written by hand.

Data in memory, torch's fused or foreach optimizers, averages by torch, the loss read in every step;
for UCGM every pass for every row, as the published trainer makes them (github.com/LINs-lab/UCGM;
the formulas are those of docs/objective.md).
"""

import copy
import math
import multiprocessing

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ucgm.nn import DiTConfig


class Elsewhere:
    """A plain loop in a process of its own, which settings of ours cannot touch.

    It works while ``step`` is called and sleeps otherwise.
    """

    def __init__(self, method, size, shape, classes, batch):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=serve, args=(other, method, size, shape, classes, batch), daemon=True
        )
        self.process.start()
        self.connection.recv()  # it is built: nothing of its start falls into a time of ours

    def step(self):
        """One step there."""
        self.connection.send("step")
        return self.connection.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.join()


def serve(connection, method, size, shape, classes, batch):
    """Make a step for every message."""
    torch.set_num_threads(1)
    model = DiTConfig(size=size, family="dit")
    plain = Plain(method, lambda: model.build(shape, classes), batch, classes)
    connection.send("ready")
    while connection.recv():
        connection.send(plain.step())


class Plain:
    """A loop as it is written by hand; ``step`` makes one step of ``method``."""

    def __init__(self, method, build, batch, classes=1000):
        self.method, self.classes = method, classes
        self.network = build()
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
        self.target = copy.deepcopy(self.network).requires_grad_(False)  # the frozen teacher
        parameters = self.network.parameters()
        if method == "ucgm_few":
            self.optimizer = torch.optim.RAdam(parameters, lr=1e-4, foreach=True)
        else:
            self.optimizer = torch.optim.AdamW(
                parameters, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            )
        if method == "ucgm_multi":
            self.target = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        dataset = torch.utils.data.TensorDataset(
            torch.randn(1024, *self.network.shape), torch.randint(0, classes, (1024,))
        )
        self.loader = torch.utils.data.DataLoader(dataset, batch, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)

    def step(self):
        """Data, loss, backward, optimizer, averages; returns the loss."""
        try:
            x, y = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            x, y = next(self.batches)
        loss = getattr(self, self.method)(x, y)
        self.optimizer.zero_grad()
        loss.backward()
        if self.method == "ucgm_few":
            nn.utils.clip_grad_norm_(self.network.parameters(), 0.1)
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        if self.method == "ucgm_multi":
            self.target.update_parameters(self.network)
        return loss.item()

    def flow_matching(self, x, y):
        """Squared error of the velocity."""
        z, t = torch.randn_like(x), torch.rand(len(x))
        y = torch.where(torch.rand(len(y)) < 0.1, self.classes, y)
        u = t[:, None, None, None]
        return (self.network((1 - u) * x + u * z, t, y) - (z - x)).square().mean()

    def ucgm_multi(self, x, y, zeta=0.47):
        """Enhanced target: w = data + zeta (conditional - unconditional) inside the interval."""
        z, t = torch.randn_like(x), torch.rand(len(x))
        dropped = torch.rand(len(y)) < 0.1
        y = torch.where(dropped, self.classes, y)
        u = t[:, None, None, None]
        x_t = (1 - u) * x + u * z
        said = self.network(x_t, t, y)
        with torch.no_grad():
            null = self.target(x_t, t, torch.full_like(y, self.classes))
            target, known = z - x, said.detach()
            inside, gone = (v[:, None, None, None] for v in (t < 0.75, dropped))
            wanted = torch.where(inside, target + zeta * (known - null), 0.5 * (target + known))
            wanted = torch.where(gone, 0.5 * (target + null), wanted)
        cosine = (1 - nn.functional.cosine_similarity(said, wanted, dim=1)).mean((1, 2))
        loss = ((said - wanted).square().mean((1, 2, 3)) + 1e-6).sqrt() + cosine
        return (loss * torch.cos(t * math.pi / 2)).mean()

    def ucgm_few(self, x, y, zeta=2.0, c=5.0, d=0.005):
        """Consistency along the teacher's field, by a difference of two passes."""
        z = torch.randn_like(x)
        t = torch.distributions.Beta(0.8, 1.0).sample((len(x),)).clamp(0.01, 0.99)
        dropped = torch.rand(len(y)) < 0.1
        y = torch.where(dropped, self.classes, y)
        u = t[:, None, None, None]
        x_t = (1 - u) * x + u * z
        said = self.network(x_t, t, y)
        with torch.no_grad():
            target, taught = z - x, self.target(x_t, t, y)
            inside, gone = (v[:, None, None, None] for v in (t < 0.75, dropped))
            field = torch.where(inside, target + zeta * (taught - target), 0.5 * (target + taught))
            field = torch.where(gone, target, field)

            def jump(r):
                at = x_t + (r - t)[:, None, None, None] * field
                return at - r[:, None, None, None] * self.network(at, r, y)

            slope = ((jump(t + d) - jump(t - d)) / (2 * d)).clamp(-1, 1)
            wanted = said.detach() + 4 * u / torch.sin(u * math.pi / 2) * slope
        loss = ((said - wanted).square().mean((1, 2, 3)) + c**2).sqrt() - c
        return (loss * torch.cos(t * math.pi / 2)).mean()
