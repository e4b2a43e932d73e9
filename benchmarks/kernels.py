"""LiteRT's kernels against TensorFlow Lite for Microcontrollers: differences of int8 outputs, and latencies.

    python -m benchmarks.int8_table                  # makes the files
    python -m benchmarks.kernels runs/deploy-table   # a minute

Without a folder, untrained networks of the same sizes are used. Prints for each file, on 20 held-out images: the
largest difference from TFLM's outputs in steps of the int8 output, and the median latency of 250 runs on one thread,
with XNNPACK, with LiteRT's own kernels, and with the reference kernels.
"""

import tempfile
from pathlib import Path
from typing import get_args

import numpy as np

import zoo
from benchmarks import int8_table
from benchmarks.machine import describe_machine, make_parser
from recipes.images import augment
from recipes.images import sources as data
from zoo.deploy import measure, tflite

IMAGES = 20
KERNELS = get_args(measure.Kernels)


def main(folder: Path, runs: int = int8_table.RUNS) -> None:
    """Prints a line for each file of the table."""
    print(f"{describe_machine('tensorflow', 'ai-edge-litert')}; {IMAGES} images, {runs} runs")
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
                milliseconds = measure.latency(file, runs=runs, kernels=name).median_ms
                cells.append(f"{steps:.0f} steps, {milliseconds:.2f} ms")
            print(f"{file.stem:24}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def convert_untrained(families: list[str], folder: Path) -> None:
    """Writes int8 files named like those of the table."""
    for family in families:
        small = int8_table.NETWORKS[family]
        model = zoo.build(small.genotype(), classes=10, input_shape=(small.side, small.side, 1))
        images = np.asarray(augment.UNIT(data.load(size=small.side).train.head(IMAGES)[0]), np.float32)
        folder.joinpath(f"{family}-seed0.ptq.tflite").write_bytes(
            tflite.convert(model, quantize="int8", calibration=images)
        )


if __name__ == "__main__":
    parser = make_parser(__doc__, smoke="one network, one run")
    parser.add_argument("folder", type=Path, nargs="?", help="of files by benchmarks.int8_table")
    options = parser.parse_args()
    if options.folder:
        main(options.folder)
    else:
        with tempfile.TemporaryDirectory() as made:
            convert_untrained(["mcunet"] if options.smoke else list(int8_table.NETWORKS), Path(made))
            main(Path(made), runs=1 if options.smoke else int8_table.RUNS)
