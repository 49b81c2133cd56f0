"""The learners: PyTorch models that learn from a stream, one step at a time.

Nothing here knows Kafka, SQL, the clock or the environment, so the folder runs on a machine that has
only torch and numpy.
"""
