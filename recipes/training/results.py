"""The files that a training writes, and what later programs read from them: data, image size, normalisation.

results.json next to a model.keras holds, whatever program wrote it: `data`, `image_size` [height, width], `channels`,
`preprocess` (a name, or none), `normalization` {"mean", "std"} (the network's input is (pixel / 255 - mean) / std),
`class_names` (a label is an index into them), `test_accuracy`, `test_images`, and `config`, the program's options.
"""

import dataclasses
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zoo
from recipes.images import Interpolation
from recipes.training.state import StateError
from zoo import atomic, genotype_json, manifest, markdown

# What needs LiteRT, an extra, is imported where it is used.
if TYPE_CHECKING:
    from zoo.deploy.metadata import Metadata

MODEL, RESULTS, CLASS_NAMES = "model.keras", "results.json", "class_names.json"
SOURCE = "source.json"  # written by recipes.deploy, quantize and tinynas in place of RESULTS


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a network was searched or trained on; None for what is unknown."""

    data: str | None = None
    image_size: tuple[int, int] | None = None  # height, width
    preprocess: str | None = None  # the name of the normalisation, if it has one
    normalization: Mapping[str, Sequence[float]] | None = None  # {"mean", "std"}
    place: str = ""  # the file, or its part, that says all this
    model: str | None = None  # the genotype file, or a name of zoo.list_models()
    crop: float = 1.0  # the share of each side of an image that is read, around its middle
    interpolation: Interpolation = "bilinear"  # for resizing an image


def find_origin(model: str | Path) -> Origin:
    """Returns the origin of a .keras or .tflite file from the results.json or source.json next to it.

    Without these files, a .tflite file's metadata are read. For a genotype file or a name of zoo.list_models(), the
    genotype's `source` is read.

    Raises:
        ValueError: the file next to it, or the metadata, cannot be read.
    """
    path = Path(model).expanduser()
    if path.suffix in (".keras", ".tflite"):
        for file in (path.with_name(RESULTS), path.with_name(SOURCE)):
            if file.is_file():
                return _origin_of_results(_read(file), str(file))
        return _origin_of_metadata(path) if path.suffix == ".tflite" and path.is_file() else Origin()
    source = zoo.load(model).source
    config = source.get("config") if "recipe" in source else None
    if not isinstance(config, Mapping):
        return Origin()
    data, side = config.get("data"), config.get("image_size")
    size = (side, side) if isinstance(side, int) else None
    return Origin(data if isinstance(data, str) else None, size, place=f"the search that found {model}")


class Weights(NamedTuple):
    """What the option --weights stands for."""

    source: str | Path | None  # for zoo.build
    preset: str | None  # for zoo.build
    origin: Origin
    entry: manifest.Entry | None  # if the weights are published


def find_weights(model: str, preset: str | None, weights: str | Path | None) -> Weights:
    """Returns what is known about weights for a network of the zoo.

    A file named like a published file, as in its URL, is taken to be that file.

    Args:
        model: a name of zoo.list_models(), or a genotype file; not used if `weights` is a .keras file.
        preset: of the model; None uses the preset of the published weights.
        weights: a file, or published weights by data set ("imagenet"), origin ("timm") or name; None for no weights.

    Raises:
        FileNotFoundError: there is no such file.
        GenotypeError: there is no such model, or it has no such weights.
    """
    if weights is None:
        return Weights(None, preset, find_origin(model), None)
    if not manifest.is_file(weights):
        entry = manifest.find(zoo.load(model).name, str(weights), None if preset is None else (preset,))
        return _weights_of_entry(entry.name, preset, entry)
    path = Path(weights).expanduser()
    if not path.exists() and not path.with_name(f"{path.name}.index").exists():
        raise FileNotFoundError(f"weights: there is no file {path}")
    if path.suffix == ".keras":
        return Weights(path, preset, find_origin(path), None)
    for entry in manifest.of_model(zoo.load(model).name):
        if preset in (None, entry.preset) and any(path.name == Path(source.url).name for source in entry.sources):
            return _weights_of_entry(path, preset, entry)
    return Weights(path, preset, find_origin(model), None)


def _weights_of_entry(source: str | Path, preset: str | None, entry: manifest.Entry) -> Weights:
    shape = zoo.load(entry.model).presets[entry.preset].get("input_shape")
    size = None if shape is None else (shape[0], shape[1])
    normalization = {name: entry.preprocessing[name] for name in ("mean", "std")}
    resized = {name: entry.preprocessing[name] for name in ("crop", "interpolation") if name in entry.preprocessing}
    origin = Origin(None, size, None, normalization, f"the weights {entry.name}", **resized)
    return Weights(source, preset or entry.preset, origin, entry)


def _origin_of_metadata(tflite: Path) -> Origin:
    from zoo.deploy import metadata

    found, place = metadata.read(tflite), f"the metadata in {tflite}"
    if found is None:
        return Origin()
    if SOURCE in found.files:
        return _origin_of_results(_parse(found.files[SOURCE], f"{SOURCE} in {tflite}"), place)
    normalization = {"mean": [value / 255 for value in found.mean], "std": [value / 255 for value in found.std]}
    return Origin(normalization=normalization if found.std else None, place=place)


def _origin_of_results(results: Mapping[str, Any], place: str) -> Origin:
    old = results.get("config", {})  # where earlier versions recorded data, preprocess and model
    size = results.get("image_size")
    if size is not None and None in size:  # a network of any size
        size = None
    return Origin(
        old.get("data") if "image_size" not in results else results.get("data"),
        None if size is None else (size[0], size[1]),
        results.get("preprocess", old.get("preprocess")),
        results.get("normalization"),
        place,
        old.get("model", results.get("model")),  # in config a genotype; the other may be a Keras model's name
        crop=1.0 if size is None or "resize" not in results else size[0] / results["resize"][0],
        interpolation=results.get("interpolation", "bilinear"),
    )


def find_class_names(model: Path) -> tuple[str, ...] | None:
    """Returns the class names from the file next to a model, else from a .tflite file's metadata, else None.

    Raises:
        ValueError: the file of class names, or the metadata, are damaged.
    """
    file = model.with_name(CLASS_NAMES)
    if not file.is_file():
        if model.suffix != ".tflite":
            return None
        from zoo.deploy import metadata

        found = metadata.read(model)
        return None if found is None else found.class_names or None
    names: Any = _read(file)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} does not hold a JSON list of names; fix or remove it")
    return tuple(names)


def find_genotype(model: Path, origin: Origin) -> str | None:
    """Returns the text of a trained model's genotype file: the one next to it, or the one that its origin names."""
    for source in (str(model.with_name("genotype.json")), origin.model):
        try:
            return None if source is None else genotype_json.to_json(zoo.load(source))
        except (OSError, ValueError):  # missing, or a .keras file: a user's own network
            continue
    return None


