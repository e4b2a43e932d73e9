"""TinyNAS: choose the resolution and width that suit a board's memory, then the best sub-network that fits into it.

    python -m recipes.tinynas                                    # embedded images, on 2 cores; a made-up tiny board
    python -m recipes.tinynas --board=stm32f746                  # the RAM and flash of another board
    python -m recipes.tinynas --algorithm=random --folder=runs/tinynas/baseline --supernet=runs/tinynas/supernet.npz
                                                                 # the baseline: as many random networks, same weights
    python -m recipes.tinynas --preset=paper --dry_run           # what the search would need on this machine

The result is in runs/tinynas: genotype.json, model.keras, model.tflite and result.json; space.png explains the choice
of resolution and width. A search that was killed resumes at the saved step when started again with the same command.

Result: reproduced at reduced scale, on a table of a small space. The laptop preset finds networks of the 90th
percentile (89.7, seeds 3 to 8, 2026-11-26), 0.29 ± 0.13 points above random search in the same time; Kendall's tau of
the shared weights is 0.47 of at most 0.61. What it finds in its own space: docs/results.md.

The stages of the search, and the code for each:
1. choice of a resolution and width: `choose_configuration`, with the needs of networks from `needs`;
2. training of the once-for-all network of that space: `supernet` and `training`;
3. evolution (recipes.oracles.evolution) of sub-networks, scored with inherited weights and recalibrated normalisation:
   `children`;
4. fine-tuning, int8, and a comparison with random networks: `finish` in `children`, which also has the dry run.
The options are in `config`.

Source: Lin et al., "MCUNet: Tiny Deep Learning on IoT Devices", NeurIPS 2020, arXiv:2007.10319; --sampling=fair after
Chu et al., "FairNAS", ICCV 2021; the mean over supernets as in deep ensembles, Lakshminarayanan et al., NeurIPS 2017.
Departures: the limits apply to the arena and the file of TensorFlow Lite for Microcontrollers, tables included
(`--engine=bare` counts as in the paper); children that are already known are drawn again.
"""

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from recipes.tinynas.config import PRESETS, Config
from recipes.tinynas.needs import predict_needs
from recipes.tinynas.space import Configuration, rank_configurations, save_configurations
from recipes.training.progress import Observe, Report, Status
from zoo.genotype import Genotype

# TensorFlow, and what imports it, is imported where it is used, so that --help and errors answer at once.
if TYPE_CHECKING:
    from recipes.oracles import SearchOracle
    from recipes.tinynas.children import SubNetworks

__all__ = ["PRESETS", "Config", "search"]


def search(config: Config, observe: Observe | None = None) -> Genotype:
    """Searches and returns the best sub-network; `observe` receives the progress otherwise shown on screen."""
    from recipes import _search
    from recipes.cards.card import write_card
    from recipes.cards.read import read_search
    from recipes.engine.children import load_images
    from recipes.tinynas.children import SubNetworks, describe_result, dry_run, finish
    from recipes.tinynas.supernet import Supernet
    from recipes.tinynas.training import train_supernets

    with _search.watch_search(observe, "tinynas", config.score_name) as watch:

        def report(share: float, text: str) -> None:
            watch(Status(0, config.trials, None, None, share, text))

        chosen = choose_configuration(config, report)
        sized = dataclasses.replace(config, image_size=chosen.resolution)
        images = load_images(sized)
        net = Supernet(config.make_space(chosen.width), images.classes, images.input_shape[2], config.kernel_transform)
        presets = {"search": {"input_shape": list(images.input_shape), "classes": images.classes}}
        untrained = SubNetworks(sized, net.space, "mcunet", presets, images, net, net.initial(config.seed)[None])
        if config.dry_run:
            return dry_run(untrained)
        weights = train_supernets(sized, net, images, untrained.normalization, report)
        scorer = dataclasses.replace(untrained, weights=weights)
        provenance = {"width": chosen.width, "budget": config.budget._asdict()}
        found = _search.run_trials(make_oracle(sized, scorer), scorer, "tinynas", watch, provenance, scorer.rank)
        best = next(trial for trial in read_search(config.folder).trials if trial.number == found.source["trial"])
    with _search.watch_search(observe, "tinynas", config.score_name) as watch:

        def report_finish(share: float, text: str) -> None:
            watch(Status(config.trials, None, found.source["score"], None, share, text))

        result = finish(scorer, found, best.values(net.space.decisions), report_finish)
    write_card([config.folder])  # again, now with result.json
    if observe is None:
        print(describe_result(result, config.folder))
    return found


def choose_configuration(config: Config, report: Report) -> Configuration:
    """Returns the resolution and width to search at, the first stage; writes space.json and space.png.

    Networks are drawn with a separate seed for each resolution and width; those that fit into the budget count.
    """
    from recipes.engine.children import load_images

    resolutions = config.resolutions if config.image_size is None else (config.image_size,)
    images = load_images(dataclasses.replace(config, image_size=resolutions[0]))
    pairs, explored = list(itertools.product(resolutions, config.widths)), []
    for number, (resolution, width) in enumerate(pairs):
        report(number / len(pairs), f"space, resolution {resolution}, width {width:g}")
        rng = np.random.default_rng([config.seed, resolution, round(1000 * width)])
        space, shape = config.make_space(width), (resolution, resolution, images.input_shape[2])
        bodies = (space.body(space.sample(rng)) for _ in range(config.space_networks))
        drawn = [predict_needs(body, shape, images.classes) for body in bodies]
        macs = sorted(needs.macs for needs in drawn if config.budget.find_excess(needs) is None)
        explored.append(Configuration(resolution, width, tuple(macs), config.space_networks))
    ranked = rank_configurations(explored, config.rank_by, config.least_share)
    save_configurations(ranked, config.rank_by, config.least_share, config.folder)
    return ranked[0]


def make_oracle(config: Config, scorer: "SubNetworks") -> "SearchOracle":
    """Returns the oracle for the algorithm of `config`."""
    from recipes.oracles.evolution import GenerationalEvolution

    return scorer.baseline_oracle(config.algorithm) or GenerationalEvolution(
        **scorer.oracle_arguments(), population=config.population, parents=config.parents, mutation=config.mutation
    )
