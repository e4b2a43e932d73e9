"""A card as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.cards.compare import count_short, mean_and_std
from recipes.cards.pictures import name_metric
from recipes.training.progress import duration
from zoo.markdown import join_blocks, make_table

_DIGITS = 4


def write_page(card: Mapping[str, Any]) -> str:
    """Returns the page of a card; unknown values are left out or named unknown."""
    parts = [_write_head(card), _write_status(card), _write_searches(card), _write_comparison(card)]
    parts += [_write_fronts(card), _write_truth(card), _write_pictures(card), _write_supernets(card)]
    return join_blocks(*parts, _write_settings(card), _write_departures(card), _write_machines(card))


def _format_number(value: float | None) -> str | None:
    return None if value is None else f"{value:.{_DIGITS}f}"


def _format_spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "none"
    return f"{mean:.{_DIGITS}f}" if std is None else f"{mean:.{_DIGITS}f} ± {std:.{_DIGITS}f}"


def _format_gain(found: Mapping[str, Any]) -> str:
    error = found["standard_error"]
    return f"{found['gain']:+.4f}" + ("" if error is None else f", standard error {error:.4f}")


def _write_head(card: Mapping[str, Any]) -> str:
    lines = [f"# Reproduction card: {card['recipe']}, {card['algorithm']}"]
    lines += [text for text in (card["title"], card["source"] and f"Source: {card['source']}") if text]
    return "\n\n".join(lines)


def _write_status(card: Mapping[str, Any]) -> str:
    status = card["status"]
    reasons = "\n".join(f"- {reason}" for reason in status["rests_on"])
    return f"Status: **{status['word']}**, based on:\n\n{reasons}"


def _write_searches(card: Mapping[str, Any]) -> str:
    name = name_metric(card["score"]["name"])
    head = ("folder", "seed", "trials", "failed", "refused", f"best {name}", f"mean {name}", "time", "epochs trained")
    rows = []
    for search in [*card["searches"], *card["baseline"]]:
        planned, trials = search["planned"], search["trials"]
        ended = f"{trials:,}" if search["finished"] else f"stopped after {trials:,} of {planned or 'unknown'}"
        best = None if search["best"] is None else _format_number(search["best"]["score"])
        epochs = None if search["epochs"] is None else f"{search['epochs']:,}"
        if search["epochs"] is not None and search["training_images"]:
            epochs = f"{epochs} of {search['training_images']:,} images"
        rows.append((search["folder"], search["seed"], ended, search["failed"], search["refused"], best,
                     _format_number(search["mean"]), duration(search["seconds"]), epochs))  # fmt: skip
    text = f"## Searches and cost\n\n{make_table(head, rows)}"
    best = card["best"]
    if len(card["searches"]) > 1:
        text += f"\n\nBest {name}, mean ± standard deviation of {len(best['values'])} searches: "
        text += f"**{_format_spread(best['mean'], best['std'])}**."
    return "\n\n".join(filter(None, (text, _write_metrics(card), _write_results(card))))


def _write_metrics(card: Mapping[str, Any]) -> str:
    found = [(search["seed"], search["best"]) for search in card["searches"] if search["best"] is not None]
    names = sorted({name for _, best in found for name in best["metrics"]})
    if not names:
        return ""
    rows = [
        (seed, best["trial"], *(_format_metric(best["metrics"].get(name)) for name in names)) for seed, best in found
    ]
    return "The best of each:\n\n" + make_table(("seed", "trial", *map(name_metric, names)), rows)


def _write_results(card: Mapping[str, Any]) -> str:
    """Returns a table of the measurements of the found architectures, one row per value."""
    found = [(search["seed"], _flatten(search["result"])) for search in card["searches"] if search["result"]]
    if not found:
        return ""
    names = list(dict.fromkeys(name for _, values in found for name in values))
    rows = [(name, *(values.get(name) for _, values in found)) for name in names]
    return "Measurements of the results:\n\n" + make_table(("", *(f"seed {seed}" for seed, _ in found)), rows)


def _flatten(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Returns names in words -> numbers and texts; leaves out lists, which are for pictures."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{before}{name_metric(name)}, ")
        elif isinstance(value, (bool, str)):
            found[before + name_metric(name)] = value if isinstance(value, str) else "yes" if value else "no"
        elif isinstance(value, (int, float)):
            found[before + name_metric(name)] = _format_metric(value) or ""
    return found


def _format_metric(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _write_comparison(card: Mapping[str, Any]) -> str:
    found = card["comparison"]
    if "random" in card["algorithm"].lower():
        return ""
    if found is None:
        return "## Comparison with random search\n\nNone was given; run one with --algorithm=random in FOLDER/baseline."
    name, random = name_metric(card["score"]["name"]), found["random"]
    budget = "as many trials" if found["budget"] == "trials" else "the same time"
    total = sum(search["trials"] - search["failed"] for search in card["baseline"])
    rows = [
        (f"mean of {total:,} random networks", _format_number(found["random_cell"])),
        (f"random search, expected best of {_join(found['draws'])}", _format_spread(random["mean"], random["std"])),
        (f"{card['algorithm']}", _format_spread(card["best"]["mean"], card["best"]["std"])),
        ("gain over random search", _format_gain(found)),
    ]
    if found["budget"] == "trials":
        mean, std = mean_and_std(found["later_half"])
        rows.insert(1, (f"mean of the later half of {card['algorithm']}'s networks", _format_spread(mean, std)))
    largest = found["largest"]
    if largest is not None:  # the baseline that knows only the size of a network
        networks = f"{_join(largest['networks'])} of {_join(largest['of'])} random networks with the most MACs"
        best = f"random among them, expected best of {_join(largest['draws'])}"
        rows[-2:-2] = [(f"mean of the {networks}", _format_number(largest["network"]))]
        rows[-2:-2] = [(best, _format_spread(largest["mean"], largest["std"]))]
    text = f"## Comparison with random search\n\n{make_table(('', name), rows)}\n\n"
    text += f"The budget is {budget}. The expectation is exact for these random networks (order statistics). "
    paired = "Each search is compared with the random search of the same seed, on the same images."
    text += paired if found["paired"] else "The seeds differ, so the spreads of both count."
    if count_short(found):
        text += f" The budget allows {_join(found['draws_in_budget'])} random networks, more than were trained: "
        text += "the gain is an upper bound."
    if largest is not None:
        text += (
            " MACs are known without training, so the result of random draws among the largest networks took no search."
        )
        wanted, draws = found["draws_in_budget"], largest["draws"]
        if any(given < budget for given, budget in zip(draws, wanted, strict=True)):
            text += f" The budget allows {_join(wanted)} of them and {_join(draws)} were trained: a lower bound."
    return text + " Scores are on validation images that the selection saw."


def _join(numbers: Sequence[int]) -> str:
    """Joins different numbers; equal numbers become one."""
    return " / ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def _write_truth(card: Mapping[str, Any]) -> str:
    found = card["truth"]
    if found is None:
        return ""
    together = found["together"]
    columns = [(f"seed {each['seed']}", each) for each in found["finds"]] + [("mean", together)]
    rows = [
        (text, *(None if each[name] is None else f"{each[name]:.2f}" for _, each in columns))
        for name, text in (
            ("worth", "accuracy of the result, mean of its trainings, %"),
            ("percentile", "percentile"),
            ("regret", "points below the best"),
            ("tau", "Kendall's tau of shared weights"),
        )
    ]
    rows.append(("time of the search", *(duration(each["seconds"]) for _, each in columns)))
    text = f"## Comparison with the truth\n\nAmong {found['networks']:,} trained networks, table {found['table']}:\n\n"
    text += make_table(("", *(head for head, _ in columns)), rows) + "\n\n"
    if together["ceiling"] is not None and together["tau"] is not None:
        text += (
            f"A perfect ranking would only have a tau of {together['ceiling']:.2f}, because trainings differ by luck. "
        )
    if together["random_seconds"] is None:
        text += "Random search of the whole table is expected to reach less."
    else:
        text += (
            f"Random search is expected to reach as much in {together['random_trainings']:.1f} trainings, "
            f"{duration(together['random_seconds'])} on the table's machine."
        )
    error = together["standard_error"]
    text += f" Gain over random search in the same time: {together['gain']:+.2f} points"
    text += f"{'' if error is None else f', standard error {error:.2f}'}: **{together['word']}**."
    if together["largest"] is not None:
        text += f" Random draws among the largest tenth by MACs are expected to reach {together['largest']:.2f} %."
    reached = ", ".join(f"{name}: {'yes' if value else 'no'}" for name, value in together["reached"].items())
    return f"{text} Goals: {reached}."


def _write_fronts(card: Mapping[str, Any]) -> str:
    """Returns the hypervolumes of a search for several objectives."""
    found = card["fronts"]
    if not found:
        return ""
    spread = [_format_spread(*mean_and_std(found[group])) if found[group] else None for group in ("search", "random")]
    rows = [(card["algorithm"], spread[0])]
    if found["random"]:
        draws = " / ".join(map(str, dict.fromkeys(found["draws"])))
        rows += [(f"random search, the first {draws} networks", spread[1]), ("gain", _format_gain(found))]
    reference = ", ".join(f"{name_metric(name)} {_format_metric(value)}" for name, value in found["reference"].items())
    return (
        f"## The front\n\n{make_table(('', 'hypervolume'), rows)}\n\nHypervolumes are exact, as shares of the box "
        f"between the best values of all networks here and the reference ({reference}), which is worse than the common "
        "front's worst values by a tenth of its range. The networks of each front are in pareto/."
    )


def _write_pictures(card: Mapping[str, Any]) -> str:
    found = card.get("pictures", [])
    return "\n\n".join(f"{each['text']}:\n\n![{each['text']}]({each['file']})" for each in found)


def _write_supernets(card: Mapping[str, Any]) -> str:
    parts = []
    for each in card["supernets"]:
        names = sorted({name for records in each["history"].values() for record in records for name in record})
        rows = [
            (seed, epoch, *(_format_metric(record.get(name)) for name in names))
            for seed, records in each["history"].items()
            for epoch, record in enumerate(records, start=1)
        ]
        parts.append(f"### {each['folder']}\n\n{make_table(('seed', 'epoch', *map(name_metric, names)), rows)}")
        for seed, found in each["ranking"].items():
            tau = "none, all scores of one list tie" if found["tau"] is None else f"{found['tau']:.3f}"
            parts.append(
                f"Kendall's tau of {len(found['alone'])} networks, by the supernet of seed {seed} "
                f"and trained alone: {tau}."
            )
    return "\n\n".join(["## Supernets", *parts]) if parts else ""


def _write_settings(card: Mapping[str, Any]) -> str:
    settings, paper = card["settings"], card["paper"]
    if not settings:
        return "## Settings\n\nUnknown: the folder has no about.json."
    rows = [(name, f"`{settings[name]}`", f"`{value}`") for name, value in sorted((paper or {}).items())]
    text = make_table(("setting", "here", "paper preset"), rows) if rows else "As in the paper." if paper == {} else ""
    rest = [f"{name} {value}" for name, value in settings.items() if name not in (paper or {}) and name != "seed"]
    return "## Settings\n\n" + "\n\n".join(filter(None, (text, f"Others: {', '.join(rest)}.")))


def _write_departures(card: Mapping[str, Any]) -> str:
    found = card["departures"]
    return "## Departures from the paper\n\n" + "\n".join(f"- {text}" for text in found) if found else ""


def _write_machines(card: Mapping[str, Any]) -> str:
    rows = []
    for machine in card["machines"]:
        hardware, versions = machine["hardware"], machine["versions"]
        gpus = f", {', '.join(hardware['gpus'])}" if hardware["gpus"] else ""
        what = f"{hardware['processor']}, {hardware['cores']} cores{gpus}, {hardware['system']}"
        rows.append((what, ", ".join(f"{name} {version}" for name, version in versions.items())))
    return f"## Machine and software\n\n{make_table(('machine', 'versions'), rows)}" if rows else ""
