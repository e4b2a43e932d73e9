"""Sub-networks of TinyNAS' once-for-all network: limits and scores for the search, and the search's final stage.

In the final stage, the best sub-network is fine-tuned, converted to int8, measured, and compared with random networks.
Each step writes a file, so that none is repeated after the process was killed. The dry run is here too.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import zoo
from recipes.cards.compare import kendall_tau
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.config import describe_excess
from recipes.engine.dry_run import limit_batch, peak_memory, time_steps
from recipes.images import sources as image_data
from recipes.images.parts import Part
from recipes.tinynas.config import Config
from recipes.tinynas.needs import Needs, predict_needs
from recipes.tinynas.supernet import MOMENTS, Supernet
from recipes.tinynas.training import ElasticTraining
from recipes.training import child_training
from recipes.training.evaluation import Scores, evaluate, measure_accuracy
from recipes.training.progress import Report, duration
from recipes.training.results import describe_images, make_metadata, save_model, write_labels
from recipes.training.tensorflow_options import without_rewrites
from zoo import atomic, genotype_json
from zoo.deploy import measure, metadata, planner, tflite, tflite_file
from zoo.genotype import Genotype

_SCORING_BATCH = 500  # images
_INT8_IMAGES = 500  # test images for the accuracy of the int8 file
_CALIBRATION = 256  # training images that calibrate the int8 file
_DRY_RUN_NETWORKS = 30  # random networks that fit, of which the largest is measured
_MOST_MISSES = 2000  # random networks in a row that are known or too large; then no more are drawn


class InheritedAccuracy:
    """Accuracy of sub-networks with inherited weights, and normalisation recalibrated for each sub-network.

    Args:
        net: the once-for-all network.
        weights: of each trained once-for-all network, (supernets, size).
        calibration: batches of images (batches, batch, height, width, channels) for the statistics.
        images, labels: to score on.
    """

    def __init__(self, net: Supernet, weights: Any, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray):
        self.net, self.weights = net, tf.unstack(tf.constant(weights))
        self._calibration = [tf.constant(batch, tf.float32) for batch in calibration]
        self._batches = [
            (tf.constant(images[start : start + _SCORING_BATCH], tf.float32), labels[start : start + _SCORING_BATCH])
            for start in range(0, len(images), _SCORING_BATCH)
        ]
        vector, encoded, pixels = net.input_specs(images.shape[1:])
        statistics = tf.TensorSpec([net.statistics.size])
        self._moments = tf.function(net.moments, [vector, encoded, pixels], autograph=False)
        self._infer = tf.function(net.infer, [vector, statistics, encoded, pixels], autograph=False)

    def statistics(self, values: Mapping[str, Any], supernet: int = 0) -> np.ndarray:
        """Returns mean and variance at each normalisation of this sub-network, averaged over the batches."""
        encoded = tf.constant(self.net.space.encode(values))
        found = [self._moments(self.weights[supernet], encoded, images).numpy() for images in self._calibration]
        return np.stack(found).mean(axis=0, dtype=np.float64).astype(np.float32)

    def predictor(self, values: Mapping[str, Any], statistics: np.ndarray, supernet: int = 0) -> Callable[[Any], Any]:
        """Returns the sub-network with these statistics as a function: normalised images -> logits."""
        encoded, moments = tf.constant(self.net.space.encode(values)), tf.constant(statistics)
        return lambda images: self._infer(self.weights[supernet], moments, encoded, images)

    def __call__(self, values: Mapping[str, Any]) -> Scores:
        """Returns mean accuracy and loss over the supernets; the loss is that of their predictions' geometric mean."""
        found = []
        for supernet in range(len(self.weights)):
            predict = self.predictor(values, self.statistics(values, supernet), supernet)
            found.append(evaluate(predict, self._batches))
        return Scores(*np.mean(found, axis=0).tolist())


