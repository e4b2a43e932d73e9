"""The page of searches for a browser: what it holds, that nothing in it passes for HTML, and, slowly, that it works."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from recipes import amoebanet, mnasnet, pnasnet, report
from recipes.cards import read
from recipes.cards.card import read_searches
from recipes.cards.web_page import TEMPLATE, embed_json, list_data, write_web_page
from recipes.darts.space import DartsSpace
from recipes.enas.space import ChainSpace, MicroSpace
from recipes.engine import spaces
from recipes.engine.tuner import Tuner
from recipes.oracles import AgingEvolution, SuccessiveHalving
from recipes.oracles.evolution import GenerationalEvolution
from recipes.tinynas.space import TinySpace
from tests.cards.test_report import make_search
from zoo.genotype_json import body_as_dict

SPACE = spaces.amoebanet(1)
COUNTS = [len(decision.choices) for decision in SPACE.decisions]
HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028"


def genome(*first: int) -> list[int]:
    return [*first, *[0] * (len(COUNTS) - len(first))]


SCORES = [0.5, 0.75, None, 0.625]
STARTS = [
    {"genome": genome(0, 1, 2)},
    {"genome": genome(0, 1, 3), "parents": [genome(0, 1, 2)]},
    {"genome": genome(1, 1, 3), "parents": [genome(0, 1, 3)]},
    {"genome": genome(0, 1, 5), "parents": [genome(0, 1, 3)]},
]


def write_search(
    folder: Path, scores: list = SCORES, planned: int = 4, starts: list = STARTS, space: Any = SPACE
) -> Path:
    choices = {decision.name: len(decision.choices) for decision in SPACE.decisions}
    config, message = {"data": HOSTILE}, f"MemoryError: {HOSTILE}"
    return make_search(
        folder, scores, planned=planned, starts=starts, space=space, choices=choices, config=config, message=message
    )


def data_of(page: Path) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_a_page_holds_every_trial_with_its_cells_its_parents_and_its_error(tmp_path):
    searches = read_searches([write_search(tmp_path / "a")])
    write_web_page(*searches, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    trials = data["searches"][0]["trials"]
    assert [trial["score"] for trial in trials] == [0.5, 0.75, None, 0.625]
    assert [trial["parents"] for trial in trials] == [[], [0], [1], [1]]
    assert trials[2]["message"] == f"MemoryError: {HOSTILE}"
    chosen = {
        decision.name: decision.choices[place]
        for decision, place in zip(SPACE.decisions, STARTS[1]["genome"], strict=True)
    }
    assert trials[1]["body"] == body_as_dict(SPACE.body(chosen))
    assert data["anytime"]["each"] == [[0.5, 0.75, 0.75, 0.75]]
    assert (data["running"], data["refresh"], data["settings"]["data"]) == (False, None, HOSTILE)
    assert data["directions"] == {"val_accuracy": "max", "params": "min", "loss": "min"}


def test_no_text_of_a_search_can_end_the_data_or_begin_an_element(tmp_path):
    folder = write_search(tmp_path / f"<b>{'&' * 3}")
    write_web_page(*read_searches([folder]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("</script>") == 2  # of the data and of the program
    assert "<img" not in page
    assert "<b>" not in page
    assert "\u2028" not in embed_json(HOSTILE)
    assert json.loads(embed_json({"text": HOSTILE, "loss": float("nan"), "all": (1.5, float("inf"))})) == {
        "text": HOSTILE, "loss": None, "all": [1.5, None]
    }  # fmt: skip


def test_the_page_loads_nothing_and_never_reads_text_as_html():
    page = TEMPLATE.read_text()
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    for loads in ("src=", "href=", "@import", "url(", "fetch(", "innerHTML", "insertAdjacentHTML", "document.write"):
        assert loads not in page
    assert "default-src 'none'" in page


def test_the_same_folders_give_the_same_page(tmp_path):
    searches = read_searches([write_search(tmp_path / "a")])
    for name in ("one", "other"):
        write_web_page(*searches, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_search_without_a_trial_or_of_an_unknown_space_has_a_page_too(tmp_path):
    assert list_data(*read_searches([write_search(tmp_path / "a", [])]))["searches"][0]["trials"] == []
    unknown = list_data(*read_searches([write_search(tmp_path / "b", space=None)]))["searches"][0]
    assert unknown["trials"][1]["body"] is None
    assert unknown["trials"][1]["parents"] == [0]


def test_a_parent_that_was_never_trained_is_the_equal_network_that_was(tmp_path):
    # a node adds what its two edges bring, so that equal operations may read their states either way round
    one, other = genome(0, 1, 2, 2), genome(1, 0, 2, 2)
    names = [decision.name for decision in SPACE.decisions[:4]]
    assert names == [f"normal/node0/{name}" for name in ("state0", "state1", "op0", "op1")]
    starts = [{"genome": one}, {"genome": genome(1, 0, 2, 3), "parents": [other]}]
    data = list_data(*read_searches([write_search(tmp_path / "a", [0.5, 0.6], planned=2, starts=starts)]))
    assert data["searches"][0]["trials"][1]["parents"] == [0]


@pytest.mark.parametrize(
    "space",
    [
        spaces.nasnet(2), spaces.amoebanet(3), pnasnet.pnasnet(2), DartsSpace(2, fixed_reduction=True),
        mnasnet.BlockSpace(width=0.5, strides=mnasnet.SMALL_STRIDES), MicroSpace(2), ChainSpace(4), TinySpace(0.3),
    ],
    ids=lambda space: type(space).__name__,
)  # fmt: skip
def test_the_notes_of_a_search_name_its_space(tmp_path, space):
    read.write_about(amoebanet.Config(folder=tmp_path), "amoebanet", {}, space)
    choices = {decision.name: len(decision.choices) for decision in space.decisions}
    about = json.loads((tmp_path / "about.json").read_text())
    assert read.RecordedSearch(tmp_path, {"choices": choices}, (), 0, about).space == space
    assert read.RecordedSearch(tmp_path, {"choices": choices | {"more": 2}}, (), 0, about).space is None


def test_notes_can_make_nothing_but_a_space_of_the_recipes(tmp_path):
    for module, name in [
        ("os", "getcwd"),
        ("recipes.report", "Config"),
        ("recipes.engine.spaces", "none"),
        ("recipes.x", "y"),
    ]:
        about = {"space": {"module": module, "class": name, "fields": {}}}
        assert read.RecordedSearch(tmp_path, {"choices": {}}, (), 0, about).space is None


@pytest.mark.parametrize(("oracle_class", "own"), [(AgingEvolution, {}), (GenerationalEvolution, {"parents": 3})])
def test_evolution_notes_the_parents_of_each_child(tmp_path, oracle_class, own):
    space = spaces.amoebanet(2)
    oracle = oracle_class("val_accuracy", 24, space.hyperparameters(), seed=0, key=space.key, population=6, **own)
    Tuner(oracle, lambda task: float(sum(map(len, map(str, task.values.values())))), tmp_path).search()
    trials = read.read_search(tmp_path).trials
    assert [len(trial.parents) for trial in trials[:6]] == [0] * 6
    known = {trial.genome for trial in trials}
    for trial in trials[6:]:
        assert 1 <= len(trial.parents) <= 2
        if oracle_class is AgingEvolution:
            assert sum(a != b for a, b in zip(trial.genome, trial.parents[0], strict=True)) == 1
        else:
            assert set(trial.parents) <= known  # it relearns no duplicates


def test_a_network_that_is_trained_further_comes_from_its_own_earlier_trial(tmp_path):
    space = spaces.amoebanet(2)
    inner = AgingEvolution("val_accuracy", 12, space.hyperparameters(), seed=0, key=space.key, population=4)
    oracle = SuccessiveHalving(inner, rungs=(1, 3), factor=3)
    score = lambda task: len(set(task.values.values())) / 10  # noqa: E731
    Tuner(oracle, score, tmp_path, settings={"fidelity": "halving", "recipe": "amoebanet"}).search()
    read.write_about(amoebanet.Config(folder=tmp_path), "amoebanet", {}, space)
    search = list_data(*read_searches([tmp_path]))["searches"][0]
    further = [trial for trial in search["trials"] if trial["rung"] == 1]
    assert further
    assert search["best"] in {trial["number"] for trial in further}
    for trial in further:
        (parent,) = trial["parents"]
        (earlier,) = [other for other in search["trials"] if other["number"] == parent]
        assert (earlier["genome"], earlier["rung"]) == (trial["genome"], 0)


def test_watching_rewrites_the_page_until_the_search_has_ended(tmp_path, monkeypatch, capsys):
    folder, page = tmp_path / "a", tmp_path / "a" / "card" / "card.html"
    seen = []

    def sleep(seconds: float) -> None:
        """Takes the search one step further each time that the program waits."""
        seen.append((len(data_of(page)["searches"][0]["trials"]), data_of(page)["refresh"]) if page.exists() else None)
        if len(seen) <= 3:
            write_search(folder, SCORES[: len(seen) + 1])

    monkeypatch.setattr(time, "sleep", sleep)
    assert report.report(report.Config(folders=(folder,), watch=True, every=0.5)) == page
    assert seen[:4] == [None, (2, 0.5), (3, 0.5), (4, 0.5)]
    data = data_of(page)
    assert (data["running"], data["refresh"], data["written"]) == (False, None, None)
    assert capsys.readouterr().out.count("card.html") == 1


def test_ctrl_c_ends_the_watch_and_leaves_a_page_that_reloads_itself_no_more(tmp_path, monkeypatch):
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    page = report.report(report.Config(folders=(write_search(tmp_path / "a", planned=9),), watch=True))
    assert (data_of(page)["running"], data_of(page)["refresh"]) == (True, None)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_page(browser: Any, path: Path, width: int = 1200) -> tuple[Any, list[str]]:
    """Returns the open page and a list to which everything is added that it complains of or tries to load."""
    page, complaints = browser.new_page(viewport={"width": width, "height": 800}), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    return page, complaints


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"#trials tbody tr td:nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_in_a_browser_the_table_sorts_and_a_click_shows_the_cells_and_the_lineage(tmp_path, browser):
    folder = write_search(tmp_path / "a")
    write_web_page(*read_searches([folder]), tmp_path / "page.html")
    page, complaints = open_page(browser, tmp_path / "page.html")
    assert column(page, 1) == ["1", "3", "0", "2"]  # the best first, the failed one last
    page.click("[data-sort=params]")
    assert column(page, 1) == ["3", "1", "0", "2"]
    page.click("[data-sort=params]")
    assert column(page, 1) == ["0", "1", "3", "2"]
    assert page.locator("#trial h2").first.inner_text() == "Trial 1, the best"
    page.locator("circle[data-trial='0.3']").first.click()
    panel = page.locator("#trial")
    assert panel.locator("h2").first.inner_text() == "Trial 3"
    assert panel.locator("svg.cell").count() == 2
    assert panel.locator("svg.cell").first.locator("text").all_text_contents().count("h[c-2]") == 1
    assert panel.locator("button.link").all_inner_texts() == ["trial 3", "trial 1", "trial 0"]
    page.click("#trials tbody tr:last-child")
    assert panel.locator("pre").inner_text() == f"MemoryError: {HOSTILE}"
    assert page.locator("img").count() == 0
    page.reload()  # the address keeps what was chosen
    assert panel.locator("h2").first.inner_text() == "Trial 2"
    assert column(page, 1) == ["0", "1", "3", "2"]
    page.locator("circle[data-trial='0.1']").first.hover()
    assert page.locator("#hint svg.cell").count() == 1
    page.select_option("select[data-axis=x]", "seconds")
    assert "seconds" in page.locator("svg[role=img]").nth(1).get_attribute("aria-label")
    assert complaints == []


@pytest.mark.slow
def test_in_a_narrow_window_nothing_sticks_out_and_a_running_search_reloads_itself(tmp_path, browser):
    folder = write_search(tmp_path / "a", SCORES[:2])
    write_web_page(*read_searches([folder]), tmp_path / "page.html", refresh=1.0)
    page, complaints = open_page(browser, tmp_path / "page.html", width=360)
    assert page.locator("#word").inner_text() == "running"
    page.click("[data-sort=trial]")
    write_search(folder)
    write_web_page(*read_searches([folder]), tmp_path / "page.html")
    page.locator("#trials tbody tr").nth(3).wait_for()  # the page's policy forbids what wait_for_function does
    assert column(page, 1) == ["0", "1", "2", "3"]
    assert page.locator("#word").inner_text() == "procedure only"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert complaints == []
