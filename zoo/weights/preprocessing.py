"""What published weights expect of an image."""

from typing import Any

from keras import layers

from zoo import manifest


def preprocess(model: str, weights: str | None = None, *, channels: int = 3) -> Any:
    """Returns the Keras layer that turns images with values from 0 to 255 into what a model's published weights expect.

    It stays outside the model that `zoo.build` returns: put it into the input pipeline, or before the model. The images
    must have the model's size; how the source's evaluation resized them is in `zoo.manifest.find(...).preprocessing`.

    Args:
        model: a name of `zoo.list_models()`.
        weights: as in `zoo.build`; None for the model's preferred ones.
        channels: of the images. Other numbers than three take the mean of the three channels' values.

    Raises:
        NoWeightsError: no such weights were published.
    """
    known = manifest.of_model(model)
    entry = known[0] if weights is None and known else manifest.find(model, weights or "imagenet")
    mean, deviation = entry.preprocessing["mean"], entry.preprocessing["std"]
    if channels != len(mean):
        mean, deviation = [[sum(values) / len(values)] * channels for values in (mean, deviation)]
    scale = [1 / (255 * value) for value in deviation]
    offset = [-center / value for center, value in zip(mean, deviation, strict=True)]
    return layers.Rescaling(scale, offset, name="preprocess")
