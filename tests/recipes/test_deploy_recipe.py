"""`python -m recipes.deploy`: one page of numbers about the files, and what it says where it cannot make them."""

import dataclasses
import json
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from recipes import deploy, deployable
from recipes.images import sources as data
from zoo import genotype_json
from zoo.deploy import compact, measure, metadata, report, tflite, tflite_file

layers = keras.layers


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A small network, trained a little on the embedded images."""
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1))
    x = layers.MaxPooling2D(2)(layers.Conv2D(8, 5, activation="relu")(image))
    x = layers.MaxPooling2D(2)(layers.Conv2D(16, 3, activation="relu")(x))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(layers.Flatten()(x)), name="small")
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(data.load(limit=2000).train.dataset(32, training=True), epochs=2, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def config(model, tmp_path_factory) -> deploy.Config:
    folder = tmp_path_factory.mktemp("deploy")
    model.save(folder / "small.keras")
    (folder / "genotype.json").write_text(genotype_json.to_json(zoo.load("darts")))  # as a search leaves it
    return deploy.Config(
        model=str(folder / "small.keras"), images=200, calibration=64, c_array=True, folder=folder / "out"
    )


@pytest.fixture(scope="module")
def result(config) -> report.Report:
    return deploy.deploy(config)


def test_float_and_int8_are_judged_on_the_same_held_out_images(result, config, model):
    held_out = data.load().test.first(200)
    images = held_out.images.astype(np.float32) / 255
    assert result.n == 200
    assert result.accuracy == measure.accuracy(model, images, held_out.labels) > 0.6
    for row in result.rows:
        assert row.accuracy == measure.accuracy(config.folder / row.file, images, held_out.labels)
    assert abs(result.drop("float32")) <= 0.005
    assert abs(result.drop("int8")) <= 0.03


def test_rows_hold_what_is_measured_on_the_written_files(result, config):
    assert result.schemes == ("float32", "int8")
    for row in result.rows:
        assert row.size == measure.size(config.folder / row.file) < (config.folder / row.file).stat().st_size
        assert 0 < row.latency.median_ms <= row.latency.p90_ms
        assert row.arena == measure.arena(config.folder / row.file).total
    assert result.row("int8").size < result.row("float32").size / 2


def test_page_and_json_say_the_same_and_name_n(result, config):
    stored = json.loads((config.folder / "deploy.json").read_text())
    assert stored == json.loads(json.dumps(dataclasses.asdict(result)))
    page = (config.folder / "deploy.md").read_text()
    assert "n = 200 held-out images" in page
    assert f"| small_int8.tflite | int8 | {result.row('int8').accuracy:.4f} |" in page


def test_c_source_of_the_int8_file_is_written_on_request(result, config):
    assert f"model_len = {result.row('int8').size}u" in (config.folder / "model.c").read_text()


def test_unknown_scheme_of_a_report_is_named(result):
    with pytest.raises(KeyError, match="no file with scheme 'float16'"):
        result.row("float16")


def test_gate_ends_with_exit_code_1_and_says_by_how_much(result, config, monkeypatch, capsys):
    monkeypatch.setattr(deploy, "deploy", lambda config: dataclasses.replace(result, accuracy=1.0))
    deploy.main(config)
    with pytest.raises(SystemExit) as exit_:
        deploy.main(dataclasses.replace(config, gate=0.01))
    assert exit_.value.code == 1
    assert re.search(r"gate: int8 is 0\.\d+ less accurate .* n = 200 images; 0\.01 is allowed", capsys.readouterr().err)


def test_int8_file_is_judged_as_it_is_beside_its_float_file(result, config, tmp_path):
    files = [config.folder / row.file for row in result.rows]
    judged = deploy.deploy(
        dataclasses.replace(
            config, model=str(files[1]), reference=files[0], folder=tmp_path, diagnose=True, board="stm32f746"
        )
    )
    assert judged.schemes == ("float32", "int8")
    assert judged.row("int8").accuracy == result.row("int8").accuracy
    assert judged.accuracy == result.row("float32").accuracy
    page = (tmp_path / "deploy.md").read_text()
    assert "## Rounding noise of int8" in page
    assert "## Memory of int8: fits on STM32F746" in page
    for name in ("noise.png", "memory.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_compact_file_is_judged_on_turned_images_planned_and_written_as_c(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 5, strides=2, activation="relu", name="stem")(layers.ZeroPadding2D(2)(image))
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="wide")(layers.ZeroPadding2D(1)(x))
    trained = keras.Model(image, layers.Dense(10, "softmax")(layers.GlobalMaxPooling2D()(x)), name="padded")
    trained.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    trained.fit(data.load(limit=2000).train.dataset(32, training=True), epochs=2, shuffle=False, verbose=0)
    trained.save(tmp_path / "padded.keras")
    config = deploy.Config(
        model=str(tmp_path / "padded.keras"), images=200, calibration=64, folder=tmp_path / "out",
        compact="turned", board="stm32f746", c_array=True,
    )  # fmt: skip
    result = deploy.deploy(config)
    row = result.row("int8 compact")
    assert (row.file, row.turned, result.row("int8").turned) == ("padded_int8_compact.tflite", True, False)
    assert abs(result.drop("int8 compact")) <= 0.03
    assert row.arena < result.row("int8").arena
    page = (config.folder / "deploy.md").read_text()
    assert "padded_int8_compact.tflite takes its image turned by 180 degrees" in page
    assert "## Memory of int8 compact: fits on STM32F746" in page
    assert f"model_len = {row.size}u" in (config.folder / "model.c").read_text()
    alone = deploy.deploy(deploy.Config(model=str(config.folder / row.file), images=200, folder=tmp_path / "alone"))
    assert alone.row("int8").accuracy == row.accuracy
    with pytest.raises(compact.StripsError, match="'nowhere' is called 0 times"):
        deploy.deploy(dataclasses.replace(config, strips=("nowhere:wide:2",)))


def test_strips_are_read_as_regions():
    config = deploy.Config(compact="upright", strips=("stem:block1_bn:8", "block2:block2_bn:4"))
    assert config.regions == (compact.Region("stem", "block1_bn", 8), compact.Region("block2", "block2_bn", 4))


def test_int8_file_alone_has_nothing_to_be_compared_with(result, config, tmp_path):
    path = config.folder / result.row("int8").file
    alone = dataclasses.replace(config, model=str(path), folder=tmp_path, c_array=False, images=20)
    judged = deploy.deploy(alone)
    assert (judged.accuracy, judged.schemes, judged.n) == (None, ("int8",), 20)
    with pytest.raises(ValueError, match="nothing to compare"):
        judged.drop("int8")


@pytest.mark.parametrize("option", ["model", "reference"])
def test_missing_tflite_file_is_named(result, config, tmp_path, option):
    options = {"model": str(config.folder / result.row("int8").file), option: "nowhere.tflite", "c_array": False}
    options["reference"] = Path(options["reference"]) if "reference" in options else None
    with pytest.raises(FileNotFoundError, match=rf"{option}: there is no file nowhere\.tflite"):
        deploy.deploy(dataclasses.replace(config, folder=tmp_path, **options))


def test_float_file_takes_no_reference(result, config, tmp_path):
    path = config.folder / result.row("float32").file
    with pytest.raises(ValueError, match=r"reference needs a quantized .*small_float32\.tflite is float32"):
        deploy.deploy(dataclasses.replace(config, model=str(path), reference=path, folder=tmp_path, c_array=False))


def test_arena_is_told_before_it_is_recorded(result):
    for row in result.rows:
        assert row.planned == pytest.approx(row.arena, rel=0.05)


def test_file_that_tflm_cannot_run_gets_a_note_instead_of_an_arena(model):
    images, labels = np.zeros((2, 28, 28, 1)), np.zeros(2)
    row = report.measure_file(tflite.convert(model, quantize="float16"), "float16", "x.tflite", images, labels)
    assert row.arena is None
    assert "DEQUANTIZE" in row.note


def test_failed_conversion_leaves_nothing_behind(model, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(tflite.ConversionError):
        report.export(model, np.zeros((1, 28, 28, 1)), np.zeros(1), folder, calibration=np.zeros((0, 28, 28, 1)))
    assert not folder.exists()


def test_folder_that_is_a_file_is_named(model, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*out"):
        report.assemble(model, {"x": tflite.convert(model)}, np.zeros((1, 28, 28, 1)), np.zeros(1), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images is 0; expected a whole number from 1"),
        ({"gate": 2.0}, "gate is 2.0; expected a share from 0 to 1"),
        ({"schemes": ("int8", "int8")}, "schemes=int8,int8 repeats one"),
        ({"schemes": ("float16",), "c_array": True}, "c_array needs an int8, uint8 or int4 file"),
        ({"schemes": ("float16",), "diagnose": True}, "diagnose needs an int8, int4, int16x8 or uint8 file"),
        ({"model": "x.tflite", "gate": 0.01}, "give that file as reference="),
        ({"model": "x.tflite", "compact": "upright"}, "compact needs a Keras model, and model=x.tflite is a converted"),
        ({"model": "x.tflite", "equalize": True}, "equalize needs a Keras model, and model=x.tflite is a converted"),
        ({"strips": ("stem:stem:2",)}, "strips are only for the compact file; add compact=smallest"),
        ({"compact": "upright", "strips": ("stem:2",)}, "strips has 'stem:2'; expected FIRST:LAST:COUNT"),
        ({"reference": Path("x.tflite")}, "reference needs a .tflite file as model"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        deploy.Config(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "nowhere.keras"}, FileNotFoundError, "there is no file nowhere.keras. Train one"),
        ({"model": "nasnet_z"}, ValueError, "nasnet_a"),
        ({"model_preset": "mobile"}, ValueError, "already has its weights"),
        ({"image_size": 32}, ValueError, "takes 28 x 28; leave it out"),
    ],
)
def test_model_that_cannot_be_had_is_refused(config, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        deployable.load(dataclasses.replace(config, **options))


def test_data_of_other_classes_are_refused(config, tmp_path):
    image = keras.Input((28, 28, 1))
    other = keras.Model(image, layers.Dense(3)(layers.Flatten()(image)), name="other")
    other.save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"'other' has 3 classes, and fashion_mnist_small has 10"):
        deployable.load(dataclasses.replace(config, model=str(tmp_path / "other.keras")))


def test_name_without_weights_is_said_to_be_untrained(capsys):
    subject = deployable.load(deploy.Config(model="mcunet_in0", images=2, calibration=3))
    assert "mcunet_in0 is untrained" in capsys.readouterr().err
    assert subject.model.input_shape == (None, 28, 28, 1)
    assert (subject.images.shape, subject.calibration.shape) == ((2, 28, 28, 1), (3, 28, 28, 1))
    assert subject.images.dtype == np.float32


def test_labels_and_what_the_files_read_stand_beside_them(result, config):
    names = json.loads((config.folder / "class_names.json").read_text())
    assert (len(names), names[0]) == (10, "T-shirt/top")
    source = json.loads((config.folder / "source.json").read_text())
    assert (source["image_size"], source["channels"], source["preprocess"]) == ([28, 28], 1, "unit")
    assert (source["model"], source["class_names"]) == (config.model, names)


def test_each_file_has_labels_preprocessing_and_genotype_inside(result, config):
    source = json.loads((config.folder / "source.json").read_text())
    del source["model"]
    for row in result.rows:
        found = metadata.read(config.folder / row.file)
        assert list(found.class_names) == source["class_names"]
        assert (found.mean, found.std) == ((0.0,), (255.0,))
        assert json.loads(found.files["source.json"]) == source
        assert found.files["genotype.json"] == genotype_json.to_json(zoo.load("darts"))
    page = (config.folder / "deploy.md").read_text()
    assert "TFLite Metadata in small_float32.tflite, small_int8.tflite: " in page
    assert "the names of 10 classes, mean 0, std 255, source.json, genotype.json" in page


def test_why_a_quantized_file_takes_longer_than_the_float_one_stands_beside_the_numbers(result):
    float_row, int8_row = result.rows
    for factor, explained in ((2, True), (0.5, False)):
        latency = dataclasses.replace(int8_row.latency, median_ms=factor * float_row.latency.median_ms)
        rows = (float_row, dataclasses.replace(int8_row, latency=latency))
        page = dataclasses.replace(result, rows=rows).to_markdown()
        assert ("\nint8 took longer than float32 on this machine." in page) is explained


def test_equalized_model_computes_the_same_and_its_layers_are_counted(config, model, capsys):
    subject = deployable.load(dataclasses.replace(config, equalize=True))
    assert "equalized: channels of 1 of 3 layers of small; not equalized, for example: " in capsys.readouterr().err
    np.testing.assert_array_equal(subject.model.predict(subject.images), model.predict(subject.images))


def test_documented_programs_classify_a_picture_with_litert_alone(result, config, model, project, tmp_path):
    text = (project / "docs" / "quantization.md").read_text()
    short, long = re.findall(r"```python\n(import (?:zipfile|json)\n.*?)```", text, re.DOTALL)
    assert len(short.split("\n")) - short.count("\n\n") - 1 == 10  # lines of code
    assert not re.search("zoo|recipes", short + long)
    held_out = data.load().test.first(200)
    right = np.argmax(model.predict(held_out.images / 255, verbose=0), axis=1) == held_out.labels
    number = int(np.flatnonzero(right)[0])
    Image.fromarray(held_out.images[number, :, :, 0]).save(tmp_path / "picture.png")
    bytewise = dataclasses.replace(config, pixels=True, schemes=("uint8", "float16"), folder=tmp_path, c_array=False)
    cases = [(long, config.folder / row.file) for row in result.rows]
    cases += [(short, tmp_path / row.file) for row in deploy.deploy(bytewise).rows]
    assert len(cases) == 5
    for program, file in cases:
        (tmp_path / "model.tflite").write_bytes(file.read_bytes())
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert data.load().class_names[held_out.labels[number]] in done.stdout


def convert_others(outputs, shape=(28, 28, 1), **options) -> bytes:
    image = keras.Input(shape)
    model = keras.Model(image, outputs(image))
    calibration = np.random.default_rng(0).random((4, *shape)).astype(np.float32)
    return tflite.convert(model, quantize="int8", calibration=calibration, **options)


def pooled(image):
    return layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))


OTHERS = {
    "two classes": (lambda x: layers.Dense(2, "softmax")(pooled(x)), (28, 28, 1), "it has 2 classes, and "
                    "fashion_mnist_small has 10"),
    "twelve classes": (lambda x: layers.Dense(12)(pooled(x)), (28, 28, 1), "it has 12 classes"),
    "a map": (lambda x: layers.Conv2D(10, 1)(x), (28, 28, 1), "its output is [1, 28, 28, 10]; expected a row"),
    "a regression": (lambda x: layers.Dense(1)(pooled(x)), (28, 28, 1), "its single output is not known to be"),
    "a vector": (lambda x: layers.Dense(10, "softmax")(x), (40,), "it takes serving_default_image:0 [1, 40]; expected "
                 "one image [1, height, width, 1 or 3]"),
    "four channels": (lambda x: layers.Dense(10, "softmax")(pooled(x)), (8, 8, 4), "[1, 8, 8, 4]; expected one image"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_file_that_is_no_classifier_of_the_data_is_measured_and_its_accuracy_refused(name, tmp_path):
    outputs, shape, reason = OTHERS[name]
    (tmp_path / "other.tflite").write_bytes(convert_others(outputs, shape))
    config = deploy.Config(
        model=str(tmp_path / "other.tflite"), diagnose=True, board="stm32f746", images=40, folder=tmp_path / "out"
    )
    result = deploy.deploy(config)
    row = result.row("int8")
    assert (result.accuracy, row.accuracy) == (None, None)
    assert reason in result.unjudged
    assert row.arena > 0
    assert row.latency.median_ms > 0
    page = (tmp_path / "out" / "deploy.md").read_text()
    assert f"Accuracy unknown: {result.unjudged}." in page
    assert "Signal to rounding noise at the output" in page
    assert "## Memory of int8: fits on STM32F746" in page
    assert ("On random inputs" in page) == (name in ("a vector", "four channels"))
    with pytest.raises(ValueError, match="nothing to compare"):
        result.drop("int8")


def test_several_outputs_of_a_file_are_asked_about_and_chosen(tmp_path):
    image = keras.Input((28, 28, 1))
    heads = {"scores": layers.Dense(10, "softmax")(pooled(image)), "area": layers.Dense(1)(pooled(image))}
    parsed = tflite_file.parse(tflite.convert(keras.Model(image, heads)))
    for entry, name in zip(parsed.signatureDefs[0].outputs, ("area", "scores"), strict=True):
        entry.name = name
    (tmp_path / "two.tflite").write_bytes(tflite_file.pack(parsed))
    config = deploy.Config(model=str(tmp_path / "two.tflite"), images=20, folder=tmp_path / "out")
    assert "2 outputs: area, scores; which is the first is unknown. Choose one with --output=" in (
        deploy.deploy(config).unjudged
    )
    assert 0 <= deploy.deploy(dataclasses.replace(config, output="scores")).accuracy <= 1


def test_best_file_is_judged_for_the_board_and_each_gets_a_verdict(model, tmp_path):
    model.save(tmp_path / "small.keras")
    config = deploy.Config(
        model=str(tmp_path / "small.keras"), schemes=("int8", "dynamic"), images=20, calibration=8, board="nrf52840",
        compact="smallest", folder=tmp_path / "out",
    )  # fmt: skip
    result = deploy.deploy(config)
    page = (tmp_path / "out" / "deploy.md").read_text()
    arenas = {scheme: result.row(scheme).arena for scheme in ("int8", "int8 compact")}
    assert arenas["int8 compact"] <= arenas["int8"]
    assert re.search(r"## Memory of int8( compact)?: fits on nRF52840", page)
    assert "- float32: fits on nRF52840" in page
    assert "- dynamic: does not fit on nRF52840 (Arduino Nano 33 BLE): TFLM has no " in page


PETS = [("cats", 40), ("dogs", 200)]


@pytest.fixture
def pets(tmp_path) -> Path:
    """Dark and bright pictures, 30 of each."""
    draw = np.random.default_rng(0)
    for name, mean in PETS:
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.clip(draw.normal(mean, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def brightness(front, scale: float, activation: str | None = "sigmoid") -> keras.Model:
    """One unit that says whether the mean of what `front` makes of an image is above a half of `scale`."""
    image = keras.Input((16, 16, 3))
    mean = layers.GlobalAveragePooling2D()(front(image))
    head = layers.Dense(1, activation, bias_initializer=keras.initializers.Constant(-15 * scale))
    model = keras.Model(image, head(mean))
    head.set_weights([np.full((3, 1), 10.0), head.get_weights()[1]])
    return model


def normalization(image):
    layer = layers.Normalization(mean=[0.0, 0.0, 0.0], variance=[255.0**2] * 3)
    return layer(image)


@pytest.mark.parametrize(
    ("front", "scale"),
    [
        (layers.Rescaling(1 / 255), 1.0),
        (lambda x: layers.Rescaling(1 / 127.5, offset=-1)(layers.ZeroPadding2D(0)(x)), 0.0),
        (normalization, 1.0),
        (lambda x: x, 1.0),
    ],
)
def test_network_gets_pixels_where_its_first_layers_rescale_them_and_0_to_1_else(front, scale, pets, tmp_path):
    brightness(front, scale).save(tmp_path / "model.keras")
    config = deploy.Config(model=str(tmp_path / "model.keras"), data=str(pets), calibration=16, folder=tmp_path / "out")
    result = deploy.deploy(config)
    assert (result.accuracy, result.row("int8").accuracy) == (1.0, 1.0)


def test_preprocessing_of_the_training_is_kept_and_a_contradiction_refused(pets, tmp_path, capsys):
    brightness(lambda x: x, 0.0).save(tmp_path / "model.keras")
    (tmp_path / "results.json").write_text(json.dumps({"preprocess": "centered", "image_size": [16, 16]}))
    config = deploy.Config(model=str(tmp_path / "model.keras"), data=str(pets), calibration=16, folder=tmp_path / "out")
    assert deploy.deploy(config).accuracy == 1.0
    with pytest.raises(ValueError, match=r"preprocess is unit, but .* reads centered by .*results\.json; leave"):
        deployable.load(dataclasses.replace(config, preprocess="unit"))
    (tmp_path / "results.json").unlink()
    deploy.deploy(config)  # now 0..1, of which every mean is above 0
    assert "is near chance for 2 classes. Is --preprocess what it was trained with" in capsys.readouterr().err


def test_logit_is_judged_by_the_loss_in_the_file_or_by_the_option(pets, tmp_path):
    model = brightness(lambda x: x, 1.0, activation=None)
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    model.save(tmp_path / "model.keras")
    config = deploy.Config(model=str(tmp_path / "model.keras"), data=str(pets), calibration=16, folder=tmp_path / "out")
    result = deploy.deploy(config)
    assert (result.accuracy, result.row("int8").accuracy) == (1.0, 1.0)
    file = dataclasses.replace(config, model=str(tmp_path / "out" / result.row("int8").file), folder=tmp_path / "file")
    assert deploy.deploy(file).row("int8").accuracy is None
    assert deploy.deploy(dataclasses.replace(file, threshold=0.0)).row("int8").accuracy == 1.0


def test_model_of_keras_2_is_taken_and_one_without_layers_named_with_the_way_out(pets, tmp_path):
    model = brightness(layers.Rescaling(1 / 255), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras about the old format
        model.save(tmp_path / "old.h5")
    config = deploy.Config(model=str(tmp_path / "old.h5"), data=str(pets), calibration=16, folder=tmp_path / "out")
    assert deploy.deploy(config).accuracy == 1.0
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a SavedModel.*tflite_convert --saved_model_dir=.*saved --output_file"):
        deployable.load(dataclasses.replace(config, model=str(tmp_path / "saved")))
    (tmp_path / "broken.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.keras is damaged or cut off"):
        deployable.load(dataclasses.replace(config, model=str(tmp_path / "broken.keras")))
    with zipfile.ZipFile(tmp_path / "broken.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"Keras cannot load .*broken\.keras: .* give the \.tflite file"):
        deployable.load(dataclasses.replace(config, model=str(tmp_path / "broken.keras")))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(((16, 16, 3), (4,)), "has the inputs .*expected one image"), (((784,),), r"takes \(784,\); expected images")],
)
def test_model_that_takes_no_single_image_is_refused(shapes, message, tmp_path):
    inputs = [keras.Input(shape) for shape in shapes]
    joined = layers.Concatenate()([layers.Flatten()(one) for one in inputs]) if len(inputs) > 1 else inputs[0]
    keras.Model(inputs, layers.Dense(10)(joined)).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=message):
        deployable.load(deploy.Config(model=str(tmp_path / "model.keras")))


@pytest.mark.slow
def test_command_line_makes_the_files(tmp_path, project):
    command = [sys.executable, "-m", "recipes.deploy", "--preset=smoke", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=True)
    assert "n = 8 held-out images" in done.stdout
    assert len(list(tmp_path.glob("*.tflite"))) == 2


def test_model_with_channels_first_is_refused_with_the_remedy(tmp_path):
    image = keras.Input((3, 16, 16))
    pooled = layers.GlobalAveragePooling2D(data_format="channels_first")(image)
    keras.Model(image, layers.Dense(2)(pooled)).save(tmp_path / "first.keras")
    with pytest.raises(ValueError, match=r"takes \(3, 16, 16\), channels first.*data_format=\"channels_last\""):
        deployable.load(deploy.Config(model=str(tmp_path / "first.keras"), folder=tmp_path / "out"))
