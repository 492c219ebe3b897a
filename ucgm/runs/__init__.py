"""The run folder: configuration, settings, checkpoints, averages, imported weights."""
