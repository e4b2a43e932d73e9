"""Reproduction cards of searches: what they say, their pictures and statistics; recipes.report is the program."""
