"""Kill, freeze and rebalance real processes at random, and show that nothing of it can be seen afterwards.

`python -m tests.chaos --runs 20` first runs a stream without disturbance, then again and again with it: each
time every record must count exactly once (`driftline verify`) and the learner must end with the same bytes.
"""
