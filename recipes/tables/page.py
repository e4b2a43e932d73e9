"""The report on a space, from the table of its trained networks: a page of Markdown and a picture."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.cards.compare import kendall_tau
from recipes.cards.pictures import COLOURS, new_figure, save_figure, style_axes
from recipes.cards.truth import Truth, measure_reliability
from recipes.tables import METRICS, TableRow, read_decisions
from zoo import atomic
from zoo.markdown import join_blocks, make_table

_SHOWN = 5  # best and worst networks
_WORDS = {"params": "parameters", "macs": "multiply-accumulates", "sram": "SRAM, bytes, predicted",
          "flash": "flash, bytes, predicted", "latency_ms": "latency, ms, measured"}  # fmt: skip


def write_page(about: Mapping[str, Any], networks: Sequence[TableRow], folder: Path) -> Path:
    """Writes page.md and space.png, and returns the path of the page."""
    draw(about, networks, folder / "space.png")
    path = folder / "page.md"
    atomic.write_atomically(path, make_page(about, networks))
    return path


def correlate_seeds(accuracies: np.ndarray) -> dict[str, float]:
    """Returns how well one training predicts another, from accuracies (networks, seeds), and the limit for any ranking.

    "pearson" and Kendall's "tau" are means over all pairs of seeds. "noise" is the standard deviation of one network's
    trainings, "spread" that of the networks' means. "ceiling" is the correlation of a noise-free ranking with these
    means, and "tau_ceiling" its tau; see recipes.cards.truth. Values that need two seeds are NaN for one.
    """
    pairs = list(itertools.combinations(accuracies.T, 2))
    found: dict[str, float] = dict.fromkeys(
        ("pearson", "tau", "noise", "spread", "ceiling", "tau_ceiling"), float("nan")
    )
    if len(accuracies) > 1:
        found["spread"] = float(accuracies.mean(axis=1).std(ddof=1))
    if not pairs or not all(np.ptp(seed) for seed in accuracies.T):
        return found
    ceiling = math.sqrt(measure_reliability(accuracies))
    return found | {
        "pearson": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])),
        "tau": float(np.mean([kendall_tau(a, b) for a, b in pairs])),
        "noise": float(np.sqrt(accuracies.var(axis=1, ddof=1).mean())),
        "ceiling": ceiling,
        "tau_ceiling": 2 / math.pi * math.asin(ceiling),
    }


def measure_effects(about: Mapping[str, Any], networks: Sequence[TableRow]) -> dict[str, dict[Any, float]]:
    """Returns decision -> choice -> mean accuracy of the networks with the choice, less that of all, in points.

    Means are over all encodings of the networks, so that the other decisions are balanced. Decisions with a single
    choice, and choices that no network of a sample has, are left out.
    """
    pairs = zip(networks, _read_truth(about, networks).worth, strict=True)
    points = [(genome, worth) for network, worth in pairs for genome in network.genomes]
    genomes, accuracies = np.array([genome for genome, _ in points]), np.array([accuracy for _, accuracy in points])
    found: dict[str, dict[Any, float]] = {}
    for decision, places in zip(read_decisions(about), genomes.T, strict=True):
        if len(decision.choices) > 1:
            found[decision.name] = {
                choice: float(accuracies[places == place].mean() - accuracies.mean())
                for place, choice in enumerate(decision.choices)
                if (places == place).any()
            }
    return found


def make_page(about: Mapping[str, Any], networks: Sequence[TableRow]) -> str:
    """Returns the Markdown page of a table."""
    validation, test = (np.array([getattr(network, part) for network in networks]) for part in ("validation", "test"))
    seeds = len(about["seeds"])
    rows = []
    truth = _read_truth(about, networks)
    for name, accuracies in (("validation", validation), ("test", test), ("all images", truth.trained)):
        found, means = correlate_seeds(accuracies), accuracies.mean(axis=1)
        numbers = (means.min(), np.median(means), means.max(), found["spread"], found["noise"])
        shares = (found[key] for key in ("pearson", "tau", "ceiling", "tau_ceiling"))
        rows.append((name, *map(_format_number, numbers), *(_format_number(share, 3) for share in shares)))
    head = ("accuracy, %", "least", "median", "most", "networks differ by", "seeds differ by", "correlation", "tau",
            "ceiling", "its tau")  # fmt: skip
    ranked = np.argsort(-truth.worth, kind="stable").tolist()
    config = ", ".join(f"{name} {value}" for name, value in about["config"].items())
    machines = "; ".join(
        f"{each['hardware']['processor']}, {each['hardware']['cores']} cores, "
        + ", ".join(f"{name} {version}" for name, version in each["versions"].items())
        for each in about["machines"]
    )
    latencies = f"Latencies are LiteRT's on {about['latencies']}, one thread. " if about["latencies"] else ""
    return join_blocks(
        f"# The space {about['name']}",
        f"{len(networks):,} networks, each trained {seeds} times from scratch (seeds "
        f"{', '.join(map(str, about['seeds']))}; {about['training_seconds']:.3g} s per training on average), "
        f"{about['date']}. Accuracies are on {about['images'][0]:,} validation and {about['images'][1]:,} test images.",
        f"    {about['command']}",
        "![The space](space.png)",
        "## Accuracies",
        make_table(head, rows, numbers_from=1),
        "Networks differ by the standard deviation of their means, seeds by that of one network's trainings. "
        "Correlation and Kendall's tau are those of two seeds: how well one training predicts another. The ceiling is "
        "the correlation of a noise-free ranking with the means, and its tau: no search can be seen to rank the "
        "networks of this table better. It is the square root of k r / (1 + (k - 1) r), with the correlation r of "
        f"k = {seeds} seeds. Searches are judged by the accuracies on all images, and so is everything below.",
        "## Best and worst networks",
        _list_networks(about, [networks[place] for place in (*ranked[:_SHOWN], *ranked[_SHOWN:][-_SHOWN:])]),
        "## What each choice adds",
        "Mean accuracy of the networks with this choice, less that of all networks, in points.",
        make_table(
            ("decision", "choices, best first"),
            [
                (name, ", ".join(f"{choice} {gain:+.2f}" for choice, gain in sorted(gains.items(), key=_by_gain)))
                for name, gains in measure_effects(about, networks).items()
            ],
        ),
        "## Costs",
        make_table(
            ("", "least", "median", "most", "tau with accuracy"),
            [(_WORDS[name], *_summarize(name, networks, truth.worth)) for name in METRICS],
            numbers_from=1,
        ),
        f"{latencies}SRAM and flash are from the memory plan of the int8 file under TFLM.",
        "## Settings and machines",
        f"{config}.",
        f"{machines}.",
    )


def _read_truth(about: Mapping[str, Any], networks: Sequence[TableRow]) -> Truth:
    return Truth.of(networks, about["training_seconds"], about["images"])


def _by_gain(item: tuple[Any, float]) -> float:
    return -item[1]


def _format_number(value: float, digits: int = 2) -> str | None:
    return None if np.isnan(value) else f"{value:.{digits}f}"


def _summarize(name: str, networks: Sequence[TableRow], accuracies: np.ndarray) -> tuple[str | None, ...]:
    known = [(network.metrics[name], accuracy) for network, accuracy in zip(networks, accuracies, strict=True)
             if network.metrics[name] is not None]  # fmt: skip
    if not known:
        return (None,) * 4
    costs, beside = np.array(known, np.float64).T
    tau = _format_number(kendall_tau(costs, beside)) if len(known) > 1 else None
    return *(f"{value:,.6g}" for value in (costs.min(), np.median(costs), costs.max())), tau


def _list_networks(about: Mapping[str, Any], networks: Sequence[TableRow]) -> str:
    decisions = [each for each in read_decisions(about) if len(each.choices) > 1]
    places = [place for place, each in enumerate(read_decisions(about)) if len(each.choices) > 1]
    rows = []
    for network in networks:
        chosen = [str(each.choices[network.genomes[0][n]]) for n, each in zip(places, decisions, strict=True)]
        macs = network.metrics["macs"]
        tested, validated = np.mean(network.test), np.mean(network.validation)
        rows.append((f"`{network.key[:8]}`", ", ".join(chosen), f"{tested:.2f}", f"{validated:.2f}", f"{macs:,.0f}"))
    names = ", ".join(each.name for each in decisions)
    return make_table(("key", names, "test, %", "validation, %", "MACs"), rows)


def draw(about: Mapping[str, Any], networks: Sequence[TableRow], path: Path) -> None:
    """Draws a histogram, accuracy against MACs, two seeds against each other, and what each choice adds."""
    means = _read_truth(about, networks).worth
    kinds: dict[str, list[str]] = {}
    effects = measure_effects(about, networks)
    for decision in read_decisions(about):
        if decision.name in effects:
            kinds.setdefault(decision.kind, []).append(decision.name)
    figure = new_figure(11, 4.2 + 1.2 + 0.34 * max(map(len, kinds.values()), default=1))
    above, below = figure.subfigures(2, 1, height_ratios=(4, 1.4 + 0.34 * max(map(len, kinds.values()), default=1)))
    axes = above.subplots(1, 3)
    axes[0].hist(means, bins=min(30, max(5, len(means) // 8)), color=COLOURS[0])
    axes[0].yaxis.get_major_locator().set_params(integer=True)
    axes[0].set(xlabel="accuracy, mean of the trainings, %", ylabel="networks", title="How good they are")
    macs = [network.metrics["macs"] for network in networks]
    axes[1].plot(macs, means, "o", color=COLOURS[0], markersize=4, alpha=0.6)
    axes[1].set(
        xlabel="multiply-accumulates per image", ylabel="accuracy, mean of the trainings, %", title="What they cost"
    )
    from matplotlib.ticker import EngFormatter

    axes[1].xaxis.set_major_formatter(EngFormatter(sep=" "))
    _draw_seeds(axes[2], about, np.array([network.validation for network in networks]))
    for each in axes:
        style_axes(each)
    panels = below.subplots(1, max(1, len(kinds)), squeeze=False)[0]
    below.suptitle("What each choice adds to the accuracy, points", fontsize=12)
    largest = max((abs(gain) for gains in effects.values() for gain in gains.values()), default=1.0)
    for panel, (kind, names) in zip(panels, kinds.items(), strict=False):
        _draw_effects(panel, kind, {name: effects[name] for name in names}, largest or 1.0)
    figure.suptitle(about["name"], fontsize=12)
    save_figure(figure, path)


def _draw_seeds(axes: Any, about: Mapping[str, Any], validation: np.ndarray) -> None:
    if validation.shape[1] < 2:
        axes.set_axis_off()
        return
    found = correlate_seeds(validation)
    first, second, *_ = validation.T
    axes.plot(first, second, "o", color=COLOURS[1], markersize=4, alpha=0.6)
    ends = [validation.min(), validation.max()]
    axes.plot(ends, ends, "--", color="0.6", linewidth=1)
    one, other, *_ = about["seeds"]
    axes.set(xlabel=f"validation accuracy with seed {one}, %", ylabel=f"with seed {other}, %")
    axes.set_title(f"Noise: correlation {found['pearson']:.2f}, tau {found['tau']:.2f}")


def _draw_effects(axes: Any, kind: str, effects: Mapping[str, Mapping[Any, float]], largest: float) -> None:
    choices = list(dict.fromkeys(choice for gains in effects.values() for choice in gains))
    grid = np.array([[gains.get(choice, np.nan) for choice in choices] for gains in effects.values()])
    axes.imshow(grid, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for (row, column), gain in np.ndenumerate(grid):
        if not np.isnan(gain):
            dark = abs(gain) > 0.6 * largest
            axes.text(column, row, f"{gain:+.2f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
    axes.set_xticks(range(len(choices)), [str(choice) for choice in choices], fontsize=8)
    axes.set_yticks(range(len(effects)), list(effects), fontsize=8)
    axes.set_title(kind, fontsize=10)
