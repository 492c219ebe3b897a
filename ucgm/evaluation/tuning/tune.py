"""``ucgm tune-sampler``: the settings of sampling for a trained model at a given number of passes.

    search seed     candidates are compared on the same samples, fewer for the many (search)
    held-out seed   default and winner are measured on samples that chose nothing, several times

The winner replaces the default only when it is better on the held-out seed; both figures are
written into the file.  ``RUN/tune/.../sampler.yaml`` has the sections ``sampler`` and ``guidance``
and is layered over any configuration with ``--config``.
"""

import statistics
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.evaluation.metrics import kernel_distance, moments_of
from ucgm.evaluation.metrics.frechet import frechet_distance
from ucgm.evaluation.references import open_judge
from ucgm.evaluation.scoring import Evaluator, MetricConfig
from ucgm.evaluation.tuning.report import RungLog, described, trial_row, write_results
from ucgm.evaluation.tuning.search import Candidate, Space, fitted, search
from ucgm.generation.command import protocol_of, samples_of_run
from ucgm.generation.samples import SampleSet, SamplingConfig
from ucgm.runs.checkpoint import Run, load_run
from ucgm.runtime.files import claim_folder
from ucgm.runtime.processes import join_world
from ucgm.sampler import Guidance

Metric = Literal["fid", "kid"]


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        candidates: settings of the first round; half as many follow around the best.
        samples: images of each in the first rung, three times as many in the next, and so on.
        rungs: rungs of a round.
        final_samples: images of a set on the held-out seed.
        repeats: such sets.
    """

    candidates: int = 48
    samples: int = 500
    rungs: int = 3
    final_samples: int = 5000
    repeats: int = 3

    def __post_init__(self) -> None:
        """Refuse counts that measure nothing."""
        for field in fields(self):
            least = 10 if field.name.endswith("samples") else 1
            if getattr(self, field.name) < least:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}: it must be at least {least}."
                )


class Diverged(Exception):
    """A sampler whose samples are not finite."""


class CandidateScorer:
    """Scores of candidates on numbered samples of one seed; features are kept and extended.

    Args:
        samples: of the run, unguided; its seed is the bench's.
        judge: extractor and reference.
        metric: fid, or kid where features are many and samples few.
        batch_size: images at a time.
    """

    def __init__(
        self, samples: SampleSet, judge: Evaluator, metric: Metric, batch_size: int = 250
    ) -> None:
        self.samples, self.judge, self.metric, self.batch_size = samples, judge, metric, batch_size
        self.null_label = samples.data.num_classes or None
        self.kept: dict[tuple[Any, ...], Tensor] = {}
        self.images = 0

    def features(self, candidate: Candidate, indices: Tensor) -> Tensor:
        """Features (N, d) of the samples ``indices``."""
        network = candidate.guidance.apply(self.samples.network, self.null_label)
        samples = replace(self.samples, sampler=candidate.sampler, network=network)
        self.images += len(indices)
        parts = []
        for part in indices.split(self.batch_size):
            x = samples.latents(part)
            if not bool(torch.isfinite(x).all()):
                raise Diverged
            parts.append(samples.data.decode(x).cpu())
        return self.judge.extractor(torch.cat(parts))["features"]

    def distance(self, features: Tensor) -> float:
        """Score of feature rows (N, d)."""
        if self.metric == "kid":
            return kernel_distance(features, self.judge.reference_rows)[0]
        return frechet_distance(moments_of(features), self.judge.reference.gaussian)

    def __call__(self, candidate: Candidate, count: int) -> float:
        """Score on the first ``count`` samples; infinite when the sampler diverges."""
        key = (candidate.sampler, candidate.guidance)
        rows = self.kept.get(key)
        have = 0 if rows is None else len(rows)
        try:
            if have < count:
                more = self.features(candidate, torch.arange(have, count))
                rows = more if rows is None else torch.cat((rows, more))
                self.kept[key] = rows
        except Diverged:
            return float("inf")
        assert rows is not None
        return self.distance(rows[:count])

    def repeated(self, candidate: Candidate, count: int, repeats: int) -> dict[str, list[float]]:
        """Scores on disjoint sets of samples; with FID also against data training never saw."""
        sets = torch.arange(count * repeats).split(count)
        try:
            rows = [self.features(candidate, indices) for indices in sets]
        except Diverged:
            return {self.metric: [float("inf")] * repeats}
        scores = {self.metric: [self.distance(features) for features in rows]}
        held_out = self.judge.held_out
        if self.metric == "fid" and held_out is not None:
            unseen = [frechet_distance(moments_of(f), held_out.gaussian) for f in rows]
            scores["fid_heldout"] = unseen
        return scores


def default_of(run: Run, nfe: int) -> Candidate:
    """What the run samples with, with as many steps as ``nfe`` passes allow.

    Raises:
        ValueError: it does not fit, or is guided by a second network.
    """
    if run.config.guidance.kind == "auto":
        raise ValueError("tune-sampler does not search autoguidance: set guidance.kind in the run")
    sampler = fitted(run.config.sampler, run.config.guidance, nfe)
    if sampler is None:
        raise ValueError(
            f"not one step of the run's own sampler and guidance fits into {nfe} passes: "
            "raise --nfe"
        )
    return Candidate(sampler, run.config.guidance, None, "default")


def tune(
    run: Run,
    nfe: int,
    budget: Budget | None = None,
    seed: int = 0,
    metric: Metric | None = None,
    guidance: bool = True,
    ruler: MetricConfig | None = None,
    out_dir: str | Path | None = None,
    batch_size: int = 250,
    device: str = "cpu",
) -> dict[str, Any]:
    """Search the sampler of ``run``; see :func:`tune_sampler`."""
    if nfe < 1 or batch_size < 1:
        raise ValueError("nfe and batch_size must be at least 1.")
    budget = budget or Budget()
    default = default_of(run, nfe)
    plain = replace(run, config=replace(run.config, guidance=Guidance()))
    base = samples_of_run(plain, SamplingConfig(seed=seed), device=device)
    judge = open_judge(ruler or MetricConfig(), run.config.data, base.data, device)
    if metric is None:
        metric = "fid" if budget.samples >= 5 * judge.extractor.dimensions["features"] else "kid"
    protocol = protocol_of(run, base) | {
        "nfe": nfe,
        "metric": metric,
        "budget": asdict(budget),
        "guidance": guidance,
        "default": described(default),
        "extractor": {"name": judge.extractor.name, "sha256": judge.extractor.digest},
    }
    name = f"step_{run.step:07d}_{run.weights}_nfe_{nfe:02d}_seed_{seed}"
    folder = claim_folder(Path(out_dir or run.run_dir / "tune" / name), protocol)
    bench = CandidateScorer(base, judge, metric, batch_size)
    space = Space(
        run.config.sampler,
        nfe,
        guidance and run.num_classes > 0,
        bool(getattr(run.network, "second_time", False)),
        run.config.guidance.channels,
    )
    sizes = (budget.candidates, budget.samples, budget.rungs)
    found, trials = search(space, default, bench, *sizes, seed, RungLog(default))
    held_out = CandidateScorer(
        replace(base, settings=SamplingConfig(seed=seed + 1)), judge, metric, batch_size
    )
    scores = {
        label: held_out.repeated(candidate, budget.final_samples, budget.repeats)
        for label, candidate in (("default", default), ("tuned", found))
    }
    mean = {label: statistics.mean(values[metric]) for label, values in scores.items()}
    kept = "tuned" if mean["tuned"] < mean["default"] else "default"
    result = {
        **{"nfe": nfe, "metric": metric, "held_out_seed": seed + 1, "held_out": scores},
        **{"kept": kept, "default": described(default), "tuned": described(found)},
        "images": bench.images + held_out.images,
        "trials": [trial_row(trial) for trial in trials],
    }
    write_results(folder, result, found if kept == "tuned" else default)
    return result | {"folder": str(folder)}


def tune_sampler(
    run_dir: str,
    nfe: int = 8,
    candidates: int = 48,
    samples: int = 500,
    rungs: int = 3,
    final_samples: int = 5000,
    repeats: int = 3,
    seed: int = 0,
    metric: Metric | None = None,
    guidance: bool = True,
    extractor: str | None = None,
    extractor_weights: str | None = None,
    reference: str | None = None,
    out_dir: str | None = None,
    batch_size: int = 250,
    weights: str = "ema",
    checkpoint: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Find the sampler of a run for a number of network passes per image.

    Args:
        run_dir: folder of the run.
        nfe: network passes per image; an evaluation under guidance is two.
        candidates: settings of the first round; half as many follow around the best.
        samples: images of each in the first rung, three times as many in the next, and so on.
        rungs: rungs of a round.
        final_samples: images of a set on the held-out seed.
        repeats: such sets.
        seed: of the search; the held-out seed is the next one.
        metric: fid or kid; fid when the first rung has five images per feature.
        guidance: search guidance too.
        extractor: digits, inception or a registered name; that of the data when left out.
        extractor_weights: path of its weights.
        reference: statistics of real images; the training data when left out.
        out_dir: where the results go; a folder under RUN/tune when left out.
        batch_size: images held at a time; no part of the result.
        weights: ema or network.
        checkpoint: training step of the checkpoint; the latest when left out.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the content of ``trace.json`` and the folder.
    """
    world = join_world(device)
    if world.size > 1:
        raise ValueError("tune-sampler runs in one process: start it without a launcher.")
    run = load_run(run_dir, step=checkpoint, weights=weights, device=world.device)
    ruler = MetricConfig(None, extractor, extractor_weights, reference)
    budget = Budget(candidates, samples, rungs, final_samples, repeats)
    return tune(run, nfe, budget, seed, metric, guidance, ruler, out_dir, batch_size, world.device)
