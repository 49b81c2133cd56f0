"""A learner beside its baselines: the same rows, in the same order, one state."""
