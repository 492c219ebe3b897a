"""Distances between sets of images, computed from their features: torch and numpy only."""

from ucgm.metrics.frechet import frechet_distance
from ucgm.metrics.moments import Gaussian, RunningMoments, moments_of

__all__ = ["Gaussian", "RunningMoments", "frechet_distance", "moments_of"]
