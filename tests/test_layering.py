"""The import rules of the design, read from the source with ast: a new file is under them from its first line.

    genotype <- registry <- blocks <- ops <- cell <- skeleton <- families <- builder <- recipes

* zoo never imports recipes, keras_tuner or absl. What the line above names imports only what is left of it.
* A file of zoo that the line does not name (weights, draw) may import any of it; of the line only `builder` imports it.
* `cost` and `deploy` take any keras.Model: of zoo they see each other, `atomic` and `markdown`, never a family or a
  genotype.
* In recipes: images <- training <- oracles <- engine <- cards <- tables <- _search <- _seeds <- a room or program <-
  tour. What is left never imports what is right, inside functions neither; rooms and programs do not import one
  another, but for those that FOLLOWS names.
"""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parent.parent

FOLDERS = ("zoo", "recipes", "searched_genotypes", "benchmarks", "setup")
ORDER = """atomic markdown genotype genotype_json canonical formats manifest registry
    blocks mobile_blocks ops cell skeleton families builder""".split()
RECIPES_ORDER = tuple(
    f"recipes.{name}" for name in "_quiet images training oracles engine cards tables _search _seeds".split()
)
ROOMS = ("recipes.darts", "recipes.enas", "recipes.tinynas")
FOLLOWS = {  # program -> the programs or rooms that it builds on
    "recipes.tour": ("recipes",),
    "recipes.tabulate": ROOMS,  # whose spaces it trains
    "recipes.measure_latencies": ("recipes.mnasnet",),  # whose layers it measures
}
MODEL_ONLY = ("zoo.cost", "zoo.deploy", "zoo.graph")
CONVERSION_PACKAGES = {"tf_keras", "tensorflow_model_optimization"}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MODEL_LOADERS = {"load_model", "deserialize_keras_object", "model_from_json"}


class Import(NamedTuple):
    module: str  # dotted and absolute; for `from zoo import cell` it is zoo.cell where that is a module, else zoo
    line: int


