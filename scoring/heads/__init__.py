"""From a request and a user's state to an answer, task by task."""
