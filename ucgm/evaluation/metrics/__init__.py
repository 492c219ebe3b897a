"""Distances between sets of images, computed from their features."""

from ucgm.evaluation.metrics.frechet import frechet_distance
from ucgm.evaluation.metrics.moments import Gaussian, RunningMoments, moments_of
from ucgm.evaluation.metrics.reference import Reference, load_reference, save_reference
from ucgm.evaluation.metrics.scores import (
    conditional_accuracy,
    inception_score,
    kernel_distance,
    precision_recall,
)

__all__ = [
    "Gaussian",
    "Reference",
    "RunningMoments",
    "conditional_accuracy",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_reference",
    "moments_of",
    "precision_recall",
    "save_reference",
]
