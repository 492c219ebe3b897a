"""Feature extractors by name; importing this package registers those that ship with ucgm."""

from ucgm.evaluation.extractors import dinov2, inception, random
from ucgm.evaluation.extractors.digits import DigitsClassifier
from ucgm.evaluation.extractors.extractor import (
    Extractor,
    Extractors,
    open_extractor,
    register_extractor,
)

__all__ = [
    "DigitsClassifier",
    "Extractor",
    "Extractors",
    "dinov2",
    "inception",
    "open_extractor",
    "random",
    "register_extractor",
]
