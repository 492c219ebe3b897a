"""Evaluators of several extractors as one, whose ratios to real images have a mean."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from ucgm.evaluation.extractors import Extractors
from ucgm.evaluation.scoring import LEAST, RATIOS, Evaluator, FeatureStatistics


@dataclass(frozen=True, eq=False)
class Evaluators:
    """Evaluators of the same images, one per extractor; the first one's scores have plain names.

    Attributes:
        parts: at least one.
        device: where their extractors run.
    """

    parts: tuple[Evaluator, ...]
    device: str | None = None

    @cached_property
    def extractor(self) -> Extractors:
        """Their extractors as one."""
        return Extractors({part.prefix: part.extractor for part in self.parts}, self.device)

    @property
    def metrics(self) -> list[str]:
        """Names of the scores."""
        names = [part.prefix + name for part in self.parts for name in part.metrics]
        return names + list(self._means)

    @property
    def _means(self) -> dict[str, list[str]]:
        """Names of the means of ratios over extractors, where there are several, and of these."""
        found = {
            f"{ratio}_mean": [p.prefix + ratio for p in self.parts if ratio in p.metrics]
            for ratio in RATIOS
        }
        return {mean: names for mean, names in found.items() if len(names) > 1}

    def without(self, *metrics: str) -> "Evaluators":
        """The same evaluators without some metrics."""
        parts = []
        for part in self.parts:
            kept = tuple(name for name in part.metrics if name not in metrics)
            parts.append(replace(part, metrics=kept))
        return Evaluators(tuple(parts), self.device)

    def enough(self, count: int, images: str, place: str) -> "Evaluators":
        """The evaluators without the metrics that ``count`` images cannot give, with a warning."""
        asked = {name for part in self.parts for name in part.metrics}
        few = [name for name, least in LEAST.items() if count < least and name in asked]
        if few:
            left_out = f"are too few for {', '.join(few)}: {place} has none."
            warnings.warn(f"{count} {images} {left_out}", stacklevel=3)
        return self.without(*few)

    def score(self, statistics: FeatureStatistics) -> dict[str, float]:
        """The scores of all."""
        found = {k: value for part in self.parts for k, value in part.score(statistics).items()}
        return found | {m: fmean(found[n] for n in names) for m, names in self._means.items()}

    def real_scores(self) -> dict[str, float]:
        """Scores of the held-out real images, as far as their statistics give them; or none."""
        parts, moments, rows = [], {}, {}
        for part in self.parts:
            if (real := part.held_out) is None:
                continue
            able = {"fid", "fdr"}
            moments[part.prefix + "features"] = real.gaussian
            if real.spatial is not None:
                moments[part.prefix + "spatial"] = real.spatial
                able |= {"sfid"}
            if real.features is not None and len(real.features) >= LEAST["recall"]:
                rows[part.prefix + "features"] = real.features
                able |= {"kid", "sw", "swr", "precision", "recall"}
            parts.append(replace(part, metrics=tuple(n for n in part.metrics if n in able)))
        return Evaluators(tuple(parts)).score(FeatureStatistics(moments, rows.__getitem__))

    def identity(self) -> dict[str, Any]:
        """``extractor`` and, where there are several, ``more_extractors`` of a protocol."""
        first, *more = (part.extractor.identity() for part in self.parts)
        return {"extractor": first} | ({"more_extractors": more} if more else {})

    def references(self) -> list[dict[str, Any]]:
        """Identities of all references."""
        return [entry for part in self.parts for entry in part.references()]

    def warn_if_few(self, count: int) -> None:
        """Warn where the bias of FID, about c / n, is not small."""
        for part in self.parts:
            width = part.extractor.dimensions["features"]
            if not {"fid", "fid_heldout", "fdr", "sfid"} & set(part.metrics) or count >= 30 * width:
                continue
            text = "FID is biased upwards by several percent, or more"
            if count <= width:
                text = "the covariance is singular and FID is dominated by its bias"
            remedy = f"Use at least {30 * width}, and compare equal numbers only."
            warnings.warn(f"{count} samples for {width} features: {text}. {remedy}", stacklevel=3)
