"""The reproduction cards: their statistics by hand, what they say of half-finished searches, and that they repeat."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorflow.core.util import event_pb2

import zoo
from recipes import _main, amoebanet, report
from recipes.cards import compare, read, tensorboard_logs
from recipes.cards.card import make_card, write_card
from recipes.engine import tuner


def make_search(folder: Path, scores: list, algorithm: str = "evolution", seed: int = 0, **options) -> Path:
    """Writes the folder of a search whose trials take 10 s each; a score of None is a trial that failed.

    Options: "starts", "macs" and "epochs" for each trial; "message" of those that failed; "seconds" of each; "choices",
    "header", "planned", "config", "images" and "space" of the search.
    """
    header = {"journal": 1, "oracle": "AgingEvolution", "objective": ["val_accuracy", "max"], "seed": seed}
    header |= {"choices": options.get("choices", {"op": 3}), "recipe": "amoebanet", "algorithm": algorithm}
    lines = [header | options.get("header", {})]
    for number, score in enumerate(scores):
        status = "INVALID" if score is None else "COMPLETED"
        metrics = {} if score is None else {"val_accuracy": score, "loss": 1.0, "params": 1000.0 * (number + 1)}
        metrics |= {name: options[name][number] for name in ("macs", "epochs") if name in options}
        lines.append(
            {"start": number} | (options["starts"][number] if "starts" in options else {"genome": [number % 3]})
        )
        end = {"end": number, "status": status, "metrics": metrics, "seconds": options.get("seconds", 10.0)}
        lines.append(end | ({"message": options.get("message", "")} if score is None else {}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    planned = options.get("planned", len(scores))
    config = amoebanet.Config(
        trials=planned, algorithm=algorithm, seed=seed, folder=folder, **options.get("config", {})
    )  # pyright: ignore[reportArgumentType]
    images = options.get("images", {"training": 2000, "validation": 1000})
    read.write_about(config, "amoebanet", images, options.get("space"))
    if planned == len(scores):
        zoo.save(dataclasses.replace(zoo.load("amoebanet_a"), source={"stopped": "done"}), folder / "genotype.json")
    return folder


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_expectation_of_the_best_is_the_mean_over_all_ways_to_draw(draws: int, sign: int):
    scores = [0.3, 0.1, 0.9, 0.4]
    best = [max(drawn) if sign > 0 else min(drawn) for drawn in itertools.combinations(scores, draws)]
    found = compare.expected_best(scores, draws, sign)
    assert found.mean == pytest.approx(np.mean(best))
    assert found.std == pytest.approx(np.std(best), abs=1e-9)


def test_the_largest_random_networks_are_a_baseline_of_their_own(tmp_path):
    search = make_search(tmp_path / "a", [0.95] * 2)
    macs = [17, 19, 18, *range(9)]
    random = make_search(tmp_path / "b", [number / 20 for number in range(12)], "random", macs=macs)
    write_card([search], [random])
    # the quarter with the most MACs: 0, 1 and 2, of which two are drawn; the best of two is 2, 2 or 1 twentieths
    compared = json.loads((search / "card" / "card.json").read_text())["comparison"]
    assert compared["largest"] == {
        "networks": [3], "of": [12], "draws": [2], "mean": pytest.approx(5 / 60, abs=1e-6), "std": None,
        "values": [pytest.approx(5 / 60, abs=1e-6)], "network": 0.05,
    }  # fmt: skip
    page = (search / "card" / "card.md").read_text()
    assert "| mean of the 3 of 12 random networks with the most MACs | 0.0500 |" in page
    assert "| random among them, expected best of 2 | 0.0833 |" in page
    assert "took no search" in page
    assert "lower bound" not in page
    longer = make_search(tmp_path / "c", [0.95] * 5)
    page = write_card([longer], [random]).read_text()
    assert "The budget allows 5 of them and 3 were trained: a lower bound." in page


def test_networks_of_unknown_size_are_no_such_baseline(tmp_path):
    search, random = make_search(tmp_path / "a", [0.5]), make_search(tmp_path / "b", [0.5] * 12, "random")
    page = write_card([search], [random]).read_text()
    assert "MACs" not in page


def test_more_draws_than_scores_are_refused():
    with pytest.raises(ValueError, match="best of 5 draws from 2 scores"):
        compare.expected_best([0.1, 0.2], 5)


def test_gain_over_random_search_with_seeds_in_pairs_and_without():
    best, random = [0.8, 0.9, 0.7], [0.7, 0.7, 0.7]
    # differences 0.1, 0.2, 0.0: deviation 0.1
    assert compare.measure_gain(best, random, paired=True) == pytest.approx((0.1, 0.1 / 3**0.5))
    apart, error = compare.measure_gain(best, [0.6, 0.8], paired=False)
    assert apart == pytest.approx(0.1)
    assert error == pytest.approx((0.1**2 / 3 + 0.02 / 2) ** 0.5)
    assert compare.measure_gain([2.0], [3.0], paired=True, sign=-1) == (1.0, None)


@pytest.mark.parametrize(
    ("one", "other", "tau"),
    [
        ([0.1, 0.5, 0.9], [10, 20, 30], 1),
        ([0.1, 0.5, 0.9], [3, 2, 1], -1),
        ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6),  # 5 pairs agree, 1 does not
        ([1, 2, 2], [1, 2, 3], 2 / 6**0.5),  # two pairs agree, the third ties in the first list: 2 / sqrt(2 x 3)
        ([1, 1, 2, 3], [1, 2, 3, 3], 4 / 5),  # a tie in each, the other four agree: 4 / sqrt(5 x 5)
        ([1, 1, 1], [1, 2, 3], np.nan),  # no order
        ([-np.inf, -np.inf, 1], [1, 2, 3], 2 / 6**0.5),
    ],
)
def test_kendalls_tau_is_what_counting_pairs_gives(one: list, other: list, tau: float):
    assert compare.kendall_tau(one, other) == pytest.approx(tau, nan_ok=True)


@pytest.mark.parametrize("lists", [([1, 2], [1]), ([1], [1]), ([1, np.nan], [1, 2])])
def test_what_has_no_ranks_is_refused(lists):
    with pytest.raises(ValueError, match="score"):
        compare.kendall_tau(*lists)


@pytest.mark.parametrize(
    ("searches", "finished", "difference", "error", "as_in_paper", "word"),
    [
        (3, 3, 0.03, 0.01, True, "reproduced"),
        (3, 3, 0.03, 0.01, False, "reproduced at reduced scale"),
        (3, 3, 0.02, 0.01, True, "procedure only"),  # not more than two standard errors
        (3, 2, 0.03, 0.01, True, "procedure only"),
        (2, 2, 0.03, 0.01, True, "procedure only"),
        (3, 3, None, None, True, "procedure only"),  # no random search
    ],
)
def test_a_result_is_called_what_it_is(searches, finished, difference, error, as_in_paper, word):
    assert compare.choose_status(searches, finished, difference, error, as_in_paper) == word


def test_a_search_notes_its_paper_its_departures_and_what_differs_from_the_papers_settings(tmp_path):
    folder = make_search(tmp_path / "a", [0.5])
    about = json.loads((folder / "about.json").read_text())
    assert about["source"].startswith("Real et al.")
    assert about["departures"] == ["cells equal to a known one are not trained again"]
    assert about["paper"]["trials"] == 20_000
    assert "seed" not in about["paper"]
    assert about["machines"][0]["versions"]["tensorflow"] == tf.__version__
    assert about["machines"][0]["hardware"]["cores"] >= 1


def test_a_search_that_resumes_elsewhere_names_both_machines(tmp_path, monkeypatch):
    folder = make_search(tmp_path / "a", [0.5])
    config = amoebanet.Config(folder=folder)
    read.write_about(config, "amoebanet", {"training": 10, "validation": 10})
    assert len(json.loads((folder / "about.json").read_text())["machines"]) == 1
    monkeypatch.setattr(read, "describe_hardware", lambda: {"processor": "another", "cores": 64, "gpus": []})
    read.write_about(config, "amoebanet", {"training": 10, "validation": 10})
    machines = json.loads((folder / "about.json").read_text())["machines"]
    assert [machine["hardware"]["processor"] == "another" for machine in machines] == [False, True]


def test_only_trials_that_trained_count_as_epochs(tmp_path):
    trained = read.read_search(make_search(tmp_path / "a", [0.5, None, 0.7]))
    assert make_card([trained], [])["searches"][0]["epochs"] == 2 * 2  # two epochs a trial
    inherited = dataclasses.replace(trained, trials=(dataclasses.replace(trained.trials[0], metrics={}),))
    assert make_card([inherited], [])["searches"][0]["epochs"] is None


def test_semicolons_in_brackets_divide_no_departure():
    assert read.split_list(" one (a; b);\n two. ") == ["one (a; b)", "two"]


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path):
    path = make_search(tmp_path / "a", [0.5, 0.7]) / "journal.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"start":2,"gen')
    assert read.read_search(tmp_path / "a").scores == [0.5, 0.7]
    path.write_text(whole.replace('{"end": 0', '{"end" 0'))
    with pytest.raises(ValueError, match="line 3 is damaged"):
        read.read_search(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("supernet.json", "[{", r"supernet\.json is not JSON"),
        ("supernet.json", "{}", r"supernet\.json holds no JSON list"),
        ("truth.json", "[]", r"truth\.json holds no JSON object"),
    ],
)
def test_a_damaged_file_of_a_search_is_named_with_the_remedy(tmp_path, name, text, message):
    folder = make_search(tmp_path, [0.5, 0.6])
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{message}.*restore the original"):
        write_card([folder])


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no search"):
        read.read_search(tmp_path)


def test_best_so_far_by_trial_with_a_failed_one_first(tmp_path):
    search = read.read_search(make_search(tmp_path / "a", [None, 0.5, 0.4, 0.8]))
    assert compare.compare_anytime([search], [])["each"] == [[None, 0.5, 0.5, 0.8]]
    assert search.best is not None
    assert search.best.number == 3
    assert search.seconds == 40.0


def test_three_seeds_beside_random_search_give_a_result_at_reduced_scale(tmp_path):
    folders = [make_search(tmp_path / f"e{seed}", [0.5, 0.8 + seed / 100], seed=seed) for seed in range(3)]
    random = [make_search(tmp_path / f"r{seed}", [0.4, 0.6], "random", seed) for seed in range(3)]
    page = write_card(folders, random, tmp_path / "card").read_text()
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card["status"]["word"] == "reproduced at reduced scale"
    assert card["best"] == {"mean": 0.81, "std": 0.01, "values": [0.8, 0.81, 0.82]}
    assert card["comparison"]["random"]["values"] == [0.6, 0.6, 0.6]  # the best of two draws from two
    assert card["comparison"]["gain"] == pytest.approx(0.21)
    assert card["comparison"]["standard_error"] == pytest.approx(0.01 / 3**0.5, abs=1e-6)
    assert card["anytime"]["random_mean"] == [0.5, 0.6]
    assert card["comparison"]["later_half"] == [0.8, 0.81, 0.82]
    assert "| mean of the later half of evolution's networks | 0.8100 ± 0.0100 |" in page
    assert "**0.8100 ± 0.0100**" in page
    for picture in card["pictures"]:
        assert f"]({picture['file']})" in page
        with Image.open(tmp_path / "card" / picture["file"]) as image:
            assert min(image.size) > 400


def test_the_same_folders_give_the_same_bytes(tmp_path):
    folder = make_search(tmp_path / "a", [0.5, 0.7])
    write_card([folder])
    first = {path.name: path.read_bytes() for path in (folder / "card").iterdir()}
    write_card([folder])
    assert {path.name: path.read_bytes() for path in (folder / "card").iterdir()} == first


def test_a_half_finished_search_says_where_it_stopped(tmp_path):
    folder = make_search(tmp_path / "a", [0.5], planned=3)
    page = write_card([folder]).read_text()
    assert "stopped after 1 of 3 trials" in page
    assert "**procedure only**" in page
    assert not (folder / "card" / "best.png").exists()


def test_a_search_of_which_no_trial_has_ended_has_a_card_too(tmp_path):
    page = write_card([make_search(tmp_path / "a", [], planned=3)]).read_text()
    assert "stopped after 0 of 3 trials" in page


def test_random_cells_in_the_search_folder_are_its_baseline_and_a_budget_of_searches_is_time(tmp_path):
    folder = make_search(tmp_path / "a", [0.7, 0.6], seconds=40.0, choices={"seed": 1000})
    make_search(folder / "baseline", [0.3, 0.5], "random", seconds=20.0)
    write_card([folder])
    compared = json.loads((folder / "card" / "card.json").read_text())["comparison"]
    assert compared["budget"] == "seconds"
    assert compared["draws_in_budget"] == [4]  # 80 s of search, 20 s a random cell
    assert compared["draws"] == [2]  # there are no more
    assert "the gain is an upper bound" in (folder / "card" / "card.md").read_text()


def test_searches_that_cannot_share_a_card_are_refused(tmp_path):
    one, same_seed = make_search(tmp_path / "a", [0.5]), make_search(tmp_path / "b", [0.5])
    with pytest.raises(ValueError, match="two searches have one seed"):
        write_card([one, same_seed], target=tmp_path / "card")
    other = make_search(tmp_path / "c", [0.5], seed=1, header={"recipe": "nasnet"})
    with pytest.raises(ValueError, match="one recipe, and these have amoebanet and nasnet"):
        write_card([one, other], target=tmp_path / "card")
    with pytest.raises(ValueError, match="is not a random search but evolution"):
        write_card([one], [same_seed])


def test_the_card_says_what_was_too_small_to_learn_from(tmp_path):
    # the best accuracy 0.75 of 16 images: error sqrt(0.75 x 0.25 / 16) = 0.108
    folder = make_search(tmp_path / "a", [0.7, 0.75, 0.7], images={"training": 146, "validation": 16})
    page = write_card([folder]).read_text()
    assert "accuracies on 16 validation images, standard error 0.108: too few to rank these networks" in page
    assert "3 trials and a population of 12: the search never evolved, all its networks are random" in page
    assert "6 of 146 images" in page  # three trials of two epochs
    enough = make_search(tmp_path / "b", [0.5 + trial / 100 for trial in range(13)])
    page = write_card([enough]).read_text()
    assert "standard error 0.015\n" in page  # 0.62 of 1,000
    assert "never evolved" not in page


def test_random_searches_among_the_folders_are_the_baseline_of_the_others(tmp_path):
    search, random = make_search(tmp_path / "a", [0.7, 0.8]), make_search(tmp_path / "b", [0.5, 0.6], "random")
    page = write_card([random, search])
    assert page == search / "card" / "card.md"
    card = json.loads((search / "card" / "card.json").read_text())
    assert [each["folder"] for each in card["baseline"]] == ["b"]
    assert card["comparison"]["gain"] == pytest.approx(0.2)
    assert all(card["anytime"]["random_std"])  # the band reaches the last trial


def test_the_deviation_of_the_best_of_two_draws_is_that_over_all_pairs():
    scores = [0.1, 0.4, 0.9]
    best = [max(pair) for pair in itertools.product(scores, scores)]
    assert compare._expect_best(scores, 2, 1) == pytest.approx((compare.expected_best(scores, 2).mean, np.std(best)))


def test_the_front_has_what_no_other_beats_in_both():
    points = np.array([(1.0, 5.0), (2.0, 7.0), (3.0, 6.0), (2.0, 4.0), (4.0, 8.0)])
    assert compare.keep_front(points).tolist() == [[4.0, 8.0]]
    assert compare.keep_front(points * (-1, 1)).tolist() == [[-1.0, 5.0], [-2.0, 7.0], [-4.0, 8.0]]


def test_the_hypervolume_of_three_points_is_what_their_boxes_cover_together():
    # Steps of 1 x 3, 1 x 2 and 2 x 1; the fourth point is dominated, the last is no better than the reference.
    points = np.array([(1.0, 3.0), (2.0, 2.0), (4.0, 1.0), (1.5, 0.5), (9.0, 0.0)])
    assert compare.measure_hypervolume(points, (0.0, 0.0)) == 3 + 2 + 2
    # Boxes of 4, 4 and 4; each two share 2 (1x2x1, 1x1x2 and 2x1x1), and all three share 1.
    cubes = np.array([(1.0, 2.0, 2.0), (2.0, 1.0, 2.0), (2.0, 2.0, 1.0)])
    assert compare.measure_hypervolume(cubes, (0.0, 0.0, 0.0)) == 3 * 4 - 3 * 2 + 1
    assert compare.measure_hypervolume(cubes + 1, (1.0, 1.0, 1.0)) == 7
    assert compare.measure_hypervolume(points[:0], (0.0, 0.0)) == 0


def test_a_search_for_a_front_is_judged_by_its_hypervolume_beside_as_many_random_networks(tmp_path):
    # Networks of 1000 to 4000 parameters. The common front is 0.5 at 1000, 0.7 at 2000 and 0.9 at 3000; the reference
    # is 0.46 at 3200, and the box 0.44 x 2200.
    two = {"objectives": ("val_accuracy:max", "params:min")}
    folder = make_search(tmp_path / "a", [0.4, 0.7, 0.9], "nsga2", config=two)
    make_search(folder / "baseline", [0.5, 0.45, 0.6, 0.1], "random", config=two)
    page = write_card([folder]).read_text()
    card = json.loads((folder / "card" / "card.json").read_text())
    fronts, box = card["fronts"], 0.44 * 2200
    assert fronts["reference"] == {"val_accuracy": pytest.approx(0.46), "params": pytest.approx(3200)}
    assert fronts["search"] == [pytest.approx((0.44 * 200 + 0.24 * 1000) / box, abs=1e-6)]
    assert fronts["random"] == [pytest.approx((0.04 * 2200 + 0.10 * 200) / box, abs=1e-6)]
    assert fronts["draws"] == [3]
    assert "hypervolume over random search at the same budget +0.2273, one search has no standard error" in page
    assert "| gain | +0.2273 |" in page
    assert [each["text"] for each in card["pictures"]][1] == "All networks: validation accuracy and parameters"


def test_the_best_of_a_search_by_halving_is_one_of_the_highest_rung_and_its_budget_is_time(tmp_path):
    # Networks 0 and 1 at the first rung, then 0 further: 1 + 1 + (3 - 1) epochs.
    halving = {"header": {"fidelity": "halving"}, "choices": {"op": 3, "tuner/epochs": 2}}
    starts = [{"genome": genome} for genome in ([0, 0], [1, 0], [0, 1])]
    folder = make_search(tmp_path / "a", [0.7, 0.9, 0.8], starts=starts, epochs=[1, 1, 3], **halving)
    make_search(folder / "baseline", [0.3, 0.5], "random", seconds=15.0)
    write_card([folder])
    card = json.loads((folder / "card" / "card.json").read_text())
    assert card["algorithm"] == "evolution, halving"
    assert card["best"]["values"] == [0.8]
    assert (card["searches"][0]["epochs"], card["searches"][0]["failed"]) == (4, 0)
    assert card["comparison"]["draws_in_budget"] == [2]  # 30 s of search, 15 s a random network
    assert card["anytime"]["each"][0][-1] == 0.8


def test_the_card_of_a_supernet_has_its_history_its_ranking_and_the_picture_that_its_search_drew(tmp_path):
    folder = make_search(tmp_path / "a", [0.7], choices={"seed": 1000})
    (folder / "seeds").mkdir()
    records = [{"step": 10 * (epoch + 1), "loss": 1.0, "eigenvalue": 0.1, "strengths": [[0.5]]} for epoch in range(2)]
    (folder / "seeds" / "seed7.json").write_text(json.dumps({"history": records}))
    (folder / "seeds" / "seed7.png").write_bytes(b"drawn")
    found = {"shared": [0.1, 0.2, 0.3], "alone": [0.4, 0.6, 0.5], "tau": 0.333333}
    (folder / "ranking.json").write_text(json.dumps({"7": found}))
    page = write_card([folder]).read_text()
    assert "Kendall's tau of 3 networks" in page
    assert {path.name for path in (folder / "card").glob("*.png")} >= {
        "history.png", "ranking.png", "strengths_seed7.png"
    }  # fmt: skip
    assert (folder / "card" / "strengths_seed7.png").read_bytes() == b"drawn"
    card = json.loads((folder / "card" / "card.json").read_text())
    (records,) = card["supernets"][0]["history"].values()
    assert [record["step"] for record in records] == [10, 20]
    assert "strengths" not in records[0]


def test_what_a_recipe_measured_of_its_network_is_on_the_card_and_its_supernets_ranking_too(tmp_path):
    folder = make_search(tmp_path / "a", [0.7])
    random = {"shared_accuracies": [0.1, 0.2], "val_accuracies": [0.3, 0.4], "mean": 0.35}
    result = {"predicted": {"arena": 40_000}, "measured": {"arena": 41_000, "fits": True}, "random": random}
    (folder / "result.json").write_text(json.dumps(result | {"kendall_tau": 1.0}))
    (folder / "supernet.json").write_text(json.dumps([{"step": 5, "loss": 1.0, "first_loss": 0.9}]))
    page = write_card([folder]).read_text()
    assert "| predicted, arena | 40,000 |" in page
    assert "| measured, fits | yes |" in page
    assert "Kendall's tau of 2 networks" in page
    assert (folder / "card" / "history.png").exists()


def test_the_program_takes_folders_as_words_and_prints_where_the_card_is(tmp_path, capsys):
    folder = make_search(tmp_path / "a", [0.5])
    config = _main.parse([str(folder)], report.PRESETS)
    assert config.folders == (folder,)
    assert report.report(config) == folder / "card" / "card.md"
    assert "card.md" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no folders are given"):
        report.report(report.Config())
    with pytest.raises(_main.UsageError, match="unexpected 'b'"):
        _main.parse(["--folders=a", "b"], report.PRESETS)


def events(folder: Path) -> list:
    """All values of the event file in a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    records = [event_pb2.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    return [value for event in records for value in event.summary.value]


def plugin_data(value):
    assert value.metadata.plugin_data.plugin_name == "hparams"
    return HParamsPluginData.FromString(value.metadata.plugin_data.content)


def test_tensorboard_reads_choices_metrics_and_the_outcome_of_each_trial(tmp_path):
    def evaluate(task: tuner.Task) -> dict[str, float]:
        if task.number == 1:
            raise MemoryError
        return {"val_accuracy": 0.75, "params": 12.0}

    logged = tensorboard_logs.LoggedEvaluate(evaluate, tmp_path)
    values = {"normal/op": "sep_conv_3x3", "normal/state": 1}
    logged(tuner.Task(0, values, 0, tmp_path / "x", lambda share, text: None))
    start, *metrics, end = events(tmp_path / "trial_00000")
    noted = plugin_data(start).session_start_info.hparams
    assert noted["normal/op"].string_value == "sep_conv_3x3"
    assert noted["normal/state"].number_value == 1
    assert [(value.tag, float(tf.make_ndarray(value.tensor))) for value in metrics] == [
        ("params", 12.0), ("val_accuracy", 0.75)
    ]  # fmt: skip
    assert plugin_data(end).session_end_info.status == 1
    with pytest.raises(MemoryError):
        logged(tuner.Task(1, values, 0, tmp_path / "x", lambda share, text: None))
    assert plugin_data(events(tmp_path / "trial_00001")[-1]).session_end_info.status == 2


def test_without_tensorboard_the_logs_name_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.plugins", None)
    with pytest.raises(ImportError, match="pip install tensorboard, or leave the flag out"):
        tensorboard_logs.LoggedEvaluate(lambda task: {}, tmp_path)


def test_a_search_writes_its_card_and_the_logs_that_were_asked_for(tmp_path):
    smoke = dataclasses.replace(amoebanet.PRESETS["smoke"], folder=tmp_path, trials=1, epochs=1, tensorboard=True)
    amoebanet.search(smoke, observe=lambda status: None)
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    (search,) = card["searches"]
    assert (search["trials"], search["finished"], search["epochs"]) == (1, True, 1)
    assert card["paper"]["population"] == 100
    assert (tmp_path / "card" / "best.png").exists()
    tags = {value.tag for value in events(tmp_path / "tensorboard" / "trial_00000")}
    assert {"val_accuracy", "_hparams_/session_start_info"} <= tags
