"""What a TinyNAS search would need on this machine, told by two steps, and one network that fits, measured in int8."""

import resource
import time

import numpy as np

import zoo
from recipes.tinynas.children import SubNetworks, candidates
from recipes.tinynas.config import Config
from recipes.tinynas.result import arena
from recipes.tinynas.training import ElasticTraining
from recipes.training import tensorflow_options
from recipes.training.progress import duration
from zoo.deploy import tflite
from zoo.genotype import Genotype

_MEMORY = 2**30  # bytes that the step of a dry run may take
_DRAWN = 30  # networks, of which the largest that fits is measured


def run(children: SubNetworks) -> Genotype:
    """Takes two steps of the largest sub-network, prints what the search would need, and returns a network that fits.

    The steps are of fewer images than real ones where the machine had no memory for that.
    """
    config, net, images = children.config, children.net, children.images
    assert isinstance(config, Config)
    largest = children.needs(net.space.largest())
    values = 8 * largest.peak_memory * len(net.space.places)  # of activations and gradients, bytes an image, about
    batch = max(2, min(config.batch_size, _MEMORY // values))
    steps = images.train.steps(config.batch_size, training=True)
    training = ElasticTraining(net, config, steps, images.input_shape)
    part = images.train.take(np.resize(np.arange(len(images.train)), batch))
    pixels, labels = part.images / np.float32(255), part.labels
    marks = [time.perf_counter()]
    with tensorflow_options.without_rewrites():
        for number in range(2):
            training.take_step(number, pixels, labels)
            marks.append(time.perf_counter())
    first, step = np.diff(marks)
    step *= config.batch_size / batch
    seconds = step * steps * (config.largest_epochs + config.networks * config.elastic_epochs)
    total = steps * (config.largest_epochs + config.elastic_epochs)
    fitting = candidates(children)
    chosen = max((next(fitting) for _ in range(_DRAWN)), key=lambda one: children.needs(one).macs)
    genotype = children.genotype(chosen, "tinynas_dry_run")
    file = tflite.convert(zoo.build(genotype), quantize="int8", calibration=pixels[:2])
    needs, measured = children.needs(chosen), arena(file)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = "" if batch == config.batch_size else f", told by a step of {batch}"
    print(
        f"dry run: resolution {images.input_shape[0]}, width {net.space.width:g}, {net.space.size:.1e} sub-networks of "
        f"{net.packing.size:,} shared weights; first step after {first:.1f} s, then {step:.2f} s for one sub-network "
        f"and {config.batch_size} images{told}; {memory:.2f} GiB at most\n"
        f"predicted: {total:,} steps, at most {duration(seconds)} on this machine for the shared weights\n"
        f"the largest of {_DRAWN} networks that fit: {needs.macs:,} multiply-adds; RAM {needs.arena:,} bytes predicted"
        f", {measured['arena']:,} by {measured['by']}; int8 file {needs.file:,} predicted, {len(file):,} measured"
    )
    return genotype
