"""Rows of one export become the gzip logs of one day."""
