"""What the search with one seed does for the recipe: finds cells, judges cells, or makes a dry run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.darts import strengths
from recipes.darts.config import Config
from recipes.darts.supernet import Supernet
from recipes.darts.training import SCHEDULE, Bilevel
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.dry_run import peak_memory, time_steps
from recipes.images import augment
from recipes.images import sources as image_data
from recipes.images.parts import Batches
from recipes.training.loop import Record, run_epochs
from recipes.training.progress import Report, Status, report_part
from recipes.training.supernet import list_seeds
from zoo.genotype import CellGraph, Cells, Genotype


def split_batches(config: Config, images: image_data.Data, seed: int) -> tuple[Batches, Batches]:
    """Returns the batches of two halves of the training images, drawn by the seed: for the weights, for the alphas."""
    halves, size = images.train.split(0.5, seed), config.search_batch_size
    if min(map(len, halves)) < size:
        raise ValueError(
            f"{len(images.train)} training images make no two batches of {size}; "
            "lower search_batch_size or take more training_images"
        )
    normalize = augment.Normalization.of(images.train.images)
    policy = augment.cifar(images.input_shape[0] // 8, cutout_length=0) if config.augment else None
    first, second = (
        Batches(half, size, seed, stream=(number,), normalize=normalize, augment=policy)
        for number, half in enumerate(halves)
    )
    return first, second


def begin(config: Config, images: image_data.Data, seed: int) -> Bilevel:
    """Returns the search with this seed at its beginning."""
    net = Supernet(
        config.make_space(), config.search_cells, config.search_filters, images.classes, images.input_shape[2]
    )
    return Bilevel(net, config.order, config.alpha_rate, seed)


def find(scorer: NetworkScorer, seed: int, path: Path, report: Report) -> dict[str, Any]:
    """Trains supernets and returns the values of their cells, their strengths and the first one's history, for JSON.

    The first resumes from the state at `path`, the others from files beside it, where the first one draws how its
    strengths evolved. Of several the strengths are the geometric mean: the luck of each, of which alphas are full, is
    averaged out as in an ensemble of networks.

    Raises:
        DivergedError: the loss is not a number any more.
        StateError: the state is another search's, or damaged.
    """
    config = scorer.config
    assert isinstance(config, Config)
    records, files = [], _list_files(config, seed, path)
    state: Bilevel | None = None
    for number, (own, file) in enumerate(files.items()):
        part = report_part(report, number, len(files), "supernet")
        state, history = _train(config, scorer.images, own, file, part)
        records.append(history)
    assert state is not None  # `supernets` is one at least
    space = state.net.space
    strengths.draw(space, records[0], f"seed {seed}", path.with_name(f"seed{seed}.png"))
    found = _mean_strengths(config, scorer.images, files)
    assert found is not None
    if config.selection == "perturbation":
        cells = _select(config, state, *split_batches(config, scorer.images, seed), report)
    else:
        cells = space.derive(found)
    tuner.forget_models()
    return {"values": space.values(cells), "strengths": np.round(found, 6).tolist(), "history": records[0]}


def _list_files(config: Config, seed: int, path: Path) -> dict[int, Path]:
    """Returns the seed of each supernet of a search, with the file of its state."""
    return {own: path.with_name(f"seed{own}.state.npz") for own in list_seeds(seed, config.supernets)} | {seed: path}


def _mean_strengths(config: Config, images: image_data.Data, files: Mapping[int, Path]) -> np.ndarray | None:
    """Returns the geometric mean of the strengths of supernets, of the space's shape; None where a file is gone."""
    logarithms = []
    for seed, file in files.items():
        state = begin(config, images, seed)
        if state.file(file).restore(state.variables) is None:
            return None
        logarithms.append(np.log(state.strengths()))
    return np.exp(np.mean(logarithms, axis=0))


def _train(
    config: Config, images: image_data.Data, seed: int, path: Path, report: Report
) -> tuple[Bilevel, list[Record]]:
    """Trains one supernet from its state at `path` on; returns it with a record an epoch."""
    training, validation = split_batches(config, images, seed)
    state = begin(config, images, seed)
    epochs, steps = config.search_epochs, min(training.steps, validation.steps)

    def take_step(epoch: int, number: int) -> list[float]:
        alpha_batch = validation.batch(epoch, number) if epoch >= config.warm_up_epochs else None
        return state.learn(training.batch(epoch, number), alpha_batch, SCHEDULE.at(epoch, epochs))

    def end_epoch(history: list[Record], metrics: list[Sequence[float]]) -> Record:
        return _make_record(config, state, metrics, (len(history) + 1) * steps, validation.batch(len(history), 0))

    def observe(status: Status) -> None:
        if status.done < epochs:
            report((status.done + status.share) / epochs, f"epoch {status.done + 1}")

    most_skips = math.inf if config.stop_at_skips is None else config.stop_at_skips
    history = run_epochs(
        take_step,
        end_epoch,
        epochs=epochs,
        steps=steps,
        variables=state.variables,
        state=state.file(path),
        save_seconds=config.save_seconds,
        observe=observe,
        stop=lambda record: record["normal_skips"] >= most_skips,
    )
    return state, history


