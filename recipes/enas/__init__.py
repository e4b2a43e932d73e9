r"""ENAS: one supernet holds all networks as paths with shared weights, and a controller learns which paths are good.

    python -m recipes.enas                            # micro space: cells; embedded images, on 2 cores
    python -m recipes.enas --preset=laptop-macro      # macro space: a chain of layers with skips
    python -m recipes.enas --algorithm=uniform        # no controller: random paths, same supernet and budget
    python -m recipes.enas --algorithm=random         # the baseline: random networks of the space, trained alike
    python -m recipes.enas --preset=paper             # as in the paper: one supernet, paths by the controller
    python -m recipes.enas --preset=paper --dry_run   # a few steps, and what the search would need on this machine

In each epoch first the weights and then the controller learn. At the end the controller draws candidate paths, and the
path that is most accurate on the reward images with the shared weights is trained on its own. With `finalists`, the
best of them are trained and validation images choose among them, as section 2.4 of the paper proposes at greater cost.
The result is runs/enas/genotype.json with its picture; runs/enas/seeds has, for each seed, the scores, the history, and
the state with all shared weights. runs/enas/baseline has random networks of the space, trained like the one found; with
12 or more of them runs/enas/ranking.json says how well the shared weights rank them. A search that was killed resumes
when started again with the same command.

Result: reproduced at reduced scale, on a table of a small space: with three supernets and 20 finalists it finds cells
of the 95th percentile (94.9, seeds 0 to 2, 2026-11-26), 0.55 ± 0.06 points above random search in the same time, though
Kendall's tau of the shared weights is only 0.29 of at most 0.66. The laptop preset, which has the same settings with
eight finalists, finds accuracies of 0.843, 0.829 and 0.844 in its own space; docs/results.md has more.

Source: Pham et al., "Efficient Neural Architecture Search via Parameter Sharing", ICML 2018, and the scripts of
melodyguan/enas, whose settings the presets paper and paper-macro have (the paper's controller: rate 0.00035,
temperature 5, tanh_constant 2.5, entropy 0.1); uniform paths by Li and Talwalkar, "Random Search and Reproducibility
for Neural Architecture Search", UAI 2019; the mean over supernets as in deep ensembles, Lakshminarayanan et al.,
NeurIPS 2017. Departures: the supernet's paths are exactly the networks that are built afterwards; reward images are
separate from the validation images that judge results; all reward images choose the path, not one batch of them;
normalisation uses the statistics of the batch in the macro space too; the micro search has no auxiliary head, and
rewards are scored without dropout; the macro controller's operations have learned biases.
"""

from typing import Any

from recipes.enas.config import PRESETS, Config
from recipes.training.progress import Observe
from zoo.genotype import Genotype

__all__ = ["PRESETS", "Config", "search"]


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best architecture; `observe` receives the progress otherwise shown on screen."""
    import functools

    import zoo
    from recipes import _search, _seeds
    from recipes.enas import seeds
    from recipes.engine import children as child_networks

    scale: dict[str, Any] = {"cells": config.cells} if config.space == "micro" else {"separable": True}
    presets = {"small": scale | {"filters": 2 * config.filters}, "search": scale | {"filters": config.filters}}
    images = child_networks.load_images(config)
    scorer = child_networks.NetworkScorer(config, config.make_space(), "enas", presets, images)
    if config.dry_run:
        return seeds.dry_run(scorer)
    if config.algorithm == "random":
        return _search.search_randomly(scorer, "enas", observe)
    find = functools.partial(seeds.find_architectures, scorer)
    judge = functools.partial(seeds.judge_architectures, scorer)
    genotype = _seeds.search_by_seeds(scorer, "enas", find, judge, config.random_networks, observe, config.finalists)
    zoo.draw(genotype, config.folder / "genotype.png")
    return genotype
