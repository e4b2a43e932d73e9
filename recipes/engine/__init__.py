"""Runs the trials of a search without losing any: tuner, journal, limits, local and remote workers."""
