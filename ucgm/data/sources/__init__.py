"""What can be encoded: folders, zips, Hub data sets, shards."""

from ucgm.data.sources.listing import open_source as open_source
