import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from detr_panoptic_d2.data.metadata import COLORS, default_color
from detr_panoptic_d2.visualization.draw import (
    draw_beside_ground_truth,
    draw_panoptic,
    limit_size,
    read_ground_truth,
)
from detr_panoptic_d2.visualization.panels import enlarge, side_by_side, with_caption
from detr_panoptic_d2.visualization.visualizer import PanopticVisualizer, class_colors

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def no_labels(monkeypatch):
    monkeypatch.setattr(PanopticVisualizer, "draw_text", lambda *args, **more: None)


def test_pixels(image, panoptic, metadata, no_labels):
    ids, segments = panoptic
    # Ids without an entry are void, as 0 is; an entry may be without a pixel.
    ids[50:, :10] = 99
    segments.append({"id": 55, "category_id": 1, "isthing": True})
    picture = draw_panoptic(image, ids, segments, metadata, alpha=0.25)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    for row, column, color in ((5, 60, [120, 180, 250]), (45, 40, [40, 120, 60])):
        expected = 0.75 * image[row, column] + 0.25 * np.array(color)
        assert picture[row, column].tolist() == pytest.approx(expected.tolist(), abs=2)
    assert (picture[55:58, 75:78] == image[55:58, 75:78]).all()
    assert (picture[52:58, 2:8] == image[52:58, 2:8]).all()
    # Two objects of a class have two shades of one hue.
    picture = draw_panoptic(image, *panoptic, metadata, alpha=1.0)
    assert picture[15, 15].tolist() == [210, 40, 40]
    assert picture[15, 35].tolist() == pytest.approx([126, 24, 24], abs=1)


def test_same_input_same_picture(image, panoptic, metadata):
    before = np.random.get_state()[1].copy()
    pictures = [draw_panoptic(image, *panoptic, metadata) for _ in range(2)]
    ids = torch.as_tensor(panoptic[0].astype(np.int32))
    pictures.append(draw_panoptic(image, ids, panoptic[1], metadata))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()
    assert (np.random.get_state()[1] == before).all()
    assert "area" not in panoptic[1][0]


def test_every_segment_of_a_small_image_has_its_label(image, panoptic, metadata, monkeypatch):
    labelled = draw_panoptic(image, *panoptic, metadata, min_size=300)
    monkeypatch.setattr(PanopticVisualizer, "draw_text", lambda *args, **more: None)
    plain = draw_panoptic(image, *panoptic, metadata, min_size=300)
    assert labelled.shape == plain.shape == (5 * HEIGHT, 5 * WIDTH, 3)
    changed = (labelled != plain).any(axis=-1)
    for segment in panoptic[1]:
        assert changed[enlarge(panoptic[0] == segment["id"], 300)].any()


def test_labels_keep_apart_and_inside(metadata):
    visualizer = PanopticVisualizer(np.zeros((80, 200, 3), np.uint8), metadata)
    for text, place in (("first", (100, 40)), ("second", (105, 42)), ("last", (199, 79))):
        visualizer.draw_text(text, place)
    renderer = visualizer.output.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in visualizer.output.ax.texts]
    assert [t.get_text() for t in visualizer.output.ax.texts] == ["first", "second", "last"]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= 200 and b.y1 <= 80 for b in boxes)
    # Where there is no room a label is left out.
    for _ in range(20):
        visualizer.draw_text("one more", (100, 40))
    assert len(visualizer.output.ax.texts) < 8


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["$x^2", "a_b $", "日本", "x" * 300, "\\frac", "", None])
def test_strange_names_and_none(image, panoptic, name):
    metadata = Metadata() if name is None else Metadata(thing_classes=[name] * 3)
    assert draw_panoptic(image, *panoptic, metadata).shape == image.shape


def test_nothing_predicted(image, metadata):
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    assert (draw_panoptic(image, ids, [], metadata) == image).all()


def test_beside_ground_truth(image, panoptic, metadata):
    picture = draw_beside_ground_truth(image, panoptic, panoptic, metadata, min_size=120)
    height, width = picture.shape[:2]
    assert width == 3 * 2 * WIDTH + 2 * 6
    caption = height - 2 * HEIGHT
    assert 10 < caption < 40
    assert (picture[caption:, : 2 * WIDTH] == image.repeat(2, 0).repeat(2, 1)).all()
    # Captions are there: dark on white.
    for start in (0, 2 * WIDTH + 6, 4 * WIDTH + 12):
        assert picture[:caption, start : start + 2 * WIDTH].min() < 60
    two = draw_beside_ground_truth(image, None, panoptic, metadata, min_size=120)
    assert two.shape[1] == 2 * 2 * WIDTH + 6
    with pytest.raises(ValueError, match="image is 60 x 70 .* segment ids 60 x 80"):
        draw_beside_ground_truth(image[:, :70], None, panoptic, metadata)


def test_limit_size(image, panoptic):
    small, annotated, prediction, nothing = limit_size(40, image, panoptic, panoptic, None)
    assert small.shape == (30, 40, 3) and nothing is None
    assert annotated[0].shape == prediction[0].shape == (30, 40)
    assert (annotated[0] == panoptic[0][1::2, 1::2]).all()
    same = limit_size(80, image, panoptic)
    assert same[0] is image and same[1] is panoptic


def test_ground_truth_of_a_dataset_dict(panoptic_set, scene):
    panoptic_set("drawn_set", [scene])
    (item,) = DatasetCatalog.get("drawn_set")
    ids, segments = read_ground_truth(item)
    assert (ids == scene[0]).all()
    assert {s["id"] for s in segments} == set(scene[1])
    assert read_ground_truth({"file_name": "a.jpg"}) is None


def test_class_colors():
    coco = MetadataCatalog.get("coco_2017_val_panoptic")
    assert class_colors(coco, 133)[0] == (220, 20, 60)
    free = class_colors(Metadata(thing_classes=["a"] * 40), 40)
    assert len(set(free)) == 40
    assert len({tuple(default_color(i)) for i in range(133)}) == 133
    assert all(0 <= channel <= 255 for color in free for channel in color)


def test_no_two_colors_of_the_palette_look_alike():
    """Once classes 0 and 4, sky and pavement in one set, were both blue."""
    c = np.array(COLORS) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    )
    x, y, z = np.cbrt(c @ to_xyz / [0.9505, 1, 1.089]).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    # CIE76; from about 2.3 on two large patches side by side differ.
    assert min(distances) > 23


def test_panels():
    picture = np.full((30, 90, 3), 7, dtype=np.uint8)
    assert (enlarge(picture, 40) == picture).all()
    assert enlarge(picture, 100).shape == (90, 270, 3)
    expected = np.kron(np.eye(2), np.ones((2, 2))).tolist()
    assert enlarge(np.eye(2, dtype=int), 4).tolist() == expected
    captioned = with_caption(picture, "a caption that is much longer than its picture is wide")
    assert captioned.shape[1] == 90 and (captioned[-30:] == 7).all()
    row = side_by_side([picture, np.full((10, 20, 3), 9, dtype=np.uint8)])
    assert row.shape == (30, 116, 3)
    assert (row[:10, 96:] == 9).all()
    assert (row[10:, 96:] == 255).all()
