"""Matching: the pixels of a set are moved until its features are distributed as the real ones.

    mean             ||mean f(S) - mean f(R)||^2 of raw features          (DM, arXiv 2110.04181)
    characteristic   Phi(w) = mean exp(i w . f), f of length 1            (NCFM, arXiv 2502.20653)
                     mean_w sqrt(a (|Phi_r| - |Phi_s|)^2
                                 + (1 - a) 2 (|Phi_r| |Phi_s| - Re Phi_r Phi_s*))

per class and summed; features of classifiers between their first and their taught weights; the
same random view of real and of synthetic images.  With a = 1/2 the root is
|Phi_r - Phi_s| / sqrt(2).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ucgm.condense.config import CondenseConfig
from ucgm.condense.observe import taught_observer
from ucgm.condense.pool import RealImages
from ucgm.condense.students import Classifier, Views, draw_views, new_student, show
from ucgm.data.pixels import from_uint8, to_uint8
from ucgm.runtime.processes import Progress

REAL_BATCH = 48
EXPERTS = 4


def mean_loss(real: Tensor, made: Tensor) -> Tensor:
    """Sum over classes of squared distances of means; features (K, n, d) and (K, k, d)."""
    return (real.mean(1) - made.mean(1)).square().sum()


def characteristic_loss(real: Tensor, made: Tensor, w: Tensor, amplitude: float) -> Tensor:
    """NCFM's distance, mean over frequencies and summed over classes.

    Args:
        real: (K, n, d) features of length 1.
        made: (K, k, d) features of length 1.
        w: (M, d) frequencies.
        amplitude: the share a.
    """
    (a, b), (c, d) = (((f @ w.T).cos().mean(1), (f @ w.T).sin().mean(1)) for f in (real, made))
    # hypot has no gradient at 0; the floor is far below what float32 can tell apart here.
    one, two = ((x.square() + y.square() + 1e-12).sqrt() for x, y in ((a, b), (c, d)))
    squared = amplitude * (one - two).square()
    squared = squared + (1 - amplitude) * (2 * (one * two - a * c - b * d)).relu()
    return (squared + 1e-8).sqrt().mean(1).sum()


class FrequencySampler(nn.Module):
    """Frequencies (M, d) of a scale mixture of normals whose scales are learned.

    M / 16 components of scale exp(s tanh(net(noise))), each of 16 independent normals.

    Args:
        count: M.
        spread: s, so that scales lie in [exp(-s), exp(s)].
    """

    def __init__(self, count: int, spread: float = 1.0) -> None:
        super().__init__()
        self.count, self.spread = count, spread
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dimension: int, generator: torch.Generator) -> Tensor:
        """(M, dimension) frequencies."""
        components = -(-self.count // 16)
        noise = torch.randn(components, 16, generator=generator)
        scale = (self.spread * self.net(noise).tanh()).exp()
        rows = torch.randn(self.count, dimension, generator=generator)
        return scale.repeat_interleave(16, 0)[: self.count] * rows


def _experts(real: RealImages, seed: int) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights of classifiers before and after they were taught."""
    pairs = []
    for number in range(seed, seed + EXPERTS):
        first = new_student("convolutions", real.shape, len(real.class_names), number)
        last = taught_observer(real, number, 150).model
        pairs.append((first.state_dict(), last.state_dict()))
    return pairs


def _between(
    model: Classifier, pair: tuple[dict[str, Tensor], dict[str, Tensor]], share: float
) -> Classifier:
    """A classifier in training mode with weights ``share`` of the way: batch norm goes by the
    batch's own moments.
    """
    first, last = pair
    floats = {k: torch.lerp(v, last[k], share) for k, v in first.items() if v.is_floating_point()}
    model.load_state_dict(first | floats)
    return model.requires_grad_(False)


def matched(start: RealImages, real: RealImages, config: CondenseConfig) -> Tensor:
    """Pixels (N, C, H, W) uint8 of the set ``start`` after matching it to ``real``.

    The real images are read ``REAL_BATCH`` a class at a time: beside their bytes, memory does not
    grow with their number.
    """
    classes = len(real.class_names)
    pairs = _experts(real, config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = new_student("convolutions", real.shape, classes, config.seed)
    final = new_student("convolutions", real.shape, classes, config.seed)
    final.load_state_dict(pairs[0][1])
    final.eval().requires_grad_(False)
    pixels = from_uint8(start.pixels).add(1).div(2).requires_grad_()
    moving = torch.optim.Adam([pixels], config.match_lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sampler = FrequencySampler(config.frequencies)
    against = torch.optim.Adam(sampler.parameters(), 1e-3)
    rows = [torch.nonzero(real.labels == k)[:, 0] for k in range(classes)]
    progress = Progress(config.match_steps, "matching", unit="steps")
    for _ in range(config.match_steps):
        pick = int(torch.randint(len(pairs), (), generator=generator))
        share = float(torch.rand((), generator=generator))
        _between(model, pairs[pick], share)
        batch = torch.cat(
            [r[torch.randint(len(r), (REAL_BATCH,), generator=generator)] for r in rows]
        )
        views = draw_views(1, False, real.mirrored, generator)  # one for all
        seen = [
            model.features(_seen(x, views))
            for x in (from_uint8(real.pixels[batch]), 2 * pixels - 1)
        ]
        found, made = (f.view(classes, -1, f.shape[-1]) for f in seen)
        if config.match == "mean":
            loss = mean_loss(found, made)
        else:
            found, made = (functional.normalize(f, dim=-1) for f in (found, made))
            if config.adversarial:
                w = sampler(found.shape[-1], generator)
                worst = -characteristic_loss(found, made.detach(), w, config.amplitude)
                against.zero_grad()
                worst.backward()
                against.step()
                with torch.no_grad():
                    w = sampler(found.shape[-1], generator)
            else:
                w = torch.randn(config.frequencies, found.shape[-1], generator=generator)
            loss = characteristic_loss(found, made, w, config.amplitude)
        if config.calibration:
            logits = final(_seen(2 * pixels - 1, views))
            loss = loss + config.calibration * functional.cross_entropy(logits, start.labels)
        moving.zero_grad()
        loss.backward()
        moving.step()
        with torch.no_grad():
            pixels.clamp_(0.0, 1.0)
        progress.add(1)
    if not torch.isfinite(loss):
        raise ValueError("matching diverged: lower match_lr")
    return to_uint8(2 * pixels.detach() - 1)


def _seen(images: Tensor, views: Views) -> Tensor:
    """All images (N, C, H, W) in the one view of ``views``."""
    matrix, box = views.matrix.expand(len(images), -1, -1), views.box.expand(len(images), -1)
    return show(images, images, views._replace(matrix=matrix, box=box), matrix)
