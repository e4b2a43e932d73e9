"""The ENAS recipe: its supernets equal zoo.build's networks, and a killed search resumes."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import zoo
from recipes import enas
from recipes.enas import seeds, training
from recipes.enas.macro import MacroSupernet
from recipes.enas.micro import MicroSupernet, share_rows
from recipes.enas.space import ChainSpace, MicroSpace
from recipes.enas.supernet import draw_weights
from recipes.enas.training import SharedWeights, find_paths, score_path
from recipes.engine import children as child_networks
from recipes.training import tensorflow_options
from recipes.training.evaluation import Scores
from tests.enas.exported import export

pytestmark = pytest.mark.usefixtures("fast_start")
SMOKE = enas.PRESETS["smoke"]
PROJECT = Path(__file__).resolve().parents[2]
SHAPE = (8, 8, 1)
# Two nodes. Normal: node 2 reads h[c-2] twice, node 3 reads node 2 and h[c-1], so node 3 alone is the output.
# Reduction: h[c-1] is read by none, so it is output beside node 3.
DEEP = np.array([[[[0, 0], [0, 4]], [[2, 1], [1, 2]]], [[[0, 4], [0, 3]], [[2, 1], [0, 0]]]], np.int32)


@pytest.fixture
def fast_start():
    with tensorflow_options.without_rewrites():
        yield


def noisy(net) -> np.ndarray:
    """Weights whose normalisations do something, too."""
    rng = np.random.default_rng(0)
    return draw_weights(net.packing, 0) + 0.1 * rng.standard_normal(net.packing.size, np.float32)


def check_export(net, shared: SharedWeights, path: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    images = tf.constant(rng.standard_normal((6, *SHAPE), np.float32))
    model = export(net, shared.weights.numpy(), path, SHAPE)
    found = net.logits(shared.weights, tf.constant(path), images)
    np.testing.assert_allclose(model(images, training=True), found, atol=2e-4)


@pytest.mark.slow  # traces for 4 s
@pytest.mark.parametrize("shared_joins", [False, True])
def test_an_exported_cell_path_is_the_network_that_zoo_builds(shared_joins):
    net = MicroSupernet(MicroSpace(2), 1, 2, 3, 1, shared_joins)
    shared = SharedWeights(net, SHAPE)
    shared.weights.assign(noisy(net))
    check_export(net, shared, DEEP)


def test_an_exported_chain_path_is_the_network_that_zoo_builds():
    net = MacroSupernet(ChainSpace(3), 2, 3, 1)
    path = np.array([[1, 0, 0, 0], [4, 1, 0, 0], [2, 0, 1, 0]], np.int32)
    shared = SharedWeights(net, SHAPE)
    shared.weights.assign(noisy(net))
    check_export(net, shared, path)


def test_shared_rows_keep_the_variance_and_move_with_those_of_other_states():
    weight = np.random.default_rng(0).standard_normal((4, 50, 50))
    assert np.std(share_rows(weight)) == pytest.approx(1, abs=0.03)
    moved = weight.copy()
    moved[2] += 1
    steps = (share_rows(moved) - share_rows(weight)).numpy()[:, 0, 0]
    assert steps == pytest.approx(np.array([1, 1, 2, 1]) / 7**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["micro", "macro"])
def test_every_path_is_the_network_that_zoo_builds_and_one_trace_serves_them_all(space):
    micro = space == "micro"
    net = MicroSupernet(MicroSpace(3), 3, 4, 5, 1) if micro else MacroSupernet(ChainSpace(6), 4, 5, 1)
    rng = np.random.default_rng(0)
    paths = [net.space.draw_path(rng) for _ in range(6)]
    if micro:  # as many loose ends as one, where cells are read as they are, and as all
        one, every = (np.zeros((2, 3, 2, 2), np.int32) for _ in range(2))
        one[..., 0] = np.arange(1, 4)[:, None]
        one[..., 1] = every[..., 1] = 4
        paths += [one, every]
    shared = SharedWeights(net, SHAPE)
    shared.weights.assign(noisy(net))
    images = tf.constant(rng.standard_normal((4, *SHAPE), np.float32))
    for path in paths:
        check_export(net, shared, path)
        shared.step(path, images, tf.constant([0, 1, 2, 3]), 0.01, [0, 0])
    assert shared._step.experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_a_step_changes_the_weights_of_its_path_alone():
    net = MicroSupernet(MicroSpace(2), 1, 2, 3, 1)
    shared = SharedWeights(net, SHAPE, decay=0.0, dropout=0.0)
    before = net.packing.unpack(shared.weights.numpy())
    images = tf.constant(np.random.default_rng(0).standard_normal((6, *SHAPE), np.float32))
    shared.step(DEEP, images, tf.constant([0, 1, 2, 0, 1, 2]), 0.1, [0, 0])
    after = net.packing.unpack(shared.weights.numpy())

    def changed(name: str) -> list[int]:
        return np.flatnonzero((before[name] != after[name]).any(axis=(1, 2, 3))).tolist()

    # The third cell is the normal one; its rows are those of node 0, first edge (2 states), second edge (2), node 1 ..
    assert changed("cell2/sep_conv_3x3/pointwise") == [0]  # node 0, first edge, state 0
    assert changed("cell2/sep_conv_5x5/pointwise") == [4 + 2]  # node 1, first edge, state 2
    shared.weights.assign(shared.weights * np.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        shared.step(DEEP, images, tf.constant([0, 1, 2, 0, 1, 2]), 0.1, [0, 0])


@pytest.mark.parametrize(
    "space", [MicroSpace(3), MicroSpace(2, ("avg_pool_3x3",), fixed_reduction=True), ChainSpace(4)]
)
def test_random_paths_lie_in_the_space_and_come_back_from_their_architecture_and_its_values(space):
    rng = np.random.default_rng(0)
    for _ in range(20):
        path = space.draw_path(rng)
        assert np.array_equal(space.encode(space.decode(path)), path)
        assert space.body(space.values(space.decode(path))) == space.decode(path)


def test_chain_space_has_a_decision_for_each_operation_and_skip():
    space = ChainSpace(3)
    assert [decision.name for decision in space.decisions] == [
        "layer01/op", "layer02/op", "layer02/skip00", "layer03/op", "layer03/skip00", "layer03/skip01"
    ]  # fmt: skip
    values = {decision.name: decision.choices[-1] for decision in space.decisions}
    body = space.body(values)
    assert body.layers[2].skips == (0, 1)
    assert space.values(body) == values


def test_micro_space_has_the_size_of_the_paper():
    # Pham et al. 2018, section 2.4: (5 x (B-2)!)^4 cells for B = 7 nodes, the two inputs counted
    cell = (5**5 * 2 * 3 * 4 * 5 * 6) ** 2
    assert MicroSpace(5).size == cell**2


def test_presets_are_complete_and_refuse_what_cannot_be():
    assert enas.PRESETS["paper-macro"].space == "macro"
    with pytest.raises(ValueError, match="even"):
        dataclasses.replace(SMOKE, filters=3)
    with pytest.raises(ValueError, match="reward_images is 0"):
        dataclasses.replace(SMOKE, reward_images=0)
    with pytest.raises(ValueError, match="skip_target is 0"):
        dataclasses.replace(SMOKE, skip_target=0.0)
    with pytest.raises(ValueError, match=r"ops names 'sep_conv'.*did you mean 'sep_conv_5x5'"):
        dataclasses.replace(SMOKE, ops=("sep_conv",))
    with pytest.raises(ValueError, match="are options of cells"):
        dataclasses.replace(SMOKE, space="macro", fixed_reduction=True)
    with pytest.raises(ValueError, match="layers is 1"):
        dataclasses.replace(SMOKE, space="macro", layers=1)


def test_uniform_search_scores_as_many_more_paths_as_rewards_would_have_cost():
    config = dataclasses.replace(SMOKE, algorithm="uniform")
    search = seeds.make_search(config, child_networks.load_images(config), 0)
    # 2 epochs x 2 updates x 2 samples = 8 rewards of a batch; a score takes the 20 images in 2 batches of 10
    assert search.candidates == 2 + 8 // 2
    assert search.epoch_steps == 4


def test_the_weights_learn_from_uniform_paths_in_the_first_epochs_and_from_the_controllers_then():
    space = MicroSpace(2)
    from_controller = space.draw_path(np.random.default_rng(99))
    controller: Any = SimpleNamespace(sample=lambda count, rng: np.stack([from_controller] * count))
    parts: Any = SimpleNamespace(net=SimpleNamespace(space=space)), controller
    images: Any = SimpleNamespace(training=SimpleNamespace(steps=3))
    search = training.PathSearch(dataclasses.replace(SMOKE, uniform_epochs=1), *parts, images, 0)
    first = [search._path_of_step(0, number) for number in range(3)]
    assert len({path.tobytes() for path in first}) == 3
    assert np.array_equal(search._path_of_step(0, 1), first[1])  # drawn by its place alone
    assert all(np.array_equal(search._path_of_step(1, number), from_controller) for number in range(3))


@pytest.mark.parametrize(("score", "expected"), [("accuracy", 0.5), ("loss", -2.0)])
def test_a_path_has_the_mean_score_of_all_supernets(score, expected):
    config: Any = SimpleNamespace(score=score)
    found = [Scores(0.4, 1.0), Scores(0.6, 3.0)]
    searches: Any = [SimpleNamespace(config=config, shared=SimpleNamespace(score=lambda *_, s=s: s)) for s in found]
    assert score_path(searches, None, []) == pytest.approx(expected)


def test_supernets_of_a_search_have_other_weights_and_the_same_images_for_rewards(tmp_path):
    config = dataclasses.replace(SMOKE, supernets=2)
    searches = seeds.make_searches(config, child_networks.load_images(config), 3, tmp_path / "seed3.state.npz")
    assert [file.name for file in searches] == ["seed3.state.npz", "seed1000003.state.npz"]
    first, second = searches.values()
    assert not np.array_equal(first.shared.weights, second.shared.weights)
    pairs = zip(first.images.reward_batches(), second.images.reward_batches(), strict=True)
    assert all(np.array_equal(one[0], other[0]) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "supernets"), [("smoke", 2), ("smoke-macro", 1)])
def test_a_search_that_was_killed_at_any_moment_ends_as_one_that_was_not(preset, supernets, tmp_path):
    config = dataclasses.replace(enas.PRESETS[preset], search_epochs=6, supernets=supernets)
    images = child_networks.load_images(config)
    with tensorflow_options.without_rewrites():
        whole = find_paths(seeds.make_searches(config, images, 3, tmp_path / "whole.npz"), lambda share, text: None)
    state = tmp_path / "killed.npz"
    command = [sys.executable, "-c", _KILLED, preset, str(state), str(supernets)]
    for _ in range(2):
        begun = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert begun.stdout is not None
        for line in begun.stdout:
            if line.startswith("step"):
                break
        time.sleep(0.05)
        begun.send_signal(signal.SIGKILL)
        begun.wait()
        begun.stdout.close()
    assert state.exists()
    with np.load(state) as found:
        assert 0 < json.loads(found["header"].tobytes())["facts"]["step"] < 36
    with tensorflow_options.without_rewrites():
        again = find_paths(seeds.make_searches(config, images, 3, state), lambda share, text: None)
    assert again == whole


_KILLED = """
import dataclasses, sys
from pathlib import Path
from recipes import enas
from recipes.enas import seeds
from recipes.engine import children as child_networks
from recipes.training.tensorflow_options import without_rewrites
from recipes.enas.training import find_paths

