"""What is measured, and against what: see server/manual/measured.md."""
