"""Tables of networks that were really trained: a search takes seconds, so that it can be judged over many seeds.

    table = load("darts")         # comes with the package; `list_shipped` returns the names
    table = load("my/table.csv")  # the user's own; nothing is downloaded

Three layouts are supported:

* CSV with a first line of JSON, written by `python -m recipes.tabulate` (`read_networks` returns all its columns): a
  search sees the validation accuracy of the first training, and the mean of all test accuracies is reported;
* NAS-Bench-201 (Dong and Yang, 2020) as CSV: `cellstr,cifar10-val,cifar10-test`, one line for each of 15,625 cells;
* NAS-Bench-Macro (Su et al., 2021) as JSON: 8 digits, one per layer, -> `test_acc`, `mean_acc`, `params`, `flops`. It
  has no validation accuracy: a search sees the first of its three training runs, and the mean of the other two is
  reported. All three are measured on the same test images, so the reported accuracies are slightly too good.

Both kinds of CSV may have learning curves: columns `val_0@1`, `val_0@3` (or `cifar10-val@1`, `cifar10-val@3`) and so on
hold the validation accuracy after that many epochs of the first training. Searches by successive halving use them:
their rungs are these epochs, and any larger number stands for the whole training.
"""

import csv
import dataclasses
import functools
import io
import json
import math
import os
import re
import string
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from recipes.cards.compare import chance_to_be_best
from recipes.cards.truth import find_largest
from recipes.engine.spaces import Decision, Space, check_values, count_cell_features, group_kinds, make_hyperparameters
from zoo import atomic
from zoo.genotype import CellGraph, Edge, Node, near

METRICS = ("params", "macs", "sram", "flash", "latency_ms")  # columns after the accuracies
_FOLDER = Path(__file__).parent  # of the shipped tables
_LAYOUT = 1
_EPOCHS = "tuner/epochs"  # recipes.oracles.base.EPOCHS, whose module imports TensorFlow
_DIGITS = string.digits + string.ascii_lowercase  # for indices of choices in a genome
_MOST_POINTS = 10_000_000  # of a space held as an array

NAS_BENCH_201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (node, source), in the order of the cell's text

