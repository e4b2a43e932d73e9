"""TinyNAS: what networks need, the space, the first stage, the shared weights, the evolution, and the whole search."""

import dataclasses
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from recipes import tinynas
from recipes.tinynas.children import InheritedAccuracy, SubNetworks, build_standalone
from recipes.tinynas.needs import Budget, predict_needs
from recipes.tinynas.space import SMALL_STRIDES, Configuration, TinySpace, rank_configurations
from recipes.tinynas.supernet import Supernet
from recipes.tinynas.training import ElasticTraining, draw_fairly, sort_channels
from recipes.training import tensorflow_options
from recipes.training.evaluation import Scores
from recipes.training.results import find_class_names, find_origin
from tests.recipes.killed_search import kill_when
from zoo.deploy import measure, planner, tflite
from zoo.genotype import Block, Blocks, Genotype

SMALL = TinySpace(0.15, SMALL_STRIDES, kernels=(3, 5, 7), expansions=(2, 3), depths=(1, 2), shares=(0.5, 1.0))
SMOKE = tinynas.PRESETS["smoke"]


def genotype(body: Blocks, shape: tuple[int, int, int], classes: int) -> Genotype:
    return Genotype("found", "mcunet", body, {}, {"search": {"input_shape": list(shape), "classes": classes}})


def randomized(model: keras.Model, rng: np.random.Generator) -> keras.Model:
    """The model with no constant that a converter could leave out."""
    for layer in model.layers:
        layer.set_weights([value + rng.uniform(0.1, 0.5, value.shape) for value in layer.get_weights()])
    return model


def test_needs_of_one_block_on_paper():
    body = Blocks((Block("sep_conv", 3, 4), Block("mb_conv", 3, 4, expansion=2)), stem_filters=8)
    found = predict_needs(body, (8, 8, 1), 5)
    # stem 9x8, depthwise 9x8, project 8x4, expand 4x8, depthwise 9x8, project 8x4, all on 4 x 4 pixels; dense 4x5
    assert found.macs == 16 * (72 + 72 + 32 + 32 + 72 + 32) + 20
    assert found.flash == 72 + 72 + 32 + 32 + 72 + 32 + 20 + 4 * (8 + 8 + 4 + 8 + 8 + 4 + 5)
    # expand or project while the shortcut is kept: 16 x (4 + 8 + 8) bytes
    assert found.peak_memory == 320


@pytest.mark.parametrize(("space", "shape"), [(SMALL, (28, 28, 1)), (TinySpace(0.2), (75, 48, 3))])
def test_needs_equal_the_cost_of_the_built_network(space, shape):
    body = space.body(space.sample(np.random.default_rng(1)))
    found, cost = predict_needs(body, shape, 7), zoo.cost.of(zoo.build(genotype(body, shape, 7)))
    for name in ("params", "macs", "peak_memory", "flash"):
        assert getattr(found, name) == getattr(cost, name), name


def test_a_thousand_constraint_checks_take_less_than_a_second_of_a_core():
    space, budget, rng = TinySpace(0.5), Budget.from_board("stm32f746"), np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(1000)]
    start = time.process_time()
    reasons = [budget.find_excess(predict_needs(space.body(values), (160, 160, 3), 1000)) for values in drawn]
    assert time.process_time() - start < 1
    assert any(reasons)


def test_a_row_whose_needs_are_unknown_is_refused():
    body = Blocks((Block("mb_conv", 3, 8, expansion=3, se_ratio=0.25),), stem_filters=8)
    with pytest.raises(ValueError, match="without se"):
        predict_needs(body, (32, 32, 3), 10)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "shape"), [(SMALL, (28, 28, 1)), (TinySpace(0.5), (160, 160, 3))])
