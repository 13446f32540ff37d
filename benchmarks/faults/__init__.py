"""The fault campaign, one file for each world that fails, and beside it what it needs: see `__main__`."""
