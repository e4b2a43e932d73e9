"""The options that say where trials run, and what goes to another process."""

import copy
import dataclasses
import functools

import pytest

from recipes import _search, mnasnet, nasnet
from recipes.engine import children as child_networks
from recipes.engine import spaces
from recipes.engine.children import NetworkScorer
from recipes.engine.config import PLACE_FIELDS, PlaceConfig
from recipes.engine.workers import LocalWorkers
from tests import cheap_trials

SMOKE = nasnet.PRESETS["smoke"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": "many"}, "workers is 'many'; expected a whole number, 0 for this process, or ray"),
        ({"workers": "-1"}, "workers is '-1'"),
        ({"retries": -1}, "retries is -1"),
        ({"trials_at_once": 0}, "trials_at_once is 0"),
        ({"silence": 0.0}, "silence is 0.0; expected seconds above 0"),
        ({"trial_gpus": -1.0}, "trial_gpus is -1.0; expected a number from 0"),
        ({"trial_cpus": float("inf")}, "trial_cpus is inf"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PlaceConfig(**options)


def test_the_options_say_who_runs_the_trials():
    assert _search.make_workers(PlaceConfig(), cheap_trials.score) is None
    workers = _search.make_workers(PlaceConfig(workers="3", silence=5.0), cheap_trials.score)
    assert isinstance(workers, LocalWorkers)
    assert workers.room == 3


def test_a_search_may_resume_in_another_place():
    elsewhere = dataclasses.replace(SMOKE, workers="4", retries=9, silence=1.0)
    assert elsewhere.settings() == SMOKE.settings()
    assert not set(PLACE_FIELDS) & SMOKE.settings().keys()


def test_children_travel_without_their_images_and_read_them_there():
    images = child_networks.load_images(SMOKE)
    presets = child_networks.cell_presets(1, 4)
    scorer = NetworkScorer(SMOKE, spaces.nasnet(1), "nasnet", presets, images)
    assert "images" not in scorer.__getstate__()
    twin = copy.copy(scorer)  # as pickle does it
    assert twin.images is not images
    assert (twin.images.train.images == images.train.images).all()
    assert (twin.images.validation.labels == images.validation.labels).all()
    assert twin.presets == presets


class Shared(NetworkScorer):
    """Scores with weights of its own process."""


def Rewarded(*arguments) -> NetworkScorer:
    return NetworkScorer(*arguments, reward=functools.partial(mnasnet.reward, target=1.0, alpha=0.0, beta=-1.0))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Shared, {}, "workers is 2, but the trials of this search need what only this process has"),
        (Rewarded, {}, "latencies measured on a machine that does nothing else"),
        (NetworkScorer, {"max_latency": 3.0}, "max_latency is 3.0, measured on this machine, and workers is 2"),
    ],
)
def test_what_must_stay_in_one_process_is_refused_elsewhere(tmp_path, kind, options, message):
    config = dataclasses.replace(SMOKE, workers="2", folder=tmp_path, **options)
    scorer = kind(config, spaces.nasnet(1), "nasnet", {}, child_networks.load_images(config))
    with pytest.raises(ValueError, match=message):
        _search.run_trials(nasnet.make_oracle(config, spaces.nasnet(1), scorer), scorer, "nasnet", print)
