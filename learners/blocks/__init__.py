"""Building blocks that more than one model uses."""
