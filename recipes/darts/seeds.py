"""The DARTS search with one seed: finds cells, judges cells by their strengths, and makes the dry run."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from recipes.cards.pictures import COLOURS, DOTS, new_figure, save_figure
from recipes.darts.config import Config
from recipes.darts.space import OPS, DartsSpace
from recipes.darts.supernet import Supernet
from recipes.darts.training import SCHEDULE, BilevelSearch, select_by_perturbation
from recipes.engine import tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.dry_run import peak_memory, time_steps
from recipes.images import augment
from recipes.images import sources as image_data
from recipes.images.parts import Batches
from recipes.training.loop import Record, run_epochs
from recipes.training.progress import Report, Status, report_part
from recipes.training.supernet import list_states
from zoo.genotype import INPUT_STATES, CellGraph, Cells, Genotype

_SHOWN_CELLS = 4  # epochs whose cells are drawn
# line styles of the operations, beginning with "none", which no cell selects
_LOOKS = ({"color": "#999999", "linestyle": ":"}, *({"color": colour, "linestyle": "-"} for colour in COLOURS))


def split_batches(config: Config, images: image_data.Data, seed: int) -> tuple[Batches, Batches]:
    """Returns batches for the weights and for the alphas, from two random halves of the training images."""
    halves, size = images.train.split(0.5, seed), config.search_batch_size
    if min(map(len, halves)) < size:
        raise ValueError(
            f"{len(images.train)} training images do not make two batches of {size}; "
            "lower search_batch_size or raise training_images"
        )
    normalize = augment.Normalization.of(images.train.images)
    policy = augment.cifar(images.input_shape[0] // 8, cutout_length=0) if config.augment else None
    first, second = (
        Batches(half, size, seed, stream=(number,), normalize=normalize, augment=policy)
        for number, half in enumerate(halves)
    )
    return first, second


def make_search(config: Config, images: image_data.Data, seed: int) -> BilevelSearch:
    """Returns the search with this seed in its initial state."""
    net = Supernet(
        config.make_space(), config.search_cells, config.search_filters, images.classes, images.input_shape[2]
    )
    return BilevelSearch(net, config.order, config.alpha_rate, seed)


def find_cells(scorer: NetworkScorer, seed: int, path: Path, report: Report) -> dict[str, Any]:
    """Trains supernets; returns the values of the cells that they select, their strengths and a history, for JSON.

    Several supernets select cells by the geometric mean of their strengths: as in an ensemble of networks, random
    differences between the alphas of single supernets average out. The first supernet has the state at `path`, and
    the others have theirs next to it. The history, and a picture next to `path` of how the strengths evolved, are of
    the first.

    Raises:
        DivergedError: the loss is no longer finite.
        StateError: the state is of another search, or damaged.
    """
    config = scorer.config
    assert isinstance(config, Config)
    files, histories, logarithms = list_states(seed, config.supernets, path), [], []
    search: BilevelSearch | None = None
    for number, (own, file) in enumerate(files.items()):
        part = report_part(report, number, len(files), "supernet")
        search, history = _train_supernet(config, scorer.images, own, file, part)
        histories.append(history)
        logarithms.append(np.log(search.strengths()))
    assert search is not None  # supernets is at least 1
    space = search.net.space
    draw_strengths(space, histories[0], f"seed {seed}", path.with_name(f"seed{seed}.png"))
    strengths = np.exp(np.mean(logarithms, axis=0))
    if config.selection == "perturbation":
        cells = _select(config, search, *split_batches(config, scorer.images, seed), report)
    else:
        cells = space.derive(strengths)
    tuner.forget_models()
    return {"values": space.values(cells), "strengths": np.round(strengths, 6).tolist(), "history": histories[0]}


def _mean_strengths(config: Config, images: image_data.Data, files: Mapping[int, Path]) -> np.ndarray | None:
    """Returns the geometric mean of the supernets' strengths, of the space's shape; None if a state is missing."""
    logarithms = []
    for seed, file in files.items():
        search = make_search(config, images, seed)
        if search.file(file).restore(search.variables) is None:
            return None
        logarithms.append(np.log(search.strengths()))
    return np.exp(np.mean(logarithms, axis=0))


def _train_supernet(
    config: Config, images: image_data.Data, seed: int, path: Path, report: Report
) -> tuple[BilevelSearch, list[Record]]:
    """Trains one supernet, from its state at `path`; returns the search and one record per epoch."""
    training, validation = split_batches(config, images, seed)
    search = make_search(config, images, seed)
    epochs, steps = config.search_epochs, min(training.steps, validation.steps)

    def take_step(epoch: int, number: int) -> list[float]:
        alpha_batch = validation.batch(epoch, number) if epoch >= config.warm_up_epochs else None
        return search.learn(training.batch(epoch, number), alpha_batch, SCHEDULE.at(epoch, epochs))

    def end_epoch(history: list[Record], metrics: list[Sequence[float]]) -> Record:
        step, batch, found = (len(history) + 1) * steps, validation.batch(len(history), 0), np.mean(metrics, axis=0)
        if len(found) == 2:  # in warm-up the steps have no validation metrics
            found = np.append(found, search.run([], batch, search.weights, search.alphas)[0])
        names, cells = ("loss", "accuracy", "validation_loss", "validation_accuracy"), search.cells()
        return {
            "step": step,
            **{name: round(float(value), 5) for name, value in zip(names, found, strict=True)},
            "normal_skips": _count_skips(cells.normal),
            "reduce_skips": _count_skips(cells.reduce),
            "eigenvalue": round(search.eigenvalue(batch, step), 6) if config.eigenvalue else None,
            "strengths": np.round(search.strengths(), 5).tolist(),
        }

    def observe(status: Status) -> None:
        if status.done < epochs:
            report((status.done + status.share) / epochs, f"epoch {status.done + 1}")

    most_skips = math.inf if config.stop_at_skips is None else config.stop_at_skips
    history = run_epochs(
        take_step,
        end_epoch,
        epochs=epochs,
        steps=steps,
        variables=search.variables,
        state=search.file(path),
        save_seconds=config.save_seconds,
        observe=observe,
        stop=lambda record: record["normal_skips"] >= most_skips,
    )
    return search, history


def _select(config: Config, search: BilevelSearch, training: Batches, validation: Batches, report: Report) -> Cells:
    """Selects cells by perturbation; if killed, it starts the selection over and ends with the same result."""
    step = 0

    def tune(strengths: np.ndarray) -> None:
        nonlocal step
        report(1.0, f"selection, tuned for {step} steps")
        for _ in range(config.tuning_steps):
            batch = training.batch(config.search_epochs + step // training.steps, step % training.steps)
            search.learn_weights(batch, SCHEDULE.last, strengths=strengths)
            step += 1

    batches = [validation.batch(0, number) for number in range(min(config.selection_batches, validation.steps))]
    return select_by_perturbation(search, batches, tune, np.random.default_rng([search.seed, 2]))


def _count_skips(graph: CellGraph | None) -> int:
    assert graph is not None
    return sum(edge.op == "skip_connect" for node in graph.nodes for edge in node.edges)


def judge_cells(
    scorer: NetworkScorer, states: Mapping[int, Path], cells: Sequence[Cells]
) -> Iterator[tuple[int, list[float]]]:
    """Yields each seed whose states still exist, and the score of each of `cells` by its supernets' strengths.

    The score is the sum of the logarithms of the strengths of the cells' operations, by which DARTS selects. The
    accuracy with the supernet's weights, without all other operations, says nothing: docs/results.md has both.
    """
    assert isinstance(scorer.config, Config)
    for seed, path in states.items():
        mean = _mean_strengths(scorer.config, scorer.images, list_states(seed, scorer.config.supernets, path))
        if mean is not None:
            logarithms, space = np.log(mean), scorer.config.make_space()
            yield seed, [float((space.strengths(each) * logarithms).sum()) for each in cells]


def dry_run(scorer: NetworkScorer) -> Genotype:
    """Takes a few steps of the supernet, prints what the search would need, and returns the present cells."""
    config = scorer.config
    assert isinstance(config, Config)
    training, validation = split_batches(config, scorer.images, config.seed)
    epoch_steps = min(training.steps, validation.steps)
    search = make_search(config, scorer.images, config.seed)

    def take_step(number: int) -> None:
        place = number % epoch_steps
        search.learn(training.batch(0, place), validation.batch(0, place), SCHEDULE.rate)

    size, steps = config.search_batch_size, epoch_steps * config.search_epochs * config.supernets
    cost = time_steps(take_step, size, 1 + config.dry_run_steps)
    print(
        f"dry run: {search.net.packing.size:,} weights, {cost.describe(size, 'images of each half')}, "
        f"{peak_memory():.2f} GiB at most\n"
        f"predicted: {steps:,} steps a search, {config.trials} x {steps * cost.step / 3600:.2f} h on this machine, "
        "plus the trainings that compare the results"
    )
    return Genotype("darts_dry_run", "darts", search.cells(), {}, scorer.presets)


def draw_strengths(space: DartsSpace, records: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws a picture of the strengths of each edge over the epochs, and of the cells of some epochs.

    `records` has one record per epoch, whose "strengths" have the space's shape.
    """
    tables = np.array([record["strengths"] for record in records])  # (epochs, cells, edges, ops)
    chosen = np.unique(np.linspace(0, len(tables) - 1, _SHOWN_CELLS).round().astype(int))
    cells = [_render(space.derive(tables[epoch]), f"epoch_{epoch + 1}") for epoch in chosen]
    width, columns = 7.0 * len(space.cells), min(2, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    dots = max(columns * max(cell.shape[1] for cell in cells) / width, DOTS)  # per inch, the same for all cells
    heights = [1.35 * space.nodes + 1.3, *(max(cell.shape[0] for cell in row) / dots for row in rows)]
    figure = new_figure(width, sum(heights))
    top, *bands = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_edges(top, space, tables, title)
    for band, row, height in zip(bands, rows, heights[1:], strict=True):
        for column, cell in enumerate(row):
            size = cell.shape[1] / dots / width, cell.shape[0] / dots / height
            axes = band.add_axes((column / columns, 1 - size[1], *size))
            axes.imshow(cell, aspect="auto")
            axes.set_axis_off()
    save_figure(figure, path)


def _render(cells: Cells, name: str) -> np.ndarray:
    """Returns the pixels of drawn cells."""
    from matplotlib.image import imread

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cell.png"
        zoo.draw(Genotype(name, "darts", cells, {}, {}), file)
        return imread(file)


def _draw_edges(figure: Any, space: DartsSpace, tables: np.ndarray, title: str) -> None:
    """Draws a panel for each edge: its column is the state that it reads, and its row the node that it leads to."""
    last = space.derive(tables[-1])
    parts = figure.subfigures(1, len(space.cells), wspace=0.03, squeeze=False)[0]
    kinds = {"normal": ("normal", last.normal), "reduce": ("reduction", last.reduce)}
    for part, cell, table in zip(parts, space.cells, np.moveaxis(tables, 1, 0), strict=True):
        kind, graph = kinds[cell]
        part.suptitle(f"{title}, {kind} cell: softmax of the alphas over the epochs", fontsize=11, x=0.02, ha="left")
        _draw_panels(part, graph, table)
    for op, look in zip((OPS[0], *space.ops), _LOOKS, strict=False):
        parts[0].axes[0].plot([], [], **look, linewidth=2.5, label=op)
    handles, labels = parts[0].axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4 * len(parts), frameon=False, fontsize=9)


