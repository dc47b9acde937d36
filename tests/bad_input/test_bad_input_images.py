"""Image files of every kind: readable ones train and are segmented, the others are named."""

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from detr_panoptic_d2.apps.predict import predict
from detr_panoptic_d2.data.dataset_mapper import read_image
from detr_panoptic_d2.engine import Predictor, setup_cfg


def pixels(size=(32, 40)):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(size=(32, 40), mode=None, format="PNG", dtype=None, scale=1, **more):
    """Return a function that writes an image of random pixels to a path."""

    def write(path):
        image = Image.fromarray(pixels(size))
        if dtype is not None:
            image = Image.fromarray(pixels(size)[..., 0].astype(dtype) * scale)
        elif mode is not None:
            image = image.convert(mode)
        image.save(path, format=format, **more)

    return write


def animated(path):
    frames = [Image.fromarray(pixels()) for _ in range(2)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def truncated(path):
    save(format="JPEG")(path)
    path.write_bytes(path.read_bytes()[:600])


def bomb(path):
    """A header that promises more pixels than any memory holds."""
    save((1, 1), format="BMP")(path)
    content = bytearray(path.read_bytes())
    content[18:26] = np.array([60000, 60000], dtype="<i4").tobytes()
    path.write_bytes(content)


READABLE = [save(mode=mode) for mode in ("L", "RGBA", "LA", "P", "1")]
READABLE += [save(mode="CMYK", format="JPEG"), animated]
READABLE += [save(dtype=np.uint16, scale=257, format=name) for name in ("PNG", "TIFF")]
# One pixel, one row, a panorama, a thread.
READABLE += [save(size) for size in ((1, 1), (1, 300), (50, 6000), (6000, 5))]
UNREADABLE = [
    truncated,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("<html>404</html>"),
    save(dtype=np.float32, format="TIFF"),
    bomb,
]


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
    opts += ["INPUT.MAX_SIZE_TRAIN", "64", "INPUT.MAX_SIZE_TEST", "64"]
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
    assert predict(predictor, paths, tmp_path / "out", coco_json=True) == {}
    for path, image in zip(paths, content["images"], strict=True):
        with Image.open(tmp_path / "out" / path.name) as overlay:
            assert overlay.size == (image["width"], image["height"])


def test_unreadable_images_are_named_and_the_others_are_done(spoilt, error_line, tmp_path):
    opts = spoilt.opts()
    model = build_model(setup_cfg("shapes/tiny.yaml", opts))
    torch.save({"model": model.state_dict()}, tmp_path / "random.pth")
    opts += ["MODEL.WEIGHTS", str(tmp_path / "random.pth")]
    predictor = Predictor(setup_cfg("shapes/tiny.yaml", opts))
    paths = [spoilt.images / f"{number}.png" for number in range(len(UNREADABLE))]
    for path, make in zip(paths, UNREADABLE, strict=True):
        make(path)
    broken = predict(predictor, [*paths, spoilt.image(2)], tmp_path / "out", coco_json=True)
    assert list(broken) == paths
    for path, error in broken.items():
        assert str(path) in str(error)
        assert "cannot be read" in str(error) or "Convert it" in str(error)
        assert error_line(read_image, path, "RGB") == str(error)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert names == {"img2.png", "panoptic/img2.png", "predictions.json"}
