"""Tables of networks that were really trained: a whole search takes seconds, so that it can be judged over many seeds.

The files are the user's own; nothing is downloaded. Two layouts are known:

* NAS-Bench-201 (Dong and Yang, 2020) as CSV: `cellstr,cifar10-val,cifar10-test`, one line for each of 15,625 cells;
* NAS-Bench-Macro (Su et al., 2021) as JSON: 8 digits, one a layer, -> `test_acc`, `mean_acc`, `params`, `flops`. It
  has no validation accuracy: the first of its three training runs is what a search sees, the mean of the other two
  is what is reported. All three are measured on the same test images, so its reports are a little too good.
"""

import csv
import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.engine.spaces import Decision, check_values, hyperparameters_of, kinds_of

NAS_BENCH_201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (node, what it reads), in the order of the cell's text

# A cell of one node, its output, has one edge; each level puts one more node in. Node by node from the input on, the
# output would hang in the air until the last level, and all cells before it would be equally bad.
_LEVELS = (((3, 0),), ((2, 0), (3, 2)), ((1, 0), (2, 1), (3, 1)))


class Result(NamedTuple):
    """Accuracies in percent: what a search may see, and what is reported of its choice."""

    validation: float
    test: float


@dataclasses.dataclass(frozen=True)
class Table:
    """All networks of one search space with their accuracies; `recipes.oracles` run on it unchanged.

    Attributes:
        name: for messages and reports.
        decisions: the space.
        validation, test: accuracies in percent; axis i is decision i, NaN where the table has no such network.
        levels: names of the decisions that a progressive search adds at each level; before, they have their first
            choice, "none" or "identity", with which the rest is a smaller network.
    """

    name: str
    decisions: tuple[Decision, ...]
    validation: np.ndarray
    test: np.ndarray
    levels: tuple[tuple[str, ...], ...]

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of mutation -> names of its decisions."""
        return kinds_of(self.decisions)

    @property
    def size(self) -> int:
        """How many networks the table has."""
        return int(np.isfinite(self.validation).sum())

    def hyperparameters(self) -> Any:
        """Returns the decisions as keras_tuner.HyperParameters."""
        return hyperparameters_of(self.decisions)

    def evaluate(self, values: Mapping[str, Any]) -> Result:
        """Returns the accuracies of the network that `values` (decision -> choice) stand for.

        Raises:
            ValueError: a value that the space does not have, or a network that the table does not have.
        """
        if len(values) != len(self.decisions):
            check_values(values, self.decisions)
        try:
            index = tuple(places[values[name]] for name, places in self._places.items())
        except KeyError:
            check_values(values, self.decisions)
            raise
        validation = float(self.validation[index])
        if np.isnan(validation):
            raise ValueError(f"the table {self.name} has no network {dict(values)}")
        return Result(validation, float(self.test[index]))

    def random_search(self, evaluations: int) -> float:
        """Returns the exact expected test accuracy of random search without repetition at this budget, in percent.

        The i-th best of n networks on validation is the pick of k draws with probability C(n-i, k-1) / C(n, k).
        """
        order = np.argsort(-self.validation.ravel(), kind="stable")[: self.size]
        size, expected, probability = self.size, 0.0, evaluations / self.size
        if not 1 <= evaluations <= size:
            raise ValueError(f"evaluations is {evaluations}; expected 1 to {size}, what the table {self.name} has")
        for rank, place in enumerate(order[: size - evaluations + 1], start=1):
            expected += probability * float(self.test.flat[place])
            if rank < size:
                probability *= (size - rank - evaluations + 1) / (size - rank)
        return expected

    @functools.cached_property
    def _places(self) -> dict[str, dict[Any, int]]:
        return {
            decision.name: {choice: place for place, choice in enumerate(decision.choices)}
            for decision in self.decisions
        }


def load(path: str | os.PathLike) -> Table:
    """Reads a table file, CSV (NAS-Bench-201) or JSON (NAS-Bench-Macro).

    Raises:
        ValueError: the file has another layout; the text says where.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is no table: expected a name that ends in {' or '.join(_READERS)}")
    return _READERS[path.suffix](path)


def _read_nas_bench_201(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        wanted = ("cellstr", "cifar10-val", "cifar10-test")
        if reader.fieldnames is None or not set(wanted) <= set(reader.fieldnames):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; expected {', '.join(wanted)}")
        shape = (len(NAS_BENCH_201_OPS),) * len(_EDGES)
        validation, test = np.full(shape, np.nan), np.full(shape, np.nan)
        for number, row in enumerate(reader, start=2):
            try:
                place = tuple(NAS_BENCH_201_OPS.index(op) for op in _ops_of(row["cellstr"]))
                validation[place], test[place] = float(row["cifar10-val"]), float(row["cifar10-test"])
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}; expected a cell and its two accuracies") from error
    decisions = tuple(Decision(f"node{node}/from{source}", NAS_BENCH_201_OPS, "op") for node, source in _EDGES)
    levels = tuple(tuple(f"node{node}/from{source}" for node, source in edges) for edges in _LEVELS)
    return Table("NAS-Bench-201", decisions, validation, test, levels)


def _ops_of(cell: str) -> list[str]:
    """Returns the six ops of a text such as |avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|...|."""
    found = re.findall(r"([a-z0-9_]+)~(\d)", cell)
    sources = [int(source) for _, source in found]
    if sources != [source for _, source in _EDGES]:
        raise ValueError(f"{cell!r} is no cell of NAS-Bench-201")
    return [op for op, _ in found]


def _read_nas_bench_macro(path: Path) -> Table:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(records, dict) or not records:
        raise ValueError(f"{path} holds no object of networks; expected 8 digits -> test_acc")
    layers = len(next(iter(records)))
    validation, test = np.full((3,) * layers, np.nan), np.full((3,) * layers, np.nan)
    for network, record in records.items():
        try:
            place = tuple("012".index(digit) for digit in network)
            first, *others = record["test_acc"]
            validation[place], test[place] = first, np.mean(others)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{path}, network {network!r}: {error!r}; expected digits 0-2 and test_acc") from error
    names = [f"layer{layer}" for layer in range(layers)]
    choices = ("identity", "mb_conv_k3_e3", "mb_conv_k5_e6")
    decisions = tuple(Decision(name, choices, "op") for name in names)
    return Table("NAS-Bench-Macro", decisions, validation, test, tuple((name,) for name in names))


_READERS = {".csv": _read_nas_bench_201, ".json": _read_nas_bench_macro}
