"""Latents: autoencoders, codecs, statistics, shards."""