def _draw_panels(part: Any, graph: Any, table: np.ndarray) -> None:
    """Draws the edges of one cell; `table` is (epochs, edges, ops), `graph` the final cell."""
    nodes = len(graph.nodes)
    sources = INPUT_STATES + nodes - 1
    grid = part.subplots(nodes, sources, sharex=True, sharey=True, squeeze=False)
    names = ["h[c-2]", "h[c-1]", *(f"node {INPUT_STATES + number}" for number in range(nodes))]
    epochs, edge = np.arange(1, len(table) + 1), 0
    for node in range(nodes):
        kept = {each.state: each.op for each in graph.nodes[node].edges}
        for source in range(sources):
            axes = grid[node, source]
            if source >= INPUT_STATES + node:
                axes.set_axis_off()
                continue
            for place in range(table.shape[2]):
                axes.plot(epochs, table[:, edge, place], **_LOOKS[place], linewidth=1.5,
                          marker="." if len(epochs) == 1 else None)  # fmt: skip
            if node == max(0, source - INPUT_STATES + 1):  # the topmost panel of its column
                axes.set_title(f"from {names[source]}", fontsize=9)
            if source == 0:
                axes.set_ylabel(f"to {names[INPUT_STATES + node]}", fontsize=9)
            if node == nodes - 1:
                axes.set_xlabel("epoch", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[:].set_color("#cccccc")
            if source in kept:  # an edge of the final cell: draw a frame, and name its operation
                axes.spines[:].set(color="black", linewidth=1.8)
                name = kept[source].replace("_", " ")
                axes.text(0.5, 0.96, name, transform=axes.transAxes, ha="center", va="top", fontsize=8)
            edge += 1
    least, most = float(table.min()), float(table.max())
    span = most - least or 1.0
    grid[0, 0].set_ylim(least - 0.05 * span, most + 0.3 * span)  # room for the names of operations
    grid[0, 0].xaxis.get_major_locator().set_params(integer=True)
