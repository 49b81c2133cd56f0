"""What every learner promises, and the values that pass between it and the stream."""
