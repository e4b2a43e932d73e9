"""Evaluates a classifier on images: accuracy, top-5, precision and recall of each class, confusion matrix.

    python -m recipes.evaluate --model=runs/finetune/model.keras --data=path/to/flowers
    python -m recipes.evaluate --model=mnasnet_b1 --weights=imagenet --data=path/to/imagenet  # downloads weights once
    python -m recipes.evaluate --model=runs/deploy/NAME_int8.tflite --data=path/to/flowers

Image size, normalisation and class names come from the files next to the model or from the published weights. For the
latter the published evaluation is followed: images are resized to more than the network reads, and their centre is
used. For ImageNet's classes, class folders are named by synset id (n01440764) or class name, and may be some of the
classes. The test images are used if the data have them or the model was trained on the data; otherwise all images.
Writes evaluation.json, evaluation.md and confusion.png.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from recipes import _main
from recipes.images import FolderOptions
from recipes.models import ModelOptions
from recipes.training import check_at_least

# TensorFlow, and what imports it, is imported inside functions: --help and errors then answer at once.
if TYPE_CHECKING:
    from recipes.classifiers import Classifier
    from recipes.images.parts import Part

_TOP = 5
_LABELLED = 40  # the most classes that the picture names
_NUMBERED = 16  # the most classes for which the picture has a count in each cell
_OTHER = "other"  # the column of predicted classes that the data do not have


@dataclasses.dataclass(frozen=True)
class Config(ModelOptions, FolderOptions):
    """Options of the evaluation."""

    # a .keras or .h5 file, a folder written by zoo.save_pretrained, hf://user/name, a .tflite file, or with --weights a
    # genotype file or a name from zoo.list_models()
    model: str = "runs/train/model.keras"
    # a folder of images with a sub-folder per class, fashion_mnist_small, or tfds:NAME; none takes what the model was
    # trained on
    data: str | None = None
    # which images; none takes test if the data have a test part or the model was trained on them, otherwise all
    part: Literal["test", "all"] | None = None
    images: int | None = None  # how many, keeping the classes' proportions; none takes all
    batch_size: int = 64  # images per batch
    folder: Path = Path("runs/evaluate")  # for the results

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"images": 1, "batch_size": 1})


PRESETS = {"laptop": Config()}


class _EvaluationImages(NamedTuple):
    """The images to evaluate on."""

    part: "Part"
    name: str  # of the data
    which: str  # "test" or "all"


def evaluate(config: Config) -> dict[str, Any]:
    """Writes the files, prints accuracy and top-5, and returns the content of evaluation.json.

    Raises:
        ValueError: the data's classes are not the model's, or an image cannot be read.
    """
    from recipes import classifiers
    from recipes.training import evaluation
    from recipes.training.progress import show_steps

    with show_steps("evaluate") as tell:
        classifier = classifiers.load(config)
        data = _load_images(config, classifier)
        classes, n = len(classifier.class_names), len(data.part)
        confusions, top = np.zeros((classes, classes), np.int64), 0
        steps = data.part.steps(config.batch_size)
        batches = evaluation.read_batches(data.part, lambda images: images, config.batch_size)
        for number, (images, labels) in enumerate(batches):
            tell(f"batch {number + 1} of {steps}")
            scores = classifier.score(np.asarray(images))
            top += int((evaluation.rank_labels(scores, labels) < _TOP).sum())
            confusions += evaluation.count_confusions(labels, scores.argmax(axis=1), classes)
    accuracy = float(np.trace(confusions) / n)
    results = {
        "model": classifier.name,
        "data": data.name,
        "part": data.which,
        "n": n,
        "accuracy": accuracy,
        **({f"top{_TOP}": top / n} if classes > _TOP else {}),
        "preprocessing": classifier.describe(),
        "classes": [
            {"class": name, **measured}
            for name, measured in zip(classifier.class_names, evaluation.measure_classes(confusions), strict=True)
            if measured["n"] or measured["precision"] is not None
        ],
        "confusions": [
            {"class": classifier.class_names[row], "predicted": classifier.class_names[column],
             "count": int(confusions[row, column])}
            for row, column in zip(*np.nonzero(confusions), strict=True)
        ],
    }  # fmt: skip
    _write_results(config.folder, classifier, results, confusions)
    evaluation.warn_near_chance(accuracy, classes, n, classifier.name)
    return results


def _load_images(config: Config, classifier: "Classifier") -> _EvaluationImages:
    from recipes.images import sources

    name = config.data or classifier.origin.data
    if name is None:
        raise ValueError(
            f"data is not given, and no file next to {config.model} says what it was trained on; give a folder of "
            "images with a sub-folder per class"
        )
    seen = classifier.origin.data is not None and _is_same_data(name, classifier.origin.data)
    folder = Path(name).expanduser().is_dir()
    options: dict[str, Any] = {
        "size": classifier.reading.resize,
        "channels": classifier.channels,
        "labels": classifier.labels if folder else None,
        "interpolation": classifier.reading.interpolation,
        **config.folder_options,
    }
    # a folder's test images are split off if the model was trained on the others
    apart = {} if config.part == "test" or (seen and config.part is None) else {"test_fraction": 0.0}
    data = sources.load(name, validation_fraction=0.0, **apart, **options)
    which = "test" if len(data.test) and config.part != "all" else "all"
    if which == "all" and len(data.test):
        raise ValueError(f"part is all, and {name} has separate training and test images; leave part= out")
    if data.classes != len(classifier.class_names):
        raise ValueError(
            f"{classifier.name} has {len(classifier.class_names)} classes, and {name} has {data.classes}. Give the "
            "data that it was trained on"
        )
    part = (data.test if which == "test" else data.train).first(config.images)
    return _EvaluationImages(part, name, which)


def _is_same_data(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _write_results(folder: Path, classifier: "Classifier", results: dict[str, Any], confusions: np.ndarray) -> None:
    from zoo.atomic import write_atomically
    from zoo.markdown import join_blocks, make_table

    write_atomically(folder / "evaluation.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    draw_confusions(confusions, classifier.class_names, folder / "confusion.png")
    used = results["preprocessing"]
    summary = [
        ("data", f"{results['data']}, {results['part']}"),
        ("images", f"{results['n']:,}"),
        ("accuracy", f"{results['accuracy']:.4f}"),
        *([(f"top-{_TOP}", f"{results[f'top{_TOP}']:.4f}")] if f"top{_TOP}" in results else []),
        ("preprocessing", f"{used['preprocess'] or used['normalization']}, by {used['by']}"),
        ("image size", f"{_format_size(used['image_size'])}, of {_format_size(used['resize'])}, "
         f"{used['interpolation']}"),
    ]  # fmt: skip
    rows = [
        (measured["class"], measured["n"], _format_share(measured["precision"]), _format_share(measured["recall"]))
        for measured in results["classes"]
    ]
    page = join_blocks(
        f"# {results['model']}",
        make_table(("what", "value"), summary),
        make_table(("class", "n", "precision", "recall"), rows, numbers_from=1),
        "![The share of each class's images for each prediction](confusion.png)",
    )
    write_atomically(folder / "evaluation.md", page)
    print(make_table(("what", "value"), summary))
    if len(rows) <= _LABELLED:
        print("\n" + make_table(("class", "n", "precision", "recall"), rows, numbers_from=1))
    print(f"\n{folder / 'evaluation.md'}")


def _format_size(sides: list[int]) -> str:
    return " x ".join(map(str, sides))


def _format_share(share: float | None) -> str | None:
    return None if share is None else f"{share:.4f}"


def draw_confusions(confusions: np.ndarray, class_names: tuple[str, ...], path: Path) -> None:
    """Draws a PNG of each prediction's share of each class's images; predicted classes without images become one."""
    from recipes.cards.pictures import new_figure, save_figure

    there = np.flatnonzero(confusions.sum(axis=1))
    counts = confusions[np.ix_(there, there)]
    names = [class_names[label].replace("$", r"\$") for label in there]  # two dollar signs would be a formula
    others = confusions[there].sum(axis=1) - counts.sum(axis=1)
    columns = list(names)
    if others.any():
        counts, columns = np.column_stack([counts, others]), [*names, _OTHER]
    shares = counts / counts.sum(axis=1, keepdims=True)
    side = min(16.0, 3.5 + 0.32 * len(names))
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if len(names) <= _LABELLED:
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= _NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    _main.run(evaluate, PRESETS)
