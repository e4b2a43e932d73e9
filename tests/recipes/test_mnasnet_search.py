"""The MnasNet search: its space, its reward, latencies that are measured once, and the recipe."""

import dataclasses
import json
import sys
import types
from typing import Any

import keras
import numpy as np
import pytest

import zoo
from recipes import measure_latencies, mnasnet
from recipes.engine import children as child_networks
from recipes.engine import latency
from recipes.mnasnet import SMALL_STRIDES, STRIDES, BlockSpace
from recipes.training.progress import Status
from tests.recipes.killed_search import kill_and_resume, outcome
from zoo.genotype import Block

SMOKE = mnasnet.PRESETS["smoke"]
SHAPE = (8, 8, 1)


def small_space() -> BlockSpace:
    return mnasnet.make_space(SMOKE)


def write_table(path, space: BlockSpace, milliseconds: float = 0.5):
    names = [name for name, _ in mnasnet.iterate_layers(space, SHAPE, 10)]
    path.write_text(json.dumps({"machine": "a phone", "milliseconds": dict.fromkeys(names, milliseconds)}))
    return path


def test_each_block_has_the_432_architectures_of_the_paper():
    space = BlockSpace()
    # 4 operations, 2 kernels, squeeze-and-excite or none, 3 skips, 3 widths, 3 numbers of layers
    in_block1 = [decision for decision in space.decisions if decision.name.startswith("block1/")]
    assert np.prod([len(decision.choices) for decision in in_block1]) == 4 * 2 * 2 * 3 * 3 * 3 == 432
    # the two blocks of one layer cannot have none
    assert space.size == 432**5 * 288**2


def test_the_middle_of_the_space_is_mobilenet_v2():
    space = BlockSpace()
    body = space.body(space.mobilenet_v2())
    assert [(row.filters, row.repeats, row.strides) for row in body.rows] == [
        (16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1),
    ]  # fmt: skip
    assert [row.expansion for row in body.rows] == [1, 6, 6, 6, 6, 6, 6]
    assert (body.stem_filters, body.head_filters) == (32, 1280)
    network = zoo.build(zoo.Genotype("mobilenet_v2", "mnasnet", body), input_shape=(224, 224, 3), classes=1000)
    assert zoo.cost.of(network).trainable_params == 3_504_872  # torchvision's mobilenet_v2


def test_mnasnet_a1_lies_in_the_space_but_for_its_112_filters():
    space, published = BlockSpace(), zoo.load("mnasnet_a1").body
    found = {}
    widths = (1.0, 1.0, 1.25, 1.25, 1.25, 1.0, 1.0)
    for number, (row, base, width) in enumerate(zip(published.rows, (1, 2, 3, 4, 3, 3, 1), widths, strict=True)):
        op = "sep_conv" if row.op == "sep_conv" else f"mb_conv_e{row.expansion}"
        chosen = {"op": op, "kernel": row.kernel_size, "se": row.se_ratio, "skip": row.skip, "filters": width}
        found |= {f"block{number}/{kind}": value for kind, value in chosen.items()}
        found[f"block{number}/layers"] = row.repeats - base
    assert all(found[decision.name] in decision.choices for decision in space.decisions)
    rows = list(published.rows)
    rows[4] = dataclasses.replace(rows[4], filters=120)
    assert space.body(found).rows == tuple(rows)


def test_networks_that_only_read_differently_are_one():
    space = BlockSpace()
    values = space.mobilenet_v2()
    # the first layer of block 6 changes the width, and it has no other: an identity cannot be
    assert space.key(values) == space.key(values | {"block6/skip": "none"})
    assert space.key(values) != space.key(values | {"block6/skip": "pool"})
    assert space.key(values) != space.key(values | {"block6/kernel": 5})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"strides": (1, 2)}, "7 numbers"), ({"width": 0.0}, "width is 0.0"), ({"divisor": 0}, "divisor is 0")],
)
def test_a_space_that_cannot_be_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        BlockSpace(**options)


def test_the_soft_reward_falls_by_seven_percent_of_the_logarithm():
    # a network of twice the latency is as good with 5 % more accuracy (the paper's section 3)
    assert mnasnet.reward(0.6, 75.0, 75.0, -0.07, -0.07) == 0.6
    assert mnasnet.reward(0.6, 150.0, 75.0, -0.07, -0.07) == pytest.approx(0.6 * 2**-0.07)
    slower, faster = (mnasnet.reward(*pair, 75.0, -0.07, -0.07) for pair in ((0.63, 150.0), (0.6, 75.0)))
    assert slower == pytest.approx(faster, rel=1e-3)
    assert mnasnet.reward(0.6, 37.5, 75.0, -0.07, -0.07) == pytest.approx(0.6 * 2**0.07)