def _select(config: Config, state: Bilevel, training: Batches, validation: Batches, report: Report) -> Cells:
    """Selects by perturbation; a search that was killed here selects anew, to the same result."""
    step = 0

    def tune(strengths: np.ndarray) -> None:
        nonlocal step
        report(1.0, f"selection, tuned for {step} steps")
        for _ in range(config.tuning_steps):
            batch = training.batch(config.search_epochs + step // training.steps, step % training.steps)
            state.learn_weights(batch, SCHEDULE.last, strengths=strengths)
            step += 1

    batches = [validation.batch(0, number) for number in range(min(config.selection_batches, validation.steps))]
    return select_by_perturbation(state, batches, tune, np.random.default_rng([state.seed, 2]))


def select_by_perturbation(
    state: Bilevel, batches: Sequence[tuple[Any, Any]], tune: Callable[[np.ndarray], None], rng: np.random.Generator
) -> Cells:
    """Returns the cells of a trained supernet by what it loses without an operation or an edge.

    Source: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021, algorithm 1: edges in
    random order each get the operation whose removal lowers the validation accuracy most, then nodes in random order
    keep the two edges whose removal does; between two choices the supernet is tuned. Departures: only its weights are
    tuned, for the steps that `tuning_steps` says (5 epochs in the paper); equal accuracies are told apart by the loss.

    Args:
        state: the search at its end; its weights are tuned.
        batches: validation images and labels.
        tune: trains the weights with these strengths.
        rng: draws the order of edges and nodes.
    """
    space, strengths = state.net.space, state.strengths()

    def score_without(*place: Any) -> tuple[float, float]:
        """Returns accuracy and -loss of the supernet without a part."""
        perturbed = strengths.copy()
        perturbed[place] = 0
        found = [state.run([], batch, state.weights, strengths=perturbed)[0] for batch in batches]
        loss, accuracy = np.mean(found, axis=0)
        return float(accuracy), -float(loss)

    cells, edges, ops = space.shape
    for cell, edge in rng.permutation([(cell, edge) for cell in range(cells) for edge in range(edges)]):
        chosen = min(range(1, ops), key=lambda op, at=(cell, edge): score_without(*at, op))  # any but "none"
        strengths[cell, edge] = np.arange(ops) == chosen
        tune(strengths)
    nodes = space.split_edges(np.arange(edges))
    for cell, node in rng.permutation([(cell, node) for cell in range(cells) for node in range(space.nodes)]):
        ranked = sorted(nodes[node], key=lambda edge, cell=cell: score_without(cell, edge))
        if len(ranked) > 2:
            strengths[cell, ranked[2:]] = 0
            tune(strengths)
    return space.derive(strengths)


def _make_record(
    config: Config, state: Bilevel, metrics: Sequence[Sequence[float]], step: int, validation: tuple[Any, Any]
) -> Record:
    """Returns what is known after an epoch, from what its steps returned; `step` counts those that are done."""
    names = ("loss", "accuracy", "validation_loss", "validation_accuracy")
    found = dict(zip(names, state.epoch_metrics(metrics, validation), strict=True))
    cells = state.cells()
    return {
        "step": step,
        **{name: round(value, 5) for name, value in found.items()},
        "normal_skips": _count_skips(cells.normal),
        "reduce_skips": _count_skips(cells.reduce),
        "eigenvalue": round(state.eigenvalue(validation, step), 6) if config.eigenvalue else None,
        "strengths": np.round(state.strengths(), 5).tolist(),
    }


def _count_skips(graph: CellGraph | None) -> int:
    assert graph is not None
    return sum(edge.op == "skip_connect" for node in graph.nodes for edge in node.edges)


def judge(
    scorer: NetworkScorer, states: Mapping[int, Path], cells: Sequence[Cells]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose supernets are still there, with how strongly they are for `cells`.

    That is the sum of the logarithms of the strengths of what they do, by which DARTS selects. Their accuracy with the
    supernet's weights, all other operations left out, says nothing: docs/results.md has both.
    """
    assert isinstance(scorer.config, Config)
    for seed, path in states.items():
        mean = _mean_strengths(scorer.config, scorer.images, _list_files(scorer.config, seed, path))
        if mean is not None:  # else a state is gone, and with it the alphas
            logarithms, space = np.log(mean), scorer.config.make_space()
            yield seed, [float((space.strengths(each) * logarithms).sum()) for each in cells]


def dry_run(scorer: NetworkScorer) -> Genotype:
    """Takes some steps of the supernet, prints what the search would need, and returns the cells of that moment."""
    config = scorer.config
    assert isinstance(config, Config)
    training, validation = split_batches(config, scorer.images, config.seed)
    epoch_steps = min(training.steps, validation.steps)
    state = begin(config, scorer.images, config.seed)

    def take_step(number: int) -> None:
        place = number % epoch_steps
        state.learn(training.batch(0, place), validation.batch(0, place), SCHEDULE.rate)

    size, steps = config.search_batch_size, epoch_steps * config.search_epochs * config.supernets
    cost = time_steps(take_step, size, 1 + config.dry_run_steps)
    print(
        f"dry run: {state.net.packing.size:,} weights, {cost.describe(size, 'images of each half')}, "
        f"{peak_memory():.2f} GiB at most\n"
        f"predicted: {steps:,} steps a search, {config.trials} x {steps * cost.step / 3600:.2f} h on this machine, "
        "and the trainings that compare the results"
    )
    return Genotype("darts_dry_run", "darts", state.cells(), {}, scorer.presets)
