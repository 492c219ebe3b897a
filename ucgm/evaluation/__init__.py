"""Quality: benchmark, evaluate, compare, tune-sampler, and what they measure with."""
