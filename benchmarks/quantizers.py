"""TensorFlow's converter against the recipes of ai-edge-quantizer on small trained networks; about five minutes.

    pip install ai-edge-quantizer
    python -m benchmarks.quantizers mcunet darts     # without the package, only the converter's rows

Each network of benchmarks.int8_table is trained for three epochs on the embedded images and quantized by every scheme
of both tools from the same float file, with ranges measured on the same 256 training images. Prints for each file:
accuracy on all 2,000 held-out images, bytes, LiteRT's median latency of 50 runs on one thread, and TFLM's arena.
The results are in docs/quantization.md. The package is not among the extras because it needs one exact LiteRT version.
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

import zoo
from benchmarks.int8_table import NETWORKS
from benchmarks.machine import describe_machine, make_parser, one_of
from recipes.images import sources as data
from recipes.images.parts import Part
from recipes.training import child_training as trial
from zoo import graph
from zoo.deploy import equalize, measure, tflite, tflm
from zoo.weights.published import transfer

EPOCHS, SEED, CALIBRATION = 3, 0, 256
HAS_QUANTIZER = importlib.util.find_spec("ai_edge_quantizer") is not None
RECIPES = (
    "static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4_afp32",
    "weight_only_wi4_afp32",
)  # fmt: skip


def train_network(family: str, source: data.Data, train: Part, epochs: int) -> keras.Model:
    """Returns a small network of the family, trained on a part of the source."""
    made = []

    def make() -> keras.Model:
        made.append(build(None))
        return made[-1]

    def build(activation: str | None) -> keras.Model:
        return zoo.build(
            NETWORKS[family].genotype(),
            classes=source.classes,
            input_shape=source.input_shape,
            classifier_activation=activation,
        )

    settings = trial.make_child_settings(len(train), epochs, 64, 0.05, 1e-4)
    trial.train(make, train, source.validation, settings, seed=SEED)
    model = build("softmax")
    transfer(made[-1], model)
    return model


def make_ranges_unequal(model: keras.Model) -> keras.Model:
    """Returns an equal model whose channels are multiplied by random powers of two, and divided by them when read."""
    copy, rng = graph.copy_model(model), np.random.default_rng(SEED)
    for channels in equalize._find_channels(copy)[0].values():
        factors = np.exp2(np.round(rng.normal(0, 1.5, channels.maker.output.shape[-1])))
        equalize._scale(channels, factors.astype(np.float32))
    graph.check_copy(model, copy)
    return copy


def quantize_all(model: keras.Model, calibration: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Yields the name and file of each scheme; those of ai-edge-quantizer only if it is installed."""
    whole = tflite.convert(model)
    yield "float32", whole
    for scheme in tflite.SCHEMES:
        images = calibration if scheme in tflite.CALIBRATED_SCHEMES else None
        yield f"converter, {scheme}", tflite.convert(model, quantize=scheme, calibration=images)
    unequal = make_ranges_unequal(model)
    equalized = [equalize.equalize(one, calibration).model for one in (model, unequal)]
    for name, one in (("equalized", equalized[0]), ("ranges unlike", unequal), ("they equalized", equalized[1])):
        for scheme in ("int8", "int4"):
            yield f"converter, {scheme}, {name}", tflite.convert(one, quantize=scheme, calibration=calibration)
    if not HAS_QUANTIZER:
        return
    from ai_edge_quantizer import quantizer, recipe  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float.tflite")
        path.write_bytes(whole)
        for name in RECIPES:
            tool = quantizer.Quantizer(str(path), getattr(recipe, name)())
            signature = {"serving_default": [{"image": image[None]} for image in calibration]}
            ranges = tool.calibrate(signature) if tool.need_calibration else None
            yield f"ai-edge-quantizer, {name}", bytes(tool.quantize(ranges).quantized_model)


def main(families: list[str], epochs: int = EPOCHS, most: int | None = None) -> None:
    """Prints a table for each family, using at most `most` images of each part, or all if None."""
    packages = ("tensorflow", "ai-edge-quantizer")[: 1 + HAS_QUANTIZER]
    print(f"{describe_machine(*packages)}; seed {SEED}, {epochs} epochs")
    if not HAS_QUANTIZER:
        print("ai-edge-quantizer's rows are missing: it is not installed (pip install ai-edge-quantizer)")
    for family in families:
        source = data.load(size=NETWORKS[family].side)
        train, test = source.train.first(most), source.test.first(most)
        model = train_network(family, source, train, epochs)
        images, labels = np.asarray(test.head(len(test))[0], np.float32) / 255, test.labels
        calibration = np.asarray(train.first(CALIBRATION).head(CALIBRATION)[0], np.float32) / 255
        print(f"{family}: accuracy (n = {len(labels):,}), bytes, ms, arena")
        for name, file in quantize_all(model, calibration):
            try:
                arena = f"{measure.arena(file).total:,}"
            except tflm.TflmError:
                arena = "TFLM cannot run it"
            accuracy, latency = measure.accuracy(file, images, labels), measure.latency(file).median_ms
            print(f"  {name:40} {accuracy:.4f} {len(file):10,} {latency:7.3f} {arena:>20}", flush=True)


if __name__ == "__main__":
    parser = make_parser(__doc__, smoke="one network, one epoch, 64 images")
    parser.add_argument(
        "families",
        nargs="*",
        type=one_of(NETWORKS),
        metavar="FAMILY",
        help=f"of {', '.join(NETWORKS)}; mcunet and darts by default",
    )
    options = parser.parse_args()
    if options.smoke:
        main(["mcunet"], epochs=1, most=64)
    else:
        main(options.families or ["mcunet", "darts"])
