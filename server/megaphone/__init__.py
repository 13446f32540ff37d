"""Where a day's export lies, when it is final, and how to read exactly one version of it."""
