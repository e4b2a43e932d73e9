"""Data only: what was found, one JSON file an architecture. The code that reads it is zoo/."""
