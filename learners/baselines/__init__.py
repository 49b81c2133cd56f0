"""Learners that are no paper's: what payments' risk must beat."""
