"""`driftline drift`: progress, labels and answers into alarms."""
