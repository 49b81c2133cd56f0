"""Learners that rank items: what they are asked, how they are measured, and the tables they leave for serving."""
