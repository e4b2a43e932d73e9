"""What a training leaves in its folder, and what later programs learn from there: data, image size, normalisation.

results.json beside a model.keras holds, whatever program wrote it: `data`, `image_size` [height, width], `channels`,
`preprocess` (a name, or none), `normalization` {"mean", "std"} (what the network reads is (pixel / 255 - mean) / std),
`class_names` (a label is the place in them), `test_accuracy`, `test_images`, and `config`, the options of the program.
"""

import dataclasses
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import zoo
from recipes.training.state import StateError
from zoo import atomic, markdown

MODEL, RESULTS, CLASS_NAMES = "model.keras", "results.json", "class_names.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a network was searched or trained on; None for what nobody knows."""

    data: str | None = None
    image_size: tuple[int, int] | None = None  # height, width
    preprocess: str | None = None  # the name of the normalisation, where it has one
    normalization: Mapping[str, Sequence[float]] | None = None  # {"mean", "std"}
    place: str = ""  # where this is written


def find_origin(model: str | Path) -> Origin:
    """Returns what is known about a .keras file by the results.json beside it, about a genotype file by its source.

    Raises:
        ValueError: results.json cannot be read.
    """
    path = Path(model).expanduser()
    if path.suffix == ".keras":
        file = path.with_name(RESULTS)
        return Origin() if not file.is_file() else _origin_of_results(_read(file), file)
    source = zoo.load(model).source
    config = source.get("config") if "recipe" in source else None
    if not isinstance(config, Mapping):
        return Origin()
    data, side = config.get("data"), config.get("image_size")
    return Origin(
        data if isinstance(data, str) else None,
        (side, side) if isinstance(side, int) else None,
        place=f"the search that found {model}",
    )


def _origin_of_results(results: Mapping[str, Any], file: Path) -> Origin:
    old = results.get("config", {})  # where the version before had these
    size = results.get("image_size")
    return Origin(
        old.get("data") if "image_size" not in results else results.get("data"),
        None if size is None else (size[0], size[1]),
        results.get("preprocess", old.get("preprocess")),
        results.get("normalization"),
        str(file),
    )


def find_finished(folder: Path, config: Any, free: Collection[str]) -> dict[str, Any] | None:
    """Returns the results of a training that has ended in this folder, and says so; None if there is none.

    Args:
        folder: of the training.
        config: its options now, a dataclass.
        free: options that may be others than then.

    Raises:
        StateError: the training was one of other options.
    """
    file = folder / RESULTS
    if not file.is_file() or not (folder / MODEL).is_file():
        return None
    results = _read(file)
    then, now = results.get("config", {}), _as_json(config)
    changes = [
        f"{name} {then.get(name)} there and {now.get(name)} here"
        for name in {**then, **now}
        if name not in free and str(then.get(name)) != str(now.get(name))
    ]
    if changes:
        raise StateError(
            f"{folder} holds a training with other options ({', '.join(changes)}); choose another folder, or delete "
            "this one to train anew"
        )
    print(
        f"this training is done: test accuracy {results['test_accuracy']:.4f} on {results['test_images']:,} images, "
        f"{folder / MODEL}. To train anew, give another folder=, or delete this one"
    )
    return results


def describe_images(name: str, images: Any, preprocess: str | None, normalization: Any) -> dict[str, Any]:
    """Returns what `find_origin` reads back, of a Data of recipes.images.sources and a Normalization."""
    return {
        "data": name,
        "images": str(images),
        "image_size": list(images.input_shape[:2]),
        "channels": images.input_shape[2],
        "preprocess": preprocess,
        "normalization": dataclasses.asdict(normalization),
        "class_names": list(images.class_names),
    }


def write_results(folder: Path, model: Any, results: Mapping[str, Any], config: Any) -> None:
    """Writes model.keras, class_names.json, results.md and, last, results.json with the options; prints the accuracy.

    Args:
        folder: of the training.
        model: a Keras model with probabilities as its output.
        results: JSON values; see the head of this module.
        config: the options, a dataclass.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model.save(Path(temporary, MODEL))
        atomic.write_atomically(folder / MODEL, Path(temporary, MODEL).read_bytes())
    atomic.write_atomically(folder / CLASS_NAMES, json.dumps(results["class_names"], indent=1) + "\n")
    table = markdown.make_table(("what", "value"), list(results.items()))
    atomic.write_atomically(folder / "results.md", table + "\n")
    text = json.dumps({**results, "config": _as_json(config)}, indent=1)
    atomic.write_atomically(folder / RESULTS, text + "\n")
    print(f"test accuracy {results['test_accuracy']:.4f} on {results['test_images']:,} images: {folder / MODEL}")


def _as_json(config: Any) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); delete it, or the whole folder") from error