def test_predicted_arena_and_file_are_hardly_larger_than_measured_ones(space, shape):
    rng = np.random.default_rng(2)
    body = space.body(space.sample(rng))
    found, model = predict_needs(body, shape, 10), randomized(zoo.build(genotype(body, shape, 10)), rng)
    file = tflite.convert(model, quantize="int8", calibration=rng.uniform(0, 1, (2, *shape)).astype(np.float32))
    assert 1 <= found.arena / measure.arena(file).total <= 1.01
    assert 0 < found.arena - planner.plan(file).arena < 500
    assert 1 <= found.file / len(file) <= 1.06


@pytest.mark.slow
def test_largest_random_network_that_fits_a_board_of_320_kb_really_fits():
    space, rng, budget = TinySpace(0.5), np.random.default_rng(3), Budget.from_board("stm32f746")
    bodies = [space.body(space.sample(rng)) for _ in range(300)]
    fitting = [body for body in bodies if budget.find_excess(predict_needs(body, (128, 128, 3), 1000)) is None]
    body = max(fitting, key=lambda one: predict_needs(one, (128, 128, 3), 1000).arena)
    model = randomized(zoo.build(genotype(body, (128, 128, 3), 1000)), rng)
    file = tflite.convert(model, quantize="int8", calibration=rng.uniform(0, 1, (2, 128, 128, 3)).astype(np.float32))
    assert 0.9 * 320 * 1024 < measure.arena(file).total <= 320 * 1024
    assert len(file) <= 1024 * 1024


def test_published_widths_follow_from_half_the_width():
    space = TinySpace(0.5)
    published = zoo.load("mcunet_in3").body
    assert isinstance(published, Blocks)
    assert (space.stem_filters, space.first_filters) == (published.stem_filters, published.rows[0].filters)
    filters = {row.filters for row in published.rows[1:]}
    assert {space.filters(stage, 1.0) for stage in range(6)} == filters


def test_decisions_of_a_block_beyond_the_depth_do_not_count():
    values = SMALL.smallest()
    other = {**values, "stage0/block1/kernel": 7}
    assert SMALL.key(values) == SMALL.key(other)
    assert SMALL.key(values) != SMALL.key({**values, "stage0/block0/kernel": 7})


def test_size_of_the_space_counts_networks_not_values():
    space = TinySpace(kernels=(3, 5), expansions=(3,), depths=(1, 2))
    assert space.size == (2 + 4) ** 5 * 2


def test_bad_choices_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="odd numbers"):
        TinySpace(kernels=(3, 4))
    with pytest.raises(ValueError, match="whole numbers from 2"):
        TinySpace(expansions=(1, 3))


