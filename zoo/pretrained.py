"""Saves trained networks as folders that others can use, and loads them from disk or the Hugging Face Hub.

    zoo.save_pretrained("runs/train/model.keras", "flowers", license="apache-2.0")  # hf upload USER/flowers flowers
    found = zoo.from_pretrained("hf://USER/flowers")                                # or a folder
    scores = found.model(found.preprocess(images))                                  # images of 0..255

`config.json` and `model.weights.h5` are as Keras writes them, so that `keras.saving.load_model` loads the folder
without this package. No code from a folder is run: only Keras' own layers are built, from files of fixed names.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from zoo import atomic, cost, genotype_json, registry
from zoo.genotype import Genotype, GenotypeError
from zoo.markdown import join_blocks, make_table
from zoo.weights.importing import WeightsError
from zoo.weights.published import load_file, make_preprocessing

HUB = "hf://"
MARKER = "pretrained.json"  # digests of the other files
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"  # Keras' names
GENOTYPE, CLASS_NAMES, SOURCE, CARD = "genotype.json", "class_names.json", "source.json", "README.md"
FILES = (MARKER, CONFIG, WEIGHTS, METADATA, GENOTYPE, CLASS_NAMES, SOURCE, CARD)
_RESULTS_FILES = ("results.json", "source.json")  # what a training writes next to its model.keras
# Values that Keras writes as objects without a module
_VALUES = ("__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__")
_RUN_CODE = ("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper")
_LARGEST_TEXT = 50_000_000  # bytes of a JSON file


class PretrainedError(ValueError):
    """A folder or repository holds no network that can be loaded, or a network cannot be saved."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with all that is needed to use it; what its folder does not say is None."""

    model: keras.Model
    class_names: tuple[str, ...] | None  # in label order
    normalization: Mapping[str, Sequence[float]] | None  # "mean" and "std" of the channels, for values from 0 to 1
    genotype: Genotype | None
    preset: str | None
    folder: Path

    @property
    def preprocess(self) -> keras.layers.Layer:
        """A Keras layer that turns images with values from 0 to 255 into the network's input.

        Raises:
            PretrainedError: the folder does not say how.
        """
        if self.normalization is None:
            raise PretrainedError(f"{self.folder} does not say how to preprocess images; see its {CARD}")
        return make_preprocessing(self.normalization["mean"], self.normalization["std"])


