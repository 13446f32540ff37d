"""Where a day's export lies, when it is final, and how it is read."""
