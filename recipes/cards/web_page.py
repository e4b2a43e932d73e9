"""A page of searches for a browser: one file that loads nothing else, web_page.html with the searches' data in it."""

import datetime
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.cards import pictures
from recipes.cards.card import make_card
from recipes.cards.read import RecordedSearch, Trial
from recipes.engine.spaces import choose
from zoo.atomic import write_atomically
from zoo.genotype_json import body_as_dict

TEMPLATE = Path(__file__).with_suffix(".html")
_MOST_BODIES = 2_000  # architectures in a page, those of the best trials; more would make it tens of MB
_MORE_IS_BETTER = ("accuracy", "reward", "top5")  # in a metric's name; for other metrics less is better


def write_web_page(
    searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch], path: Path, refresh: float | None = None
) -> None:
    """Writes the page, whole or not at all; the same folders give the same bytes unless the page refreshes itself.

    Args:
        searches, random: see `recipes.cards.card.read_searches`.
        path: of the page.
        refresh: seconds after which an open page reloads itself; None for never.
    """
    data = list_data(searches, random, refresh)
    before, _, rest = TEMPLATE.read_text(encoding="utf-8").partition("@TITLE@")
    middle, _, after = rest.partition("@DATA@")
    title = html.escape(f"{data['recipe']}, {data['algorithm']}")
    write_atomically(path, f"{before}{title}{middle}{embed_json(data)}{after}")


def embed_json(data: Any) -> str:
    """Returns JSON that is safe in a script element: no text in it can end the element or start another."""
    text = json.dumps(_without_infinities(data), separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _without_infinities(value: Any) -> Any:
    """Replaces NaN and infinities by null, because JSON in browsers has neither."""
    if isinstance(value, Mapping):
        return {str(name): _without_infinities(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def list_data(
    searches: Sequence[RecordedSearch], random: Sequence[RecordedSearch], refresh: float | None = None
) -> dict[str, Any]:
    """Returns the data of the page: the card's numbers, and every trial with its architecture and parents."""
    card = make_card(searches, random)
    timed = card["anytime"]["unit"] == "seconds"
    names = sorted({name for search in [*searches, *random] for trial in search.trials for name in trial.metrics})
    pareto = card["settings"].get("objectives") or card["settings"].get("pareto", [])
    pareto = [text.partition(":") for text in pareto]
    directions = {name: "max" if any(word in name for word in _MORE_IS_BETTER) else "min" for name in names}
    data = {name: card[name] for name in ("recipe", "algorithm", "title", "source", "departures", "status", "score")}
    data |= {name: card[name] for name in ("anytime", "settings", "paper")}
    return data | {
        "running": not all(search.finished for search in searches),
        "refresh": refresh,
        "written": datetime.datetime.now().astimezone().strftime("%H:%M:%S") if refresh else None,
        "labels": {name: pictures.name_metric(name) for name in names},
        "directions": directions | {name: direction for name, _, direction in pareto},
        "pareto": [name for name, _, _ in pareto],
        "searches": [_describe(search, timed, False) for search in searches]
        + [_describe(search, timed, True) for search in random],
        "supernets": [{"folder": each["folder"], "panels": _list_panels(each)} for each in card["supernets"]],
    }


def _describe(search: RecordedSearch, timed: bool, random: bool) -> dict[str, Any]:
    decisions = search.space.decisions if search.space else ()
    bodies, parents = _list_bodies(search), _list_parents(search)
    at, trials = search.seconds_before, []
    for place, trial in enumerate(search.trials, start=1):
        at += trial.seconds
        trials.append(
            {
                "number": trial.number,
                "at": round(at, 3) if timed else place,
                "score": trial.score,
                "metrics": dict(trial.metrics),
                "seconds": trial.seconds,
                "message": trial.message,
                "rung": trial.rung,
                "genome": trial.genome,
                "parents": parents[trial.number],
                "body": bodies.get(trial.number),
            }
        )
    return {
        "name": f"{search.folder.name}, seed {search.seed}",
        "random": random,
        "best": None if search.best is None else search.best.number,
        "planned": search.planned,
        "refused": search.refused,
        "seconds": search.seconds,
        "decisions": [[decision.name, decision.choices] for decision in decisions],
        "trials": trials,
    }


def _list_bodies(search: RecordedSearch) -> dict[int, dict[str, Any]]:
    """Returns trial -> architecture, for the best trials; failed trials come last."""
    space = search.space
    if space is None:
        return {}
    best = sorted(search.trials, key=lambda t: (t.score is None, -t.rung, -search.sign * (t.score or 0.0)))
    bodies = {trial.number: space.body(trial.values(space.decisions)) for trial in best[:_MOST_BODIES]}
    return {number: body_as_dict(body) for number, body in bodies.items()}


def _list_parents(search: RecordedSearch) -> dict[int, list[int]]:
    """Returns trial -> its parent trials.

    The trial of a parent is the first with its genome or, if it was known without a trial, that of an equal network.
    """
    space, alike = search.space, {}
    first = {trial.genome: trial.number for trial in reversed(search.trials)}
    rungs = {(trial.genome, trial.rung): trial.number for trial in search.trials}

    def find(genome: tuple[int, ...]) -> int | None:
        if genome in first or space is None:
            return first.get(genome)
        if not alike:
            alike.update((space.key(choose(space.decisions, known)), number) for known, number in first.items())
        return alike.get(space.key(choose(space.decisions, genome)))

    def list_parents(trial: Trial) -> list[int]:
        if trial.rung:  # the same network, trained longer
            return [rungs[trial.genome, trial.rung - 1]]
        found = [find(genome) for genome in dict.fromkeys(trial.parents)]
        return [number for number in found if number is not None]

    return {trial.number: list_parents(trial) for trial in search.trials}


def _list_panels(supernet: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the panels of a supernet's history: a title, and the lines of each seed."""
    histories = supernet["history"]
    panels = pictures.list_panels([record for records in histories.values() for record in records])
    found = []
    for title, names in panels.items():
        lines = [
            {"seed": seed, "dashed": name != names[0], "values": [record.get(name) for record in records]}
            for seed, records in histories.items()
            for name in names
        ]
        found.append({"title": title, "lines": lines})
    return found
