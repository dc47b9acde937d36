import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from detr_panoptic_d2.data.metadata import COLORS, default_color
from detr_panoptic_d2.visualization.draw import (
    ERROR_COLORS,
    draw_beside_ground_truth,
    draw_errors,
    draw_panoptic,
    limit_size,
    read_ground_truth,
)
from detr_panoptic_d2.visualization.panels import enlarge, side_by_side, with_caption, with_legend
from detr_panoptic_d2.visualization.segment_errors import CORRECT, MISSED, WRONG_CLASS
from detr_panoptic_d2.visualization.visualizer import PanopticVisualizer, class_colors

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def metadata():
    names = ["sky", "ball", "ground"]
    colors = [[120, 180, 250], [210, 40, 40], [40, 120, 60]]
    return Metadata(thing_classes=names, stuff_classes=names, thing_colors=colors)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def panoptic():
    """Sky over ground, two balls, and void in a corner."""
    ids = np.full((HEIGHT, WIDTH), 1)
    ids[30:] = 2
    ids[5:25, 5:25] = 3
    ids[5:25, 25:45] = 4
    ids[50:, 70:] = 0
    segments = [
        {"id": 1, "category_id": 0, "isthing": False},
        {"id": 2, "category_id": 2, "isthing": False},
        {"id": 3, "category_id": 1, "isthing": True, "score": 0.97},
        {"id": 4, "category_id": 1, "isthing": True, "score": 0.91},
    ]
    return ids, segments


def test_pixels_without_labels(image, panoptic, metadata):
    picture = draw_panoptic(image, *panoptic, metadata, labels=False, alpha=0.25)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    for row, column, color in ((5, 60, [120, 180, 250]), (45, 40, [40, 120, 60])):
        expected = 0.75 * image[row, column] + 0.25 * np.array(color)
        assert picture[row, column].tolist() == pytest.approx(expected.tolist(), abs=2)
    # Void shows the image.
    assert (picture[55:58, 75:78] == image[55:58, 75:78]).all()
    # Two objects of a class have two shades of one hue.
    picture = draw_panoptic(image, *panoptic, metadata, labels=False, alpha=1.0)
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


def test_every_segment_of_a_small_image_has_its_label(image, panoptic, metadata):
    plain = draw_panoptic(image, *panoptic, metadata, labels=False, min_size=300)
    labelled = draw_panoptic(image, *panoptic, metadata, min_size=300)
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
@pytest.mark.parametrize("name", ["$x^2", "a_b $", "日本", "x" * 300, "\\frac", ""])
def test_strange_names(image, panoptic, name):
    metadata = Metadata(thing_classes=[name] * 3)
    assert draw_panoptic(image, *panoptic, metadata).shape == image.shape


def test_classes_without_names_and_colors(image, panoptic):
    assert draw_panoptic(image, *panoptic, Metadata()).shape == image.shape


def test_nothing_predicted(image, metadata):
    nothing = np.zeros((HEIGHT, WIDTH), dtype=np.int32), []
    assert (draw_panoptic(image, *nothing, metadata) == image).all()
    assert draw_errors(image, nothing, nothing, metadata).shape[1] == 5 * WIDTH


def test_pixels_without_segment_and_segments_without_pixel(image, panoptic, metadata):
    ids = np.where(panoptic[0] == 4, 99, panoptic[0])
    picture = draw_panoptic(image, ids, panoptic[1], metadata, labels=False)
    assert (picture[10:20, 30:40] == image[10:20, 30:40]).all()


def test_sizes_differ(image, panoptic, metadata):
    with pytest.raises(ValueError, match="image is 60 x 70 .* segment ids 60 x 80"):
        draw_panoptic(image[:, :70], *panoptic, metadata)


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


def test_errors(image, panoptic, metadata):
    ids, segments = panoptic
    found = ids.copy()
    found[ids == 3] = 0
    wrong = [dict(s, category_id=2) if s["id"] == 4 else s for s in segments]
    options = {"alpha": 1.0, "min_size": 300}
    picture = draw_errors(image, panoptic, (found, wrong), metadata, legend=False, **options)
    assert picture.shape == (5 * HEIGHT, 5 * WIDTH, 3)
    # Away from labels and edges.
    for row, column, kind in ((57, 40, CORRECT), (22, 7, MISSED), (22, 42, WRONG_CLASS)):
        assert picture[5 * row, 5 * column].tolist() == list(ERROR_COLORS[kind])
    legend = draw_errors(image, panoptic, (found, wrong), metadata, **options)
    assert legend.shape[0] > picture.shape[0]
    assert (legend[: picture.shape[0]] == picture).all()


def test_limit_size(image, panoptic):
    small, annotated, prediction = limit_size(40, image, panoptic, panoptic)
    assert small.shape == (30, 40, 3)
    assert annotated[0].shape == prediction[0].shape == (30, 40)
    assert (annotated[0] == panoptic[0][1::2, 1::2]).all()
    assert limit_size(40, image, None, panoptic)[1] is None
    same = limit_size(80, image, panoptic, panoptic)
    assert same[0] is image
    assert same[1] is panoptic


def test_ground_truth_of_a_dataset_dict(panoptic_set, scene):
    panoptic_set("truth_set", [scene])
    (item,) = DatasetCatalog.get("truth_set")
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


PICTURE = np.full((30, 90, 3), 7, dtype=np.uint8)


def test_enlarge():
    assert enlarge(PICTURE, 40) is PICTURE
    assert enlarge(PICTURE, 100).shape == (90, 270, 3)
    assert enlarge(np.eye(2, dtype=int), 4).tolist() == np.kron(np.eye(2), np.ones((2, 2))).tolist()


def test_captions_and_legends_do_not_widen():
    for text in ("", "Image", "a caption that is much longer than its picture is wide", "日本"):
        picture = with_caption(PICTURE, text)
        assert picture.shape[1] == 90
        assert (picture[-30:] == 7).all()
        # Nothing reaches the right edge.
        assert (picture[:-30, -3:] == 255).all()
    few = with_legend(PICTURE, [((255, 0, 0), "a")])
    many = with_legend(PICTURE, [((255, 0, 0), "some words")] * 5)
    assert few.shape[1] == many.shape[1] == 90
    assert many.shape[0] > few.shape[0] > 30
    assert (many[30:, -2:] == 255).all()


def test_side_by_side_of_different_heights():
    row = side_by_side([PICTURE, np.full((10, 20, 3), 9, dtype=np.uint8)])
    assert row.shape == (30, 116, 3)
    assert (row[:10, 96:] == 9).all()
    assert (row[10:, 96:] == 255).all()
