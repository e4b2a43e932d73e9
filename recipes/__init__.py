"""How the zoo's architectures are searched and trained; each module is a program: `python -m recipes.NAME --help`."""

import sys

if sys.argv[:1] == ["-m"]:  # what Python puts there while it looks for the program of `python -m recipes.NAME`
    from recipes import _quiet

    _quiet.mute_tensorflow()
