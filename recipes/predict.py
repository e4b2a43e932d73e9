"""Classifies images: prints the most likely classes of each, with their names.

    python -m recipes.predict --model=runs/finetune/model.keras photos/*.jpg
    python -m recipes.predict --model=mcunet_in3 --weights=imagenet goldfish.jpg      # downloads weights once
    python -m recipes.predict --model=runs/deploy/NAME_int8.tflite photo.jpg --json

Class names come from the class_names.json next to the model, from a .tflite file's metadata, or are ImageNet's for
1,000 classes. Size and normalisation come from the results.json or source.json next to the model, from a .tflite file's
metadata, or from the published weights. An image is cropped to the input's aspect ratio and resized.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from recipes import _main
from recipes.models import ModelOptions
from recipes.training import check_at_least

_BATCH = 64  # images per batch


@dataclasses.dataclass(frozen=True)
class Config(ModelOptions):
    """Options of the prediction."""

    # a .keras or .h5 file, a folder written by zoo.save_pretrained, hf://user/name, a .tflite file, or with --weights a
    # genotype file or a name from zoo.list_models()
    model: str = "runs/train/model.keras"
    images: tuple[Path, ...] = dataclasses.field(default=(), metadata={"positional": True})  # image files
    top: int = 5  # how many classes per image
    json: bool = False  # print JSON instead of a table

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"top": 1})


PRESETS = {"laptop": Config()}


def predict(config: Config) -> list[dict[str, Any]]:
    """Returns for each image {"image", "classes": [{"class", "label", "score"}, ...]}, and prints them.

    Raises:
        ValueError: no images are given, or one cannot be read.
        OSError: an image is missing or a folder.
    """
    from recipes import classifiers
    from recipes.images.files import read_image

    if not config.images:
        raise ValueError("no images are given; expected image files, such as photo.jpg")
    for path in config.images:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; give the images in it, such as {path}/*.jpg")
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}; give the path of an image file, such as photo.jpg")
    classifier = classifiers.load(config)
    found: list[dict[str, Any]] = []
    for start in range(0, len(config.images), _BATCH):
        paths = config.images[start : start + _BATCH]
        size, how = classifier.reading.resize, classifier.reading.interpolation
        pixels = [read_image(path.resolve(), size, classifier.channels, interpolation=how) for path in paths]
        for path, scores in zip(paths, classifier.score(np.stack(pixels)), strict=True):
            best = np.argsort(-scores, kind="stable")[: config.top]
            classes = [
                {"class": classifier.class_names[label], "label": int(label), "score": round(float(scores[label]), 6)}
                for label in best
            ]
            found.append({"image": str(path), "classes": classes})
    if config.json:
        print(json.dumps({"model": classifier.name, "preprocessing": classifier.describe(), "images": found}, indent=1))
    else:
        _print_table(found)
    return found


def _print_table(found: list[dict[str, Any]]) -> None:
    width = max(len(entry["class"]) for image in found for entry in image["classes"])
    for image in found:
        print(image["image"])
        for entry in image["classes"]:
            print(f"  {entry['score']:8.4f}  {entry['class']:{width}}  {entry['label']:5}")


if __name__ == "__main__":
    _main.run(predict, PRESETS)
