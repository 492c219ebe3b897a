"""Processes, sharding, randomness, files and precision: what every part stands on."""
