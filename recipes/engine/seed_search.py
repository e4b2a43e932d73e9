"""The frame of the searches by gradient or shared weights: some seeds, the best of what they find, and a baseline.

A supernet is trained for each seed (`recipes.darts`, `recipes.enas`); what it finds is trained on its own, and so are
random architectures of the same space. With enough of these, ranking.json says whether the supernets tell good ones.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras_tuner

from recipes.cards import card as report_card
from recipes.cards import reading as report_data
from recipes.cards.ranking import LEAST_NETWORKS, ranking
from recipes.engine import children as child_networks
from recipes.engine import run as child_search
from recipes.engine import tuner
from recipes.engine.children import Children
from recipes.engine.seeds import FoundBodies
from recipes.oracles import RandomSearch
from zoo import atomic
from zoo.genotype import Genotype

Observe = Callable[[tuner.Status], None] | None
# (seeds, architectures) -> each seed whose shared weights are there, with the architectures' accuracies by them
Judge = Callable[[Sequence[int], Sequence[Any]], Iterable[tuple[int, Sequence[float]]]]


def run(children: Children, recipe: str, observe: Observe) -> Genotype:
    """Trains what random draws from the children's space stand for, and returns the best."""
    config = children.config
    space: Any = children.space
    oracle = RandomSearch(
        keras_tuner.Objective(child_networks.OBJECTIVE, "max"),
        config.trials,
        space.hyperparameters(),
        seed=config.seed,
        key=space.key,
        check=None if isinstance(space, FoundBodies) else children.check,  # what was found cannot be redrawn
    )
    return child_search.run(oracle, children, recipe, observe)


def add_baseline(children: Children, networks: int, recipe: str, judge: Judge, observe: Observe) -> None:
    """Trains random architectures as the found ones were, in folder/baseline, and writes the card once more.

    Args:
        children: of the whole space, with the options of the search.
        networks: how many.
        recipe: its name.
        judge: scores architectures by the shared weights of the seeds.
        observe: see `run`.
    """
    folder = children.config.folder
    # algorithm is a field of the recipes' own configurations
    options: dict[str, Any] = {"algorithm": "random", "trials": networks, "folder": folder / "baseline"}
    run(dataclasses.replace(children, config=dataclasses.replace(children.config, **options)), recipe, observe)
    _rank(folder, children.space, judge)
    report_card.write([folder])


def state_file(folder: Path, seed: int) -> Path:
    """Returns where the state of the search with this seed is, beside its result."""
    return folder / f"seed{seed}.state.npz"


def _rank(folder: Path, space: Any, judge: Judge) -> None:
    """Writes how well each seed's shared weights rank the baseline's networks, if these are enough for that."""
    baseline = report_data.read(folder / "baseline")
    trials = [trial for trial in baseline.trials if trial.score is not None]
    if len(trials) < LEAST_NETWORKS:
        return
    seeds = sorted(int(path.stem.removeprefix("seed")) for path in (folder / "seeds").glob("seed*.json"))
    bodies = [space.body(trial.values(space.decisions)) for trial in trials]
    found = {str(seed): ranking(shared, baseline.scores) for seed, shared in judge(seeds, bodies)}
    tuner.forget_models()
    atomic.write_atomically(folder / "ranking.json", json.dumps(found, indent=1) + "\n")
