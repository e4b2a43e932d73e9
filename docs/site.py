"""What mkdocs calls while it builds the site: pages made from README, the registry, the programs and the notebooks.

Nothing stands in two places: the home page is README, a model's page its genotype file and the manifest of weights, a
program's page its docstring and options, the guides to extensions the sections of CONTRIBUTING.
"""

import dataclasses
import importlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import latex2mathml.converter  # noqa: E402 - the lines above let the project's own packages be found

import zoo  # noqa: E402
from recipes import __main__ as programs  # noqa: E402
from recipes import _main  # noqa: E402
from zoo.markdown import join_blocks, make_table  # noqa: E402

PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_SHOWN = {  # files of the project -> the pages that show them
    r"^recipes/(\w+)(/__init__)?\.py$": r"programs/\1.md",
    r"^searched_genotypes/(\w+)\.json$": r"models/\1.md",
    r"^notebooks/(\w+)\.ipynb$": r"notebooks/\1.md",
}
NOTEBOOKS = sorted((PROJECT / "docs" / "notebooks").glob("*.ipynb"))
_TABLE = (
    "[All models](docs/models/index.md): numbers beside the published ones, pictures, weights."  # in README's place
)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s#]*)(#[^)\s]*)?\)")
_INCLUDE = re.compile(r"^<!-- include -->\n\[[^\]]+\]\(\.\./([^)#]+)#([^)]+)\)$", re.MULTILINE)
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\w$])\$([^$\n]+?)\$(?![\w$])", re.DOTALL)