config = dataclasses.replace(enas.PRESETS[sys.argv[1]], search_epochs=6, save_seconds=0, supernets=int(sys.argv[3]))
images = child_networks.load_images(config)
with without_rewrites():
    searches = seeds.make_searches(config, images, 3, Path(sys.argv[2]))
    report = lambda share, text: print("step" if round(40 * share) % 6 == 4 else "-", flush=True)
    find_paths(searches, report)
"""


@pytest.mark.slow
def test_the_result_builds_and_random_networks_are_ranked_by_the_shared_weights(tmp_path):
    config = dataclasses.replace(SMOKE, random_networks=12, folder=tmp_path)
    genotype = enas.search(config, observe=lambda status: None)
    assert zoo.load(tmp_path / "genotype.json") == genotype
    assert zoo.build(tmp_path / "genotype.json", classes=10, input_shape=SHAPE).output_shape == (None, 10)
    assert (tmp_path / "genotype.png").stat().st_size > 1000
    (found,) = json.loads((tmp_path / "ranking.json").read_text()).values()
    assert len(found["shared"]) == len(found["alone"]) == 12
    assert enas.search(config, observe=lambda status: None).body == genotype.body  # all is there already


@pytest.mark.slow
def test_networks_over_a_limit_are_never_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_MOST_REFUSED", 3)
    config = dataclasses.replace(SMOKE, max_params=10, folder=tmp_path)
    with pytest.raises(ValueError, match="paths in a row were refused"):
        enas.search(config, observe=lambda status: None)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "smoke-macro"])
def test_dry_run_prints_what_the_search_would_need(preset, capsys):
    genotype = enas.search(dataclasses.replace(enas.PRESETS[preset], dry_run=True))
    assert zoo.build(genotype, classes=10, input_shape=SHAPE).count_params() > 0
    assert "a search" in capsys.readouterr().out
