"""How the zoo's architectures are searched and trained; each module is a program: `python -m recipes.NAME --help`."""

import os

# The recipes are programs: TensorFlow reads this when it is imported, which some do before their first line runs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
