"""Feature extractors by name; importing this package registers those that ship with ucgm."""

from ucgm.evaluation.extractors import dinov2 as dinov2
from ucgm.evaluation.extractors import inception as inception
from ucgm.evaluation.extractors import random as random
from ucgm.evaluation.extractors import vision as vision
from ucgm.evaluation.extractors.digits import DigitsClassifier as DigitsClassifier
from ucgm.evaluation.extractors.extractor import Extractor as Extractor
from ucgm.evaluation.extractors.extractor import Extractors as Extractors
from ucgm.evaluation.extractors.extractor import open_extractor as open_extractor
from ucgm.evaluation.extractors.extractor import register_extractor as register_extractor