def test_the_hard_reward_is_the_accuracy_up_to_the_target_and_falls_in_proportion_beyond():
    assert mnasnet.reward(0.6, 10.0, 75.0, 0.0, -1.0) == 0.6
    assert mnasnet.reward(0.6, 75.0, 75.0, 0.0, -1.0) == 0.6
    assert mnasnet.reward(0.6, 150.0, 75.0, 0.0, -1.0) == pytest.approx(0.3)


def test_a_latency_is_measured_once_also_by_the_next_process(tmp_path):
    asked = []

    def measure(model):
        asked.append(model)
        return 3.0 + len(asked)

    first = latency.MeasuredLatencies(tmp_path, {"size": 8}, measure)
    assert [first("a", lambda: "model a"), first("b", lambda: "model b"), first("a", lambda: "model a")] == [
        4.0,
        5.0,
        4.0,
    ]
    first.close()
    again = latency.MeasuredLatencies(tmp_path, {"size": 8}, measure)
    assert again("b", lambda: pytest.fail("was built again")) == 5.0
    again.close()
    assert asked == ["model a", "model b"]
    with pytest.raises(ValueError, match="size 8 then, 9 now"):
        latency.MeasuredLatencies(tmp_path, {"size": 9}, measure)


def test_a_larger_network_takes_longer_and_two_measurements_agree():
    def network(filters: int) -> keras.Model:
        image = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(filters, 3, padding="same")(image)
        return keras.Model(image, keras.layers.Conv2D(filters, 3, padding="same")(x))

    small, large = latency.measure_latency(network(8)), latency.measure_latency(network(64))
    assert large > 4 * small > 0  # of multiply-adds it has 50 times as many
    assert latency.measure_latency(network(64)) == pytest.approx(large, rel=0.5)


def test_names_of_a_table_tell_size_and_kind_of_each_layer():
    space = BlockSpace(0.25, 0.1, SMALL_STRIDES, 2)
    body = space.body(space.mobilenet_v2() | {"block1/layers": 1, "block1/se": 0.25})
    assert latency.name_layers(body, (28, 28, 1), 10) == [
        "stem 28x28x1 8",
        "14x14x8 sep_conv k3 s1 se0 none 4",
        "14x14x4 mb_conv k3 s1 m24 se0.25 none 6",
        "14x14x6 mb_conv k3 s1 m36 se0.25 identity 6",
        "14x14x6 mb_conv k3 s2 m36 se0 none 8",
        "7x7x8 mb_conv k3 s1 m48 se0 none 16",
        "7x7x16 mb_conv k3 s1 m96 se0 none 24",
        "7x7x24 mb_conv k3 s2 m144 se0 none 40",
        "4x4x40 mb_conv k3 s1 m240 se0 none 80",
        "head 4x4x80 320 10",
    ]


def test_a_table_has_every_layer_of_every_network_of_its_space():
    space, rng = BlockSpace(0.25, 0.4, SMALL_STRIDES, 2), np.random.default_rng(0)
    known = {name for name, _ in mnasnet.iterate_layers(space, (28, 28, 1), 10)}
    for _ in range(50):
        values = {decision.name: decision.choices[rng.integers(len(decision.choices))] for decision in space.decisions}
        assert known.issuperset(latency.name_layers(space.body(values), (28, 28, 1), 10))


def test_the_latency_of_a_table_is_the_sum_of_the_layers():
    block = Block("sep_conv", 3, 16)
    body = zoo.load("mnasnet_a1").body
    body = dataclasses.replace(body, rows=(block,), head_filters=None)
    names = ["stem 224x224x3 32", "112x112x32 sep_conv k3 s1 se0 none 16", "head 112x112x16 none 1000"]
    table = latency.LatencyTable("a phone", dict(zip(names, (1.0, 2.5, 0.25), strict=True)))
    assert table.latency(body, (224, 224, 3), 1000) == 3.75
    with pytest.raises(ValueError, match=r"a phone lacks 3 .*did you mean 'stem 224x224x3 32'"):
        table.latency(body, (192, 192, 3), 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a table of latencies"),
        ('{"machine": "a", "milliseconds": {"stem": -1}}', "'stem' is -1"),
        ('{"machine": "a", "milliseconds": {"stem": true}}', "'stem' is True"),
    ],
)
def test_a_damaged_table_is_refused_with_the_place(tmp_path, text: str, message: str):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        latency.LatencyTable.load(path)


