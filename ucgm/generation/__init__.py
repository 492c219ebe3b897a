"""Samples of a run: by index, to files and sheets (ucgm sample)."""
