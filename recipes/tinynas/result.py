"""What becomes of the sub-network that a TinyNAS search has found: fine-tuned, in int8, measured, beside random ones.

Each step leaves a file, so that a killed process repeats none of them.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

import zoo
from recipes.cards.compare import kendall_tau
from recipes.engine import child_training as trial
from recipes.engine import tuner
from recipes.images import sources as image_data
from recipes.images.parts import Part
from recipes.tinynas.children import SubNetworks, candidates
from recipes.tinynas.config import Config
from recipes.tinynas.export import standalone
from recipes.training.evaluation import measure_accuracy
from zoo import atomic
from zoo.deploy import measure, tflite, tflite_file
from zoo.genotype import Genotype

_INT8_IMAGES = 500  # test images that the int8 file is judged on
_CALIBRATION = 256  # training images that its ranges are measured on

Report = Callable[[float, str], None]


def finish(scorer: SubNetworks, found: Genotype, values: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Fine-tunes the found network, writes it as a Keras and as an int8 file, and compares it; returns result.json.

    Args:
        scorer: the search's.
        found: the genotype, which `values` stand for.
        values: decision -> choice.
        report: called with the share that is done, and a few words.
    """
    config = _config(scorer)
    test = image_data.load(
        config.data, size=config.image_size, seed=config.seed, test_fraction=0.1, **config.folder_options
    ).test
    result: dict[str, Any] = {
        "genotype": found.name,
        "shared_accuracy": found.source["score"],
        "test_images": len(test),
        **_once(config.folder / "finetuned.json", lambda: _fine_tuned(scorer, found, values, test, report)),
    }
    result["predicted"] = dataclasses.asdict(scorer.needs(values))
    result["measured"] = _measured(scorer, test, report)
    result["budget"] = dataclasses.asdict(config.budget())
    if config.random_networks:
        result |= _compared(scorer, values, test, report)
    atomic.write_atomically(config.folder / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def page(result: Mapping[str, Any], folder: Path) -> str:
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
        rank = "" if tau is None else f"; Kendall's tau of shared-weight and stand-alone accuracy {tau:.2f}"
        lines.append(
            f"trained from scratch {result['scratch_test_accuracy']:.4f}, mean of {len(others['test_accuracies'])} "
            f"random networks {others['mean']:.4f} ± {others['deviation']:.4f}{rank}"
        )
    return "\n".join([*lines, str(folder / "result.json")])


def _config(scorer: SubNetworks) -> Config:
    assert isinstance(scorer.config, Config)
    return scorer.config


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what the file holds, or makes and writes it."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = make()
    atomic.write_atomically(path, json.dumps(found, indent=1) + "\n")
    return found


def _fine_tuned(
    scorer: SubNetworks, found: Genotype, values: Mapping[str, Any], test: Part, report: Report
) -> dict[str, Any]:
    """Trains the network on from the weights that it inherits; writes model.keras."""
    config = _config(scorer)
    statistics = scorer.inherited_accuracy.statistics(values)
    inherited = standalone(scorer.net, scorer.weights, statistics, values, found)
    before = measure_accuracy(inherited, test, scorer.normalization)
    tuner.forget_models()

    def make() -> keras.Model:
        return standalone(scorer.net, scorer.weights, statistics, values, found)

    folder = config.folder / "finetuned"
    accuracy = _trained(scorer, make, folder, test, lambda share, text: report(share, f"fine-tuning, {text}"))
    final = zoo.build(found)
    final.load_weights(folder / "model.weights.h5")
    temporary = config.folder / "finetuned" / "model.keras"
    final.save(temporary)
    atomic.write_atomically(config.folder / "model.keras", temporary.read_bytes())
    temporary.unlink()
    tuner.forget_models()
    return {"inherited_test_accuracy": before, **accuracy}


def _trained(
    scorer: SubNetworks, make: Callable[[], keras.Model], folder: Path, test: Part, report: Report
) -> dict[str, float]:
    """Trains a network as all that are compared, and returns its accuracies."""
    config, images = _config(scorer), scorer.images
    learnt = trial.train(
        make, images.train, images.validation, scorer.training(), seed=config.seed, folder=folder, report=report,
        normalize=scorer.normalization,
    )  # fmt: skip
    model = make()
    model.load_weights(folder / "model.weights.h5")
    accuracy = measure_accuracy(model, test, scorer.normalization)
    tuner.forget_models()
    return {"val_accuracy": learnt["val_accuracy"], "test_accuracy": accuracy}


def _measured(scorer: SubNetworks, test: Part, report: Report) -> dict[str, Any]:
    """Converts model.keras to int8, model.tflite, and returns what it takes and how well it does.

    Without the package of TFLM, the arena is that of zoo.deploy.planner.
    """
    report(0.9, "int8")
    config = _config(scorer)
    model = keras.saving.load_model(config.folder / "model.keras")
    calibration = np.asarray(scorer.normalization(scorer.images.train.head(_CALIBRATION)[0]))
    file = tflite.convert(model, quantize="int8", calibration=calibration)
    atomic.write_atomically(config.folder / "model.tflite", file)
    pixels, labels = test.head(_INT8_IMAGES)
    accuracy = measure.accuracy(file, np.asarray(scorer.normalization(pixels)), labels)
    found = arena(file)
    budget = config.budget()
    fits = all(
        most is None or value <= most for value, most in ((found["arena"], budget.ram), (len(file), budget.flash))
    )
    return found | {"file": len(file), "fits": fits, "int8_accuracy": accuracy, "int8_images": len(labels)}


def arena(file: bytes) -> dict[str, Any]:
    """Returns the bytes of arena as TFLM records them, or as the planner tells them where TFLM is not installed."""
    from zoo.deploy import planner

    try:
        return {"arena": measure.arena(file).total, "by": "TFLM"}
    except tflite_file.MissingPackageError:
        return {"arena": planner.plan(file).arena, "by": "the planner, for tflite-micro is not installed"}


def _compared(scorer: SubNetworks, values: Mapping[str, Any], test: Part, report: Report) -> dict[str, Any]:
    """Trains the found network and random ones from scratch, alike; ranks the random ones by shared weights too."""
    config = _config(scorer)
    folder, drawn = config.folder / "random", itertools.islice(candidates(scorer), config.random_networks)

    def scratch(name: str, chosen: Mapping[str, Any]) -> dict[str, float]:
        def make() -> dict[str, float]:
            def told(share: float, text: str) -> None:
                report(share, f"from scratch, {name}: {text}")

            shared, _ = scorer.inherited_accuracy(chosen)
            alone = _trained(scorer, lambda: scorer.build(chosen), folder / name, test, told)
            return {"shared_accuracy": shared.accuracy, **alone, "macs": scorer.needs(chosen).macs}

        return _once(folder / f"{name}.json", make)

    found = scratch("found", values)
    others = [scratch(f"network{number:02d}", chosen) for number, chosen in enumerate(drawn)]
    accuracies = [other["test_accuracy"] for other in others]
    tau = None
    if len(others) > 1:
        tau = kendall_tau(*([o[name] for o in others] for name in ("shared_accuracy", "val_accuracy")))
    return {
        "scratch_test_accuracy": found["test_accuracy"],
        "random": {
            "mean": float(np.mean(accuracies)),
            "deviation": float(np.std(accuracies, ddof=1)) if len(others) > 1 else 0.0,
            "test_accuracies": accuracies,
            "shared_accuracies": [other["shared_accuracy"] for other in others],
            "val_accuracies": [other["val_accuracy"] for other in others],
        },
        "kendall_tau": None if tau is None or np.isnan(tau) else tau,
    }
