"""What learners are asked, and how their answers are measured."""
