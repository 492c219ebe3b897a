"""What can be encoded: folders, zips, Hub data sets, shards."""

from ucgm.data.sources.listing import open_source

__all__ = ["open_source"]
