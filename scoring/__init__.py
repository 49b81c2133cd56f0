"""The process that answers: score."""
