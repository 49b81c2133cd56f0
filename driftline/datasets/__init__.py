"""Public data sets that `driftline replay NAME` knows: which file, which columns, what stands beside the rows.

The files are not shipped. Each module says how the rows become events, and what was made up where the data
say nothing.
"""
