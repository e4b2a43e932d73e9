"""The ENAS search with one seed: finds architectures, judges them by shared weights, and makes the dry run."""

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
from recipes.enas.training import PathSearch, SearchImages, SharedWeights, find_paths, score_path
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.dry_run import peak_memory, time_steps
from recipes.images import sources as image_data
from recipes.images.augment import Normalization
from recipes.training import tensorflow_options
from recipes.training.progress import Report
from recipes.training.supernet import list_states
from zoo.genotype import Genotype

_DRY_RUN_IMAGES = 32  # per step
_JUDGED_IMAGES = 2000  # at most this many score networks by shared weights


def make_search(config: Config, images: image_data.Data, seed: int, split: int | None = None) -> PathSearch:
    """Returns the search with this seed in its initial state; `split`, by default the seed, draws the reward images."""
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
    return PathSearch(
        config, shared, controller, SearchImages(config, images, seed, seed if split is None else split), seed
    )


def make_searches(config: Config, images: image_data.Data, seed: int, state: Path) -> dict[Path, PathSearch]:
    """Returns file of the state -> search for each supernet of this seed; the files are `state` and others next to it.

    All have the same reward images, so that none has trained on images that score a path.
    """
    files = list_states(seed, config.supernets, state)
    return {file: make_search(config, images, own, split=seed) for own, file in files.items()}


def find_architectures(scorer: NetworkScorer, seed: int, state: Path, report: Report) -> dict[str, Any]:
    """Returns the values of the best architectures with this seed, and the history; resumes from the file `state`."""
    space: Any = scorer.space
    assert isinstance(scorer.config, Config)

    def refuse(path: np.ndarray) -> str | None:
        return scorer.check(space.values(space.decode(path)))

    with tensorflow_options.without_rewrites():
        found = find_paths(make_searches(scorer.config, scorer.images, seed, state), report, refuse)
    tuner.forget_models()
    finalists = [np.array(path, np.int32) for path in found.pop("paths")[: scorer.config.finalists]]
    best, *others = (space.values(space.decode(path)) for path in finalists)
    return {**found, "values": best, "others": others}


def judge_architectures(
    scorer: NetworkScorer, states: Mapping[int, Path], bodies: Sequence[Any]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose states still exist, and the scores of `bodies` by its shared weights, higher is better."""
    images = scorer.images
    space: Any = scorer.space
    assert isinstance(scorer.config, Config)
    judged = images.validation.first(_JUDGED_IMAGES)
    normalized = np.asarray(Normalization.of(images.train.images)(judged.images), np.float32)
    for seed, state in states.items():
        with tensorflow_options.without_rewrites():
            searches = make_searches(scorer.config, images, seed, state)
            if None in [search.file(file).restore(search.variables) for file, search in searches.items()]:
                continue  # a state is missing
            supernets = list(searches.values())
            batches = supernets[0].images.make_batches(normalized, judged.labels)
            scores = [score_path(supernets, space.encode(body), batches) for body in bodies]
        yield seed, scores


def dry_run(scorer: NetworkScorer) -> Genotype:
    """Takes three steps and three rewards, prints what the search would need, and returns the path that was rewarded.

    A step has at most 32 images, since this machine may lack the memory for more.
    """
    config, images = scorer.config, scorer.images
    assert isinstance(config, Config)
    size = min(config.search_batch_size, _DRY_RUN_IMAGES)
    part = images.train.take(np.resize(np.arange(len(images.train)), 4 * size))
    small = dataclasses.replace(config, search_batch_size=size, reward_images=size)
    with tensorflow_options.without_rewrites():
        search = make_search(small, dataclasses.replace(images, train=part), config.seed)
        # each step has another path, and takes another time
        step = time_steps(lambda number: search.take_step(0, number), size)
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
        "machine, plus the trainings that compare the results"
    )
    return Genotype("enas_dry_run", "enas", search.shared.net.space.decode(path), {}, scorer.presets)
