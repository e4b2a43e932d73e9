"""Starts the search; recipes/tinynas/config.py has its options."""

from recipes import _main
from recipes.tinynas import PRESETS, search

if __name__ == "__main__":
    _main.run(search, PRESETS)
