import itertools

import numpy as np
import pytest
import torch
from detectron2.data import Metadata

from detr_panoptic_d2.data.colors import shades, to_lab
from detr_panoptic_d2.visualization.draw import (
    draw_beside_ground_truth,
    draw_panoptic,
)
from detr_panoptic_d2.visualization.panels import enlarge
from detr_panoptic_d2.visualization.visualizer import PanopticVisualizer

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def metadata():
    names = ["sky", "ball", "ground"]
    colors = [[120, 180, 250], [210, 40, 40], [40, 120, 60]]
    return Metadata(thing_classes=names, stuff_classes=names, thing_colors=colors)


def test_pixels(image, panoptic, metadata):
    ids, segments = panoptic
    # Ids without an entry are void, like 0. An entry may have no pixel.
    ids[50:, :10] = 99
    segments.append({"id": 55, "category_id": 1, "isthing": True})
    before = np.random.get_state()[1].copy()
    picture = draw_panoptic(image, ids, segments, metadata, alpha=0.25, labels=False)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    for row, column, color in ((10, 60, [120, 180, 250]), (45, 40, [40, 120, 60])):
        expected = 0.75 * image[row, column] + 0.25 * np.array(color)
        assert picture[row, column].tolist() == pytest.approx(expected.tolist(), abs=1)
    assert (picture[55:58, 75:78] == image[55:58, 75:78]).all()
    assert (picture[52:58, 2:8] == image[52:58, 2:8]).all()
    # The same from a tensor, and again: nothing is random.
    tensor = torch.as_tensor(ids.astype(np.int32))
    again = draw_panoptic(image, tensor, segments, metadata, alpha=0.25, labels=False)
    assert (again == picture).all()
    assert (np.random.get_state()[1] == before).all()
    assert "area" not in segments[0]
    # Objects of a class have different shades; the first has the color of the class.
    picture = draw_panoptic(image, *panoptic, metadata, alpha=1.0, labels=False)
    assert picture[15, 15].tolist() == [210, 40, 40]
    assert picture[15, 35].tolist() == list(shades((210, 40, 40))[1])
    nothing = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    assert (draw_panoptic(image, nothing, [], metadata, legend=True) == image).all()


def labels_of(image, panoptic, metadata, labels=True):
    visualizer = PanopticVisualizer(enlarge(image, 300), metadata)
    visualizer.draw_panoptic_seg(enlarge(panoptic[0], 300), panoptic[1], labels=labels)
    texts = visualizer.output.ax.texts
    renderer = visualizer.output.canvas.get_renderer()
    boxes = {t.get_text(): t.get_window_extent(renderer) for t in texts}
    return boxes, visualizer


def test_labels(image, panoptic, metadata):
    """Each lies in its segment and inside the picture; letters differ from their box."""
    boxes, visualizer = labels_of(image, panoptic, metadata)
    assert list(boxes) == ["ground", "sky", "ball 97%", "ball 91%"]
    assert visualizer.unlabelled == {}
    for box, (x, y) in zip(boxes.values(), ((40, 45), (60, 15), (15, 15), (35, 15)), strict=True):
        assert abs((box.x0 + box.x1) / 2 - 5 * x) < 75
        assert abs(300 - (box.y0 + box.y1) / 2 - 5 * y) < 60
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= 400 and b.y1 <= 300 for b in boxes.values())
    for text in visualizer.output.ax.texts:
        colors = [
            text.get_bbox_patch().get_facecolor()[:3],
            np.full(3, text.get_color() == "white"),
        ]
        light, dark = sorted(to_lab(255 * np.array(colors))[:, 0], reverse=True)
        assert light - dark > 35


def test_fragments_and_many_segments_get_a_legend(image, panoptic, metadata):
    ids, segments = panoptic
    ids[ids == 3] = 1
    ids[10:13, 10:13] = 3
    ids[ids == 4] = 1
    boxes, visualizer = labels_of(image, panoptic, metadata)
    assert list(boxes) == ["sky", "ground"]
    assert visualizer.unlabelled == {"ball": (210, 40, 40)}
    boxes, visualizer = labels_of(image, panoptic, metadata, False)
    assert boxes == visualizer.unlabelled == {}
    ids[40:, :] = 10 + np.arange(WIDTH) // 4
    segments += [{"id": 10 + i, "category_id": 1, "isthing": True} for i in range(20)]
    boxes, visualizer = labels_of(image, panoptic, metadata)
    assert not boxes and list(visualizer.unlabelled) == ["sky", "ground", "ball"]
    picture = draw_panoptic(image, *panoptic, metadata, legend=True)
    assert picture.shape[0] > HEIGHT and picture.shape[1] == WIDTH


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["$x^2", "a_b $", "日本", "x" * 300, "\\frac", "", None])
def test_strange_names_and_none(image, panoptic, name):
    metadata = Metadata() if name is None else Metadata(thing_classes=[name] * 3)
    assert draw_panoptic(image, *panoptic, metadata).shape == image.shape


def test_beside_ground_truth(image, panoptic, metadata):
    picture = draw_beside_ground_truth(image, panoptic, panoptic, metadata, min_size=300)
    assert picture.shape[1] == 3 * 5 * WIDTH + 2 * 6
    caption = picture.shape[0] - 5 * HEIGHT
    assert 10 < caption < 40
    assert (picture[caption:, : 5 * WIDTH] == image.repeat(5, 0).repeat(5, 1)).all()
    # Captions are there: dark on white.
    for start in (0, 5 * WIDTH + 6, 10 * WIDTH + 12):
        assert picture[:caption, start : start + 5 * WIDTH].min() < 60
    two = draw_beside_ground_truth(image, None, panoptic, metadata, min_size=300)
    assert two.shape[1] == 2 * 5 * WIDTH + 6
    with pytest.raises(ValueError, match="image is 60 x 70 .* segment ids 60 x 80"):
        draw_beside_ground_truth(image[:, :70], None, panoptic, metadata)
