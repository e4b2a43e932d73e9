"""Starts the search; recipes/enas/config.py has its options."""

from recipes import _main
from recipes.enas import PRESETS, search
from recipes.training.tensorflow_options import run_branches_side_by_side

if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(search, PRESETS)
