"""What can be encoded: folders, zips, Hub data sets, shards."""
