"""`python -m recipes.predict` and `recipes.evaluate`: names, preprocessing and numbers that can be computed by hand."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from recipes import classifiers, deploy, deployable, evaluate, predict
from recipes.training import evaluation
from recipes.training.results import find_origin, find_weights
from zoo.deploy import metadata, tflite, tflite_file

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def paint(path: Path, colour: str, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), COLOURS[colour]).save(path)
    return path


def make_model(classes: tuple[int, int, int] = (0, 1, 2), units: int = 3) -> keras.Model:
    """A network whose answer is the class of the brightest channel."""
    image = keras.Input((8, 8, 3))
    mean = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.layers.Dense(units, activation="softmax")(mean))
    kernel = np.zeros((3, units), np.float32)
    kernel[range(3), classes] = 4
    model.layers[-1].set_weights([kernel, np.zeros(units, np.float32)])
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of the network, with what a training leaves beside it."""
    path = tmp_path / "trained" / "model.keras"
    path.parent.mkdir()
    make_model().save(path)
    path.with_name("class_names.json").write_text('["red", "green", "blue"]')
    results = {"image_size": [8, 8], "data": None, "preprocess": "centered", "normalization": None, "config": {}}
    path.with_name("results.json").write_text(json.dumps(results))
    return path


# Six images of three classes: of two reds one is taken for green, of three greens one for red and one for blue, and
# the only blue for green.
LABELS = np.array([0, 0, 1, 1, 1, 2])
PREDICTED = np.array([0, 1, 1, 0, 2, 1])


def test_confusions_count_each_class_in_its_row():
    assert evaluation.count_confusions(LABELS, PREDICTED, 3).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 0]]


