"""Public weights: where they are, in which layout, and how they become ours."""
