"""Runs the trials of a search and loses none: tuner, journal, limits, workers here and elsewhere."""
