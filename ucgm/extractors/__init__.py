"""Feature extractors by name; importing this package registers those that ship with ucgm."""

from ucgm.extractors import dinov2, inception
from ucgm.extractors.digits import DigitsClassifier
from ucgm.extractors.source import Extractor, Extractors, open_extractor, register_extractor

__all__ = [
    "DigitsClassifier",
    "Extractor",
    "Extractors",
    "dinov2",
    "inception",
    "open_extractor",
    "register_extractor",
]
