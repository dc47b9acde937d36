import math
import re
from xml.etree import ElementTree

import pytest

from detr_panoptic_d2.apps.report.chart import line_chart


def parse(figure):
    # HTML's boolean-free subset that is XML too.
    return ElementTree.fromstring(figure)


def curves(figure):
    return [p.get("d") for p in parse(figure).iterfind("./svg/path") if p.get("class")[0] == "c"]


def labels(figure):
    return [t.text for t in parse(figure).iterfind("./svg/text")]


def coordinates(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_nothing_to_draw():
    assert line_chart("Loss", {}) == ""
    assert line_chart("Loss", {"a": [], "b": [(1, math.nan)]}) == ""


@pytest.mark.parametrize(
    "values",
    [[5.0], [5.0, 5.0], [0.0, 0.0], [-3.0, 2.0], [1e-9, 3e-9], [1e-4, 2.0, 30.0], [24.0, 1.8]],
)
def test_curves_stay_inside(values):
    figure = line_chart("Loss", {"a": list(enumerate(values))})
    points = coordinates(curves(figure)[0])
    assert len(points) == len(values)
    assert all(40 <= x <= 400 and 5 <= y <= 210 for x, y in points)
    # Larger values are higher up.
    order = sorted(range(len(values)), key=lambda i: values[i])
    heights = [points[i][1] for i in order]
    assert heights == sorted(heights, reverse=True)


def test_gap():
    values = [(0, 1.0), (1, 2.0), (2, math.inf), (3, 1.0), (4, 2.0)]
    (path,) = curves(line_chart("Loss", {"a": values}))
    assert path.count("M") == 2
    assert len(coordinates(path)) == 4


def test_one_point_is_a_dot():
    for iteration in (0, 10):
        figure = line_chart("PQ", {"a": [(iteration, 3.0)]})
        assert "<circle" in figure
        assert not any(label.startswith("-") for label in labels(figure))


def test_long_runs_are_thinned():
    figure = line_chart("Loss", {"a": [(i, 5.0 + i % 2) for i in range(10_000)]})
    points = coordinates(curves(figure)[0])
    assert 100 < len(points) < 300
    assert points[-1][0] == pytest.approx(390)


def test_scales():
    falling = {"a": [(0, 24.0), (100, 1.8)]}
    assert {"2", "5", "10", "20"} <= set(labels(line_chart("Loss", falling)))
    assert "logarithmic" in line_chart("Loss", falling)
    linear = line_chart("PQ", falling, least=0.0)
    assert "logarithmic" not in linear
    assert {"0", "5", "10"} <= set(labels(linear))
    assert "1e-4" in labels(line_chart("lr", {"lr": [(0, 1e-4), (100, 0.0)]}))


def test_texts_are_escaped():
    figure = line_chart("a <b> & c", {"<i>": [(0, 1.0)]})
    assert "<b> &" not in figure
    assert parse(figure).find("figcaption").text.startswith("a <b> & c")
