"""From a trained model to .tflite files, measured: accuracy, size, latency, arena on one page.

    python -m recipes.deploy --model=runs/train/model.keras              # float32 and int8; a minute on 2 cores
    python -m recipes.deploy --model=nasnet_a --weights=my.weights.h5 --schemes=int8,int16x8,dynamic,float16
    python -m recipes.deploy --model=model.keras --gate=0.01             # exit code 1 if int8 loses more than that

Writes into runs/deploy: the files, deploy.json, deploy.md, each as a whole. Float and int8 are judged on the same
held-out images; ranges are measured on training images. A trained network should keep its accuracy in int8 to about
0.01.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from recipes import _main, deployable
from recipes.deployable import ModelAndData
from zoo.deploy import c_array
from zoo.deploy.report import Report, export


@dataclasses.dataclass(frozen=True)
class Config(ModelAndData):
    """Options of the export."""

    schemes: tuple[Literal["int8", "int16x8", "dynamic", "float16"], ...] = ("int8",)  # besides float32
    gate: float | None = None  # largest loss of accuracy, as a share, that any scheme may have; exit code 1 beyond
    c_array: bool = False  # writes the int8 file as C source too
    folder: Path = Path("runs/deploy")  # the files and the report

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"schemes={','.join(self.schemes)} names one twice; name each once")
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError(f"gate is {self.gate}; expected a share from 0 to 1, such as 0.01, or none")
        if self.c_array and "int8" not in self.schemes:
            raise ValueError("c_array writes the int8 file, and schemes leaves int8 out; add it")


PRESETS = {
    "laptop": Config(),
    "paper": Config(images=None, calibration=512),
    "smoke": Config(model="mcunet_in0", image_size=48, images=8, calibration=4),
}


def deploy(config: Config) -> Report:
    """Exports what the config names, prints the page and returns its numbers."""
    subject = deployable.load(config)
    with deployable.steps("deploy") as tell:
        result = export(
            subject.model,
            subject.images,
            subject.labels,
            config.folder,
            calibration=subject.calibration,
            schemes=config.schemes,
            threads=config.threads,
            progress=tell,
        )
    if config.c_array:
        c_array.write(Path(config.folder, result.row("int8").file), config.folder, "model")
    print(result.to_markdown())
    return result


def main(config: Config) -> None:
    """`deploy`, with exit code 1 where a scheme loses more accuracy than the gate allows."""
    result = deploy(config)
    failed = [scheme for scheme in config.schemes if config.gate is not None and result.drop(scheme) > config.gate]
    for scheme in failed:
        print(
            f"gate: {scheme} is {result.drop(scheme):.4f} less accurate than the Keras model on n = {result.n} images; "
            f"{config.gate} is allowed. The files are in {config.folder}",
            file=sys.stderr,
        )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    _main.run(main, PRESETS)
