"""Kill, freeze and starve real processes and their servers at random, and show that nothing of it can be seen.

`python -m tests.chaos --runs 20` first runs a stream without disturbance, then again and again with it. Each time
every record must count exactly once (`driftline verify`), both learners must end with the same bytes, a reader of
alarms that keeps the first of each id must see those that the topics lead to, each question must be answered, and
what was known of users as of one moment must stay.
"""