def test_precision_is_of_what_was_predicted_and_recall_of_what_was_there():
    measured = evaluation.measure_classes(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    assert measured == [
        {"n": 2, "precision": 1 / 2, "recall": 1 / 2},
        {"n": 3, "precision": 1 / 3, "recall": 1 / 3},
        {"n": 1, "precision": 0.0, "recall": 0.0},
        {"n": 0, "precision": None, "recall": None},
    ]


def test_the_rank_of_a_label_counts_the_classes_before_it():
    scores = np.array([[0.1, 0.5, 0.4], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
    assert evaluation.rank_labels(scores, np.array([0, 0, 1])).tolist() == [2, 0, 1]  # of equal ones the first is best


def test_scores_are_probabilities_of_logits_and_of_one_unit():
    np.testing.assert_allclose(classifiers.make_scores(np.log([[2.0, 6.0]])), [[0.25, 0.75]])
    np.testing.assert_allclose(classifiers.make_scores(np.array([[0.25, 0.5]])), [[0.25, 0.5]])
    np.testing.assert_allclose(classifiers.make_scores(np.array([[0.8]])), [[0.2, 0.8]])
    np.testing.assert_allclose(classifiers.make_scores(np.array([[0.8], [0.9]]), 0.8), [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(classifiers.make_scores(np.array([[np.log(3)]]), 0.0), [[0.25, 0.75]])


def test_imagenet_has_its_classes_in_the_order_of_the_challenge():
    found = zoo.decode_predictions(np.eye(1000)[[0, 1, 134, 517, 999]], top=1)
    assert found == [
        [("n01440764", "tench", 1.0)],
        [("n01443537", "goldfish", 1.0)],
        [("n02012849", "crane", 1.0)],
        [("n03126707", "crane", 1.0)],
        [("n15075141", "toilet_tissue", 1.0)],
    ]
    scores = np.zeros((1, 1000))
    scores[0, [7, 3, 5]] = 0.2, 0.5, 0.3
    assert [name for _, name, _ in zoo.decode_predictions(scores, 3)[0]] == ["tiger_shark", "electric_ray", "cock"]
    with pytest.raises(ValueError, match=r"shape \(1, 10\); expected \(images, 1000\)"):
        zoo.decode_predictions(np.zeros((1, 10)))
    with pytest.raises(ValueError, match="top=0; expected a whole number from 1 to 1000"):
        zoo.decode_predictions(np.zeros((1, 1000)), top=0)
    frog = np.eye(10)[[6]]
    assert zoo.decode_predictions(frog, 1, "cifar10") == [[("frog", "frog", 1.0)]]
    assert zoo.decode_predictions([[0.25, 0.75]], 1, "vww") == [[("person", "person", 0.75)]]
    with pytest.raises(zoo.GenotypeError, match=r"dataset 'cifar' is not known \(did you mean 'cifar10'\?\)"):
        zoo.decode_predictions(frog, 1, "cifar")


def test_import_zoo_needs_no_numpy():
    code = "import sys, zoo; assert 'decode_predictions' in dir(zoo); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_predict_names_classes_and_preprocesses_as_the_training_did(model: Path, tmp_path: Path, capsys):
    pictures = (paint(tmp_path / "a.png", "green"), paint(tmp_path / "b.png", "blue", side=20))
    config = predict.Config(model=str(model), images=pictures, top=2, json=True)
    found = predict.predict(config)
    # centered: 250 becomes 0.961 and 10 -0.922, so that the logits are 3.843 and twice -3.686
    best = 1 / (1 + 2 * np.exp(4 * (10 - 250) / 127.5))
    assert [picture["classes"][0]["class"] for picture in found] == ["green", "blue"]
    assert [picture["classes"][0]["label"] for picture in found] == [1, 2]
    assert found[0]["classes"][0]["score"] == pytest.approx(best, abs=1e-5)
    assert len(found[0]["classes"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == found
    assert printed["preprocessing"]["preprocess"] == "centered"
    assert printed["preprocessing"]["by"].endswith("results.json")
    predict.predict(dataclasses.replace(config, json=False))
    assert f"  {best:8.4f}  green      1" in capsys.readouterr().out.splitlines()
    with pytest.raises(ValueError, match=r"preprocess is unit, but .* reads centered by .*results\.json"):
        predict.predict(dataclasses.replace(config, preprocess="unit"))


def test_predict_takes_a_tflite_file_with_what_stands_beside_it(model: Path, tmp_path: Path):
    folder = tmp_path / "deployed"
    folder.mkdir()
    (folder / "float32.tflite").write_bytes(tflite.convert(make_model()))
    source = {"image_size": [8, 8], "data": "colours", "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "source.json").write_text(json.dumps(source))
    (folder / "class_names.json").write_text('["red", "green", "blue"]')
    pictures = (paint(tmp_path / "a.png", "red"),)
    files = [predict.Config(model=str(path), images=pictures) for path in (model, folder / "float32.tflite")]
    by_keras, by_tflite = (predict.predict(config)[0]["classes"] for config in files)
    assert [one["class"] for one in by_tflite] == [one["class"] for one in by_keras]
    assert by_tflite[0]["score"] == pytest.approx(by_keras[0]["score"], abs=1e-5)


def test_predict_takes_a_tflite_file_alone_with_its_metadata(model: Path, tmp_path: Path):
    folder = tmp_path / "alone"
    folder.mkdir()
    inside = {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}, "image_size": [8, 8], "data": "colours"}
    described = metadata.Metadata(class_names=("red", "green", "blue"), mean=(127.5,), std=(127.5,))
    pictures = (paint(tmp_path / "a.png", "red"),)
    by_keras = predict.predict(predict.Config(model=str(model), images=pictures))[0]["classes"]
    for files in ({"source.json": json.dumps(inside)}, {}):  # ours; one of another program
        file = metadata.attach(tflite.convert(make_model()), dataclasses.replace(described, files=files))
        (folder / "float32.tflite").write_bytes(file)
        config = predict.Config(model=str(folder / "float32.tflite"), images=pictures)
        found = predict.predict(config)[0]["classes"]
        assert [one["class"] for one in found] == [one["class"] for one in by_keras]
        assert found[0]["score"] == pytest.approx(by_keras[0]["score"], abs=1e-5)
        assert find_origin(folder / "float32.tflite").data == ("colours" if files else None)
    with pytest.raises(ValueError, match=r"preprocess is unit, but .* reads centered by the metadata in"):
        predict.predict(dataclasses.replace(config, preprocess="unit"))


def test_published_weights_see_the_middle_of_a_larger_image(model: Path):
    classifier = classifiers.load(predict.Config(model=str(model)))
    whole = np.zeros((1, 12, 10, 3), np.uint8)
    whole[..., 0] = 250  # a red border of two rows and one column
    whole[:, 2:10, 1:9] = COLOURS["green"]
    cropped = dataclasses.replace(classifier.reading, crop=0.8)
    assert cropped.resize == (10, 10)
    middle = dataclasses.replace(classifier, reading=cropped)
    np.testing.assert_array_equal(middle.score(whole), classifier.score(whole[:, 2:10, 1:9]))
    assert middle.score(whole).argmax() == 1


def test_a_network_that_rescales_by_itself_reads_pixels(tmp_path: Path, capsys):
    image = keras.Input((8, 8, 3))
    inner = make_model()
    keras.Model(image, inner(keras.layers.Rescaling(1 / 255)(image))).save(tmp_path / "model.keras")
    found = predict.predict(
        predict.Config(model=str(tmp_path / "model.keras"), images=(paint(tmp_path / "a.png", "red"),))
    )
    assert found[0]["classes"][0]["score"] == pytest.approx(1 / (1 + 2 * np.exp(-4 * 240 / 255)), abs=1e-5)
    assert found[0]["classes"][0]["class"] == "class 0"
    assert "reads pixels of 0..255" in capsys.readouterr().err


def test_predict_takes_a_folder_of_save_pretrained(model: Path, tmp_path: Path):
    results = {"image_size": [8, 8], "preprocess": None, "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    model.with_name("results.json").write_text(json.dumps(results))
    pictures = (paint(tmp_path / "a.png", "green"),)
    expected = predict.predict(predict.Config(model=str(model), images=pictures))
    folder = zoo.save_pretrained(model, tmp_path / "colours")
    config = predict.Config(model=str(folder), images=pictures)
    assert predict.predict(config) == expected
    assert expected[0]["classes"][0]["class"] == "green"
    with pytest.raises(ValueError, match="already has its weights; leave model_preset= and weights= out"):
        predict.predict(dataclasses.replace(config, weights="imagenet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is a folder without config\.json and weights"):
        predict.predict(dataclasses.replace(config, model=str(tmp_path / "empty")))


def test_every_program_reads_the_middle_where_the_training_did(model: Path, tmp_path: Path):
    results = json.loads(model.with_name("results.json").read_text()) | {"resize": [10, 10]}
    model.with_name("results.json").write_text(json.dumps(results))
    for name, colour in (("red", "green"), ("green", "blue"), ("blue", "red")):
        inner = np.full((8, 8, 3), COLOURS[name], np.uint8)
        framed = np.full((10, 10, 3), COLOURS[colour], np.uint8)  # at 8 x 8 the frame would be seen, too
        framed[1:9, 1:9] = inner
        for number in range(4):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(framed).save(tmp_path / "images" / name / f"{number}.png")
    images = str(tmp_path / "images")
    judged = evaluate.evaluate(evaluate.Config(model=str(model), data=images, folder=tmp_path / "judged"))
    assert (judged["accuracy"], judged["preprocessing"]["resize"]) == (1.0, [10, 10])
    config = deploy.Config(model=str(model), data=images, folder=tmp_path / "deployed")
    subject = deployable.load(config)
    assert np.ptp(subject.calibration, axis=(1, 2)).max() == np.ptp(subject.images, axis=(1, 2)).max() == 0
    deploy.deploy(config)
    again = evaluate.Config(model=str(config.folder / f"{subject.model.name}_int8.tflite"), data=images)
    again = evaluate.evaluate(dataclasses.replace(again, folder=tmp_path / "again"))
    assert (again["accuracy"], again["preprocessing"]["resize"]) == (1.0, [10, 10])


@pytest.mark.parametrize("mean", [0.5, (0.5, 0.4, 0.3)])
def test_files_that_read_pixels_take_bytes_as_they_are(model: Path, tmp_path: Path, mean):
    normalization = {"mean": np.resize(mean, 3).tolist(), "std": [0.5, 0.25, 0.2]}
    results = {"image_size": [8, 8], "data": None, "normalization": normalization, "config": {}}
    model.with_name("results.json").write_text(json.dumps(results))
    data = paint_classes(tmp_path / "images")
    config = deploy.Config(
        model=str(model), data=str(data), schemes=("uint8",), pixels=True, folder=tmp_path / "out",
        firmware=tmp_path / "board",
    )  # fmt: skip
    deploy.deploy(config)
    pictures = (paint(tmp_path / "a.png", "red"), paint(tmp_path / "b.png", "blue"))
    expected = predict.predict(predict.Config(model=str(model), images=pictures))
    for scheme in ("float32", "uint8"):
        (path,) = config.folder.glob(f"*_{scheme}.tflite")
        found = predict.predict(predict.Config(model=str(path), images=pictures))
        for one, other in zip(found, expected, strict=True):
            assert one["classes"][0]["class"] == other["classes"][0]["class"]
            assert one["classes"][0]["score"] == pytest.approx(other["classes"][0]["score"], abs=0.02)
        described = metadata.read(path)
        assert described is not None
        assert (described.mean, described.std) == ((0,), (1,))
    graph = tflite_file.parse(path).subgraphs[0]
    source, scores = (graph.tensors[numbers[0]] for numbers in (graph.inputs, graph.outputs))
    assert [tflite_file.type_of(one) for one in (source, scores)] == ["uint8", "uint8"]
    assert (source.quantization.scale.tolist(), source.quantization.zeroPoint.tolist()) == ([1], [0])
    assert "#define MODEL_INPUT_TYPE uint8_t" in (tmp_path / "board" / "model.h").read_text()


def test_predict_names_what_it_cannot_take(model: Path, tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    for images, error, message in [
        ((), ValueError, "no images are given"),
        ((tmp_path / "gone.png",), FileNotFoundError, r"no image .*gone\.png"),
        ((tmp_path / "text.png",), ValueError, r"text\.png: not an image"),
        ((tmp_path,), IsADirectoryError, r"is a folder; give the images in it, such as .*/\*\.jpg"),
    ]:
        with pytest.raises(error, match=message):
            predict.predict(predict.Config(model=str(model), images=images))
    config = predict.Config(model=str(model), images=(paint(tmp_path / "a.png", "red"),))
    for options, error, message in [
        ({"model": str(tmp_path / "none.keras")}, FileNotFoundError, r"there is no file .*none\.keras"),
        ({"model": str(tmp_path / "none.tflite")}, FileNotFoundError, r"there is no file .*none\.tflite"),
        ({"model": "mcunet_in0"}, ValueError, "has no weights; give weights="),
        ({"weights": "imagenet"}, ValueError, "leave model_preset= and weights= out"),
        ({"image_size": 9}, ValueError, "image_size is 9, but .* takes 8 x 8"),
    ]:
        with pytest.raises(error, match=message):
            predict.predict(dataclasses.replace(config, **options))
    model.with_name("class_names.json").write_text('\ufeff["red", "green"]', encoding="utf-8")  # as of an editor
    with pytest.raises(ValueError, match="has 3 classes, and the files next to it name 2"):
        predict.predict(config)
    model.with_name("class_names.json").write_text('{"red": 0}')
    with pytest.raises(ValueError, match=r"class_names\.json does not hold a JSON list of names"):
        predict.predict(config)


def paint_classes(folder: Path, names: tuple[str, str, str] = ("red", "green", "blue")) -> Path:
    """Paints LABELS' six images, each of the colour that PREDICTED says."""
    colours = list(COLOURS)
    for number, (label, colour) in enumerate(zip(LABELS, PREDICTED, strict=True)):
        paint(folder / names[label] / f"{number}.png", colours[colour])
    return folder


def test_evaluate_writes_accuracy_confusions_precision_and_recall(model: Path, tmp_path: Path, capsys):
    data = paint_classes(tmp_path / "images")
    config = evaluate.Config(model=str(model), data=str(data), batch_size=4, folder=tmp_path / "out")
    results = evaluate.evaluate(config)
    assert results == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (results["n"], results["part"], results["accuracy"]) == (6, "all", pytest.approx(2 / 6))
    assert "top5" not in results  # of three classes it says nothing
    assert results["classes"] == [
        {"class": "red", "n": 2, "precision": 1 / 2, "recall": 1 / 2},
        {"class": "green", "n": 3, "precision": 1 / 3, "recall": 1 / 3},
        {"class": "blue", "n": 1, "precision": 0.0, "recall": 0.0},
    ]
    assert {"class": "green", "predicted": "blue", "count": 1} in results["confusions"]
    assert sum(one["count"] for one in results["confusions"]) == 6
    assert "| green | 3 | 0.3333 | 0.3333 |" in (tmp_path / "out" / "evaluation.md").read_text()
    assert "| accuracy | 0.3333 |" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert min(picture.size) > 400


def test_a_class_with_dollars_in_its_name_is_no_formula(tmp_path: Path):
    evaluate.draw_confusions(np.eye(2, dtype=np.int64), ("$5_$6", r"$\frac$"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_evaluate_judges_the_test_part_of_what_the_model_was_trained_on(model: Path, tmp_path: Path):
    for colour in COLOURS:
        for number in range(10):
            paint(tmp_path / "images" / colour / f"{number}.png", colour)
    results = json.loads(model.with_name("results.json").read_text()) | {"data": str(tmp_path / "images")}
    model.with_name("results.json").write_text(json.dumps(results))
    config = evaluate.Config(model=str(model), folder=tmp_path / "out")
    judged = evaluate.evaluate(config)
    assert (judged["part"], judged["n"], judged["accuracy"]) == ("test", 3, 1.0)  # a tenth
    assert evaluate.evaluate(dataclasses.replace(config, part="all"))["n"] == 30


def test_folders_of_synsets_are_imagenets_classes_and_may_be_a_few_of_them(tmp_path: Path):
    path = tmp_path / "model.keras"
    make_model(classes=(1, 0, 999), units=1000).save(path)  # goldfish are red here, tench green
    paint(tmp_path / "images" / "n01443537" / "a.png", "red")
    paint(tmp_path / "images" / "n01443537" / "b.png", "blue")
    config = evaluate.Config(model=str(path), data=str(tmp_path / "images"), preprocess="unit", folder=tmp_path / "out")
    results = evaluate.evaluate(config)
    # the blue one is taken for toilet tissue; of the equal rest the goldfish is second, after the tench
    assert (results["n"], results["accuracy"], results["top5"]) == (2, 0.5, 1.0)
    assert results["classes"] == [
        {"class": "goldfish", "n": 2, "precision": 1.0, "recall": 0.5},
        {"class": "toilet_tissue", "n": 0, "precision": 0.0, "recall": None},
    ]
    paint(tmp_path / "images" / "cat" / "c.png", "red")
    with pytest.raises(ValueError, match="1 of its class folders are not among the model's 1,000 classes: cat; "):
        evaluate.evaluate(config)


def test_evaluate_refuses_other_classes_and_names_an_image_that_cannot_be_read(model: Path, tmp_path: Path):
    config = evaluate.Config(model=str(model), folder=tmp_path / "out")
    with pytest.raises(ValueError, match="data is not given, and no file next to"):
        evaluate.evaluate(config)
    with pytest.raises(ValueError, match="has 3 classes, and fashion_mnist_small has 10"):
        evaluate.evaluate(dataclasses.replace(config, data="fashion_mnist_small"))
    data = paint_classes(tmp_path / "images")
    (data / "red" / "torn.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"torn\.png: not an image; fix or remove it"):
        evaluate.evaluate(dataclasses.replace(config, data=str(data)))
    assert evaluate.evaluate(dataclasses.replace(config, data=str(data), on_unreadable="skip"))["n"] == 6


def test_weights_bring_their_preset_size_and_normalisation(tmp_path: Path):
    found = find_weights("mnasnet_b1", None, "mnasnet0_5_torchvision")
    assert (found.source, found.preset) == ("mnasnet0_5_torchvision", "imagenet_w050")
    assert found.origin.image_size == (224, 224)
    assert found.origin.normalization == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert find_weights("mcunet_in3", None, "imagenet").origin.place == "the weights mcunet_in3_mit"
    (tmp_path / "mcunet-320kb-1mb_imagenet.pth").touch()  # the name that it has where it comes from
    file = find_weights("mcunet_in3", None, str(tmp_path / "mcunet-320kb-1mb_imagenet.pth"))
    assert (file.source, file.entry and file.entry.name) == (
        tmp_path / "mcunet-320kb-1mb_imagenet.pth",
        "mcunet_in3_mit",
    )
    assert find_weights("mcunet_in0", None, str(file.source)).entry is None
    with pytest.raises(FileNotFoundError, match=r"weights: there is no file .*none\.h5"):
        find_weights("mcunet_in3", None, str(tmp_path / "none.h5"))
    with pytest.raises(zoo.GenotypeError, match=r"has no weights 'imagenat' \(did you mean 'imagenet'"):
        find_weights("mcunet_in3", None, "imagenat")


@pytest.mark.slow
def test_published_weights_find_the_goldfish(reference: Path, tmp_path: Path, capsys):
    folder = reference / "mcunet"
    weights = str(folder / "mcunet-320kb-1mb_imagenet.pth")
    config = predict.Config(model="mcunet_in3", weights=weights, images=(folder / "goldfish.ppm",))
    best = predict.predict(config)[0]["classes"]
    assert [one["class"] for one in best[:2]] == ["Petri_dish", "goldfish"]  # as the released code says, too
    images = tmp_path / "images" / "n01443537"
    images.mkdir(parents=True)
    (images / "goldfish.ppm").write_bytes((folder / "goldfish.ppm").read_bytes())
    judged = evaluate.evaluate(
        evaluate.Config(model="mcunet_in3", weights=weights, data=str(images.parent), folder=tmp_path / "out")
    )
    assert (judged["n"], judged["accuracy"], judged["top5"]) == (1, 0.0, 1.0)
    assert judged["preprocessing"]["resize"] == [201, 201]
    assert judged["preprocessing"]["preprocess"] == "centered"
