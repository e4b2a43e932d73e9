"""A network as a folder, on this machine and on a server that speaks the Hub's few calls."""

import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

import zoo
from recipes import train
from recipes.training.results import write_results
from tests.small_networks import built, small
from zoo import atomic, pretrained
from zoo.pretrained import PretrainedError

NAMES = ["rose", "tulip", "lily", "fern é"]
NORMALIZATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return zoo.save_pretrained(
        built("mcunet"),
        tmp_path_factory.mktemp("hub") / "flowers",
        genotype=small("mcunet"),
        preset="small",
        class_names=NAMES,
        normalization=NORMALIZATION,
        license="apache-2.0",
    )


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copied")


def test_round_trip_gives_equal_outputs_labels_preprocessing_and_genotype(folder, images):
    found = zoo.from_pretrained(folder)
    np.testing.assert_array_equal(found.model.predict(images, verbose=0), built("mcunet").predict(images, verbose=0))
    assert (found.class_names, found.preset, found.genotype) == (tuple(NAMES), "small", small("mcunet"))
    expected = (images / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.1]
    np.testing.assert_allclose(np.asarray(found.preprocess(images)), expected, atol=1e-5)


def test_keras_alone_loads_the_folder(folder, images):
    model = keras.saving.load_model(folder)
    np.testing.assert_array_equal(model.predict(images, verbose=0), built("mcunet").predict(images, verbose=0))


def test_weights_file_fills_a_network_that_is_built_of_the_genotype(folder, images):
    model = zoo.build(folder / "genotype.json", "small", weights=folder / "model.weights.h5")
    np.testing.assert_array_equal(model.predict(images, verbose=0), built("mcunet").predict(images, verbose=0))


def test_card_has_the_numbers_that_there_are_and_yaml_in_front(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    values = {line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1]) for line in front.splitlines()}
    assert (values["library_name"], values["license"]) == ("keras", "apache-2.0")
    assert values["pipeline_tag"] == "image-classification"
    assert f"| parameters | {built('mcunet').count_params():,} |" in card
    assert "| image | 32 x 32 x 3 |" in card
    assert "fern é" in card
    assert "accuracy" not in card  # nobody has measured one


def test_training_becomes_a_folder_with_its_accuracy(tmp_path, images):
    model = zoo.build("mcunet_vww0", classes=4, input_shape=(32, 32, 3), name="mine")
    results = {
        "data": "photos/flowers", "normalization": NORMALIZATION, "class_names": NAMES, "test_accuracy": 0.8125,
        "test_images": 1600,
    }  # fmt: skip
    write_results(tmp_path / "run", model, results, train.Config(model="mcunet_vww0"))
    found = zoo.from_pretrained(zoo.save_pretrained(tmp_path / "run" / "model.keras", tmp_path / "hub"))
    np.testing.assert_array_equal(found.model(images), model(images))
    assert (found.class_names, found.normalization) == (tuple(NAMES), NORMALIZATION)
    assert found.genotype == zoo.load("mcunet_vww0")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| test accuracy on 1,600 images of photos/flowers | 0.8125 |" in card
    assert '"metrics": [{"type": "accuracy", "value": 0.8125}]' in card


@pytest.mark.parametrize(
    ("results", "row"),
    [
        ({"data": "mine", "test_accuracy": 0.5}, "| test accuracy on mine | 0.5000 |"),
        ({"test_accuracy": "high", "test_images": [3]}, None),
    ],
)
def test_results_of_another_program_give_the_card_what_they_hold(tmp_path, results, row):
    built("mcunet").save(tmp_path / "model.keras")
    (tmp_path / "results.json").write_text(json.dumps(results))
    card = (zoo.save_pretrained(tmp_path / "model.keras", tmp_path / "hub") / "README.md").read_text()
    assert row in card if row else "accuracy" not in card


