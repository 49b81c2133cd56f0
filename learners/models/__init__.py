"""One paper, one folder; nobody outside it needs to know its name."""
