"""`make demo`: the whole story on one machine, with real processes, in a few minutes.

A small world is simulated on an embedded Kafka and an embedded Postgres. All processes run; `ingest` is killed with -9
in the middle of a batch and `train` in the middle of a step, and both are started again. A change of behaviour is
planted, and `drift` has to find it; a label comes late; a user is erased. Then everything is counted.
"""
