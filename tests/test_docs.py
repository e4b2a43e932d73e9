"""What the documents show is true: README's Python runs, its commands are understood, and no link leads nowhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import zoo
from recipes import _main

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(path.relative_to(PROJECT) for path in [*PROJECT.glob("*.md"), *PROJECT.glob("*/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")
MEMBERS = re.compile(r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", re.MULTILINE)
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks in one of the languages: the line where the code starts, and the code."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\S*).*\n((?:.*\n)*?)```", text, re.MULTILINE)
    return [(text[: match.start(2)].count("\n") + 1, match[2]) for match in found if match[1] in languages]


def commands(path: Path) -> list[tuple[int, list[str]]]:
    """The commands of the shell blocks, each with its line number; no prompts, comments, variables, redirections."""
    found = []
    for number, code in blocks(path, "sh", "bash", "shell", "console"):
        joined = code.replace("\\\n", "\0")  # a continued line is one command and still counts as several lines
        for line in joined.splitlines():
            lexer = shlex.shlex(line.replace("\0", " ").removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            found += [(number, command) for command in _split(list(lexer)) if command]
            number += 1 + line.count("\0")
    return found


def _split(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word, previous in zip(words, ["", *words], strict=False):
        if set(word) <= set("&|;"):
            parts.append([])
        elif not ({word, previous} & {">", ">>", "<"} or (not parts[-1] and re.fullmatch(r"[A-Z_]+=.*", word))):
            parts[-1].append(word)
    return parts


def every(*program: str) -> pytest.MarkDecorator:
    """Gives a test each documented command that starts with the words of `program`, the last of them as a beginning."""
    found = [
        pytest.param(words, id=f"{document}:{line}")
        for document in DOCUMENTS
        for line, words in commands(PROJECT / document)
        if " ".join(words).startswith(" ".join(program))
    ]
    return pytest.mark.parametrize("words", found)


@pytest.mark.parametrize("document", ["README.md", "docs/own_search.md"])
def test_python_of_the_document_runs_from_top_to_bottom(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for line, code in blocks(PROJECT / document, "python"):
        # The line numbers of a traceback are those of the document.
        exec(compile("\n" * (line - 1) + code, str(PROJECT / document), "exec"), namespace)


@every("python", "-m", "recipes.")
def test_documented_recipe_commands_are_understood(words: list[str]):
    module, *arguments = words[2:]
    recipe = importlib.import_module(module)
    if "--help" not in arguments:
        _main.parse(arguments, recipe.PRESETS)


@every("make", "")
def test_documented_make_targets_exist(words: list[str]):
    targets = set(TARGET.findall((PROJECT / "Makefile").read_text()))
    assert {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_between_documents_lead_somewhere(document: Path):
    text = (PROJECT / document).read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (PROJECT / document).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_installing_the_project_names_where_it_is_for_no_index_has_it(document: Path):
    text = (PROJECT / document).read_text(encoding="utf-8")
    places = [line for line in text.splitlines() if re.search(r"pip install .*keras-searched-zoo", line)]
    assert [line for line in places if not re.search(r"keras-searched-zoo(\[[a-z-]+\])? @ git\+", line)] == []


@pytest.mark.parametrize("page", sorted((PROJECT / "docs" / "api").glob("*.md")), ids=lambda page: page.stem)
def test_the_api_pages_name_what_exists(page: Path):
    """The site leaves out a member that is not there, and says nothing."""
    for module, members in MEMBERS.findall(page.read_text()):
        named = importlib.import_module(module)
        assert [name for name in members.split(", ") if name and not hasattr(named, name)] == []


def test_the_citation_is_of_this_version():
    assert f"\nversion: {zoo.__version__}\n" in (PROJECT / "CITATION.cff").read_text()
