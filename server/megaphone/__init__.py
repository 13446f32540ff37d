"""Where a day's export lies, when it is final, and how exactly one version of it is read."""
