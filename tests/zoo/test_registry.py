"""The registry: names, families, paths and what is known of a model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo import registry
from zoo.genotype import GenotypeError


def test_the_models_are_the_files_of_the_folder(project):
    files = sorted(path.stem for path in (project / "searched_genotypes").glob("*.json"))
    files.remove("schema")
    assert zoo.list_models() == files
    assert len(files) >= 28


@pytest.mark.parametrize(
    ("pattern", "models"),
    [
        ("nasnet*", ["nasnet_a"]),
        ("*nasnet_[a5]", ["nasnet_a", "pnasnet_5"]),
        ("amoebanet_?", ["amoebanet_a", "amoebanet_b", "amoebanet_c", "amoebanet_d"]),
        ("DARTS*", ["darts", "darts_v1"]),
        ("resnet*", []),
        ("schema", []),
    ],
)
def test_patterns_have_stars_question_marks_and_brackets(pattern, models):
    assert zoo.list_models(pattern) == models


def test_the_families_are_seven():
    families = ["amoebanet", "darts", "enas", "mcunet", "mnasnet", "nasnet", "pnasnet"]
    assert registry.list_families() == families
    assert sorted(zoo.load(name).family for name in zoo.list_models() if zoo.load(name).represents_family) == families


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("nasnet", "nasnet_a"),
        ("pnasnet", "pnasnet_5"),
        ("amoebanet", "amoebanet_a"),
        ("mnasnet", "mnasnet_a1"),
        ("enas", "enas_micro"),
        ("darts", "darts"),
        ("mcunet", "mcunet_in3"),
    ],
)
def test_a_family_stands_for_its_best_known_network(family, model):
    assert zoo.load(family) == zoo.load(model)
    assert zoo.load(family).name == model
    assert registry.find_representative(family) == zoo.load(model)


def test_paths_load_as_names_do(project, tmp_path, monkeypatch):
    path = project / "searched_genotypes" / "darts_v1.json"
    assert zoo.load(path) == zoo.load(str(path)) == zoo.load("darts_v1")
    zoo.save(zoo.load("darts_v1"), tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    assert zoo.load("mine.json") == zoo.load(f".{os.sep}mine.json") == zoo.load("darts_v1")
    assert zoo.load(Path("mine.json")) == zoo.load("darts_v1")


def test_info_tells_source_presets_published_numbers_and_weights():
    known = zoo.info("nasnet_a")
    assert known["family"] == "nasnet"
    assert known["source"]["url"] == "https://arxiv.org/abs/1707.07012"
    assert known["presets"]["mobile"]["input_shape"] == [224, 224, 3]
    assert known["published"]["mobile"]["top1"] == 74.0
    assert known["weights"]["nasnet_a_mobile_keras"]["dataset"] == "imagenet"
    assert zoo.info("enas_micro")["weights"] == {}
    assert zoo.info("darts") == zoo.info("darts")


def test_what_info_returns_is_the_callers_own():
    zoo.info("darts")["presets"]["cifar10"]["cells"] = 3
    assert zoo.info("darts")["presets"]["cifar10"]["cells"] == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dart",
            "there is no model 'dart' (did you mean 'darts'?). zoo.list_models() shows all; the path of a genotype",
        ),
        ("amebanet_a", "(did you mean 'amoebanet_a'?)"),
        ("NASNet-A", "(did you mean 'nasnet_a'?)"),
        ("AmoebaNet", "(did you mean 'amoebanet'?)"),
        ("resnet50v2", "there is no model 'resnet50v2'. zoo.list_models() shows all"),
        ("schema", "there is no model 'schema'"),
        ("", "there is no model ''"),
        (None, "a model is None; expected a name from zoo.list_models(), or a path"),
        (3, "a model is 3; expected a name"),
    ],
)
def test_an_unknown_name_is_told_with_a_near_one(name, message):
    with pytest.raises(registry.UnknownModelError, match=re.escape(message)):
        zoo.load(name)
    with pytest.raises(GenotypeError, match=re.escape(message)):
        zoo.info(name)


def test_a_bad_path_is_told_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        zoo.load(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text('{"name": ')
    with pytest.raises(GenotypeError, match=r"bad\.json: malformed JSON in line 1, column 10"):
        zoo.load(tmp_path / "bad.json")


def test_a_genotype_of_ones_own_has_relatives_of_its_kind():
    assert registry.find_relative(zoo.load("darts_v1")) == zoo.load("darts")
    assert registry.find_relative(zoo.load("enas_macro")).name == "enas_macro"  # the family stands for cells
    assert registry.find_representative("resnet") is None


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_listing_and_loading_need_no_keras_nor_numpy():
    code = (
        "import sys, zoo; zoo.list_models(); zoo.info('darts'); zoo.load('nasnet'); "
        "print(*(name for name in ('keras', 'tensorflow', 'numpy', 'h5py') if name in sys.modules))"
    )
    assert run(code) == ""


def test_what_needs_keras_is_listed_before_it_is_loaded():
    names = json.loads(run("import json, zoo; print(json.dumps([dir(zoo), zoo.__all__]))"))
    assert set(names[1]) <= set(names[0])
    assert run("import zoo\ntry: zoo.biuld\nexcept AttributeError as error: print(error)") == (
        "module 'zoo' has no attribute 'biuld'"
    )
