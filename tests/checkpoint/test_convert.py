import json

import pytest
import torch

from detr_panoptic_d2.apps.convert_checkpoint import (
    convert_checkpoint,
    huggingface_checkpoint,
    official_checkpoint,
    spread_rows,
)
from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.checkpoint.translate import COCO_NAMES, COCO_THING_IDS
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def official_file(official, tmp_path):
    """An official panoptic file."""
    path = tmp_path / "official.pth"
    torch.save({"model": official()}, path)
    return str(path)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_round_trips(config, official_file, tmp_path):
    """The first conversion chooses the rows; from then on all ways are exact."""
    names = ("o.pth", "b.pth", "f", "deep/a.pth")
    ours, back, folder, again = (str(tmp_path / name) for name in names)
    convert_checkpoint(official_file, ours, "ours", config())
    convert_checkpoint(ours, back, "official", config())
    found, expected = weights(back), weights(official_file)
    assert found.keys() == expected.keys()
    # Rows of ids that are no category of COCO are left behind.
    unused = found["detr.class_embed.bias"] == -1e4
    assert unused.sum() == 251 - 134
    for name, tensor in expected.items():
        used = ~unused if "class_embed." in name else slice(None)
        assert torch.equal(found[name][used], tensor[used]), name
    convert_checkpoint(ours, folder, "huggingface", config())
    for source in (back, folder):
        convert_checkpoint(source, again, "ours", config())
        assert_equal(weights(again), weights(ours))


def test_boxes_only(official, config, boxes_only, tmp_path):
    names = ("boxes.pth", "ours.pth", "folder", "official.pth")
    source, ours, folder, back = (str(tmp_path / name) for name in names)
    torch.save({"model": official(masks=False, rows=92)}, source)
    cfg = config(*boxes_only)
    convert_checkpoint(source, ours, "ours", cfg)
    assert len(weights(ours)["class_embed.bias"]) == 81
    convert_checkpoint(ours, folder, "huggingface", cfg)
    content = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert content["architectures"] == ["DetrForObjectDetection"]
    convert_checkpoint(folder, back, "official", cfg)
    assert weights(back).keys() == official(masks=False).keys()


def test_transformers_loads_the_folder(build, config, official_file, tmp_path):
    """Its numbers are ours; so is the size that its processor gives an image."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    folder = tmp_path / "folder"
    convert_checkpoint(official_file, str(folder), "huggingface", config())
    theirs, report = transformers.DetrForSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.id2label[200] == "rug-merged"
    assert theirs.config.num_labels == 250
    model = build()
    PanopticCheckpointer(model).load(official_file)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        found = model.detect(model.preprocess([{"image": image}]))
        pixels = (image - model.pixel_mean) / model.pixel_std
        expected = theirs.eval()(pixel_values=pixels[None])
    logits = expected.logits[..., [*model.dataset_ids, 250]]
    tolerance = {"rtol": 0, "atol": 1e-4 * logits.abs().max().item()}
    torch.testing.assert_close(found.pred_logits[-1], logits, **tolerance)
    torch.testing.assert_close(found.pred_boxes[-1], expected.pred_boxes, rtol=1e-4, atol=1e-4)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    mean = torch.tensor(processor["image_mean"]) * 255
    torch.testing.assert_close(mean, model.pixel_mean.flatten())


def test_own_classes_through_both_formats(build, class_set, tmp_path):
    """Other classes than COCO's: ids and names travel with the file."""
    options = ("DATASETS.TRAIN", (class_set("tsst"),), "DATASETS.TEST", ())
    options += ("MODEL.DETR.NUM_CLASSES", 4, "MODEL.BACKBONE.NAME", "build_torchvision_backbone")
    options += ("MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18")
    model = build(*options)
    content = official_checkpoint(model)
    assert len(content["model"]["detr.class_embed.bias"]) == 42
    torch.save(content, tmp_path / "official.pth")
    tensors, config, _ = huggingface_checkpoint(model)
    assert (config["id2label"]["20"], config["id2label"]["21"]) == ("class 1", "N/A")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "folder" / "pytorch_model.bin")
    for path in ("official.pth", "folder"):
        other = build(*options)
        PanopticCheckpointer(other).load(str(tmp_path / path))
        assert_equal(other.state_dict(), model.state_dict())


