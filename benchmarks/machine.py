"""Describes the machine, in the first line that each script prints."""

import datetime
import importlib.metadata
import os
import platform


def describe_machine(*packages: str) -> str:
    """Returns processor, cores, load, package versions and date."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    processor = platform.processor() or platform.machine()
    load = f"load {os.getloadavg()[0]:.1f}"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return ", ".join([processor, f"{os.cpu_count()} cores", load, *versions, date])
