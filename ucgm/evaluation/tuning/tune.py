"""``ucgm tune-sampler``: the settings of sampling for a trained model at a given number of passes.

    search seed     candidates are compared on the same samples, fewer for the many (search)
    held-out seed   default and winner are measured on samples that chose nothing, several times

The winner replaces the default only when it is better on the held-out seed; both figures are
written into the file.  ``RUN/tune/.../sampler.yaml`` has the sections ``sampler`` and ``guidance``
and is layered over any configuration with ``--config``.
"""

import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.data.pixels import NotFinite
from ucgm.evaluation.chunks import FeatureExtractor, GeneratedImages
from ucgm.evaluation.metrics import kernel_distance, moments_of
from ucgm.evaluation.metrics.frechet import frechet_distance
from ucgm.evaluation.references import open_evaluators
from ucgm.evaluation.scoring import Evaluator, MetricConfig
from ucgm.evaluation.tuning.report import RungLog, described, trial_row, write_results
from ucgm.evaluation.tuning.search import Budget, Candidate, Space, fitted, search
from ucgm.generation.command import open_run, protocol_of, samples_of_run
from ucgm.generation.samples import SampleSet, SamplingConfig
from ucgm.runs.checkpoint import Run
from ucgm.runtime.files import claim_folder, sole_writer
from ucgm.runtime.processes import join_world
from ucgm.runtime.values import Count
from ucgm.sampler import Guidance

Metric = Literal["fid", "kid"]


class CandidateScorer:
    """Scores of candidates on numbered samples of one seed; features are kept and extended.

    Args:
        samples: of the run, unguided.
        evaluator: extractor and reference.
        metric: fid, or kid where features are many and samples few.
        batch_size: images at a time.
    """

    def __init__(
        self, samples: SampleSet, evaluator: Evaluator, metric: Metric, batch_size: int = 250
    ) -> None:
        self.samples, self.evaluator = samples, evaluator
        self.metric, self.batch_size = metric, batch_size
        self.null_label = samples.data.num_classes or None
        self.kept: dict[tuple[Any, ...], Tensor] = {}
        self.images = 0

    def features(self, candidate: Candidate, indices: Tensor) -> Tensor:
        """Features (N, d) of the samples ``indices``."""
        network = candidate.guidance.apply(self.samples.network, self.null_label)
        samples = replace(self.samples, sampler=candidate.sampler, network=network)
        self.images += len(indices)
        source = GeneratedImages(samples, self.batch_size)
        return FeatureExtractor(source, self.evaluator.extractor).chunk(indices)[0]["features"]

    def distance(self, features: Tensor) -> float:
        """Score of feature rows (N, d)."""
        if self.metric == "kid":
            return kernel_distance(features, self.evaluator.reference_rows)[0]
        return frechet_distance(moments_of(features), self.evaluator.reference.gaussian)

    def __call__(self, candidate: Candidate, count: int) -> float:
        """Score on the first ``count`` samples; infinite when the sampler diverges."""
        key = (candidate.sampler, candidate.guidance)
        try:
            rows = self.kept.get(key)
            have = 0 if rows is None else len(rows)
            if rows is None or have < count:
                more = self.features(candidate, torch.arange(have, count))
                rows = self.kept[key] = more if rows is None else torch.cat((rows, more))
            return self.distance(rows[:count])
        except NotFinite:
            return float("inf")

    def repeated(self, candidate: Candidate, count: int, repeats: int) -> dict[str, list[float]]:
        """Scores on disjoint sets of samples; with FID also against data training never saw."""
        sets = torch.arange(count * repeats).split(count)
        try:
            rows = [self.features(candidate, indices) for indices in sets]
        except NotFinite:
            return {self.metric: [float("inf")] * repeats}
        scores = {self.metric: [self.distance(features) for features in rows]}
        held_out = self.evaluator.held_out
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


def _space(run: Run, nfe: int, guidance: bool) -> Space:
    """What is searched: guidance where a run has classes, jumps where it takes two times."""
    two_times, config = bool(getattr(run.network, "second_time", False)), run.config
    guided = guidance and run.num_classes > 0
    return Space(config.sampler, nfe, guided, two_times, config.guidance.channels)


