"""What a TinyNAS search would need on this machine, told by two steps, and one network that fits, measured in int8."""

import numpy as np

import zoo
from recipes.engine.dry_run import limit_batch, peak_memory, time_steps
from recipes.tinynas.children import SubNetworks, candidates
from recipes.tinynas.config import Config
from recipes.tinynas.result import arena
from recipes.tinynas.training import ElasticTraining
from recipes.training import tensorflow_options
from recipes.training.progress import duration
from zoo.deploy import tflite
from zoo.genotype import Genotype

_DRAWN = 30  # networks, of which the largest that fits is measured


def run(scorer: SubNetworks) -> Genotype:
    """Takes two steps of the largest sub-network, prints what the search would need, and returns a network that fits.

    The steps are of fewer images than real ones where the machine had no memory for that.
    """
    config, net, images = scorer.config, scorer.net, scorer.images
    assert isinstance(config, Config)
    largest = scorer.needs(net.space.largest())
    values = 8 * largest.peak_memory * len(net.space.places)  # of activations and gradients, bytes an image, about
    batch = max(2, limit_batch(config.batch_size, values))
    steps = images.train.steps(config.batch_size, training=True)
    training = ElasticTraining(net, config, steps, images.input_shape)
    part = images.train.take(np.resize(np.arange(len(images.train)), batch))
    pixels, labels = part.images / np.float32(255), part.labels
    with tensorflow_options.without_rewrites():
        cost = time_steps(lambda number: training.take_step(number, pixels, labels), batch, count=2)
    seconds = cost.scale(config.batch_size) * steps * (config.largest_epochs + config.networks * config.elastic_epochs)
    total = steps * (config.largest_epochs + config.elastic_epochs)
    fitting = candidates(scorer)
    chosen = max((next(fitting) for _ in range(_DRAWN)), key=lambda one: scorer.needs(one).macs)
    genotype = scorer.genotype(chosen, "tinynas_dry_run")
    file = tflite.convert(zoo.build(genotype), quantize="int8", calibration=pixels[:2])
    needs, measured = scorer.needs(chosen), arena(file)
    print(
        f"dry run: resolution {images.input_shape[0]}, width {net.space.width:g}, {net.space.size:.1e} sub-networks of "
        f"{net.packing.size:,} shared weights; {cost.describe(config.batch_size)}, for one sub-network; "
        f"{peak_memory():.2f} GiB at most\n"
        f"predicted: {total:,} steps, at most {duration(seconds)} on this machine for the shared weights\n"
        f"the largest of {_DRAWN} networks that fit: {needs.macs:,} multiply-adds; RAM {needs.arena:,} bytes predicted"
        f", {measured['arena']:,} by {measured['by']}; int8 file {needs.file:,} predicted, {len(file):,} measured"
    )
    return genotype
