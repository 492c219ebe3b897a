"""Condensation of data sets: few images that teach a classifier as much as they can.

    pool -> observer -> selector -> (patches, matching) -> soft labels -> evaluation

RDED (arXiv 2312.03526) and NCFM (arXiv 2502.20653) are settings of it.
"""

from ucgm.condense.config import CondenseConfig as CondenseConfig