@pytest.fixture(scope="module")
def tabled(tmp_path_factory):
    """A search by a table, and its folder; the same whenever it is run."""
    folder = tmp_path_factory.mktemp("tabled")
    table = write_table(folder / "table.json", small_space())
    config = dataclasses.replace(SMOKE, folder=folder / "run", latency_table=table, target=2.0, trials=2)
    return mnasnet.search(config, observe=lambda status: None), config


def test_a_search_writes_a_genotype_that_tells_latency_target_and_reward(tabled):
    genotype, config = tabled
    assert zoo.load(config.folder / "genotype.json") == genotype
    source = genotype.source
    assert source["recipe"] == "recipes/mnasnet.py"
    assert (source["target_ms"], source["latency_of"], source["score_name"]) == (2.0, "a phone", "reward")
    metrics = source["metrics"]
    # stem, layers and head, half a ms each
    layers = 2 + sum(row.repeats for row in genotype.body.rows)
    assert metrics["latency_ms"] == pytest.approx(0.5 * layers)
    expected = metrics["val_accuracy"] * (metrics["latency_ms"] / 2.0) ** -0.07
    assert source["score"] == metrics["reward"] == pytest.approx(expected)
    assert max(record[2]["reward"] for record in outcome(config.folder) if len(record) == 3) == source["score"]


def test_the_result_builds_as_searched_without_sizes_being_given_and_wider(tabled):
    genotype, _ = tabled
    searched, double = zoo.build(genotype), zoo.build(genotype, "double")
    assert searched.input_shape == (None, *SHAPE)
    assert searched.output_shape == double.output_shape == (None, 10)
    assert searched.count_params() == genotype.source["metrics"]["params"] < double.count_params()


def test_the_pareto_front_is_a_folder_of_genotypes(tabled):
    genotype, config = tabled
    front = json.loads((config.folder / "pareto" / "front.json").read_text())
    assert front["objectives"] == {"val_accuracy": "max", "latency_ms": "min"}
    trials = [record for record in outcome(config.folder) if len(record) == 3]
    best = max(metrics["val_accuracy"] for _, _, metrics in trials)
    assert front["front"][0]["val_accuracy"] == best
    latencies = [entry["latency_ms"] for entry in front["front"]]
    assert latencies == sorted(latencies, reverse=True)
    files = [entry["file"] for entry in front["front"]]
    assert sorted(path.name for path in (config.folder / "pareto").glob("trial_*.json")) == sorted(files)
    assert zoo.load(config.folder / "pareto" / files[0]).source["metrics"]["val_accuracy"] == best
    assert genotype.family == "mnasnet"


@pytest.fixture
def untrained(monkeypatch):
    """Networks are built and scored, but not trained."""

    def train(build, *parts, seed, **options) -> dict[str, float]:
        return {"val_accuracy": seed % 1000 / 1000, "params": float(build().count_params())}

    monkeypatch.setattr(child_networks.child_training, "train", train)


@pytest.mark.slow
def test_a_search_made_longer_measures_nothing_again_and_keeps_its_target(tmp_path, monkeypatch, untrained):
    measured = []
    monkeypatch.setattr(
        latency.MeasuredLatencies.__init__, "__defaults__", (lambda model: measured.append(model.name) or 0.25,)
    )
    config = dataclasses.replace(SMOKE, folder=tmp_path, trials=1, algorithm="random")
    short = mnasnet.search(config, observe=lambda status: None)
    assert len(measured) == 2  # MobileNetV2 for the target, and the one trial's
    seen: list[Status] = []
    longer = mnasnet.search(dataclasses.replace(config, trials=2), observe=seen.append)
    assert len(measured) == 3
    assert seen[0].done == 1
    assert longer.source["target_ms"] == short.source["target_ms"] == 0.25
    assert longer.source["metrics"]["reward"] == longer.source["metrics"]["val_accuracy"]  # all are at the target


def test_a_table_that_lacks_layers_is_refused_before_a_trial(tmp_path):
    table = write_table(tmp_path / "table.json", small_space())
    record = json.loads(table.read_text())
    record["milliseconds"].popitem()
    table.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="lacks 1 of the layers"):
        mnasnet.search(dataclasses.replace(SMOKE, folder=tmp_path / "run", latency_table=table))
    assert not (tmp_path / "run").exists()


def check_limits(latency_ms: float = 1.25, **limits: float | None) -> str | None:
    """Asks a search with these limits about MobileNetV2; its latency is what a table says."""
    space = small_space()
    images: Any = types.SimpleNamespace(classes=10, input_shape=SHAPE)
    table: Any = types.SimpleNamespace(latency=lambda *network: latency_ms or pytest.fail("asked"))
    config = dataclasses.replace(SMOKE, **limits)
    scorer = child_networks.NetworkScorer(config, space, "mnasnet", {"search": {}}, images, latencies=table)
    return scorer.check(space.mobilenet_v2())


