"""The line that each script prints first: on what its numbers were measured."""

import datetime
import importlib.metadata
import os
import platform


def describe_machine(*packages: str) -> str:
    """Returns processor, cores, load, the packages' versions and the date."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    processor = platform.processor() or platform.machine()
    load = f"load {os.getloadavg()[0]:.1f}"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return ", ".join([processor, f"{os.cpu_count()} cores", load, *versions, date])