def save_pretrained(
    model: keras.Model | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    genotype: str | os.PathLike | Genotype | None = None,
    preset: str | None = None,
    class_names: Sequence[str] | None = None,
    normalization: Mapping[str, Sequence[float]] | None = None,
    license: str | None = None,
) -> Path:
    """Saves a network with its genotype, class names, preprocessing and a model card in a folder; returns the folder.

    A new folder appears complete or not at all. A folder that this function wrote is overwritten, unless its files were
    changed since.

    Args:
        model: a functional model of Keras' own layers, such as one from zoo.build; or the path of a training's
            model.keras, next to which results.json and class_names.json provide what is not given here.
        folder: where to save the network.
        genotype: as in zoo.build; by default the training's, or the zoo's if the model has a name that zoo.build gives.
        preset: of the genotype.
        class_names: in label order; by default the training's.
        normalization: {"mean": [...], "std": [...]} of the channels, for values from 0 to 1, as used in training; by
            default the training's.
        license: for the card, such as apache-2.0.

    Raises:
        PretrainedError: the model has layers that are not Keras' own, or an argument does not fit the model.
        zoo.atomic.ForeignFolderError: the folder holds files that this function did not write, or changed ones.
    """
    results: Mapping[str, Any] = {}
    if not isinstance(model, keras.Model):
        path = Path(model).expanduser()
        results = _read_results(path)
        if class_names is None and path.with_name(CLASS_NAMES).is_file():
            class_names = _read_json(path.with_name(CLASS_NAMES))
            if not _are_names(class_names):
                raise PretrainedError(f"{path.with_name(CLASS_NAMES)} is damaged; expected a list of names")
        normalization = normalization or results.get("normalization")
        if path.suffix == ".keras" and not zipfile.is_zipfile(path):  # Keras would call it "not found"
            raise PretrainedError(f"{path} is damaged or cut off (not a zip file): copy all of it, or save it again")
        network: Any = keras.saving.load_model(path, compile=False)
    else:
        network = model
    inputs = getattr(network, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        takes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs) or "unknown inputs (no graph of layers)"
        raise PretrainedError(
            f"{network.name} takes {takes}; expected one image (batch, height, width, channels). Save a functional "
            "model: keras.Model(image, outputs)"
        )
    found, preset = _find_genotype(network, genotype, preset, results)
    units = network.outputs[0].shape[-1] if len(network.outputs) == 1 and len(network.outputs[0].shape) == 2 else None
    if class_names is not None and len(class_names) != (2 if units == 1 else units):
        raise PretrainedError(f"{len(class_names)} class names are given, but {network.name} has {units} outputs")
    _check_normalization(normalization, network.inputs[0].shape[-1])
    config: Any = keras.saving.serialize_keras_object(network)
    config["compile_config"] = None
    _check_config(config, network.name)
    shape = list(network.inputs[0].shape[1:])
    source = {
        "model": None if found is None else found.name,
        "preset": preset,
        "image_size": shape[:2],
        "channels": shape[2],
        "preprocess": results.get("preprocess"),
        "normalization": normalization,
        "class_names": None if class_names is None else list(class_names),
    }
    files: dict[str, bytes | str] = {
        CONFIG: json.dumps(config),
        METADATA: json.dumps({"keras_version": keras.version()}),
        SOURCE: json.dumps(source, ensure_ascii=False, indent=1) + "\n",
    }
    with tempfile.TemporaryDirectory() as temporary:
        network.save_weights(Path(temporary, WEIGHTS))
        files[WEIGHTS] = Path(temporary, WEIGHTS).read_bytes()
    if found is not None:
        files[GENOTYPE] = genotype_json.to_json(found)
    if class_names is not None:
        files[CLASS_NAMES] = json.dumps(list(class_names), ensure_ascii=False, indent=1) + "\n"
    files[CARD] = _write_card(network, len(files[WEIGHTS]), found, preset, source, results, license)
    return atomic.write_folder(folder, files, MARKER)


def from_pretrained(source: str | os.PathLike, *, revision: str | None = None) -> Pretrained:
    """Loads a network from a folder of `save_pretrained`, or from a Hugging Face Hub repository with its content.

    Args:
        source: the folder, or "hf://user/name" (needs the package huggingface_hub, which also reads HF_ENDPOINT and
            HF_HOME).
        revision: of the repository: a commit, tag or branch. Only a commit always means the same network.

    Raises:
        PretrainedError: there is no such folder or repository; a file is missing, damaged or changed; or the network
            has layers that are not Keras' own and could run code.
        ImportError: huggingface_hub is not installed.
    """
    is_hub = isinstance(source, str) and source.startswith(HUB)
    if revision is not None and not is_hub:
        raise PretrainedError(f"revision={revision!r} is for {HUB}user/name, but {source} is a folder; leave it out")
    folder = _download(str(source), revision) if is_hub else Path(source).expanduser()
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise PretrainedError(
            f"{source} holds no {CONFIG} and {WEIGHTS}; expected a folder that zoo.save_pretrained wrote"
        )
    if (folder / MARKER).is_file():
        _check_digests(folder)
    config = _read_json(folder / CONFIG)
    _check_config(config, str(source))
    try:
        model: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except (ValueError, TypeError, KeyError) as error:
        raise PretrainedError(f"{folder / CONFIG} describes no model that this Keras can build: {error}") from error
    if not isinstance(model, keras.Model):
        raise PretrainedError(f"{folder / CONFIG} describes a {type(model).__name__}; expected a model")
    try:
        load_file(model, folder / WEIGHTS)
    except WeightsError as error:
        raise PretrainedError(f"{folder / WEIGHTS} does not fit the model in {CONFIG}: {error}") from error
    described: Any = _read_json(folder / SOURCE) if (folder / SOURCE).is_file() else {}
    names: Any = _read_json(folder / CLASS_NAMES) if (folder / CLASS_NAMES).is_file() else None
    if not isinstance(described, Mapping) or not (names is None or _are_names(names)):
        raise PretrainedError(f"{SOURCE} or {CLASS_NAMES} of {folder} is damaged; expected an object, a list of names")
    _check_normalization(described.get("normalization"), model.inputs[0].shape[-1])
    genotype = genotype_json.load(folder / GENOTYPE) if (folder / GENOTYPE).is_file() else None
    labels = None if names is None else tuple(names)
    return Pretrained(model, labels, described.get("normalization"), genotype, described.get("preset"), folder)