@pytest.mark.parametrize("limit", ["params", "macs", "sram", "flash", "latency"])
def test_each_limit_refuses_the_network_just_above_it_with_the_value(limit: str):
    def check(most: float) -> str | None:
        return check_limits(**{f"max_{limit}": most if limit == "latency" else int(most)})

    space = small_space()
    genotype = zoo.Genotype("small", "mnasnet", space.body(space.mobilenet_v2()))
    cost = zoo.cost.of(zoo.build(genotype, classes=10, input_shape=SHAPE))
    value = {"params": cost.params, "macs": cost.macs, "latency": 1.25}.get(limit)
    if value is not None:
        assert check(value) is None
        assert check(0.99 * value)
        return
    # The file's own size and arena, which the prediction from the graph is below of
    predicted = cost.peak_memory if limit == "sram" else cost.flash
    assert "predicted" in str(check(predicted - 1))
    exact = check(predicted)
    assert exact is not None
    assert "predicted" not in exact
    needed = int(exact.split()[0].replace(",", ""))
    assert predicted < needed < 10 * predicted + 50_000
    assert check(needed) is None
    assert check(needed - 1)


def test_a_latency_is_not_asked_for_where_another_limit_settles_it():
    assert check_limits(latency_ms=0.0, max_params=10, max_latency=1.0)


@pytest.mark.slow
def test_networks_over_the_latency_limit_are_redrawn_and_never_trained(tmp_path, untrained):
    table = write_table(tmp_path / "table.json", small_space())
    # 9 layers in all where each block has one: 4.5 ms; a second layer in two blocks makes 5.5 ms
    config = dataclasses.replace(
        SMOKE, folder=tmp_path / "run", latency_table=table, target=5.0, max_latency=5.5, trials=1, epochs=1
    )
    seen: list[Status] = []
    mnasnet.search(config, observe=seen.append)
    records = [json.loads(line) for line in (config.folder / "journal.jsonl").read_text().splitlines()[1:]]
    refused = [record for record in records if "refused" in record]
    assert refused
    assert all(record["message"].endswith("ms, more than 5.5") for record in refused)
    assert all(record["metrics"]["latency_ms"] <= 5.5 for record in records if "end" in record)
    assert any("refused, the last for" in status.text for status in seen)


def test_the_papers_space_has_the_papers_strides():
    assert mnasnet.make_space(mnasnet.PRESETS["paper"]).strides == STRIDES == (1, 2, 2, 2, 1, 2, 1)


@pytest.mark.slow
def test_a_dry_run_at_the_papers_scale_needs_no_data_and_prints_what_the_search_would_need(tmp_path, capsys):
    config = dataclasses.replace(mnasnet.PRESETS["paper"], folder=tmp_path, dry_run=True)
    genotype = mnasnet.search(config)
    printed = capsys.readouterr().out
    assert "8,000 trials" in printed
    assert "GiB for a network in training" in printed
    assert {row.kernel_size for row in genotype.body.rows} == {5}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_table_measured_on_this_machine_resumes_and_serves_a_search(tmp_path):
    config = dataclasses.replace(measure_latencies.PRESETS["smoke"], folder=tmp_path, most=2)
    first = measure_latencies.measure(config, observe=lambda status: None)
    table = measure_latencies.measure(dataclasses.replace(config, most=4), observe=lambda status: None)
    assert len(table.milliseconds) == 4
    assert dict(list(table.milliseconds.items())[:2]) == first.milliseconds
    assert latency.LatencyTable.load(tmp_path / "table.json") == table


@pytest.mark.slow
def test_a_search_killed_in_the_middle_resumes_to_the_same_trials_and_scores(tabled, tmp_path, project):
    genotype, config = tabled
    command = [sys.executable, "-m", "recipes.mnasnet", "--preset=smoke", "--target=2", "--trials=2"]
    command += [f"--folder={tmp_path}", f"--latency_table={config.latency_table}"]
    kill_and_resume(command, tmp_path, project, b'"start":1')
    assert outcome(tmp_path) == outcome(config.folder)
    assert zoo.load(tmp_path / "genotype.json").body == genotype.body


def test_a_data_set_that_is_not_there_is_an_error_unless_nothing_is_learned(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = dataclasses.replace(mnasnet.PRESETS["paper"], image_size=32)
    with pytest.raises(ValueError, match="imagenet2012"):
        child_networks.load_images(config)
    images = child_networks.load_images(dataclasses.replace(config, dry_run=True))
    assert (images.input_shape, images.classes, len(images.train)) == ((32, 32, 3), 1000, 1_231_167)