def _measured(
    run: Run, settings: SamplingConfig, metrics_config: MetricConfig, device: str
) -> tuple[SampleSet, Evaluator]:
    """The unguided samples of a run, and what they are measured with.

    Raises:
        ValueError: for a setting that means nothing here.
    """
    if settings.guidance_scale is not None or metrics_config.metrics is not None:
        raise ValueError(
            "guidance_scale and metrics mean nothing here: guidance is searched (--guidance), and "
            "candidates are compared by one --metric."
        )
    if len(metrics_config.each()) > 1:
        raise ValueError("candidates are compared by one extractor: name one.")
    unguided = replace(run, config=replace(run.config, guidance=Guidance()))
    base = samples_of_run(unguided, settings, device=device)
    evaluators = open_evaluators(metrics_config, run.config.data, base.data, device)
    return base, evaluators.parts[0]


def tune_sampler(
    run: str | Run,
    nfe: Count = 8,
    budget: Budget | None = None,
    settings: SamplingConfig | None = None,
    metrics_config: MetricConfig | None = None,
    metric: Metric | None = None,
    guidance: bool = True,
    out_dir: str | Path | None = None,
    batch_size: Count = 250,
    weights: str = "ema",
    checkpoint: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Find the sampler of a run for a number of network passes per image.

    Args:
        run: folder of the run, or the run itself.
        nfe: network passes per image; an evaluation under guidance is two.
        budget: how much is measured.
        settings: how it is sampled; the held-out seed is the one after its seed.
        metrics_config: extractor and reference.
        metric: fid or kid; fid when the first rung has five images per feature.
        guidance: search guidance too.
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
    device = world.device
    run = open_run(run, checkpoint, weights, device)
    budget, settings = budget or Budget(), settings or SamplingConfig()
    default = default_of(run, nfe)
    base, evaluator = _measured(run, settings, metrics_config or MetricConfig(), device)
    used = evaluator.extractor
    if metric is None:
        metric = "fid" if budget.samples >= 5 * used.dimensions["features"] else "kid"
    protocol = protocol_of(run, base) | {"nfe": nfe, "metric": metric, "budget": asdict(budget)}
    protocol |= {"guidance": guidance, "default": described(default)}
    protocol["extractor"] = {"name": used.name, "sha256": used.digest}
    name = f"step_{run.step:07d}_{run.weights}_nfe_{nfe:02d}_seed_{settings.seed}"
    folder = Path(out_dir or run.run_dir / "tune" / name)
    with sole_writer(folder, "ucgm tune-sampler"):
        claim_folder(folder, protocol)
        scorer = CandidateScorer(base, evaluator, metric, batch_size)
        space = _space(run, nfe, guidance)
        found, trials = search(space, default, scorer, budget, settings.seed, RungLog())
        unseen = replace(base, settings=replace(settings, seed=settings.seed + 1))
        held_out = CandidateScorer(unseen, evaluator, metric, batch_size)
        result = {"nfe": nfe, "metric": metric} | _compared(held_out, default, found, budget)
        result["images"] = scorer.images + held_out.images
        result["trials"] = [trial_row(trial) for trial in trials]
        write_results(folder, result, found if result["kept"] == "tuned" else default)
    return result | {"folder": str(folder)}


def _compared(
    scorer: CandidateScorer, default: Candidate, found: Candidate, budget: Budget
) -> dict[str, Any]:
    """Scores of both on samples that chose nothing, and which of them is kept."""
    scores = {
        label: scorer.repeated(candidate, budget.final_samples, budget.repeats)
        for label, candidate in (("default", default), ("tuned", found))
    }
    mean = {label: statistics.mean(values[scorer.metric]) for label, values in scores.items()}
    return {
        "held_out_seed": scorer.samples.settings.seed,
        "held_out": scores,
        "kept": "tuned" if mean["tuned"] < mean["default"] else "default",
        "default": described(default),
        "tuned": described(found),
    }
