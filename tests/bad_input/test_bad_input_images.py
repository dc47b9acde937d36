"""Image files of every kind."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from detr_panoptic_d2.apps.predict import predict
from detr_panoptic_d2.data import PanopticDatasetMapper
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


def test_images_of_every_kind(spoilt, error_line, tmp_path):
    """Readable ones pass the training mapper and are segmented; the others are named."""
    opts = spoilt.opts("INPUT.MAX_SIZE_TRAIN", 64, "INPUT.MAX_SIZE_TEST", 64)
    opts += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.PROB", "1.0"]
    opts += ["INPUT.CROP.RESIZE_MIN_SIZES", "[24, 40]", "INPUT.CROP.SIZE", "[20, 30]"]
    opts += ["MODEL.WEIGHTS", str(tmp_path / "random.pth")]
    cfg = setup_cfg("shapes/tiny.yaml", opts)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "random.pth")
    mapper, item = PanopticDatasetMapper(cfg), DatasetCatalog.get(spoilt.name)[0]
    sizes, broken = {}, []
    for number, make in enumerate((*READABLE, *UNREADABLE)):
        path = spoilt.image_root / f"{number}.png"
        make(path)
        if number >= len(READABLE):
            broken.append(path)
            continue
        sizes[path] = read_image(path, "RGB").shape[:2]
        ids = np.full(sizes[path], 1)
        ids[sizes[path][0] // 2 :, sizes[path][1] // 2 :] = 2
        spoilt.save_ids(0, ids)
        size = dict(zip(("height", "width"), sizes[path], strict=True))
        output = mapper({**item, **size, "file_name": str(path)})
        assert output["image"].shape[1:] == output["instances"].image_size
        assert len(output["instances"])

    failed = predict(Predictor(cfg), [*sizes, *broken], tmp_path / "out", coco_json=True)
    assert list(failed) == broken
    for path, error in failed.items():
        assert str(path) in str(error)
        assert "cannot be read" in str(error) or "Convert it" in str(error)
        assert error_line(read_image, path, "RGB") == str(error)
    for path, (height, width) in sizes.items():
        for folder in ("", "panoptic"):
            with Image.open(tmp_path / "out" / folder / path.name) as result:
                assert result.size == (width, height)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2 * len(sizes)
