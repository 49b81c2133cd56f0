"""From stored values to a learner's batches: the one way, for training and for scoring."""
