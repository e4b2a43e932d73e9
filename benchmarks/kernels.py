"""LiteRT's kernels beside TensorFlow Lite for Microcontrollers: how far their int8 outputs are apart, and latencies.

    python -m benchmarks.int8_table                   # makes the files
    python -m benchmarks.kernels runs/deploy-table   # a minute

For each file, on 20 held-out images: the largest difference from TFLM's outputs in steps of the int8 output, and the
median latency of 250 runs on one thread, with XNNPACK, with LiteRT's own kernels, and with the reference kernels.
"""

import datetime
import os
import platform
import sys
from pathlib import Path
from typing import get_args

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import int8_table
from recipes.images import augment
from recipes.images import sources as data
from zoo.deploy import measure

IMAGES = 20
KERNELS = get_args(measure.Kernels)


def main(folder: Path) -> None:
    """Prints a line for each file of the table."""
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {IMAGES} images, {datetime.datetime.now(datetime.UTC).date()}"
    )
    print(f"{'':24}" + "".join(f"{name:>22}" for name in KERNELS))
    for family, small in int8_table.NETWORKS.items():
        pixels = data.load(size=small.side).test.head(IMAGES)[0]
        images = np.asarray(augment.UNIT(pixels), np.float32)
        for file in sorted(folder.glob(f"{family}-seed*.tflite")):
            step = measure.interpret(file, threads=1).get_output_details()[0]["quantization"][0]
            expected = measure.predict_tflm(file, images)
            cells = []
            for name in KERNELS:
                steps = np.abs(measure.predict(file, images, kernels=name) - expected).max() / step
                milliseconds = measure.latency(file, runs=int8_table.RUNS, kernels=name).median_ms
                cells.append(f"{steps:.0f} steps, {milliseconds:.2f} ms")
            print(f"{file.stem:24}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print(__doc__)
