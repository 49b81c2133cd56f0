"""What learners leave behind: journal, predictions, snapshots, serving rows."""
