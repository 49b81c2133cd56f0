"""`driftline train`: the event log into one learner and its baselines."""
