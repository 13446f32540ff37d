"""The fault campaign, one file for each world that fails: see `benchmarks.faults`."""