def test_name_of_the_zoo_finds_its_genotype_and_a_foreign_model_has_none(tmp_path, images):
    model = zoo.build("mcunet_vww0", classes=2, input_shape=(32, 32, 3))
    found = zoo.from_pretrained(zoo.save_pretrained(model, tmp_path / "zoo"))
    assert (found.genotype, found.preset) == (zoo.load("mcunet_vww0"), next(iter(zoo.load("mcunet_vww0").presets)))
    image = keras.Input((32, 32, 3))
    plain = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)))
    found = zoo.from_pretrained(zoo.save_pretrained(plain, tmp_path / "plain"))
    assert (found.genotype, found.class_names, found.normalization) == (None, None, None)
    np.testing.assert_array_equal(found.model(images), plain(images))
    with pytest.raises(PretrainedError, match="does not say how to preprocess images"):
        _ = found.preprocess


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(PretrainedError, match=r"2 class names are given, but .* has 4 outputs"):
        zoo.save_pretrained(built("mcunet"), tmp_path / "out", class_names=["a", "b"])
    with pytest.raises(PretrainedError, match="of 3 channels"):
        zoo.save_pretrained(built("mcunet"), tmp_path / "out", normalization={"mean": [0, 0], "std": [1, 1]})
    image = keras.Input((4, 4, 3))
    squared = keras.Model(image, keras.layers.Lambda(lambda x: x * x)(image))
    with pytest.raises(PretrainedError, match=r"holds Lambda of keras\.layers, but only Keras' own layers are allowed"):
        zoo.save_pretrained(keras.Model(image, squared(image)), tmp_path / "out")
    numbers = keras.Input((4,))
    for model in (keras.Model(numbers, keras.layers.Dense(2)(numbers)), keras.Sequential([keras.layers.Dense(2)])):
        with pytest.raises(PretrainedError, match="; expected one image"):
            zoo.save_pretrained(model, tmp_path / "out")
    with pytest.raises(PretrainedError, match="there is no file"):
        zoo.save_pretrained(tmp_path / "model.keras", tmp_path / "out")
    (tmp_path / "model.keras").write_bytes(b"PK")
    with pytest.raises(PretrainedError, match=r"model\.keras is damaged or cut off"):
        zoo.save_pretrained(tmp_path / "model.keras", tmp_path / "out")
    (tmp_path / "class_names.json").write_text('{"0": "daisy"}')
    with pytest.raises(PretrainedError, match=r"class_names\.json is damaged; expected a list of names"):
        zoo.save_pretrained(tmp_path / "model.keras", tmp_path / "out")
    (tmp_path / "class_names.json").unlink()
    (tmp_path / "model.keras").unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(atomic.ForeignFolderError, match="mine is not empty"):
        zoo.save_pretrained(built("mcunet"), tmp_path / "mine")
    for name in ("pretrained.json", "config.json"):  # another program's file of the same name
        (tmp_path / "mine" / name).write_text('{"files": ["config.json"]}')
    with pytest.raises(atomic.ForeignFolderError, match="mine is not empty"):
        zoo.save_pretrained(built("mcunet"), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_huge_text_file_is_refused_unread(copied, monkeypatch):
    monkeypatch.setattr(pretrained, "_LARGEST_TEXT", 100)
    with pytest.raises(PretrainedError, match=r"json has [\d,]+ bytes, too many for a file of its kind$"):
        zoo.from_pretrained(copied)


def test_changed_or_missing_file_is_refused(copied):
    weights = copied / "model.weights.h5"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PretrainedError, match=r"model\.weights\.h5 was damaged or changed: its sha256 is"):
        zoo.from_pretrained(copied)
    (copied / "README.md").write_text("my words")
    weights.write_bytes(content)
    zoo.from_pretrained(copied)  # the card is for people
    (copied / "class_names.json").unlink()
    with pytest.raises(PretrainedError, match=r"class_names\.json is missing"):
        zoo.from_pretrained(copied)
    weights.unlink()
    with pytest.raises(PretrainedError, match=r"holds no config\.json and model\.weights\.h5"):
        zoo.from_pretrained(copied)