# The first level has one edge, from input to output; each later level inserts one more node. Growing from the input on,
# the output would be unconnected until the last level, and all smaller cells equally bad.
_LEVELS = (((3, 0),), ((2, 0), (3, 2)), ((1, 0), (2, 1), (3, 1)))
_ZOO_OPS = dict(zip(NAS_BENCH_201_OPS, ("none", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3"), strict=True))
_CELLS, _MACS_1X1 = 15, 16 * 16 * 32 * 32  # cells of a network; MACs of a 1x1 convolution, the same in each stage
_MACS_OUTSIDE = 3 * 9 * 16 * 32 * 32 + 2 * 14 * _MACS_1X1 + 64 * 10  # stem, two residual blocks of stride 2, classifier


class Result(NamedTuple):
    """Accuracies in percent: `validation` is what a search may see, `test` what is reported."""

    validation: float
    test: float


@dataclasses.dataclass(frozen=True)
class Table:
    """All networks of one search space with their accuracies; `recipes.oracles` run on tables unchanged.

    Attributes:
        name: for messages and reports.
        decisions: of the space.
        validation, test: accuracies in percent; axis i is decision i, NaN where the table lacks the network.
        levels: names of the decisions that a progressive search adds at each level. Before, they have their first
            choice, "none" or "identity", which makes the network a smaller one.
        numbers: the network of each point, if several points are the same network; -1 where there is none.
        metrics: other numbers known for all networks, such as "macs" per image, in arrays like the accuracies.
        curves: epochs -> validation accuracies after that many epochs, in arrays like the accuracies.
        space: the space of architectures, if known.
    """

    name: str
    decisions: tuple[Decision, ...]
    validation: np.ndarray
    test: np.ndarray
    levels: tuple[tuple[str, ...], ...]
    numbers: np.ndarray | None = None
    metrics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    curves: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    space: Space | None = None

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of mutation -> names of its decisions."""
        return group_kinds(self.decisions)

    @property
    def size(self) -> int:
        """Number of networks in the table."""
        return len(self._networks)

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters."""
        return make_hyperparameters(self.decisions)

    def evaluate(self, values: Mapping[str, Any]) -> Result:
        """Returns the accuracies of the network that `values` (decision -> choice) encode.

        With "tuner/epochs" among the values, validation is the accuracy after that many epochs, or after the whole
        training if the curves are shorter.

        Raises:
            ValueError: the space lacks a value, or the table lacks the network or its accuracy after these epochs.
        """
        index, epochs = self._index(values), values.get(_EPOCHS)
        if epochs is not None and epochs not in self.curves and epochs <= max(self.curves, default=epochs):
            raise ValueError(
                f"the table {self.name} has no validation accuracy after {epochs} epochs, but "
                f"{f'after {sorted(self.curves)}' if self.curves else 'only at the end'}; choose the rungs by these"
            )
        validation = float((self.curves.get(epochs, self.validation) if epochs else self.validation)[index])
        if np.isnan(validation):
            raise ValueError(f"the table {self.name} has no network {dict(values)}")
        return Result(validation, float(self.test[index]))

    def measure(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Returns the network's validation accuracy, as val_accuracy, and all other metrics."""
        index = self._index(values)
        metrics = {name: float(numbers[index]) for name, numbers in self.metrics.items()}
        return {"val_accuracy": self.evaluate(values).validation, **metrics}

    def key(self, values: Mapping[str, Any]) -> Any:
        """Returns the identity shared by equal networks, for the `key` of an oracle."""
        index = self._index(values)
        return index if self.numbers is None else int(self.numbers[index])

    def check(self, values: Mapping[str, Any]) -> str | None:
        """Returns a reason if the table lacks the network, otherwise None; for the `check` of an oracle."""
        return "the table has no such network" if np.isnan(self.validation[self._index(values)]) else None

    def _index(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        if _EPOCHS in values:
            values = {name: value for name, value in values.items() if name != _EPOCHS}
        if len(values) != len(self.decisions):
            check_values(values, self.decisions)
        try:
            return tuple(places[values[name]] for name, places in self._places.items())
        except KeyError:
            check_values(values, self.decisions)
            raise

    def count_features(self, values: Mapping[str, Any]) -> Mapping[Hashable, int]:
        """Returns feature -> count of a network, for `recipes.oracles.BayesianSearch`."""
        if self.space is None:
            return dict.fromkeys(values.items(), 1)
        network = tuple(values.values())
        if network not in self._features:  # shared by all searches on this table
            self._features[network] = self.space.count_features(values)
        return self._features[network]

    @functools.cached_property
    def _features(self) -> dict[tuple, Mapping[Hashable, int]]:
        return {}

    def random_search(self, evaluations: int) -> float:
        """Returns the exact expected test accuracy of random search without repetition at this budget, in percent."""
        return self._best_of_draws(self._networks, evaluations)

    def random_largest(self, evaluations: int) -> float | None:
        """Returns the same for random draws among the tenth of the networks with the most MACs.

        MACs are known without a search: a search that does no better only found that larger networks are better. None
        if the table has no MACs, or if the largest tenth has fewer networks than `evaluations`. Networks that tie with
        the last of the tenth belong to it.
        """
        if "macs" not in self.metrics:
            return None
        largest = self._networks[find_largest(self.metrics["macs"].flat[self._networks])]
        return self._best_of_draws(largest, evaluations) if evaluations <= len(largest) else None

    def _best_of_draws(self, networks: np.ndarray, evaluations: int) -> float:
        """Returns the expected test accuracy of the best on validation of `evaluations` draws from these networks."""
        order = networks[np.argsort(-self.validation.flat[networks], kind="stable")]
        size = len(order)
        if not 1 <= evaluations <= size:
            raise ValueError(f"evaluations is {evaluations}; expected 1 to {size}, the networks of {self.name}")
        return float(chance_to_be_best(size, evaluations) @ self.test.flat[order[: size - evaluations + 1]])

    @functools.cached_property
    def _networks(self) -> np.ndarray:
        """One index into the flattened arrays for each network."""
        known = np.flatnonzero(np.isfinite(self.validation))
        return known if self.numbers is None else known[np.unique(self.numbers.flat[known], return_index=True)[1]]

    @functools.cached_property
    def _places(self) -> dict[str, dict[Any, int]]:
        return {
            decision.name: {choice: place for place, choice in enumerate(decision.choices)}
            for decision in self.decisions
        }


class NasBench201Space(Space):
    """The cells of NAS-Bench-201: three nodes, each of which reads every earlier state through an op."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """One op for each edge."""
        return tuple(Decision(f"node{node}/from{source}", NAS_BENCH_201_OPS, "op") for node, source in _EDGES)

    def body(self, values: Mapping[str, Any]) -> CellGraph:
        """Returns the cell that `values` (edge -> op) encode; its only input is state 1."""
        edges: dict[int, list[Edge]] = {}
        for node, source in _EDGES:
            edges.setdefault(node, []).append(Edge(_ZOO_OPS[values[f"node{node}/from{source}"]], 1 + source))
        return CellGraph(tuple(Node(tuple(reads)) for reads in edges.values()), (4,))

    def count_features(self, values: Mapping[str, Any]) -> Mapping[Hashable, int]:
        """Counts the cell's paths and ops."""
        return count_cell_features(self.body(values))

    def macs(self, values: Mapping[str, Any]) -> int:
        """Returns the network's MACs for a CIFAR-10 image, without edges that do not reach the output."""
        found = self.count_features(values)
        return _MACS_OUTSIDE + _CELLS * _MACS_1X1 * (found.get("conv_1x1", 0) + 9 * found.get("conv_3x3", 0))


def list_shipped() -> list[str]:
    """Returns the names of the shipped tables."""
    return sorted(path.stem for path in _FOLDER.glob("*.csv"))


def load(path: str | os.PathLike) -> Table:
    """Reads a table: a shipped one by its name, or a file, CSV (ours, NAS-Bench-201) or JSON (NAS-Bench-Macro).

    Raises:
        ValueError: the file has another layout; the text says where.
        OSError: the file cannot be read.
    """
    path = _find_file(path)
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is not a table; expected a name that ends in {' or '.join(_READERS)}")
    return _READERS[path.suffix](path)


def _find_file(path: str | os.PathLike) -> Path:
    """Returns the path of a table's file."""
    path = Path(path)
    if path.suffix or path.is_file():
        return path
    if str(path) not in list_shipped():
        raise ValueError(
            f"there is no table {str(path)!r}{near(str(path), list_shipped())}; expected a file, or one of "
            f"{', '.join(list_shipped())}"
        )
    return _FOLDER / f"{path}.csv"


class TableRow(NamedTuple):
    """One network in a table written by `python -m recipes.tabulate`.

    Attributes:
        key: zoo.canonical.canonical_hash of the architecture.
        genomes: all encodings of the architecture, each with the index of the choice for every decision.
        validation, test: accuracies in percent, one for each training.
        metrics: METRICS -> number, or None if unknown.
        curve: epochs -> validation accuracy of the first training after that many epochs; {} without such columns.
    """

    key: str
    genomes: tuple[tuple[int, ...], ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    metrics: Mapping[str, float | None]
    curve: Mapping[int, float] = MappingProxyType({})


def write_networks(path: Path, about: Mapping[str, Any], networks: Sequence[TableRow]) -> None:
    """Writes a table; `about` has its "name", "decisions", "levels", and the origin of the numbers."""
    repeats = range(len(networks[0].validation))
    text = io.StringIO()
    text.write(f"# {json.dumps({'table': _LAYOUT, **about})}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "genomes", *(f"val_{n}" for n in repeats), *(f"test_{n}" for n in repeats), *METRICS])
    for key, genomes, validation, test, metrics, _ in networks:
        written = " ".join("".join(_DIGITS[place] for place in genome) for genome in genomes)
        numbers = ("" if metrics.get(name) is None else f"{metrics[name]:.10g}" for name in METRICS)
        writer.writerow([key, written, *(f"{value:.2f}" for value in (*validation, *test)), *numbers])
    atomic.write_atomically(path, text.getvalue())


def read_networks(path: str | os.PathLike) -> tuple[dict[str, Any], list[TableRow]]:
    """Returns what `write_networks` was given.

    Raises:
        ValueError: the file has another layout; the text says where.
        OSError: the file cannot be read.
    """
    path = _find_file(path)
    with path.open(encoding="utf-8", newline="") as stream:
        try:
            about = json.loads(stream.readline().removeprefix("#"))
            repeats = range(len(about["seeds"]))
            assert about["table"] == _LAYOUT
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise ValueError(
                f"{path} is not a table of recipes.tabulate, or of another version; make it again"
            ) from error
        networks = []
        for number, row in enumerate(csv.DictReader(stream), start=3):
            try:
                genomes = tuple(tuple(int(digit, 36) for digit in genome) for genome in row["genomes"].split())
                validation, test = (tuple(float(row[f"{part}_{n}"]) for n in repeats) for part in ("val", "test"))
                metrics = {name: float(row[name]) if row[name] else None for name in METRICS}
                networks.append(TableRow(row["key"], genomes, validation, test, metrics, _read_curve(row, "val_0")))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}; expected a network and its numbers") from error
    return about, networks


def _read_curve(row: Mapping[str, str], column: str) -> dict[int, float]:
    """Returns epochs -> accuracy, from columns such as val_0@3."""
    names = [name for name in row if name and name.startswith(f"{column}@")]
    return {int(name.removeprefix(f"{column}@")): float(row[name]) for name in names}


def read_decisions(about: Mapping[str, Any]) -> tuple[Decision, ...]:
    """Returns the decisions of a table's space, from the first line of its file."""
    return tuple(Decision(name, tuple(choices), kind) for name, choices, kind in about["decisions"])


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8") as stream:
        is_own = stream.read(1) == "#"
    return _read_own(path) if is_own else _read_nas_bench_201(path)


def _read_own(path: Path) -> Table:
    about, networks = read_networks(path)
    decisions = read_decisions(about)
    shape = tuple(len(decision.choices) for decision in decisions)
    if math.prod(shape) > _MOST_POINTS:
        raise ValueError(
            f"{path} has {len(networks):,} networks of a space of {math.prod(shape):,} points, which is too large to "
            "search. See its page or `read_networks` for the numbers, and search a smaller space"
        )
    numbers, validation, test = np.full(shape, -1), np.full(shape, np.nan), np.full(shape, np.nan)
    metrics = {name: np.full(shape, np.nan) for name in METRICS}
    curves = {epochs: np.full(shape, np.nan) for epochs in (networks[0].curve if networks else ())}
    for number, network in enumerate(networks):
        for genome in network.genomes:
            numbers[genome] = number
            validation[genome], test[genome] = network.validation[0], np.mean(network.test)
            for name, values in metrics.items():
                values[genome] = np.nan if network.metrics[name] is None else network.metrics[name]
            for epochs, values in curves.items():
                values[genome] = network.curve[epochs]
    levels = tuple(tuple(names) for names in about["levels"])
    known = _keep_complete(metrics, validation)
    return Table(about["name"], decisions, validation, test, levels, numbers, known, curves)


def _keep_complete(metrics: Mapping[str, np.ndarray], validation: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the metrics that are known for every network."""
    return {name: values for name, values in metrics.items() if np.isfinite(values[np.isfinite(validation)]).all()}


def _read_nas_bench_201(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        wanted = ("cellstr", "cifar10-val", "cifar10-test")
        if reader.fieldnames is None or not set(wanted) <= set(reader.fieldnames):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; expected {', '.join(wanted)}")
        shape = (len(NAS_BENCH_201_OPS),) * len(_EDGES)
        validation, test = np.full(shape, np.nan), np.full(shape, np.nan)
        curves: dict[int, np.ndarray] = {}
        for number, row in enumerate(reader, start=2):
            try:
                place = tuple(NAS_BENCH_201_OPS.index(op) for op in _parse_ops(row["cellstr"]))
                validation[place], test[place] = float(row["cifar10-val"]), float(row["cifar10-test"])
                for epochs, accuracy in _read_curve(row, "cifar10-val").items():
                    curves.setdefault(epochs, np.full(shape, np.nan))[place] = accuracy
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}; expected a cell and its two accuracies") from error
    space = NasBench201Space()
    levels = tuple(tuple(f"node{node}/from{source}" for node, source in edges) for edges in _LEVELS)
    names = [decision.name for decision in space.decisions]
    macs = np.full(shape, np.nan)
    for place in np.argwhere(np.isfinite(validation)).tolist():
        ops = (NAS_BENCH_201_OPS[op] for op in place)
        macs[tuple(place)] = space.macs(dict(zip(names, ops, strict=True)))
    return Table("NAS-Bench-201", space.decisions, validation, test, levels, None, {"macs": macs}, curves, space)


def _parse_ops(cell: str) -> list[str]:
    """Returns the six ops from a text such as |avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|...|."""
    found = re.findall(r"([a-z0-9_]+)~(\d)", cell)
    sources = [int(source) for _, source in found]
    if sources != [source for _, source in _EDGES]:
        raise ValueError(f"{cell!r} is not a cell of NAS-Bench-201")
    return [op for op, _ in found]


def _read_nas_bench_macro(path: Path) -> Table:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, dict) or not records:
        raise ValueError(f"{path} holds no JSON object of networks; expected 8 digits -> test_acc")
    layers = len(next(iter(records)))
    validation, test, macs, params = (np.full((3,) * layers, np.nan) for _ in range(4))
    for network, record in records.items():
        try:
            if len(network) != layers:  # a shorter place would be a slice
                raise ValueError(f"{len(network)} digits where others have {layers}")
            place = tuple("012".index(digit) for digit in network)
            first, *others = record["test_acc"]
            validation[place], test[place] = first, np.mean(others)
            macs[place] = record.get("flops", np.nan)  # the file's name for MACs
            params[place] = record.get("params", np.nan)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{path}, network {network!r}: {error!r}; expected digits 0-2 and test_acc") from error
    names = [f"layer{layer}" for layer in range(layers)]
    choices = ("identity", "mb_conv_k3_e3", "mb_conv_k5_e6")
    decisions = tuple(Decision(name, choices, "op") for name in names)
    levels = tuple((name,) for name in names)
    metrics = _keep_complete({"params": params, "macs": macs}, validation)
    return Table("NAS-Bench-Macro", decisions, validation, test, levels, metrics=metrics)


_READERS = {".csv": _read_csv, ".json": _read_nas_bench_macro}