def make_metadata(name: str, found: Mapping[str, Any], genotype: str | None, license: str = "") -> "Metadata":
    """Returns the metadata of a .tflite file, from what `describe_images` returns and the text of a genotype file."""
    from zoo.deploy import metadata

    names, (height, width), normalization = found["class_names"], found["image_size"], found["normalization"]
    mean, std = (tuple(255 * value for value in normalization[part]) for part in ("mean", "std"))
    inside = {key: value for key, value in found.items() if key != "model"}  # a path means nothing elsewhere
    files = {SOURCE: json.dumps(inside, ensure_ascii=False, indent=1) + "\n"}
    return metadata.Metadata(
        name,
        f"Tells {len(names)} classes of images apart, trained on {Path(found['data']).name}. Reads (pixel - mean) / "
        f"std of {height} x {width} pixels (height, width) from 0 to 255.",
        f"keras-searched-zoo {zoo.__version__}",
        license,
        tuple(names),
        mean,
        std,
        files | ({} if genotype is None else {metadata.GENOTYPE: genotype}),
    )


def find_finished(folder: Path, config: Any, free: Collection[str]) -> dict[str, Any] | None:
    """Returns, and prints, the results of a training that was completed in this folder; None if there is none.

    `config`, a dataclass, holds the present options; those named in `free` may differ from the recorded ones.

    Raises:
        StateError: the training had other options, or the folder holds a model from elsewhere.
    """
    file, model = folder / RESULTS, folder / MODEL
    if model.is_file() and not file.is_file() and not any(folder.rglob("state.npz")):
        raise StateError(
            f"{model} was not written by this program ({RESULTS} is not next to it), and would be overwritten: move it "
            "away, or choose another folder="
        )
    if not file.is_file() or not model.is_file():
        return None
    results = _read(file)
    then, now = results.get("config", {}), _as_json(config)
    changes = [
        f"{name}={then.get(name)} there and {now.get(name)} here"
        for name in {**then, **now}
        if name not in free and str(then.get(name)) != str(now.get(name))
    ]
    if changes:
        raise StateError(
            f"{folder} holds a training with other options ({', '.join(changes)}); choose another folder, or delete "
            "this one to train again"
        )
    print(
        f"this training is done: test accuracy {results['test_accuracy']:.4f} on {results['test_images']:,} images, "
        f"{folder / MODEL}. To train again, choose another folder=, or delete this one"
    )
    return results


def describe_images(name: str, images: Any, preprocess: str | None, normalization: Any) -> dict[str, Any]:
    """Returns what `find_origin` reads back, from a Data of recipes.images.sources and a Normalization."""
    return {
        "data": name,
        "images": str(images),
        "image_size": list(images.input_shape[:2]),
        "channels": images.input_shape[2],
        "preprocess": preprocess,
        "normalization": dataclasses.asdict(normalization),
        "class_names": list(images.class_names),
    }


def save_model(model: Any, folder: Path) -> None:
    """Writes model.keras into the folder atomically."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save(Path(temporary, MODEL))
        atomic.write_atomically(folder / MODEL, Path(temporary, MODEL).read_bytes())


def write_labels(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes the files that an application needs with a model: CLASS_NAMES, and SOURCE, which describes the input.

    `found` is what `describe_images` returns, and whatever else is known.
    """
    atomic.write_atomically(folder / CLASS_NAMES, json.dumps(found["class_names"], ensure_ascii=False, indent=1) + "\n")
    atomic.write_atomically(folder / SOURCE, json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def write_results(folder: Path, model: Any, results: Mapping[str, Any], config: Any) -> None:
    """Writes model.keras, class_names.json, results.md and, last, results.json with the options; prints the accuracy.

    `model` returns probabilities; `results` are JSON values; `config` is a dataclass.
    """
    save_model(model, folder)
    atomic.write_atomically(folder / CLASS_NAMES, json.dumps(results["class_names"], indent=1) + "\n")
    table = markdown.make_table(("what", "value"), list(results.items()))
    atomic.write_atomically(folder / "results.md", table + "\n")
    text = json.dumps({**results, "config": _as_json(config)}, indent=1)
    atomic.write_atomically(folder / RESULTS, text + "\n")
    print(f"test accuracy {results['test_accuracy']:.4f} on {results['test_images']:,} images: {folder / MODEL}")


def _as_json(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # default for paths


def _read(file: Path) -> dict[str, Any]:
    return _parse(file.read_text(encoding="utf-8-sig"), str(file))  # some editors write a byte order mark


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} cannot be read ({error}); delete it, or the whole folder") from error
