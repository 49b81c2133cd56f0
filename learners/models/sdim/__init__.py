"""SDIM: which item a user takes next, by hash signatures of a long history."""
