"""Runs trials and loses nothing: journal, progress, limits, workers here and elsewhere; recipes.tuner is the door."""
