"""Distances between sets of images, computed from their features."""

from ucgm.evaluation.metrics.frechet import frechet_distance as frechet_distance
from ucgm.evaluation.metrics.moments import Gaussian as Gaussian
from ucgm.evaluation.metrics.moments import RunningMoments as RunningMoments
from ucgm.evaluation.metrics.moments import moments_of as moments_of
from ucgm.evaluation.metrics.reference import Reference as Reference
from ucgm.evaluation.metrics.reference import load_reference as load_reference
from ucgm.evaluation.metrics.reference import save_reference as save_reference
from ucgm.evaluation.metrics.scores import conditional_accuracy as conditional_accuracy
from ucgm.evaluation.metrics.scores import inception_score as inception_score
from ucgm.evaluation.metrics.scores import kernel_distance as kernel_distance
from ucgm.evaluation.metrics.scores import precision_recall as precision_recall
from ucgm.evaluation.metrics.sliced import sliced_ratio as sliced_ratio
from ucgm.evaluation.metrics.sliced import sliced_wasserstein as sliced_wasserstein
