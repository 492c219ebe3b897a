"""Training: the loop, what it is built from, optimizers, averages, the log."""