@pytest.mark.parametrize(
    ("module", "kind"), [("os", "system"), ("keras_evil", "Dense"), (None, "Dense"), ("keras.layers", "Lambda")]
)
def test_config_that_could_run_code_is_refused(copied, module, kind):
    config = json.loads((copied / "config.json").read_text())
    layer = config["config"]["layers"][1]
    layer["module"], layer["class_name"] = module, kind
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "pretrained.json").unlink()  # as somebody with bad intent would write it anew
    with pytest.raises(PretrainedError, match=f"holds {kind} of {module}, but only Keras' own layers are allowed"):
        zoo.from_pretrained(copied)


class Hub:
    """A loopback server with one repository, user/flowers, of two revisions; it notes the files that are asked for."""

    def __init__(self, files: dict[str, Path]):
        self.asked: list[str] = []
        outer = self
        commits = {revision: f"{number:040x}" for number, revision in enumerate(files, 1)}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                parts = self.path.partition("?")[0].strip("/").split("/")
                revision = next((name for name in commits if parts[-1] in (name, commits[name])), None)
                if parts[:4] == ["api", "models", "user", "flowers"] and revision is not None:
                    names = [path.name for path in files[revision].iterdir()] + ["../../escaped.txt", "evil.py"]
                    answer = {"id": "user/flowers", "modelId": "user/flowers", "private": False, "tags": [],
                              "downloads": 0, "sha": commits[revision],
                              "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
                    tree = [{"type": "file", "path": name, "size": 9, "oid": "0" * 40} for name in names]
                    self.send(json.dumps(tree if parts[4] == "tree" else answer).encode())
                elif parts[:3] == ["user", "flowers", "resolve"] and parts[3] in commits.values():
                    revision = next(name for name, commit in commits.items() if commit == parts[3])
                    outer.asked.append("/".join(parts[4:]))
                    self.send((files[revision] / parts[4]).read_bytes(), parts[3])
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RevisionNotFound" if "flowers" in parts else "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def do_HEAD(self):
                self.do_GET()

            def send(self, content: bytes, commit: str = "") -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hash(content):x}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(folder, tmp_path, monkeypatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    image = keras.Input((32, 32, 3))
    other = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)), name="other")
    server = Hub({"main": folder, "v1": zoo.save_pretrained(other, tmp_path / "first")})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.close()


def test_repository_of_the_hub_gives_equal_outputs_and_revisions_differ(hub, images, tmp_path):
    found = zoo.from_pretrained("hf://user/flowers")
    np.testing.assert_array_equal(found.model.predict(images, verbose=0), built("mcunet").predict(images, verbose=0))
    assert found.class_names == tuple(NAMES)
    assert set(hub.asked) <= set(pretrained.FILES)  # nothing else, whatever the repository lists
    assert not list(tmp_path.rglob("escaped.txt"))
    hub.asked.clear()
    assert zoo.from_pretrained("hf://user/flowers", revision="v1").model.name == "other"
    assert set(hub.asked) <= set(pretrained.FILES) - {"genotype.json", "class_names.json"}


def test_repository_that_is_not_there_is_named_with_what_to_do(hub, tmp_path):
    with pytest.raises(PretrainedError, match=r"could not download hf://user/flowers at revision v9: .*Check the name"):
        zoo.from_pretrained("hf://user/flowers", revision="v9")
    for name in ("flowers", "../user/flowers", "user/..", "user/flowers/x", ""):
        with pytest.raises(PretrainedError, match="is not a repository of the Hub; expected hf://user/name"):
            zoo.from_pretrained(f"hf://{name}")
    with pytest.raises(PretrainedError, match="revision='v1' is for hf://user/name"):
        zoo.from_pretrained(tmp_path, revision="v1")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub, or the project with its extra hub"):
        zoo.from_pretrained("hf://user/flowers")
