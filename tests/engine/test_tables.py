"""Tables of trained networks: read right, and searched in seconds."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import table_search
from recipes import tables

FILES = ("nas-bench-201_cifar10_12epochs.csv", "nas-bench-macro_cifar10.json")


@pytest.fixture(scope="module", params=FILES)
def table(request, reference) -> tables.Table:
    return tables.load(reference / "tables" / request.param)


def test_a_table_of_nas_bench_201_holds_what_its_lines_say(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(
        "cellstr,cifar10-val,cifar10-test\n"
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|,63.5,69.25\n"
    )
    table = tables.load(path)
    names = ["node1/from0", "node2/from0", "node2/from1", "node3/from0", "node3/from1", "node3/from2"]
    ops = ["avg_pool_3x3", "nor_conv_1x1", "skip_connect", "none", "nor_conv_3x3", "skip_connect"]
    assert table.size == 1
    assert table.levels == (("node3/from0",), ("node2/from0", "node3/from2"), (names[0], names[2], names[4]))
    assert table.evaluate(dict(zip(names, ops, strict=True))) == (63.5, 69.25)
    with pytest.raises(ValueError, match="has no network"):
        table.evaluate(dict.fromkeys(names, "none"))
    # the input pooled and convolved 3x3; pooled alone; convolved 1x1
    paths = {(1, "avg_pool_3x3", "conv_3x3"): 1, (1, "avg_pool_3x3"): 1, (1, "conv_1x1"): 1}
    counts = {"avg_pool_3x3": 1, "conv_1x1": 1, "conv_3x3": 1, "skip_connect": 2, "add": 3}
    assert table.count_features(dict(zip(names, ops, strict=True))) == paths | counts
    # 15 cells, in each a 1x1 and a 3x3 convolution of 16 filters at 32 x 32 or as much; two residual blocks of twice
    # the filters at half the size: 3x3, 3x3 and 1x1; 3x3 of the stem; 64 x 10 of the classifier
    residual = 2 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * 16 * 16
    macs = table.metrics["macs"]
    assert macs.flat[np.flatnonzero(macs > 0)] == (
        15 * 10 * 16 * 16 * 32 * 32 + residual * 1 + 9 * 3 * 16 * 32 * 32 + 640
    )


def test_a_table_with_learning_curves_gives_each_rung_its_epochs(tmp_path):
    path = tmp_path / "table.csv"
    cell = "|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|"
    path.write_text(f"cellstr,cifar10-val,cifar10-test,cifar10-val@1,cifar10-val@3\n{cell},63.5,69.25,20.5,41.0\n")
    table = tables.load(path)
    values = dict.fromkeys([decision.name for decision in table.decisions], "none") | {"node3/from0": "nor_conv_1x1"}
    rungs = [table.evaluate(values | {"tuner/epochs": epochs}) for epochs in (1, 3, 9)]
    assert rungs == [(20.5, 69.25), (41.0, 69.25), (63.5, 69.25)]
    assert table.measure(values) == {"val_accuracy": 63.5, "macs": table.metrics["macs"][0, 0, 0, 2, 0, 0]}
    with pytest.raises(ValueError, match=r"no validation accuracy after 2 epochs, but after \[1, 3\]"):
        table.evaluate(values | {"tuner/epochs": 2})
    path.write_text(f"cellstr,cifar10-val,cifar10-test\n{cell},63.5,69.25\n")
    with pytest.raises(ValueError, match="after 9 epochs, but only at the end"):
        tables.load(path).evaluate(values | {"tuner/epochs": 9})


def test_random_draws_among_the_largest_networks_have_the_expectation_that_counting_gives(tmp_path):
    # a tenth of nine networks is one, and another has as many MACs
    records = {f"{a}{b}": {"test_acc": [1, 50, 50], "flops": 10 * (a + b)} for a in range(3) for b in range(3)}
    records["22"] = {"test_acc": [5, 60, 60], "flops": 90}
    records["12"] = {"test_acc": [7, 40, 40], "flops": 90}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(records))
    table = tables.load(path)
    assert [table.random_largest(draws) for draws in (1, 2, 3)] == [50.0, 40.0, None]
    del records["00"]["flops"]
    path.write_text(json.dumps(records))
    assert tables.load(path).random_largest(1) is None


def test_a_table_of_nas_bench_macro_selects_on_the_first_run_and_reports_the_others(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"02": {"test_acc": [90.0, 91.0, 93.0]}, "11": {"test_acc": [80.0, 81.0, 81.0]}}))
    table = tables.load(path)
    assert table.evaluate({"layer0": "identity", "layer1": "mb_conv_k5_e6"}) == (90.0, 92.0)
    assert table.size == 2
    assert table.levels == (("layer0",), ("layer1",))


def test_random_search_has_the_expectation_that_counting_gives(tmp_path):
    accuracies = {"00": (3, 30), "01": (1, 10), "02": (4, 25), "10": (2, 50)}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({key: {"test_acc": [v, t, t]} for key, (v, t) in accuracies.items()}))
    table = tables.load(path)
    pairs = list(itertools.combinations(accuracies.values(), 2))
    assert table.random_search(2) == pytest.approx(sum(max(pair)[1] for pair in pairs) / len(pairs))
    assert table.random_search(1) == pytest.approx((30 + 10 + 25 + 50) / 4)
    assert table.random_search(4) == 25
    with pytest.raises(ValueError, match="expected 1 to 4"):
        table.random_search(5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1,2\n", r"columns \['a', 'b'\]"),
        ("t.csv", "cellstr,cifar10-val,cifar10-test\n|none~0|,1,2\n", "line 2.*not a cell"),
        ("t.json", "[1]", "holds no JSON object"),
        ("t.json", '{"03": {"test_acc": [1, 2, 3]}}', "network '03'"),
        (
            "t.json",
            '{"01": {"test_acc": [1, 2]}, "1": {"test_acc": [1, 2]}}',
            "network '1': .*1 digits where others have 2",
        ),
        ("t.json", "{", "not JSON"),
        ("t.txt", "", "expected a name that ends in .csv or .json"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_place(tmp_path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        tables.load(tmp_path / name)


def test_the_reference_tables_are_complete(table):
    assert table.size == {"NAS-Bench-201": 15_625, "NAS-Bench-Macro": 6_561}[table.name]
    with pytest.raises(ValueError, match="expected one of"):
        table.evaluate(dict.fromkeys([decision.name for decision in table.decisions], "conv_9x9"))


def test_drawing_at_random_agrees_with_the_exact_expectation(table):
    means, errors = table_search.repeat_search(table_search.uniform, table, (50,), range(60))
    assert abs(means[0] - table.random_search(50)) < 3.5 * errors[0]


def test_aging_evolution_beats_random_search_at_200_evaluations(table):
    means, errors = table_search.repeat_search(table_search.plain_evolution, table, (200,), range(12))
    assert means[0] - 2 * errors[0] > table.random_search(200)
