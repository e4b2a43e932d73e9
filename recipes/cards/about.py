"""What a search notes of itself when it begins: its paper and departures, its settings, software and machine."""

import dataclasses
import importlib.metadata
import inspect
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from recipes.cards.reading import ABOUT
from zoo import atomic

_PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "keras-searched-zoo")
# Options that say nothing about the search itself
_OF_A_RUN = """folder seed dry_run keep tensorboard save_seconds workers trial_cpus trial_gpus trials_at_once retries
    silence""".split()


def write(config: Any, recipe: str) -> None:
    """Writes about.json into config.folder.

    Where the search goes on with other software or on another machine, both are kept, in their order.

    Args:
        config: a recipe's Config.
        recipe: its name; the docstring and the PRESETS of its module tell of the paper.
    """
    path = config.folder / ABOUT
    machines = []
    if path.exists():
        machines = json.loads(path.read_text(encoding="utf-8"))["machines"]
    here = {"hardware": hardware(), "versions": versions()}
    if here not in machines:
        machines.append(here)
    module = _module_of(recipe, config)
    about = {"recipe": recipe, **_paper(module), **_settings(config, module), "machines": machines}
    atomic.write_atomically(path, json.dumps(about, indent=1, sort_keys=True) + "\n")


def _module_of(recipe: str, config: Any) -> Any:
    """Returns the recipe's module, which is the running program or imported; else the one that defines its Config."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name == f"recipes.{recipe}":
        return main
    return sys.modules.get(f"recipes.{recipe}") or sys.modules[type(config).__module__]


def _paper(module: Any) -> dict[str, Any]:
    """Returns title, source and departures, from the module's docstring."""
    text = inspect.getdoc(module) or ""
    title = text.partition("\n")[0].strip()
    paragraph = next((part for part in text.split("\n\n") if part.startswith("Source:")), "")
    source, _, departures = " ".join(paragraph.split()).partition("Departures:")
    return {"title": title, "source": source.removeprefix("Source:").strip(), "departures": parts_of(departures)}


def parts_of(text: str) -> list[str]:
    """Returns the parts of a list that semicolons divide, but for those in brackets."""
    parts = re.split(r";\s+(?![^()]*\))", text.strip().removesuffix("."))
    return [part for part in parts if part]


def _settings(config: Any, module: Any) -> dict[str, Any]:
    """Returns the options, and for each that differs from the paper's preset its value there."""
    own = _plain(config)
    presets = getattr(module, "PRESETS", {})
    found = {"trials": own.get("trials"), "config": own}
    if "paper" not in presets:
        return found
    paper = _plain(presets["paper"])
    differ = {name: value for name, value in paper.items() if name not in _OF_A_RUN and value != own[name]}
    return found | {"paper": differ}


def _plain(config: Any) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return json.loads(json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in values.items()}))


def versions() -> dict[str, str]:
    """Returns package -> version, for Python and what the searches run on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "of a checkout"
    return found


def hardware() -> dict[str, Any]:
    """Returns the processor's name, the number of cores that this process may use, the GPUs, and the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    if "tensorflow" in sys.modules:  # a search has it; to load it for a look would take seconds
        config = sys.modules["tensorflow"].config
        details = [config.experimental.get_device_details(gpu) for gpu in config.list_physical_devices("GPU")]
        gpus = [detail.get("device_name", "GPU") for detail in details]
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": name, "cores": cores, "gpus": gpus, "system": system}
