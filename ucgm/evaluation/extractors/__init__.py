"""Feature extractors by name; importing this package registers those that ship with ucgm."""

from ucgm.data.extractor import Extractor as Extractor
from ucgm.data.extractor import Extractors as Extractors
from ucgm.data.extractor import open_extractor as open_extractor
from ucgm.data.extractor import register_extractor as register_extractor
from ucgm.evaluation.extractors import dinov2 as dinov2
from ucgm.evaluation.extractors import inception as inception
from ucgm.evaluation.extractors import random as random
from ucgm.evaluation.extractors import vision as vision
from ucgm.evaluation.extractors.digits import DigitsClassifier as DigitsClassifier