def test_first_stage_takes_the_largest_mean_among_networks_that_fit(tmp_path):
    config = dataclasses.replace(SMOKE, resolutions=(16, 28), widths=(0.15, 0.3), space_networks=40, depths=(1, 2))
    chosen = tinynas.choose_configuration(dataclasses.replace(config, folder=tmp_path), lambda share, text: None)
    assert (tmp_path / "space.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "space.json").read_text())["configurations"]
    assert {(row["resolution"], row["width"]) for row in rows} == {(16, 0.15), (16, 0.3), (28, 0.15), (28, 0.3)}
    means = [row["mean_macs"] for row in rows]
    assert means == sorted(means, reverse=True)
    assert (chosen.resolution, round(chosen.score("mean"))) == (28, means[0])


def test_a_few_lucky_draws_do_not_win_the_first_stage():
    lucky = Configuration(224, 1.0, (900,), 1000)
    solid = Configuration(160, 0.5, (300, 400, 500) * 10, 1000)
    assert rank_configurations([lucky, solid], "mean", 0.01)[0] is solid
    with pytest.raises(ValueError, match="Allow more memory"):
        rank_configurations([lucky], "mean", 0.01)


def test_a_budget_that_no_network_fits_is_refused_even_where_any_share_would_do():
    with pytest.raises(ValueError, match="Allow more memory"):
        rank_configurations([Configuration(16, 0.2, (), 20)], "mean", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("side", [20, 21])
def test_a_sub_network_computes_what_its_own_network_with_inherited_weights_computes(transform, side):
    rng = np.random.default_rng(0)
    net = Supernet(SMALL, 4, 2, kernel_transform=transform)
    weights = (net.initial(0) + rng.normal(0, 0.05, net.packing.size)).astype(np.float32)
    images = rng.normal(size=(6, side, side, 2)).astype(np.float32)
    vector = tf.constant(weights)
    for values in (SMALL.largest(), SMALL.smallest(), SMALL.sample(rng), SMALL.sample(rng)):
        encoded = SMALL.encode(values)
        statistics = net.moments(vector, encoded, images)
        own = genotype(SMALL.body(values), (side, side, 2), 4)
        model = build_standalone(net, weights, statistics.numpy(), values, own)
        np.testing.assert_allclose(model(images), net.infer(vector, statistics, encoded, images), atol=1e-4)
        np.testing.assert_allclose(model(images, training=True), net.logits(vector, encoded, images), atol=1e-4)


@pytest.mark.slow
def test_one_trace_serves_all_sub_networks_and_sorting_channels_changes_no_output_of_the_largest():
    net, rng = Supernet(SMALL, 4, 1), np.random.default_rng(0)
    images = rng.normal(size=(5, 16, 16, 1)).astype(np.float32)
    blank = np.zeros((5, 16, 16, 1), np.float32)
    weights = (net.initial(0) + rng.normal(0, 0.05, net.packing.size)).astype(np.float32)
    scorers = [
        InheritedAccuracy(net, w[None], images[None], images, np.zeros(5))
        for w in (weights, sort_channels(net, weights))
    ]
    large, small = (
        [scorer.predictor(values, scorer.statistics(values))(images).numpy() for scorer in scorers]
        for values in (SMALL.largest(), SMALL.smallest())
    )
    np.testing.assert_allclose(*large, atol=1e-4)
    assert np.abs(small[0] - small[1]).max() > 1e-3
    assert scorers[0]._infer.experimental_get_tracing_count() == 1
    assert not np.allclose(
        net.infer(weights, scorers[0].statistics(SMALL.largest()), SMALL.encode(SMALL.largest()), blank), 0
    )


def test_smaller_kernels_are_the_centre_of_the_largest():
    net = Supernet(SMALL, 4, 1)
    whole: Any = tf.reshape(tf.range(49.0 * 2), [7, 7, 2, 1])
    window = net.cut_window({"block0/depthwise": whole}, "block0", 3, 1)
    np.testing.assert_array_equal(window[..., 0, 0], whole[2:5, 2:5, 0, 0])


def test_learned_kernel_transforms_begin_as_the_centre():
    net = Supernet(SMALL, 4, 1, kernel_transform=True)
    named = {name: tf.constant(value) for name, value in net.packing.unpack(net.initial(0)).items()}
    for kernel in (3, 5, 7):
        edge = (7 - kernel) // 2
        expected = named["block0/depthwise"][edge : edge + kernel, edge : edge + kernel, :3]
        np.testing.assert_allclose(net.cut_window(named, "block0", tf.constant(kernel), 3), expected)


def elastic(steps: int, **options: Any) -> ElasticTraining:
    return ElasticTraining(Supernet(SMALL, 4, 1), dataclasses.replace(SMOKE, **options), steps, (16, 16, 1))


def test_learning_rate_of_each_phase_warms_up_and_falls_to_zero():
    training = elastic(steps=100, largest_epochs=1, elastic_epochs=2, supernet_rate=0.05)
    assert training.rate(0) == pytest.approx(0.05 / 10)
    assert training.rate(9) == pytest.approx(0.05, rel=0.05)
    assert training.rate(99) == pytest.approx(0, abs=2e-5)
    assert training.rate(200) == pytest.approx(0.025)


def test_steps_draw_by_their_number_alone_and_a_sandwich_has_the_largest_and_the_smallest():
    training = elastic(5, largest_epochs=1, elastic_epochs=1, networks=4, sampling="sandwich", seed=3)
    np.testing.assert_array_equal(training.choose(4), [SMALL.encode(SMALL.largest())])
    drawn = training.choose(7)
    np.testing.assert_array_equal(drawn[0], SMALL.encode(SMALL.largest()))
    np.testing.assert_array_equal(drawn[1], SMALL.encode(SMALL.smallest()))
    np.testing.assert_array_equal(drawn, training.choose(7))
    assert not np.array_equal(drawn, training.choose(8))


def test_fair_steps_have_each_choice_of_a_decision_equally_often():
    space = dataclasses.replace(SMALL, kernels=(3, 5), expansions=(2, 3, 4, 6))
    drawn = draw_fairly(space, 4, np.random.default_rng(0))
    for decision in space.decisions:
        counts = [sum(values[decision.name] == choice for values in drawn) for choice in decision.choices]
        assert counts == [4 // len(decision.choices)] * len(decision.choices)
    assert drawn != draw_fairly(space, 4, np.random.default_rng(1))


@pytest.mark.slow
def test_several_supernets_score_by_the_mean_of_what_each_says():
    net, rng = Supernet(SMALL, 4, 1), np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 16, 16, 1)).astype(np.float32), np.arange(6) % 4
    weights = np.stack([net.initial(seed) for seed in (0, 1)])
    alone = [InheritedAccuracy(net, each[None], images[None], images, labels) for each in weights]
    together = InheritedAccuracy(net, weights, images[None], images, labels)
    expected = np.mean([scorer(SMALL.smallest()) for scorer in alone], axis=0)
    np.testing.assert_allclose(together(SMALL.smallest()), expected)


def test_a_loss_that_is_not_a_number_stops_the_training_with_the_remedy():
    training = elastic(5, largest_epochs=1)
    training._gradient = lambda *arguments: (tf.constant(float("nan")), None, tf.zeros_like(training.weights))
    before = training.weights.numpy()
    with pytest.raises(FloatingPointError, match="learning rate"):
        training.take_step(0, np.zeros((2, 16, 16, 1)), np.zeros(2))
    np.testing.assert_array_equal(training.weights.numpy(), before)


def test_an_unknown_board_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'stm23' is unknown; expected one of tiny, stm32f412"):
        dataclasses.replace(SMOKE, board="stm23")


def test_a_config_that_learns_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing would be learnt"):
        dataclasses.replace(SMOKE, largest_epochs=0, elastic_epochs=0)


def quiet(status: Any) -> None:
    pass


@pytest.mark.slow
def test_the_result_is_a_genotype_file_that_builds_and_an_int8_file_that_fits(tmp_path):
    found = tinynas.search(dataclasses.replace(SMOKE, folder=tmp_path), observe=quiet)
    result = json.loads((tmp_path / "result.json").read_text())
    model = zoo.build(str(tmp_path / "genotype.json"))
    assert zoo.load(tmp_path / "genotype.json") == found
    assert model.output_shape == (None, 10)
    assert model.count_params() == result["predicted"]["params"]
    assert result["measured"]["by"] == "TFLM"
    assert result["measured"]["fits"]
    assert 1 <= result["predicted"]["arena"] / result["measured"]["arena"] <= 1.02
    assert 1 <= result["predicted"]["file"] / result["measured"]["file"] <= 1.06
    assert len(result["random"]["test_accuracies"]) == SMOKE.random_networks
    kept = keras.saving.load_model(tmp_path / "model.keras")
    assert kept.input_shape == model.input_shape
    origin = find_origin(tmp_path / "model.keras")
    assert (origin.data, origin.image_size) == (SMOKE.data, model.input_shape[1:3])
    assert origin.normalization
    assert len(find_class_names(tmp_path / "model.keras") or ()) == 10


@pytest.mark.slow
def test_a_killed_search_resumes_at_the_saved_step_and_ends_as_one_that_was_not(tmp_path, project):
    options = {"save_seconds": 0.0, "random_networks": 0, "elastic_epochs": 6}
    whole = tinynas.search(dataclasses.replace(SMOKE, folder=tmp_path / "whole", **options), observe=quiet)
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "recipes.tinynas", "--preset=smoke", f"--folder={folder}", "--save_seconds=0"]
    command += ["--random_networks=0", "--elastic_epochs=6"]
    kill_when(command, project, lambda: step_of(folder) >= 7)
    assert step_of(folder) < 21
    assert not (folder / "journal.jsonl").exists()
    again = tinynas.search(dataclasses.replace(SMOKE, folder=folder, **options), observe=quiet)
    assert again.body == whole.body
    assert again.source["score"] == whole.source["score"]
    ends = [np.load(tmp_path / name / "supernet.npz")["vector0"] for name in ("whole", "killed")]
    np.testing.assert_array_equal(*ends)