@dataclasses.dataclass(frozen=True)
class SubNetworks(NetworkScorer):
    """Sub-networks of the once-for-all network `net`, scored with inherited weights.

    `weights` are the flat vectors of the trained once-for-all networks, (supernets, size); fine-tuning starts from the
    first.
    """

    config: Config
    net: Supernet
    weights: np.ndarray

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> "max" or "min"; the first is the score."""
        return {self.config.score_name: "min" if self.config.score == "loss" else "max"}

    def rank(self, networks: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[float]]]:
        """Returns the seed, and scores of networks by the shared weights, higher is better."""
        return [(self.config.seed, [self.grade(self.inherited_accuracy(values)) for values in networks])]

    def grade(self, scores: Scores) -> float:
        """Returns the score that networks are ranked by, higher is better: accuracy, or minus the loss."""
        return -scores.loss if self.config.score == "loss" else scores.accuracy

    def predict_needs(self, values: Mapping[str, Any]) -> Needs:
        """Returns the predicted needs of a sub-network."""
        return predict_needs(self.net.space.body(values), self.images.input_shape, self.images.classes)

    def check(self, values: Mapping[str, Any]) -> str | None:
        """Returns the limit that the network exceeds, or None; its latency is measured last."""
        config, needs = self.config, self.predict_needs(values)
        found = describe_excess("params", needs.params, config.max_params)
        found = found or describe_excess("macs", needs.macs, config.max_macs) or config.budget.find_excess(needs)
        if found or config.max_latency is None:
            return found
        return describe_excess("ms", self.latency(values), config.max_latency)

    @functools.cached_property
    def inherited_accuracy(self) -> InheritedAccuracy:
        """Scores sub-networks on the validation images."""
        batches, size = self.config.calibration_batches, self.config.batch_size
        calibration = np.asarray(self.normalization(self.images.train.head(batches * size)[0]))
        calibration = np.resize(calibration, (batches, size, *self.images.input_shape))
        images, labels = self.images.validation.head(len(self.images.validation))
        return InheritedAccuracy(self.net, self.weights, calibration, np.asarray(self.normalization(images)), labels)

    def score(self, task: tuner.Task) -> dict[str, float]:
        """Returns accuracy and loss with inherited weights, and the predicted needs."""
        scores = self.inherited_accuracy(task.values)
        predicted = self.predict_needs(task.values)._asdict()
        return {"val_accuracy": scores.accuracy, "val_loss": scores.loss, **{k: float(v) for k, v in predicted.items()}}

    def sample_fitting(self) -> Iterator[dict[str, Any]]:
        """Yields distinct random sub-networks within all limits, the same ones for the same seed, until none is new."""
        rng, space, seen, misses = np.random.default_rng([self.config.seed, 5]), self.net.space, set(), 0
        while misses < _MOST_MISSES:
            values = space.sample(rng)
            misses += 1
            if (key := space.key(values)) not in seen:
                seen.add(key)
                if self.check(values) is None:
                    misses = 0
                    yield values


def build_standalone(
    net: Supernet, weights: Any, statistics: np.ndarray, values: Mapping[str, Any], genotype: Genotype
) -> keras.Model:
    """Returns a sub-network as a Keras model with the inherited weights and logits as its output.

    Args:
        net, weights: the once-for-all network.
        statistics: of this sub-network's normalisations, flat as returned by `Supernet.moments`.
        values: decision -> choice of the sub-network.
        genotype: of the same sub-network, with a preset for the images' shape.
    """
    model = zoo.build(genotype, classes=net.classes, classifier_activation=None)
    named, moments = net.packing.unpack(np.asarray(weights)), net.statistics.unpack(statistics)

    def put(layer: str, name: str, kernel: np.ndarray) -> None:
        depthwise = name.endswith("depthwise")
        filters = kernel.shape[2 if depthwise else 3]
        model.get_layer(layer if depthwise else f"{layer}_conv").set_weights([kernel])
        vectors = (named[f"{name}_scale"], named[f"{name}_shift"], *(moments[f"{name}/{what}"] for what in MOMENTS))
        model.get_layer(f"{layer}_bn").set_weights([vector[:filters] for vector in vectors])

    put("stem", "stem", named["stem"])
    for name in ("depthwise", "project"):
        put(f"block00_0_{name}", f"first/{name}", named[f"first/{name}"])
    row, last = 1, net.space.first_filters
    for number, (present, kernel, inputs, middle, filters) in enumerate(net.space.encode(values).tolist()):
        if not present:
            continue
        layer, name = f"block{row:02d}_0", f"block{number}"
        own = {key: tf.constant(value) for key, value in named.items() if key.startswith(f"{name}/")}
        put(f"{layer}_expand", f"{name}/expand", named[f"{name}/expand"][:, :, :inputs, :middle])
        put(f"{layer}_depthwise", f"{name}/depthwise", net.cut_window(own, name, kernel, middle).numpy())
        put(f"{layer}_project", f"{name}/project", named[f"{name}/project"][:, :, :middle, :filters])
        row, last = row + 1, filters
    model.get_layer("predictions").set_weights([named["classifier"][:last], named["classifier_bias"]])
    return model


def finish(scorer: SubNetworks, found: Genotype, values: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Fine-tunes the best network, writes it as a Keras and an int8 file, and compares it with random networks.

    `values` (decision -> choice) are those of the genotype `found`. Returns the content of result.json.
    """
    config, options = scorer.config, scorer.config.folder_options
    test = image_data.load(config.data, size=config.image_size, seed=config.seed, test_fraction=0.1, **options).test
    result: dict[str, Any] = {
        "genotype": found.name,
        "shared_accuracy": found.source["metrics"]["val_accuracy"],
        "test_images": len(test),
        **_make_once(config.folder / "finetuned.json", lambda: _fine_tune(scorer, found, values, test, report)),
    }
    result["predicted"] = scorer.predict_needs(values)._asdict()
    result["measured"] = _convert(scorer, found, test, report)
    result["budget"] = config.budget._asdict()
    if config.random_networks:
        result |= _compare(scorer, values, test, report)
    atomic.write_atomically(config.folder / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def describe_result(result: Mapping[str, Any], folder: Path) -> str:
    """Returns the result in a few lines."""
    predicted, measured, budget = (result[name] for name in ("predicted", "measured", "budget"))
    lines = [
        f"test accuracy {result['test_accuracy']:.4f} on {result['test_images']:,} images, fine-tuned; in int8 "
        f"{measured['int8_accuracy']:.4f} on {measured['int8_images']:,}",
        f"RAM {predicted['arena']:,} bytes predicted, {measured['arena']:,} measured by {measured['by']}, "
        f"{budget['ram']:,} allowed; flash {predicted['file']:,}, {measured['file']:,} and {budget['flash']:,}",
    ]
    if "random" in result:
        others, tau = result["random"], result["kendall_tau"]
        rank = "" if tau is None else f"; Kendall's tau of shared-weight score and stand-alone accuracy {tau:.2f}"
        lines.append(
            f"trained from scratch {result['scratch_test_accuracy']:.4f}, mean of {len(others['test_accuracies'])} "
            f"random networks {others['mean']:.4f} ± {others['deviation']:.4f}{rank}"
        )
    return "\n".join([*lines, str(folder / "result.json")])


def _make_once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of the file, which is made and written if it is missing."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    made = make()
    atomic.write_atomically(path, json.dumps(made, indent=1) + "\n")
    return made


def _fine_tune(
    scorer: SubNetworks, found: Genotype, values: Mapping[str, Any], test: Part, report: Report
) -> dict[str, Any]:
    """Trains the network from inherited weights; writes model.keras and returns its accuracies."""
    folder, statistics = scorer.config.folder / "finetuned", scorer.inherited_accuracy.statistics(values)

    def build() -> keras.Model:
        return build_standalone(scorer.net, scorer.weights[0], statistics, values, found)

    before = measure_accuracy(build(), test, scorer.normalization)
    tuner.forget_models()
    accuracies = _train_and_test(scorer, build, folder, test, report, "fine-tuning, ")
    final = zoo.build(found)
    final.load_weights(folder / "model.weights.h5")
    save_model(final, scorer.config.folder)
    tuner.forget_models()
    return {"inherited_test_accuracy": before, **accuracies}


def _train_and_test(
    scorer: SubNetworks, build: Callable[[], keras.Model], folder: Path, test: Part, report: Report, label: str
) -> dict[str, float]:
    """Trains a network, like all that are compared, and returns its accuracies; its reports begin with `label`."""
    images, seed = scorer.images, scorer.config.seed
    trained = child_training.train(
        build, images.train, images.validation, scorer.training(), seed=seed, normalize=scorer.normalization,
        folder=folder, report=lambda share, text: report(share, label + text),
    )  # fmt: skip
    model = build()
    model.load_weights(folder / "model.weights.h5")
    accuracy = measure_accuracy(model, test, scorer.normalization)
    tuner.forget_models()
    return {"val_accuracy": trained["val_accuracy"], "test_accuracy": accuracy}


def _convert(scorer: SubNetworks, genotype: Genotype, test: Part, report: Report) -> dict[str, Any]:
    """Converts model.keras to the int8 file model.tflite; returns the file's needs and accuracy."""
    report(0.9, "int8")
    config, folder, budget = scorer.config, scorer.config.folder, scorer.config.budget
    model = keras.saving.load_model(folder / "model.keras")
    calibration = np.asarray(scorer.normalization(scorer.images.train.head(_CALIBRATION)[0]))
    file = tflite.convert(model, quantize="int8", calibration=calibration)
    found = describe_images(config.data, scorer.images, None, scorer.normalization)
    write_labels(folder, found)
    described = make_metadata(model.name, found, genotype_json.to_json(genotype))
    atomic.write_atomically(folder / "model.tflite", metadata.attach(file, described))
    pixels, labels = test.head(_INT8_IMAGES)
    accuracy = measure.accuracy(file, np.asarray(scorer.normalization(pixels)), labels)
    needs = measure_arena(file)
    compared = ((needs["arena"], budget.ram), (len(file), budget.flash))
    fits = all(most is None or value <= most for value, most in compared)
    return needs | {"file": len(file), "fits": fits, "int8_accuracy": accuracy, "int8_images": len(labels)}


def measure_arena(file: bytes) -> dict[str, Any]:
    """Returns the bytes of the arena as TFLM records them or, if it is not installed, as the planner predicts them."""
    try:
        return {"arena": measure.arena(file).total, "by": "TFLM"}
    except tflite_file.MissingPackageError:
        return {"arena": planner.plan(file).arena, "by": "the planner, since tflite-micro is not installed"}


def _compare(scorer: SubNetworks, values: Mapping[str, Any], test: Part, report: Report) -> dict[str, Any]:
    """Trains the best network and random ones from scratch; ranks the random ones by shared weights too."""
    folder = scorer.config.folder / "random"

    def train_from_scratch(name: str, values: Mapping[str, Any]) -> dict[str, float]:
        def make() -> dict[str, float]:
            shared = scorer.inherited_accuracy(values)
            label = f"from scratch, {name}: "
            alone = _train_and_test(scorer, lambda: scorer.build(values), folder / name, test, report, label)
            shared_scores = {"shared_accuracy": shared.accuracy, "shared_score": scorer.grade(shared)}
            return {**shared_scores, **alone, "macs": scorer.predict_needs(values).macs}

        return _make_once(folder / f"{name}.json", make)

    found = train_from_scratch("found", values)
    drawn = enumerate(itertools.islice(scorer.sample_fitting(), scorer.config.random_networks))
    others = [train_from_scratch(f"network{number:02d}", each) for number, each in drawn]
    columns = {name: [other[f"{name}_accuracy"] for other in others] for name in ("test", "shared", "val")}
    scores = [other.get("shared_score", other["shared_accuracy"]) for other in others]  # older files: accuracy only
    tau = kendall_tau(scores, columns["val"]) if len(others) > 1 else np.nan
    return {
        "scratch_test_accuracy": found["test_accuracy"],
        "random": {
            "mean": float(np.mean(columns["test"])),
            "deviation": float(np.std(columns["test"], ddof=1)) if len(others) > 1 else 0.0,
            **{f"{name}_accuracies": column for name, column in columns.items()},
        },
        "kendall_tau": None if np.isnan(tau) else tau,
    }


def dry_run(scorer: SubNetworks) -> Genotype:
    """Takes two steps of the largest sub-network, prints what the search would need, and returns a network that fits.

    The steps have fewer images than real ones if memory requires it. The network returned is the largest of some random
    ones, and is measured in int8.
    """
    config, net, images = scorer.config, scorer.net, scorer.images
    largest = scorer.predict_needs(net.space.largest())
    image_bytes = 8 * largest.peak_memory * len(net.space.blocks)  # roughly, for activations and gradients
    batch = max(2, limit_batch(config.batch_size, image_bytes))
    steps = images.train.steps(config.batch_size, training=True)
    # whatever the options, the first two steps train the largest sub-network alone
    training = ElasticTraining(net, dataclasses.replace(config, largest_epochs=2), steps, images.input_shape)
    part = images.train.take(np.resize(np.arange(len(images.train)), batch))
    pixels, labels = part.images / np.float32(255), part.labels
    with without_rewrites():
        cost = time_steps(lambda number: training.take_step(number, pixels, labels), batch, count=2)
    steps *= config.supernets
    seconds = cost.scale(config.batch_size) * steps * (config.largest_epochs + config.networks * config.elastic_epochs)
    total = steps * (config.largest_epochs + config.elastic_epochs)
    drawn = list(itertools.islice(scorer.sample_fitting(), _DRY_RUN_NETWORKS))
    if not drawn:
        raise ValueError(f"none of {_MOST_MISSES:,} random networks is within all limits; raise the limits")
    chosen = max(drawn, key=lambda values: scorer.predict_needs(values).macs)
    genotype = scorer.genotype(chosen, "tinynas_dry_run")
    file = tflite.convert(zoo.build(genotype), quantize="int8", calibration=pixels[:2])
    needs, measured = scorer.predict_needs(chosen), measure_arena(file)
    print(
        f"dry run: resolution {images.input_shape[0]}, width {net.space.width:g}, {net.space.size:.1e} sub-networks of "
        f"{net.packing.size:,} shared weights; {cost.describe(config.batch_size)}, for one sub-network; "
        f"{peak_memory():.2f} GiB at most\n"
        f"predicted: {total:,} steps, at most {duration(seconds)} on this machine for the shared weights\n"
        f"the largest of {len(drawn)} networks that fit: {needs.macs:,} multiply-adds; RAM {needs.arena:,} "
        f"bytes predicted, {measured['arena']:,} by {measured['by']}; int8 file {needs.file:,} predicted, "
        f"{len(file):,} measured"
    )
    return genotype
