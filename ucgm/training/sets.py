"""Set losses of a training: samples with gradient, their pixels, their features, real statistics.

What :mod:`ucgm.objective.sets` measures is made here, because it needs a sampler, a decoder and the
extractors of the evaluation, and the samples of all processes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.data import Dataset
from ucgm.data.loader import BatchPlan
from ucgm.evaluation.extractors import Extractor, open_extractor
from ucgm.evaluation.metrics import Reference, load_reference
from ucgm.evaluation.references import MANY, reference_of
from ucgm.objective import Draw
from ucgm.objective.set_losses import set_loss
from ucgm.objective.sets import Real, SetLoss, SetTerm
from ucgm.runs.config import Config, is_allowed
from ucgm.runs.folder import ENCODERS, encoders_of
from ucgm.runtime.files import write_atomic
from ucgm.runtime.processes import Progress
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.sharding import rows_of_all

MOST_EVALUATIONS = 4
_STREAM = 1 << 10  # of the sampler's fresh noise, past those of a draw


class SampleLosses(nn.Module):
    """The terms ``objective.sets`` of a training; its state is what they remember.

    Args:
        config: of the training, with the sampler and the guidance of its samples.
        dataset: gives pixels and the classes.
        plan: rows of a step, and processes.
        device: of the extractors.

    Attributes:
        extractors: one per term.
        measures: the loss of each term.
    """

    def __init__(
        self, config: Config, dataset: Dataset, plan: BatchPlan, device: torch.device
    ) -> None:
        super().__init__()
        self.config, self.dataset, self.plan = config, dataset, plan
        _check(config, plan)
        found = [_opened(term, dataset, device, plan) for term in config.objective.sets]
        self.extractors = [extractor for extractor, _ in found]
        self.measures = [loss for _, loss in found]
        self.losses = nn.ModuleList(self.measures)  # whose state is saved
        self.to(device)

    def samples(
        self, network: Any, z: Tensor, y: Tensor | None, random: RowRandom | None = None
    ) -> Tensor:
        """Samples (B, C, H, W) of noise z (B, C, H, W) and labels y (B,), with gradient.

        ``network`` may be wrapped for data-parallel training; its first pass is that which counts.
        """
        config, x = self.config, z
        trained = _FirstWrapped(network)
        if config.objective.residual_weight:  # whose pass goes through the wrapper
            trained.next = trained.bare
        guided = config.guidance.apply(trained, self.dataset.num_classes or None)
        for found in config.sampler.evaluations(guided, z, y, random):
            x = found[-1]
        return x

    def features(self, x: Tensor) -> list[Tensor]:
        """Features (B, d) of samples x (B, C, H, W) by every extractor, with gradient."""
        made: dict[tuple[str, str, bool], Tensor] = {}
        keys = self._keys()
        with torch.autocast(x.device.type, enabled=False):
            images = (self.dataset.pixels(x.float()) + 1.0) * 127.5
            for extractor, key in zip(self.extractors, keys, strict=True):
                if key not in made:
                    rows = images.clamp(0.0, 255.0) if key[2] else images
                    if rows.shape[1] == 1 and extractor.channels == 3:
                        rows = rows.expand(-1, 3, -1, -1)
                    made[key] = extractor.module(rows)["features"]
        return [made[key] for key in keys]

    def forward(self, network: Any, draw: Draw, random: RowRandom | None = None) -> Tensor:
        """The weighted sum of all terms, a scalar, of the samples of a draw on all processes."""
        x = self.samples(network, draw.z, draw.y, random)
        total = x.new_zeros(())
        for loss, rows in zip(self.measures, self.features(x), strict=True):
            total = total + loss(rows_of_all(rows, self.plan.rank, self.plan.world)).float()
        return total

    def of_rows(self, step: int, rows: Tensor) -> Callable[[Any, Draw], Tensor]:
        """The losses of ``rows`` (B,) of the global batch of ``step``, for the objective."""
        keys = RowRandom.for_rows(self.config.train.seed, step, rows).keys

        def losses(network: Any, draw: Draw) -> Tensor:
            return self(network, draw, RowRandom(keys.to(draw.z.device), _STREAM))

        return losses

    def _keys(self) -> list[tuple[str, str, bool]]:
        """What the features of each term depend on."""
        pairs = zip(self.extractors, self.measures, strict=True)
        return [(e.name, e.digest, loss.term.clip) for e, loss in pairs]

    def describe(self) -> str:
        """One line for the log."""
        terms = (
            f"{loss.term.distance} of {e.name}, weight {loss.term.weight:g}, "
            + (f"decay {loss.term.decay:g}" if loss.term.decay else _queue(loss.term))
            for loss, e in zip(self.measures, self.extractors, strict=True)
        )
        return f"samples of {self.config.sampler.nfe} evaluations: {'; '.join(terms)}"

    def distances(self) -> dict[str, Tensor]:
        """The distances of the last step, for the log."""
        pairs = zip(self.measures, self.extractors, strict=True)
        return {f"{loss.term.distance}.{e.name}": loss.distance for loss, e in pairs}

    @torch.no_grad()
    def begin(self, network: nn.Module, device: torch.device) -> None:
        """Fill the queues with samples of the network as it is; all processes must call this."""
        plan, data = self.plan, self.dataset
        count = max(loss.term.queue or 0 for loss in self.measures)
        parts: list[list[Tensor]] = [[] for _ in self.extractors]
        training = network.training
        network.eval()
        silent = plan.rank > 0 or not count
        progress = Progress(count, "queue of set losses", silent, unit="samples")
        for start in range(0, count, plan.global_batch):
            rows = start + plan.rows(0)
            random = RowRandom.for_rows(self.config.train.seed, -3, rows)
            z = random.normal(*data.shape).to(device)
            y = (rows % data.num_classes).to(device) if data.num_classes else None
            x = self.samples(network, z, y, RowRandom(random.keys.to(device), _STREAM))
            for part, found in zip(parts, self.features(x), strict=True):
                part.append(rows_of_all(found, plan.rank, plan.world))
            progress.add(min(plan.global_batch, count - start))
        for loss, part in zip(self.measures, parts, strict=True):
            if loss.term.queue:
                loss.begin(torch.cat(part)[: loss.term.queue])
        network.train(training)

    def freeze_the_rest(self, network: nn.Module) -> None:
        """Parameters that no sample depends on are not trained, such as those of a second head."""
        if self.config.objective.residual_weight:
            return
        y = torch.zeros(2, dtype=torch.int64) if self.dataset.num_classes else None
        random = RowRandom(torch.arange(2))
        x = self.samples(network, random.normal(*self.dataset.shape), y, random)
        weights = [p for p in network.parameters() if p.requires_grad]
        found = torch.autograd.grad(x.sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            weight.requires_grad_(gradient is not None)


class _FirstWrapped:
    """A network whose first pass goes through its wrapper, which waits for one, and others not."""

    def __init__(self, network: Any) -> None:
        self.bare, self.next = getattr(network, "module", network), network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)

    def __call__(self, *inputs: Any, **more: Any) -> Tensor:
        now, self.next = self.next, self.bare
        return now(*inputs, **more)


def _queue(term: SetTerm) -> str:
    """What the distance of a term is of."""
    return f"queue {term.queue:,}" if term.queue else "of the batch alone"


def _check(config: Config, plan: BatchPlan) -> None:
    """Refuse what a gradient through samples cannot be had of."""
    sampler = config.sampler
    if sampler.nfe > MOST_EVALUATIONS:
        raise ValueError(
            f"objective.sets: the sampler makes {sampler.nfe} evaluations, and the gradient goes "
            f"through all of them: set sampler.steps so that there are {MOST_EVALUATIONS} at most"
        )
    if plan.accumulation > 1:
        raise ValueError(
            "objective.sets are of all samples of a step at once: set train.accumulation: 1"
        )
    if config.guidance.kind == "auto" and config.guidance.scale != 1.0:
        raise ValueError("objective.sets: guidance.kind auto has no gradient: set guidance.scale 1")


def _opened(
    term: SetTerm, dataset: Dataset, device: torch.device, plan: BatchPlan
) -> tuple[Extractor, SetLoss]:
    """The extractor of a term, and its loss."""
    name = term.extractor or dataset.extractor
    if ":" in name and not is_allowed(name.partition(":")[0]):
        raise ValueError(  # a configuration does not say which code is run
            f"objective.sets: the extractor {name} is code: if it is yours, say --import "
            f"{name.partition(':')[0]}"
        )
    extractor = open_extractor(name, term.weights, device, "objective.sets weights:")
    if term.reference is not None:
        reference = load_reference(term.reference, extractor=extractor.name)
    elif len(dataset) > MANY:
        raise ValueError(
            f"objective.sets: {dataset.name} has {len(dataset):,} images: make their statistics "
            f"once with `ucgm reference IMAGES FILE.npz --extractor {name}`, at the size of the "
            "training, and name the file as reference of the term"
        )
    else:
        reference = reference_of(dataset, extractor)
    width = extractor.dimensions["features"]
    reference.check(extractor.name, extractor.digest, width)
    return extractor, set_loss(term.of_batch(plan.global_batch, width), _real(reference))


def _real(reference: Reference) -> Real:
    return Real(reference.gaussian.mean, reference.gaussian.covariance, reference.features)


def open_sets(
    config: Config, dataset: Dataset, plan: BatchPlan, network: nn.Module, device: torch.device
) -> SampleLosses | None:
    """The terms ``objective.sets``, if there are any; see :meth:`SampleLosses.freeze_the_rest`."""
    if not config.objective.sets:
        return None
    sets = SampleLosses(config, dataset, plan, device)
    sets.freeze_the_rest(network)
    return sets


def keep_encoders(config: Config, run_dir: Path, sets: SampleLosses | None) -> None:
    """Write which encoders a run was trained on, those of the runs it comes from included."""
    init, path = config.train.init, run_dir / ENCODERS
    found = [{"name": e.name, "sha256": e.digest} for e in (sets.extractors if sets else ())]
    for other in (*([] if init is None else [init]), *config.train.teacher):
        found += encoders_of(Path(other))
    if found and not path.exists():
        unique = [one for i, one in enumerate(found) if one not in found[:i]]
        write_atomic(path, json.dumps({"encoders": unique}, indent=2) + "\n")
