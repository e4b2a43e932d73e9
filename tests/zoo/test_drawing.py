"""zoo.draw: what a picture says, and that bad input leaves no file behind."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from matplotlib.patches import FancyBboxPatch, PathPatch

import zoo
from tests.genotype_strategies import cell_graphs, examples
from zoo import drawing
from zoo.genotype import CellGraph, Chain, Edge, Layer, Node


def texts_of(body) -> list[str]:
    """Every text of the picture, and the titles."""
    figure = drawing._make_figure("found", body)
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, axes._left_title]]


def test_a_cell_shows_each_operation_and_each_node_once():
    graph = CellGraph((Node((Edge("sep_conv_3x3", 0), Edge("max_pool_3x3", 1))), Node((Edge("conv_1x1", 2),))), (3,))
    texts = texts_of(graph)
    for text in ("sep conv 3x3", "max pool 3x3", "conv 1x1", "h[c-2]", "h[c-1]", "2", "3", "output"):
        assert texts.count(text) == 1


def test_an_edge_of_none_is_not_drawn():
    graph = CellGraph((Node((Edge("none", 0), Edge("conv_1x1", 1))),), (2,))
    assert "none" not in texts_of(graph)


def test_a_concatenating_node_is_marked():
    edges = (Edge("conv_1x1", 0), Edge("conv_1x1", 1))
    assert "||" in texts_of(CellGraph((Node(edges, "concat"),), (2,)))
    assert "||" not in texts_of(CellGraph((Node(edges),), (2,)))


def test_a_node_lies_one_column_behind_the_last_that_it_reads():
    graph = CellGraph((Node((Edge("conv_1x1", 0),)), Node((Edge("conv_1x1", 1),)), Node((Edge("conv_1x1", 3),))), (4,))
    columns = {state: place.x for state, place in drawing._place_nodes(graph).items()}
    assert columns[0] == columns[1] < columns[2] == columns[3] < columns[4]


def test_the_rows_of_mnasnet_are_told_in_words():
    texts = texts_of(zoo.load("mnasnet_a1").body)
    assert "3 x mb conv 5x5, expansion 3, stride 2, 40 filters" in texts
    assert "stem, conv 3x3, stride 2, 32 filters" in texts


def test_a_chain_has_one_arc_for_each_skip():
    chain = Chain((Layer("conv_3x3"), Layer("conv_5x5", (0,)), Layer("avg_pool_3x3", (0, 1))))
    figure = drawing._make_figure("", chain)
    assert len(figure.axes[0].patches) == 3


def lines_under_boxes(body) -> list[str]:
    """The boxes that a line of the picture passes under, each by its corner; ends at a box do not count."""
    found = []
    for axes in drawing._make_figure("", body).axes:
        boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
        for line in (patch for patch in axes.patches if isinstance(patch, PathPatch)):
            start, *controls, level, end = line.get_path().vertices
            weight = np.linspace(0, 1, 200)[:, None]
            curve = sum(
                math.comb(3, power) * weight**power * (1 - weight) ** (3 - power) * point
                for power, point in enumerate((start, *controls, level))
            )
            points = np.concatenate([curve, level + weight * (end - level)])
            points = points[(points[:, 0] > start[0] + 0.03) & (points[:, 0] < end[0] - 0.03)]
            for box in boxes:
                corner, size = np.array([box.get_x(), box.get_y()]), np.array([box.get_width(), box.get_height()])
                if np.any(np.all((points > corner) & (points < corner + size), axis=1)):
                    found.append(str(corner))
    return found


@pytest.mark.parametrize("name", ["nasnet_a", "pnasnet_5", "amoebanet_a", "amoebanet_c", "enas_micro", "darts"])
def test_no_line_passes_under_a_box(name: str):
    assert not lines_under_boxes(zoo.load(name).body)


@examples(20)
@given(cell_graphs(ops=("conv_3x3", "none", "max_pool_3x3"), most_nodes=6))
def test_no_line_of_any_cell_passes_under_a_box(graph: CellGraph):
    assert not lines_under_boxes(graph)


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_genotype_of_the_zoo_can_be_drawn(name: str):
    assert name in "".join(texts_of_genotype(name))


def texts_of_genotype(name: str) -> list[str]:
    genotype = zoo.load(name)
    figure = drawing._make_figure(genotype.name, genotype.body)
    return [axes._left_title.get_text() for axes in figure.axes]


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")], ids=["png", "svg", "pdf"]
)
def test_the_ending_tells_the_format(tmp_path: Path, ending: str, start: bytes):
    zoo.draw("pnasnet", tmp_path / f"cell.{ending}")
    assert (tmp_path / f"cell.{ending}").read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [f"cell.{ending}"]


def test_another_ending_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cell\.jpeg.*expected.*\.png"):
        zoo.draw("darts", tmp_path / "cell.jpeg")
    assert not list(tmp_path.iterdir())
