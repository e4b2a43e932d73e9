"""`python -m benchmarks.foreign_models`: models of keras.applications through the tools, and what a cell says."""

import json

import pytest

from benchmarks import foreign_models


def test_cells_that_are_known_are_not_tried_again_and_the_document_gets_the_table(tmp_path):
    names, cells = ("MobileNetV2",), {tool: f"{tool} works" for tool in foreign_models.TOOLS}
    (tmp_path / "table.json").write_text(json.dumps({"MobileNetV2": cells}))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- foreign-models:begin -->\nold\n<!-- foreign-models:end -->\nafter\n")
    text = foreign_models.write_table(foreign_models.Config(names=names, folder=tmp_path, readme=page))
    assert text.splitlines()[2] == f"| MobileNetV2 | {' | '.join(cells.values())} |"
    assert "old" not in page.read_text()
    assert text in page.read_text()


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="'MobileNetV9', which"):
        foreign_models.Config(names=("MobileNetV9",))


QUICK = ("flat", "turned", "twin", "int8", "memory plan", "compact")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "ResNet50"])
def test_model_of_keras_applications_goes_through_every_tool(name):
    cells = dict(foreign_models.try_tools(name, {}, QUICK))
    assert {tool: cell for tool, cell in cells.items() if cell.startswith("no: ")} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tool", "layer"),
    [("ConvNeXtTiny", "twin", "convnext_tiny_stage_0_block_0_layer_scale"), ("Xception", "turned", "block4_pool")],
)
def test_tool_that_cannot_take_a_model_names_the_layer(name, tool, layer):
    cells = dict(foreign_models.try_tools(name, {}, ("flat", tool)))
    assert cells["flat"].endswith(" layers")
    assert cells[tool].startswith(f"no: layer '{layer}'")


@pytest.mark.slow
def test_pruning_and_int8_training_of_a_model_with_rescaling_and_operators_inside():
    cells = dict(foreign_models.try_tools("MobileNetV3Small", {}, foreign_models.TRAINING))
    assert cells["pruned"] == "50% zeros"
    assert cells["int8 by training"].endswith(" kB")
