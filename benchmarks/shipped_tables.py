"""Makes the shipped tables, and their pictures for the documents.

python -m benchmarks.shipped_tables                 # four hours on two cores, ten minutes with --workers=16 on 16
python -m benchmarks.shipped_tables --folder=DIR    # resumes from DIR/darts, DIR/enas and DIR/tinynas
"""

import dataclasses
import shutil
from pathlib import Path

from recipes import _main, tabulate
from recipes.engine.config import PlaceConfig

NAMES = {"darts": "laptop", "enas": "enas", "tinynas": "tinynas"}  # table -> preset
PROJECT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Config(PlaceConfig):
    """Options of the program."""

    latency: bool = True  # measure latencies with LiteRT on this machine, which should be idle
    folder: Path = Path("runs/tables")  # the tables' folders, and the state to resume from


PRESETS = {"default": Config()}


def make(config: Config) -> None:
    """Trains what is not trained yet, and copies tables and pictures into the project."""
    place = {field.name: getattr(config, field.name) for field in dataclasses.fields(PlaceConfig)}
    for name, preset in NAMES.items():
        options = {"folder": config.folder / name, "latency": config.latency, **place}
        path = tabulate.tabulate(dataclasses.replace(tabulate.PRESETS[preset], **options))
        shutil.copyfile(path, PROJECT / "recipes" / "tables" / f"{name}.csv")
        shutil.copyfile(path.parent / "page" / "space.png", PROJECT / "docs" / "pictures" / f"space_{name}.png")


if __name__ == "__main__":
    _main.run(make, PRESETS)
