"""Attempts to read, write, learn, forge or keep others out, each of them in vain."""