def test_scale_of_attention_maps_becomes_a_part_of_the_weights(build, tmp_path):
    torch.manual_seed(0)
    scaled = build("MODEL.DETR.MASK_HEAD.ATTENTION_SCALE", "auto")
    assert scaled.mask_head.attention_scale > 100
    weights = official_checkpoint(scaled)["model"]
    tensors = huggingface_checkpoint(scaled)[0]
    assert not any("attention_scale" in name for name in (*weights, *tensors))
    assert torch.equal(weights["mask_head.lay1.weight"], tensors["mask_head.lay1.weight"])
    torch.save({"model": weights}, tmp_path / "official.pth")
    torch.save({"model": scaled.state_dict()}, tmp_path / "ours.pth")
    image = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}
    masks = []
    for name, scale in (("official", 1), ("ours", scaled.mask_head.attention_scale)):
        model = build()
        PanopticCheckpointer(model).load(str(tmp_path / f"{name}.pth"), complete=True)
        assert model.mask_head.attention_scale == scale
        with torch.no_grad():
            found = model.detect(model.preprocess([image]))
            masks.append(model.predict_masks(found, torch.zeros(5).long(), torch.arange(5)))
    tolerance = 1e-4 * float(masks[0].abs().max())
    assert masks[0].std(0).mean() > 10 * tolerance
    torch.testing.assert_close(*masks, rtol=0, atol=tolerance)


@pytest.mark.parametrize("ids", [COCO_THING_IDS, [200, 1]])
def test_rows_of_unused_ids_take_nothing_from_the_others(ids):
    names = [COCO_NAMES[i] for i in ids]
    weight, bias = torch.randn(len(ids) + 1, 3), torch.randn(len(ids) + 1)
    spread, spread_bias, spread_names = spread_rows(weight, bias, ids, names)
    assert len(spread) == len(spread_bias) == (251 if 200 in ids else 92)
    assert spread_names == dict(zip(ids, names, strict=True))
    x = torch.randn(5, 3)
    wide = (x @ spread.T + spread_bias).softmax(-1)
    used = [*ids, len(spread) - 1]
    torch.testing.assert_close(wide[:, used], (x @ weight.T + bias).softmax(-1))
    wide[:, used] = 0
    assert not wide.any()
    with pytest.raises(UserError, match="category id -1 is negative"):
        spread_rows(torch.randn(2, 3), torch.randn(2), [-1], ["a"])


def test_what_has_no_place_elsewhere(build, tiny_model):
    for model in (tiny_model(), build("MODEL.DETR.PRE_NORM", True)):
        with pytest.raises(UserError, match="ResNet-18, -34, -50, -101 and -152.*PRE_NORM"):
            huggingface_checkpoint(model)
    model = build("MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", 0)
    with pytest.raises(UserError, match="only a ResNet with batch norms"):
        official_checkpoint(model)


def test_nothing_is_written_on_errors(config, official_file, tmp_path):
    for key, value, to, words in (
        ("MODEL.DETR.NUM_OBJECT_QUERIES", 6, "ours", "not all weights of .*the first 5 queries"),
        ("INPUT.FORMAT", "BGR", "official", "INPUT.FORMAT is BGR"),
    ):
        with pytest.raises(UserError, match=words):
            convert_checkpoint(official_file, str(tmp_path / "x.pth"), to, config(key, value))
    with pytest.raises(UserError, match=r"official\.pth' would overwrite the input"):
        convert_checkpoint(official_file, official_file, "ours", config())
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]


def test_command(command, tmp_path, tiny_model):
    PanopticCheckpointer(tiny_model(), str(tmp_path)).save("ours")
    words = [
        "convert-checkpoint",
        "--input",
        tmp_path / "ours.pth",
        "--output",
        tmp_path / "to.pth",
    ]
    words += ["--config-file", "shapes/tiny.yaml", "--format"]
    status, _, err = command(*words, "huggingface")
    assert status == 1 and "Hugging Face's DETR supports ResNet-18" in err[-1]
    assert not (tmp_path / "to.pth").exists()
    assert command(*words, "official")[0] == 0
    assert "detr.query_embed.weight" in weights(tmp_path / "to.pth")
