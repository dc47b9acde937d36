import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog

from detr_panoptic_d2.visualization.draw import (
    ERROR_COLORS,
    class_colors,
    draw_beside_truth,
    draw_errors,
    draw_panoptic,
    limit_size,
    read_truth,
)
from detr_panoptic_d2.visualization.segment_errors import CORRECT, MISSED, WRONG_CLASS

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
    picture = draw_panoptic(image, *panoptic, metadata, labels=False, alpha=1.0)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert picture[2, 60].tolist() == [120, 180, 250]
    assert picture[45, 10].tolist() == [40, 120, 60]
    # Two objects of a class differ in brightness and not in hue.
    first, second = picture[15, 10].astype(int), picture[15, 40].astype(int)
    assert first.tolist() == [210, 40, 40]
    assert second.tolist() == pytest.approx(0.72 * first, abs=1)
    # Void shows the image; between segments there is a line.
    assert (picture[55:, 75:] == image[55:, 75:]).all()
    assert (picture[29, 60] == 255).all()


def test_alpha(image, panoptic, metadata):
    picture = draw_panoptic(image, *panoptic, metadata, labels=False, alpha=0.25)
    expected = 0.75 * image[2, 60] + 0.25 * np.array([120, 180, 250])
    assert picture[2, 60].tolist() == pytest.approx(expected.tolist(), abs=1)


def test_same_input_same_picture(image, panoptic, metadata):
    before = np.random.get_state()[1].copy()
    pictures = [draw_panoptic(image, *panoptic, metadata) for _ in range(2)]
    ids = torch.as_tensor(panoptic[0].astype(np.int32))
    pictures.append(draw_panoptic(image, ids, panoptic[1], metadata))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()
    assert (np.random.get_state()[1] == before).all()


def test_labels_are_written(image, panoptic, metadata):
    plain = draw_panoptic(image, *panoptic, metadata, labels=False, min_size=300)
    labelled = draw_panoptic(image, *panoptic, metadata, min_size=300)
    assert labelled.shape == plain.shape == (5 * HEIGHT, 5 * WIDTH, 3)
    changed = (labelled != plain).any(axis=-1)
    for segment in panoptic[1]:
        inside = np.repeat(np.repeat(panoptic[0] == segment["id"], 5, 0), 5, 1)
        assert changed[inside].any()
    # None is cut off: the outermost pixels are as they were.
    assert not changed[0].any()
    assert not changed[:, 0].any()


@pytest.mark.parametrize("name", ["$x^2", "a_b $", "日本", "x" * 300, "\\frac", ""])
def test_strange_names(image, panoptic, name):
    metadata = Metadata(thing_classes=[name] * 3)
    assert draw_panoptic(image, *panoptic, metadata).shape == image.shape


def test_nothing_predicted(image, metadata):
    nothing = np.zeros((HEIGHT, WIDTH), dtype=np.int32), []
    assert (draw_panoptic(image, *nothing, metadata) == image).all()
    assert draw_errors(image, nothing, nothing, metadata).shape[1] == 5 * WIDTH


def test_segment_without_pixels_and_pixel_without_segment(image, panoptic, metadata):
    ids = np.where(panoptic[0] == 4, 99, panoptic[0])
    picture = draw_panoptic(image, ids, panoptic[1], metadata, labels=False)
    assert (picture[10:20, 30:40] == image[10:20, 30:40]).all()


def test_sizes_differ(image, panoptic, metadata):
    with pytest.raises(ValueError, match="image is 60 x 70 .* segment ids 60 x 80"):
        draw_panoptic(image[:, :70], *panoptic, metadata)


def test_beside_truth(image, panoptic, metadata):
    picture = draw_beside_truth(image, panoptic, panoptic, metadata, min_size=120)
    height, width = picture.shape[:2]
    assert width == 3 * 2 * WIDTH + 2 * 6
    caption = height - 2 * HEIGHT
    assert 10 < caption < 40
    assert (picture[caption:, : 2 * WIDTH] == image.repeat(2, 0).repeat(2, 1)).all()
    # Captions are there: dark on white.
    for start in (0, 2 * WIDTH + 6, 4 * WIDTH + 12):
        assert picture[:caption, start : start + 2 * WIDTH].min() < 60
    two = draw_beside_truth(image, None, panoptic, metadata, min_size=120)
    assert two.shape[1] == 2 * 2 * WIDTH + 6
    one = draw_beside_truth(image, None, panoptic, metadata, with_image=False, min_size=120)
    assert one.shape[1] == 2 * WIDTH


def test_errors(image, panoptic, metadata):
    ids, segments = panoptic
    found = ids.copy()
    found[ids == 3] = 0
    wrong = [dict(s, category_id=2) if s["id"] == 4 else s for s in segments]
    options = {"alpha": 1.0, "legend": False, "min_size": 0}
    picture = draw_errors(image, panoptic, (found, wrong), metadata, **options)
    assert picture.shape == image.shape
    # The middle of what has no label.
    assert picture[58, 40].tolist() == list(ERROR_COLORS[CORRECT])
    assert picture[22, 8].tolist() == list(ERROR_COLORS[MISSED])
    assert picture[22, 42].tolist() == list(ERROR_COLORS[WRONG_CLASS])
    legend = draw_errors(image, panoptic, (found, wrong), metadata, min_size=0)
    assert legend.shape[0] > HEIGHT
    assert (
        legend[:HEIGHT]
        == draw_errors(image, panoptic, (found, wrong), metadata, legend=False, min_size=0)
    ).all()


def test_limit_size(image, panoptic):
    small, truth, prediction = limit_size(40, image, panoptic, panoptic)
    assert small.shape == (30, 40, 3)
    assert truth[0].shape == prediction[0].shape == (30, 40)
    assert (truth[0] == panoptic[0][1::2, 1::2]).all()
    assert limit_size(40, image, None, panoptic)[1] is None
    same = limit_size(80, image, panoptic, panoptic)
    assert same[0] is image
    assert same[1] is panoptic


def test_truth_of_a_dataset_dict(panoptic_set, scene):
    from detectron2.data import DatasetCatalog

    panoptic_set("truth_set", [scene])
    (item,) = DatasetCatalog.get("truth_set")
    ids, segments = read_truth(item)
    assert (ids == scene[0]).all()
    assert {s["id"] for s in segments} == set(scene[1])
    assert read_truth({"file_name": "a.jpg"}) is None


def test_class_colors():
    coco = MetadataCatalog.get("coco_2017_val_panoptic")
    assert class_colors(coco, 133)[0] == (220, 20, 60)
    free = class_colors(Metadata(thing_classes=["a"] * 40), 40)
    assert len(set(free)) == 40
    assert all(0 <= channel <= 255 for color in free for channel in color)
