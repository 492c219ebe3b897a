"""Distances between sets of images, computed from their features: torch and numpy only."""

from ucgm.metrics.frechet import frechet_distance
from ucgm.metrics.kernel import kernel_distance
from ucgm.metrics.moments import Gaussian, RunningMoments, moments_of
from ucgm.metrics.neighbours import precision_recall
from ucgm.metrics.reference import Reference, load_reference, save_reference
from ucgm.metrics.scores import conditional_accuracy, inception_score

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
