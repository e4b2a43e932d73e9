"""What the search with one seed does for the recipe: finds a path, judges architectures, or makes a dry run."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.enas.config import Config
from recipes.enas.controller import MacroController, MicroController
from recipes.enas.macro import MacroSupernet
from recipes.enas.micro import MicroSupernet
from recipes.enas.space import MicroSpace
from recipes.enas.training import Search, SearchImages, SharedWeights, find_path, score_path
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.dry_run import peak_memory, time_steps
from recipes.images import sources as image_data
from recipes.images.augment import Normalization
from recipes.training import tensorflow_options
from recipes.training.progress import Report
from recipes.training.supernet import list_seeds
from zoo.genotype import Genotype

_DRY_RUN_IMAGES = 32  # in a step
_JUDGED_IMAGES = 2000  # at most, for scores of networks by shared weights


def begin(config: Config, images: image_data.Data, seed: int, split: int | None = None) -> Search:
    """Returns the search with this seed at its beginning; `split`, the seed unless given, chooses the reward images."""
    names = ("hidden", "temperature", "tanh_constant", "op_reduce", "entropy", "baseline", "skip_target", "skip_weight")
    settings = {name: getattr(config, name) for name in names} | {"learning_rate": config.controller_rate, "seed": seed}
    space, filters, channels = config.make_space(), config.search_filters, images.input_shape[2]
    if isinstance(space, MicroSpace):
        net: Any = MicroSupernet(space, config.search_cells, filters, images.classes, channels, config.shared_joins)
        controller: Any = MicroController(space, **settings)
    else:
        net = MacroSupernet(space, filters, images.classes, channels)
        controller = MacroController(space, **settings)
    shared = SharedWeights(net, images.input_shape, config.search_decay, config.search_dropout, seed)
    return Search(
        config, shared, controller, SearchImages(config, images, seed, seed if split is None else split), seed
    )


def begin_all(config: Config, images: image_data.Data, seed: int, state: Path) -> dict[Path, Search]:
    """Returns the supernets of the search with this seed, by the files of their states: `state`, and others beside it.

    All keep the same images for rewards, so that none has learned from what a path is scored on.
    """
    files = {own: state.with_name(f"seed{own}.state.npz") for own in list_seeds(seed, config.supernets)} | {seed: state}
    return {file: begin(config, images, own, split=seed) for own, file in files.items()}


def find(scorer: NetworkScorer, seed: int, state: Path, report: Report) -> dict[str, Any]:
    """Returns the values of what the search with this seed finds, and its history; resumes from the file `state`."""
    space: Any = scorer.space
    assert isinstance(scorer.config, Config)

    def refuse(path: np.ndarray) -> str | None:
        return scorer.check(space.values(space.decode(path)))

    with tensorflow_options.without_rewrites():
        found = find_path(begin_all(scorer.config, scorer.images, seed, state), report, refuse)
    tuner.forget_models()
    finalists = [np.array(path, np.int32) for path in found.pop("paths")[: scorer.config.finalists]]
    best, *others = (space.values(space.decode(path)) for path in finalists)
    return {**found, "values": best, "others": others}


def judge(
    scorer: NetworkScorer, states: Mapping[int, Path], bodies: Sequence[Any]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose shared weights are still there, with scores of `bodies` by them, the more the better."""
    images = scorer.images
    space: Any = scorer.space
    assert isinstance(scorer.config, Config)
    judged = images.validation.first(_JUDGED_IMAGES)
    normalized = np.asarray(Normalization.of(images.train.images)(judged.images), np.float32)
    for seed, state in states.items():
        with tensorflow_options.without_rewrites():
            searches = begin_all(scorer.config, images, seed, state)
            if None in [search.file(file).restore(search.variables) for file, search in searches.items()]:
                continue  # a state is gone, and with it the weights
            supernets = list(searches.values())
            batches = supernets[0].images.cut(normalized, judged.labels)
            scores = [score_path(supernets, space.encode(body), batches) for body in bodies]
        yield seed, scores


def dry_run(scorer: NetworkScorer) -> Genotype:
    """Takes three steps and a reward, prints what the search would need, and returns the path that was rewarded.

    The steps are of at most 32 images, for this machine may lack the memory for more.
    """
    config, images = scorer.config, scorer.images
    assert isinstance(config, Config)
    size = min(config.search_batch_size, _DRY_RUN_IMAGES)
    part = images.train.take(np.resize(np.arange(len(images.train)), 4 * size))
    small = dataclasses.replace(config, search_batch_size=size, reward_images=size)
    with tensorflow_options.without_rewrites():
        search = begin(small, dataclasses.replace(images, train=part), config.seed)
        step = time_steps(
            lambda number: search.take_step(0, number), size
        )  # the path, and with it the time of a step, differs
        path = search.controller.sample(1, np.random.default_rng(config.seed))[0]
        batch = search.images.reward_batch(np.random.default_rng(config.seed))
        reward = time_steps(lambda number: search.shared.score(path, [batch]), size)
    full = config.search_batch_size
    steps = (len(images.train) - config.reward_images) // full * config.search_epochs
    rewards = config.search_epochs * config.updates * config.samples
    total = config.supernets * (steps * step.scale(full) + rewards * reward.scale(full))
    print(
        f"dry run: {search.shared.net.packing.size:,} shared weights, {step.describe(full)}, "
        f"{reward.scale(full):.2f} s a reward, {peak_memory():.2f} GiB at most\n"
        f"predicted: {steps:,} steps and {rewards:,} rewards a search, {config.trials} x {total / 3600:.2f} h on this "
        "machine, and the trainings that compare the results"
    )
    return Genotype("enas_dry_run", "enas", search.shared.net.space.decode(path), {}, scorer.presets)
