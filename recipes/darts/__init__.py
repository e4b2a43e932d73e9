"""DARTS: search cells by gradient descent, once per seed; then train the cells found briefly and keep the best.

    python -m recipes.darts                              # embedded images, on 2 cores
    python -m recipes.darts --algorithm=random           # the baseline: random cells of the space, trained alike
    python -m recipes.darts --order=2                    # second order
    python -m recipes.darts --trials=2 --supernets=1     # the better of two supernets, instead of the mean of five
    python -m recipes.darts --supernets=1 --selection=perturbation     # by the accuracy lost without an operation
    python -m recipes.darts --preset=paper --dry_run     # a few steps, and what the search would need on this machine

The result is runs/darts/genotype.json. runs/darts/card shows how the strengths of the operations and the cells evolved,
with losses, accuracies, skip connections and the largest eigenvalue; runs/darts/seeds has all of these for each seed.
runs/darts/baseline has random cells of the space, trained like those found; with 12 or more of them
runs/darts/ranking.json says how well the strengths rank them. With --table=TABLE it says how well they rank the cells
of a table of recipes.tabulate, and the card judges the result by this table. A search that was killed resumes when
started again with the same command.

Source: Liu et al., "DARTS: Differentiable Architecture Search", ICLR 2019, and quark0/darts; guards against collapse by
Zela et al., ICLR 2020 (eigenvalue) and Liang et al., 2019 (number of skip connections); epochs of warm-up by Chen et
al., "Progressive Differentiable Architecture Search", ICCV 2019; --selection=perturbation by Wang et al., "Rethinking
Architecture Selection in Differentiable NAS", ICLR 2021; the mean over supernets as in deep ensembles, Lakshminarayanan
et al., NeurIPS 2017. Departures: the seed draws the two halves of the images, and validation batches come in shuffled
epochs, while quark0/darts draws them with replacement.
"""

from recipes.darts.config import PRESETS, Config
from recipes.training.progress import Observe
from zoo.genotype import Genotype

__all__ = ["PRESETS", "Config", "search"]


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best cells; `observe` receives the progress that is otherwise shown on screen."""
    import functools

    from recipes import _search, _seeds
    from recipes.darts import seeds
    from recipes.engine import children as child_networks

    scale = {"cells": config.cells, "stem": "cifar"}
    presets = {"small": scale | {"filters": 2 * config.filters}, "search": scale | {"filters": config.filters}}
    images = child_networks.load_images(config)
    scorer = child_networks.NetworkScorer(config, config.make_space(), "darts", presets, images)
    if config.dry_run:
        return seeds.dry_run(scorer)
    if config.algorithm == "random":
        return _search.search_randomly(scorer, "darts", observe)
    find = functools.partial(seeds.find_cells, scorer)
    judge = functools.partial(seeds.judge_cells, scorer)
    return _seeds.search_by_seeds(scorer, "darts", find, judge, config.random_cells, observe)
