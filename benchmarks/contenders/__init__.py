"""What is measured: one module and one process each."""