def on_config(config: Any) -> Any:
    """Adds the pages of models, programs and notebooks to the navigation."""
    sections = {name: pages for entry in config.nav for name, pages in entry.items()}
    sections["Models"] += [{name: f"models/{name}.md"} for name in zoo.list_models()]
    sections["Programs"] += ["programs/index.md", *({name: f"programs/{name}.md"} for name in programs.list_programs())]
    sections["Notebooks"] += [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made here."""
    made: dict[str, str | bytes] = {page: (PROJECT / source).read_text() for page, source in PAGES.items()}
    made["models/index.md"] = make_models_table()
    with tempfile.TemporaryDirectory() as folder:
        for name in zoo.list_models():
            picture = Path(folder, f"{name}.svg")
            zoo.draw(name, picture)
            made[f"models/{name}.svg"] = picture.read_bytes()
            made[f"models/{name}.md"] = make_model_page(name)
    made["programs/index.md"] = join_blocks("# Programs", make_programs_table())
    made |= {f"programs/{name}.md": make_program_page(name) for name in programs.list_programs()}
    for path in NOTEBOOKS:
        made[f"notebooks/{path.stem}.md"] = make_notebook_page(json.loads(path.read_text()), path.name)
        made[f"notebooks/{path.name}"] = path.read_bytes()
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Brings in the sections that the page includes, leads its links to where things are here, and sets maths."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")
    if here == "index.md":
        markdown = re.sub(r"<!-- table:begin -->.*?<!-- table:end -->", _TABLE, markdown, flags=re.DOTALL)
    markdown = _INCLUDE.sub(lambda found: read_section(found[1], found[2]), markdown)
    parts = _CODE.split(markdown)  # code at the odd places
    parts[::2] = [_set_maths(part) for part in parts[::2]]
    return _LINK.sub(lambda found: _lead(found, source, here, files), "".join(parts))


def _lead(found: re.Match, source: str, here: str, files: Any) -> str:
    """Returns a link as the site has it; the words alone where it leads to a file that the site does not show."""
    words, target, anchor = found[1], found[2], found[3] or ""
    path = os.path.normpath(PurePosixPath(source).parent / target)
    uri = next((page for page, original in PAGES.items() if original == path), path.removeprefix("docs/"))
    for pattern, page in _SHOWN.items():
        uri = re.sub(pattern, page, uri)
    if files.get_file_from_path(uri) is None:
        return words
    return f"[{words}]({os.path.relpath(uri, PurePosixPath(here).parent)}{anchor})"


def _set_maths(text: str) -> str:
    def convert(found: re.Match) -> str:
        if found[1]:
            return latex2mathml.converter.convert(found[1], display="block")
        return f"<span>{latex2mathml.converter.convert(found[2])}</span>"  # a line may begin with it

    return _MATH.sub(convert, text)


def read_section(document: str, anchor: str) -> str:
    """Returns what stands under a heading of a document of the project's root, without the heading.

    Raises:
        ValueError: no heading has this anchor.
    """
    sections = re.split(r"^## (.+)\n", (PROJECT / document).read_text(), flags=re.MULTILINE)[1:]
    bodies = {_anchor(title): body for title, body in zip(sections[::2], sections[1::2], strict=True)}
    if anchor not in bodies:
        raise ValueError(f"{document} has no section #{anchor}; it has {', '.join(bodies)}")
    return _LINK.sub(lambda found: f"[{found[1]}](../{found[2]}{found[3] or ''})", bodies[anchor]).strip()


def _anchor(title: str) -> str:
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))


# ---- models


def make_models_table() -> str:
    """Returns the page of all models: exact counts, which the tests build every preset for, beside published ones."""
    rows = []
    for name in zoo.list_models():
        about = zoo.info(name)
        weighted = {entry["preset"] for entry in about["weights"].values()}
        for preset in about["presets"]:
            link = f"[{name}]({name}.md)"
            rows.append((link, preset, *_numbers(about, preset), "yes" if preset in weighted else ""))
    text = """Computed: trainable parameters and multiply-accumulates of convolutions and dense layers for one image,
as `zoo.build` makes the network; a test builds each and compares. Published: of the paper or its code. M: millions.
Top-1 in percent, of CIFAR-10 100 minus the published error. Build times and file sizes: `benchmarks.zoo_table`."""
    head = ("network", "preset", "image", "parameters, M", "published", "multiply-adds, M", "published",
            "top-1 published", "weights")  # fmt: skip
    return join_blocks("# Models", text, make_table(head, rows, numbers_from=3))


def _numbers(about: dict[str, Any], preset: str) -> tuple[str | None, ...]:
    """Returns image, parameters, published ones, multiply-adds, published ones and published top-1 of a preset."""
    known = about["published"].get(preset, {})
    height, width, _ = about["presets"][preset]["input_shape"]
    top1 = known.get("top1", 100 - known["test_error"] if "test_error" in known else None)
    params, macs = (None if name not in known else known[name] / 1e6 for name in ("trainable_params", "macs"))
    published = known.get("params_millions"), known.get("macs_millions")
    numbers = ((params, ",.2f"), (published[0], ","), (macs, ",.0f"), (published[1], ","), (top1, ".2f"))
    return f"{height} x {width}", *(None if value is None else format(value, form) for value, form in numbers)


def make_model_page(name: str) -> str:
    """Returns the page of a model: picture, use, numbers, weights with their licences, and the genotype itself."""
    about = zoo.info(name)
    source = about["source"]
    paper = f"[{source['paper']}]({source['url']})" if "url" in source else source.get("paper", "")
    origin = ". ".join(filter(None, (
        f"{paper}, {source['year']}" if "year" in source else paper,
        f"Code: {source['code']}" if "code" in source else "",
        f"Read from {source['read_from']}" if "read_from" in source else "",
    )))  # fmt: skip
    first = next(iter(about["presets"]))
    weighted = next(iter(about["weights"].values()), None)
    shown = f', weights="{weighted["dataset"]}"' if weighted and weighted["dataset"] == "imagenet" else ""
    use = f"""```python
import zoo

model = zoo.build("{name}", preset="{weighted["preset"] if shown else first}"{shown})
small = zoo.build("{name}", preset="{first}", classes=3, input_shape=(64, 64, 3))
```"""
    rows = [(preset, *_numbers(about, preset)) for preset in about["presets"]]
    head = ("preset", "image", "parameters, M", "published", "multiply-adds, M", "published", "top-1 published")
    notes = [f"- {preset}: {known['status']}" for preset, known in about["published"].items() if "status" in known]
    sources = [f"- {preset}: {known['source']}" for preset, known in about["published"].items() if "source" in known]
    genotype = json.dumps(json.loads(zoo.genotype_json.to_json(zoo.load(name))), indent=1)
    folded = "\n".join(f"    {line}" for line in ("```json", *genotype.splitlines(), "```"))
    return join_blocks(
        f"# {name}",
        f"Family `{about['family']}`. {origin}.",
        f"![{name}, drawn by zoo.draw]({name}.svg)",
        "## Build it",
        use,
        "## Numbers",
        make_table(head, rows, numbers_from=2),
        "Computed (trainable parameters, multiply-accumulates of one image) beside published.",
        "\n".join(notes),
        "The published numbers are from:" if sources else "",
        "\n".join(sources),
        "## Weights",
        _weights(about),
        f"## Notes\n\n{about['notes']}" if about["notes"] else "",
        "## Genotype",
        f'??? note "searched_genotypes/{name}.json"\n\n{folded}',
    )


def _weights(about: dict[str, Any]) -> str:
    rows = [
        (f"`{name}`", entry["preset"], entry["dataset"], entry["top1"], entry["origin"], entry["license"])
        for name, entry in about["weights"].items()
    ]
    if not rows:
        return "Nobody has published any for this network; `zoo.build` gives it fresh ones."
    head = ("weights", "preset", "trained on", "top-1, %", "from", "licence")
    return f"{make_table(head, rows)}\n\nHow they are fetched and checked: [published weights](../weights.md)."


# ---- programs and notebooks


def make_programs_table() -> str:
    """Returns the table of all programs."""
    rows = [(f"[`python -m recipes.{name}`]({name}.md)", text) for name, text in programs.list_programs().items()]
    return make_table(("program", "what it does"), rows)


def make_program_page(name: str) -> str:
    """Returns a program's page: its docstring, and each option with its default, or that of each preset."""
    module: Any = importlib.import_module(f"recipes.{name}")
    presets, comments = module.PRESETS, _main.field_help(type(next(iter(module.PRESETS.values()))))
    rows = []
    for field in dataclasses.fields(type(next(iter(presets.values())))):
        if field.init:
            values = {
                preset: f"`{_main.show_value(getattr(config, field.name))}`" for preset, config in presets.items()
            }
            alike = len(set(values.values())) == 1
            shown = ", ".join(f"{preset} {value}" for preset, value in values.items())
            default = next(iter(values.values())) if alike else shown
            rows.append((f"`--{field.name}`", comments.get(field.name, ""), default))
    summary, _, rest = (module.__doc__ or "").strip().partition("\n")
    return join_blocks(f"# {name}", summary, rest, "## Options", make_table(("flag", "meaning", "default"), rows))


def make_notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Returns a notebook as a page: its text and code, without outputs."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"[Download the notebook]({name})")
    return join_blocks(*parts)