def _download(source: str, revision: str | None) -> Path:
    name = source.removeprefix(HUB)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or ".." in name:
        raise PretrainedError(f"{source} is not a repository of the Hub; expected {HUB}user/name")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ImportError(
            f"{source} needs the package huggingface_hub: pip install huggingface_hub, or the project with its extra "
            "hub"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(FILES), endpoint=os.environ.get("HF_ENDPOINT")
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        at = "" if revision is None else f" at revision {revision}"
        reason = " ".join(str(error).split())[:300]
        raise PretrainedError(
            f"could not download {source}{at}: {reason}. Check the name and the connection; a private repository needs "
            "`hf auth login`"
        ) from error


def _check_digests(folder: Path) -> None:
    marker: Any = _read_json(folder / MARKER)
    digests = marker.get("files") if isinstance(marker, Mapping) else None
    if not isinstance(digests, Mapping):
        raise PretrainedError(f"{folder / MARKER} is damaged; download or save the folder again")
    for name in FILES:
        if name in (MARKER, CARD) or name not in digests:  # people may edit the card
            continue
        file = folder / name
        if not file.is_file():
            raise PretrainedError(f"{file} is missing; download or save the folder again")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != digests[name]:
            raise PretrainedError(
                f"{file} was damaged or changed: its sha256 is {found}, not {digests[name]}. Download or save the "
                "folder again"
            )


def _check_config(config: Any, where: str) -> None:
    """Raises PretrainedError if a Keras config names anything but Keras' own classes."""
    if isinstance(config, Mapping):
        kind = config.get("class_name")
        if kind is not None and kind not in _VALUES:
            module = config.get("module")
            own = isinstance(module, str) and (module == "keras" or module.startswith("keras."))
            if not own or kind in _RUN_CODE:
                raise PretrainedError(
                    f"{where} holds {kind} of {module}, but only Keras' own layers are allowed: others could run code. "
                    "Build a functional model of Keras' layers, as zoo.build does"
                )
        for value in config.values():
            _check_config(value, where)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _check_config(value, where)


def _check_normalization(normalization: Any, channels: int) -> None:
    if normalization is None:
        return
    values: list[Any] = (
        [normalization.get(name) for name in ("mean", "std")] if isinstance(normalization, Mapping) else []
    )
    fits = [isinstance(one, (list, tuple)) and len(one) in (1, channels) for one in values]
    numbers = [number for one in values if isinstance(one, (list, tuple)) for number in one]
    if fits != [True, True] or not all(isinstance(number, (int, float)) for number in numbers) or min(values[1]) <= 0:
        raise PretrainedError(
            f'normalization is {normalization!r:.200}; expected {{"mean": [...], "std": [...]}} of {channels} channels'
        )


def _find_genotype(
    model: Any, genotype: str | os.PathLike | Genotype | None, preset: str | None, results: Mapping[str, Any]
) -> tuple[Genotype | None, str | None]:
    """Returns the genotype and the preset, each None if unknown."""
    config = results.get("config")
    config = config if isinstance(config, Mapping) else {}
    if genotype is None and isinstance(config.get("model"), str):
        genotype, preset = config["model"], preset or config.get("model_preset")
    if genotype is not None:
        try:
            return (genotype if isinstance(genotype, Genotype) else registry.load(genotype)), preset
        except (GenotypeError, OSError):
            if not results:
                raise
            return None, None  # the training's genotype file is gone
    for name in registry.list_models():
        if model.name.startswith(f"{name}_".replace(".", "_")):
            found = registry.load(name)
            sizes = {f"{name}_{size}".replace(".", "_"): size for size in found.presets}
            if model.name in sizes:
                return found, preset or sizes[model.name]
    return None, None


def _read_results(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise PretrainedError(f"there is no file {path}; expected a Keras model, or the model.keras of a training")
    file = next((file for file in map(path.with_name, _RESULTS_FILES) if file.is_file()), None)
    results: Any = {} if file is None else _read_json(file)
    if not isinstance(results, Mapping):
        raise PretrainedError(f"{file} is damaged; expected an object")
    return results


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _LARGEST_TEXT:
        raise PretrainedError(f"{path} has {path.stat().st_size:,} bytes, too many for a file of its kind")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{path} is damaged: {error}. Download or save the folder again") from error


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _write_card(
    model: Any,
    weights: int,
    genotype: Genotype | None,
    preset: str | None,
    source: Mapping[str, Any],
    results: Mapping[str, Any],
    license: str | None,
) -> str:
    """Returns a model card: YAML for the Hub, then the known facts and numbers."""
    shape = model.inputs[0].shape[1:]
    family = [] if genotype is None else [genotype.family]
    front: dict[str, Any] = {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["keras", "image-classification", "neural-architecture-search", *family],
    }
    if license:
        front["license"] = license
    accuracy, tested, data = results.get("test_accuracy"), results.get("test_images"), results.get("data")
    rows = [("parameters", f"{model.count_params():,}")]
    if None not in shape:
        rows.append(("multiply-adds an image, predicted", f"{cost.of(model).macs:,}"))
    rows += [
        ("image", " x ".join("any" if side is None else str(side) for side in shape)),
        ("weights, kB", f"{weights / 1000:,.1f}"),
    ]
    if source["class_names"] is not None:
        rows.append(("classes", str(len(source["class_names"]))))
    if isinstance(accuracy, float) and isinstance(data, str):  # otherwise it is another program's results.json
        front["model-index"] = [_index_result(model.name, data, accuracy)]
        images = f"{tested:,} images of {data}" if isinstance(tested, int) else data
        rows.append((f"test accuracy on {images}", f"{accuracy:.4f}"))
    yaml = "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items())  # JSON is YAML
    normalization = source["normalization"]
    reads = (
        "How images have to be preprocessed is not known."
        if normalization is None
        else f"Its input is (pixel / 255 - mean) / std with mean {list(normalization['mean'])} and std "
        f"{list(normalization['std'])}; `found.preprocess` computes it."
    )
    names = source["class_names"]
    return f"---\n{yaml}\n---\n\n" + join_blocks(
        f"# {model.name}",
        _describe_genotype(genotype, preset),
        make_table(("what", "value"), rows, numbers_from=1),
        f"## Use\n\n{reads}",
        "```python\nimport zoo  # keras-searched-zoo\n\n"
        'found = zoo.from_pretrained("hf://USER/NAME")  # or this folder\n'
        "scores = found.model(found.preprocess(images))  # images of 0..255\n```",
        '`keras.saving.load_model("hf://USER/NAME")` loads the network without the package zoo.',
        "" if names is None else "## Classes\n\n" + ", ".join(names),
    )


def _describe_genotype(genotype: Genotype | None, preset: str | None) -> str:
    if genotype is None:
        return "An image classifier."
    origin = genotype.source
    where = origin.get("paper") or origin.get("recipe")
    link = f" ({origin['url']})" if origin.get("url") else ""
    size = f", preset {preset}" if preset else ""
    came = f", an architecture from {where}{link}" if where else ""
    return f"An image classifier: {genotype.name} (family {genotype.family}{size}){came}."


def _index_result(name: str, data: str, accuracy: float) -> dict[str, Any]:
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data.removeprefix("tfds:")},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
    }
    return {"name": name, "results": [result]}