def step_of(folder: Path) -> int:
    """How many steps the saved state has."""
    try:
        with (folder / "supernet.npz").open("rb") as stream, np.load(stream) as found:
            return json.loads(found["header"].tobytes())["facts"]["step"]
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_distillation_and_random_sampling_learn_too():
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(8, 16, 16, 1)), np.arange(8) % 4
    with tensorflow_options.without_rewrites():
        training = elastic(1, largest_epochs=1, elastic_epochs=9, networks=2, sampling="random", distillation=0.5)

        def loss_of_the_largest() -> float:
            logits = training.net.logits(training.weights, training.choose(0)[0], tf.constant(batch[0], tf.float32))
            return float(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)))

        before = loss_of_the_largest()
        for step in range(10):
            training.take_step(step, *batch)
    assert loss_of_the_largest() < before


@pytest.mark.slow
def test_dry_run_at_the_size_of_the_paper(tmp_path, capsys):
    config = dataclasses.replace(
        tinynas.PRESETS["paper"], dry_run=True, space_networks=20, least_share=0.1, folder=tmp_path
    )
    found = tinynas.search(config, observe=quiet)
    text = capsys.readouterr().out
    assert "steps" in text
    assert zoo.cost.of(zoo.build(found)).peak_memory < 320 * 1024


