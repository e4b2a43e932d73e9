"""Reproduction cards of searches: content, statistics and pictures; recipes.report is the program."""
