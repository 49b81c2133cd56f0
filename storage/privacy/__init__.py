"""Erasure of users, and the suppression of what still arrives of them."""
