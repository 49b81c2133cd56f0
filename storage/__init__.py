"""Postgres and snapshot files: all SQL of Driftline is in this folder.

To storage a learner's weights are bytes; nothing here knows PyTorch, Kafka or the environment.
"""
