"""Measurements and the maintainers' programs, each started as `python -m benchmarks.NAME`."""

from recipes._quiet import mute_tensorflow

mute_tensorflow()
