"""PromptTPP: when the next event comes and of which type."""
