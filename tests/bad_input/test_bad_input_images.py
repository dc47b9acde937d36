"""Image files of every kind: readable ones train and are segmented, the others are named."""

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.apps.predict import Predictor, predict_images
from detr_panoptic_d2.data.dataset_mapper import read_image
from detr_panoptic_d2.engine import setup_cfg


def pixels(size=(32, 40)):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def cmyk(path):
    Image.fromarray(pixels()).convert("CMYK").save(path, format="JPEG")


def grey(path):
    Image.fromarray(pixels()).convert("L").save(path, format="PNG")


def alpha(path):
    Image.fromarray(pixels()).convert("RGBA").save(path, format="PNG")


def grey_alpha(path):
    Image.fromarray(pixels()).convert("LA").save(path, format="PNG")


def palette(path):
    Image.fromarray(pixels()).convert("P").save(path, format="PNG")


def bits16(path):
    Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(path, format="PNG")


def bits16_tiff(path):
    Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(path, format="TIFF")


def one_bit(path):
    Image.fromarray(pixels()).convert("1").save(path, format="PNG")


def animated(path):
    frames = [Image.fromarray(pixels()) for _ in range(2)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def one_pixel(path):
    Image.fromarray(pixels((1, 1))).save(path, format="PNG")


def one_row(path):
    Image.fromarray(pixels((1, 300))).save(path, format="PNG")


def panorama(path):
    Image.fromarray(pixels((50, 12000))).save(path, format="PNG")


def thread(path):
    Image.fromarray(pixels((12000, 5))).save(path, format="PNG")


READABLE = [cmyk, grey, alpha, grey_alpha, palette, bits16, bits16_tiff, one_bit, animated]
READABLE += [one_pixel, one_row, panorama, thread]


def truncated(path):
    Image.fromarray(pixels()).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:600])


def empty(path):
    path.write_bytes(b"")


def web_page(path):
    path.write_text("<html>404</html>")


def floats(path):
    Image.fromarray(pixels()[..., 0].astype(np.float32)).save(path, format="TIFF")


def bomb(path):
    """A header that promises more pixels than any memory holds."""
    Image.fromarray(pixels((1, 1))).save(path, format="BMP")
    content = bytearray(path.read_bytes())
    content[18:26] = np.array([60000, 60000], dtype="<i4").tobytes()
    path.write_bytes(content)


UNREADABLE = [truncated, empty, web_page, floats, bomb]


def test_readable_images_train_and_are_segmented(spoilt, train, tmp_path):
    content, segments = spoilt.content, spoilt.content["annotations"][0]["segments_info"]
    for entries in (content["images"], content["annotations"]):
        entries.clear()
    for number, make in enumerate(READABLE):
        make(spoilt.image(number))
        height, width = read_image(spoilt.image(number), "RGB").shape[:2]
        ids = np.full((height, width), 1)
        ids[height // 2 :, width // 2 :] = 2
        spoilt.save_ids(number, ids)
        name = spoilt.image(number).name
        size = {"height": height, "width": width}
        content["images"].append({"id": number, "file_name": name, **size})
        content["annotations"].append(
            {"image_id": number, "file_name": name, "segments_info": segments}
        )
    spoilt.save()
    opts = spoilt.opts("MODEL.DETR.TEST.SCORE_THRESH", 0.0, "SOLVER.MAX_ITER", 1)
    opts += ["SOLVER.IMS_PER_BATCH", str(len(READABLE)), "TEST.EVAL_PERIOD", "1"]
    opts += ["INPUT.MAX_SIZE_TRAIN", "200", "INPUT.MAX_SIZE_TEST", "200"]
    opts += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.PROB", "0.5"]
    opts += ["INPUT.CROP.RESIZE_MIN_SIZES", "[24, 40]", "INPUT.CROP.SIZE", "[20, 30]"]
    trainer = train(opts)
    assert np.isfinite(trainer.storage.latest()["total_loss"][0])
    folder = spoilt.root / "output" / "inference" / spoilt.name / "panoptic"
    for number, image in enumerate(content["images"]):
        with Image.open(folder / spoilt.png(number).name) as predicted:
            assert predicted.size == (image["width"], image["height"])

    weights = spoilt.root / "output" / "model_final.pth"
    predictor = Predictor(setup_cfg("shapes/tiny.yaml", [*opts, "MODEL.WEIGHTS", str(weights)]))
    paths = [spoilt.image(number) for number in range(len(READABLE))]
    assert predict_images(predictor, paths, tmp_path / "out", coco_json=True) == []
    for path, image in zip(paths, content["images"], strict=True):
        with Image.open(tmp_path / "out" / path.name) as overlay:
            assert overlay.size == (image["width"], image["height"])


@pytest.mark.parametrize("make", UNREADABLE, ids=lambda f: f.__name__)
def test_unreadable_image_is_named_and_nothing_is_left(
    spoilt, train, error_line, no_leftovers, tmp_path, make, random_predictor
):
    make(spoilt.image(1))
    opts = spoilt.opts("DATASETS.TEST", "()")
    line = error_line(train, opts)
    assert str(spoilt.image(1)) in line
    assert "cannot be read" in line or "Convert it" in line
    no_leftovers(spoilt.root / "output")

    predictor = random_predictor(opts)
    broken = predict_images(
        predictor, [spoilt.image(1), spoilt.image(2)], tmp_path / "out", coco_json=True
    )
    assert [path for path, _ in broken] == [spoilt.image(1)]
    assert broken[0][1] == line
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert names == {"img2.png", "panoptic/img2.png", "predictions.json"}