def sources() -> list[Path]:
    return sorted(path for name in FOLDERS for path in [*PROJECT.glob(f"{name}.py"), *(PROJECT / name).rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sources()}


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import of the file, those inside functions too."""
    return tuple(_imports(path, tree_of(path)))


def _imports(path: Path, tree: ast.Module) -> Iterator[Import]:
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{origin}.{alias.name}"
                yield Import(deeper if deeper in modules() else origin, node.lineno)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def rank(module: str) -> int | None:
    """The module's place in the import order, or None for a file of zoo that the order does not name."""
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else None


def is_program(path: Path) -> bool:
    guards = (node.test for node in tree_of(path).body if isinstance(node, ast.If))
    return any(isinstance(test, ast.Compare) and "__main__" in ast.unparse(test) for test in guards)


def broken(path: Path, allowed) -> list[str]:
    """The file's imports that `allowed(module)` refuses, as file:line."""
    name = path.relative_to(PROJECT)
    return [f"{name}:{line} imports {module}" for module, line in imports_of(path) if not allowed(module)]


def every_file_of(*packages: str, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    paths = [path for name, path in modules().items() if within(name, *packages) and not within(name, *but)]
    return pytest.mark.parametrize("path", paths, ids=module_name)


@every_file_of("zoo")
def test_zoo_never_imports_recipes_or_what_only_recipes_need(path: Path):
    assert not broken(path, lambda module: not within(module, "recipes", "tests", "benchmarks", "keras_tuner", "absl"))


@every_file_of(*(f"zoo.{name}" for name in ORDER))
def test_zoo_imports_only_from_the_left_of_the_order(path: Path):
    name = module_name(path)
    own = rank(name)

    def allowed(module: str) -> bool:
        other = rank(module)
        if not within(module, "zoo"):
            return True
        if other is None:  # builder offers weights= and the like
            return name == "zoo.builder" and module != "zoo"
        if path.name == "__init__.py" and within(module, name):
            return True  # a package gathers what its modules offer
        if name.rpartition(".")[0] == module.rpartition(".")[0] != "zoo":
            return True  # modules of one package
        return own is not None and other < own

    assert not broken(path, allowed)


@every_file_of("zoo.families")
def test_families_never_import_one_another(path: Path):
    assert not broken(path, lambda module: not within(module, "zoo.families"))


@every_file_of(*MODEL_ONLY)
def test_cost_and_deploy_see_models_only(path: Path):
    seen = ("zoo.atomic", "zoo.markdown", *MODEL_ONLY)
    assert not broken(path, lambda module: not within(module, "zoo") or within(module, *seen))


@every_file_of(*FOLDERS, but=("zoo.deploy",))
def test_only_deploy_touches_tf_keras_and_model_optimization(path: Path):
    assert not broken(path, lambda module: not within(module, *CONVERSION_PACKAGES))


LIGHT = tuple(f"zoo.{name}" for name in ORDER[: ORDER.index("blocks")])


@every_file_of(*LIGHT, "recipes._quiet")
def test_light_modules_need_only_the_standard_library(path: Path):
    light = (*LIGHT, "searched_genotypes")
    assert not broken(
        path, lambda module: module.partition(".")[0] in sys.stdlib_module_names or within(module, *light)
    )


@every_file_of(*RECIPES_ORDER)
def test_recipes_import_only_from_the_left_of_their_order(path: Path):
    own = next(place for place, name in enumerate(RECIPES_ORDER) if within(module_name(path), name))
    assert not broken(path, lambda module: not within(module, "recipes") or within(module, *RECIPES_ORDER[: own + 1]))


@every_file_of("recipes", but=RECIPES_ORDER)
def test_rooms_and_programs_do_not_import_one_another(path: Path):
    programs = {name for name, source in modules().items() if within(name, "recipes") and is_program(source)}
    own = next((room for room in ROOMS if within(module_name(path), room)), module_name(path))
    allowed = (own, *FOLLOWS.get(module_name(path), ()))
    assert not broken(path, lambda module: within(module, *allowed) or not within(module, *programs, *ROOMS))


@every_file_of(*FOLDERS, but=("recipes._main",))
def test_only_main_reads_flags(path: Path):
    assert not broken(path, lambda module: not within(module, "absl"))


@every_file_of(*FOLDERS)
def test_nothing_that_runs_code_from_data(path: Path):
    found = broken(path, lambda module: not within(module, *UNSAFE_MODULES))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            problem = _unsafe(ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords})
            if problem:
                found.append(f"{path.relative_to(PROJECT)}:{node.lineno} {problem}")
    assert not found


def _unsafe(function: str, keywords: dict[str | None, ast.expr]) -> str | None:
    def is_constant(name: str, value: bool) -> bool:
        given = keywords.get(name)
        return isinstance(given, ast.Constant) and given.value is value

    if function in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"):
        return f"calls {function}: read JSON, or look a name up in a table"
    if function == "torch.load" and not is_constant("weights_only", True):
        return "calls torch.load without weights_only=True"
    if "allow_pickle" in keywords and not is_constant("allow_pickle", False):
        return "unpickles with allow_pickle"
    if function.rpartition(".")[2] in MODEL_LOADERS and "safe_mode" in keywords and not is_constant("safe_mode", True):
        return "loads a model with safe_mode off"
    if function in ("yaml.load", "keras.config.enable_unsafe_deserialization"):
        return f"calls {function}"
    return None


def test_zoo_modules_import_one_another_in_no_circle():
    graph = {name: {entry.module for entry in imports_of(path)} & set(modules()) for name, path in modules().items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle of imports: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in finished:
            for other in sorted(graph[name] - {name}):
                visit(other, (*trail, name))
            finished.add(name)

    for name in sorted(graph):
        visit(name, ())


IMPORT_ZOO = """
import sys, time
start = time.process_time()
import zoo
seconds = time.process_time() - start
heavy = [name for name in ("keras", "tensorflow", "numpy", "matplotlib", "keras_tuner") if name in sys.modules]
print(seconds, *heavy)
"""


def test_import_zoo_takes_a_fifth_of_a_second_and_no_keras():
    seconds = []
    for _ in range(3):  # the best of three, in processor time: the machine may be busy with the other tests
        command = [sys.executable, "-c", IMPORT_ZOO]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60)
        time, *heavy = done.stdout.split()
        assert not heavy
        seconds.append(float(time))
    assert min(seconds) < 0.2