@pytest.mark.slow
def test_a_dry_run_times_steps_of_one_sub_network_also_where_the_search_never_trains_one_alone(tmp_path, monkeypatch):
    counts, choose = [], ElasticTraining.choose

    def count(training: ElasticTraining, step: int) -> list[np.ndarray]:
        chosen = choose(training, step)
        counts.append(len(chosen))
        return chosen

    monkeypatch.setattr(ElasticTraining, "choose", count)
    config = dataclasses.replace(SMOKE, dry_run=True, largest_epochs=0, networks=3, folder=tmp_path)
    tinynas.search(config, observe=quiet)
    assert counts == [1, 1]


def test_random_networks_end_when_a_small_space_has_no_more_that_fit(monkeypatch):
    space = TinySpace(0.15, SMALL_STRIDES, kernels=(3, 5), expansions=(2, 3), depths=(1,), stages=1)
    nothing: Any = None
    net: Any = types.SimpleNamespace(space=space)
    scorer = SubNetworks(SMOKE, nothing, "mcunet", {}, nothing, net, nothing)
    monkeypatch.setattr(
        SubNetworks, "check", lambda self, values: "big" if values["stage0/block0/kernel"] > 3 else None
    )
    found = list(scorer.sample_fitting())
    assert space.size == 4
    assert sorted(values["stage0/block0/expansion"] for values in found) == [2, 3]


@pytest.mark.parametrize(
    ("score", "objective", "ranked"), [("accuracy", "max", [0.5, 0.6]), ("loss", "min", [-1.0, -2.0])]
)
def test_sub_networks_are_ranked_by_what_the_search_scores(score: Any, objective: str, ranked: list[float]):
    config = dataclasses.replace(SMOKE, score=score, seed=7)
    nothing: Any = None
    scorer = SubNetworks(config, nothing, "mcunet", {}, nothing, nothing, nothing)
    scorer.__dict__["inherited_accuracy"] = {"a": Scores(0.5, 1.0), "b": Scores(0.6, 2.0)}.get
    assert list(scorer.objectives.values()) == [objective]
    networks: Any = ["a", "b"]
    assert scorer.rank(networks) == [(7, ranked)]
