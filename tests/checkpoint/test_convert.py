import json
import logging

import pytest
import torch
from torchvision.models import resnet101
from torchvision.ops import FrozenBatchNorm2d

from detr_panoptic_cli import main
from detr_panoptic_d2.apps.convert_checkpoint import config_of, convert_checkpoint
from detr_panoptic_d2.apps.export_checkpoint import huggingface_checkpoint, official_checkpoint
from detr_panoptic_d2.checkpoint import PanopticCheckpointer
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


def test_round_trips(official_file, tmp_path):
    """The first conversion chooses the rows; from then on all ways are exact."""
    ours, back, folder, again = (str(tmp_path / name) for name in ("o.pth", "b.pth", "f", "a.pth"))
    convert_checkpoint(official_file, ours, "ours", None)
    convert_checkpoint(ours, back, "official", None)
    found, expected = weights(back), weights(official_file)
    assert found.keys() == expected.keys()
    # Rows of ids that are no category of COCO are left behind.
    unused = found["detr.class_embed.bias"] == -1e4
    assert unused.sum() == 251 - 134
    for name, tensor in expected.items():
        used = ~unused if "class_embed." in name else slice(None)
        assert torch.equal(found[name][used], tensor[used]), name
    convert_checkpoint(ours, folder, "huggingface", None)
    for source in (back, folder):
        convert_checkpoint(source, again, "ours", None)
        assert_equal(weights(again), weights(ours))


def test_boxes_only(official, tmp_path):
    torch.save({"model": official(masks=False, rows=92)}, tmp_path / "boxes.pth")
    paths = {name: str(tmp_path / name) for name in ("ours.pth", "folder", "official.pth")}
    convert_checkpoint(str(tmp_path / "boxes.pth"), paths["ours.pth"], "ours", None)
    assert len(weights(paths["ours.pth"])["class_embed.bias"]) == 81
    convert_checkpoint(paths["ours.pth"], paths["folder"], "huggingface", None)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["architectures"] == ["DetrForObjectDetection"]
    convert_checkpoint(paths["folder"], paths["official.pth"], "official", None)
    assert weights(paths["official.pth"]).keys() == official(masks=False).keys()


def test_transformers_loads_the_folder(build, official_file, tmp_path):
    """Its numbers are ours; so is the size that its processor gives an image."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    folder = tmp_path / "folder"
    convert_checkpoint(official_file, str(folder), "huggingface", None)
    theirs, report = transformers.DetrForSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.id2label[200] == "rug-merged"
    assert theirs.config.id2label[92] == "banner"
    assert theirs.config.num_labels == 250
    model = build()
    PanopticCheckpointer(model).load(official_file)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        found = model.detect(model.preprocess([{"image": image}]))
        pixels = (image - model.pixel_mean) / model.pixel_std
        expected = theirs.eval()(pixel_values=pixels[None])
    used = [*model.dataset_ids, 250]
    logits = expected.logits[..., used]
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
    assert config["id2label"]["20"] == "class 1"
    assert config["id2label"]["21"] == "N/A"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "folder" / "pytorch_model.bin")
    for path in ("official.pth", "folder"):
        other = build(*options)
        PanopticCheckpointer(other).load(str(tmp_path / path))
        assert_equal(other.state_dict(), model.state_dict())


def test_config_read_off_the_tensors(official, caplog):
    with torch.device("meta"):
        body = resnet101(norm_layer=FrozenBatchNorm2d).state_dict()
    state = {n: x for n, x in official(masks=False).items() if ".body." not in n}
    state |= {f"backbone.0.body.{n}": x for n, x in body.items() if not n.startswith("fc.")}
    with caplog.at_level(logging.INFO):
        cfg = config_of({"model": state, "dilation": True, "heads": 4}, "a.pth")
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.MODEL.RESNETS.RES5_DILATION == 2
    assert cfg.MODEL.DETR.NHEADS == 4
    assert (cfg.MODEL.DETR.ENC_LAYERS, cfg.MODEL.DETR.DEC_LAYERS) == (1, 2)
    assert (cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.DIM_FEEDFORWARD) == (32, 48)
    assert cfg.MODEL.DETR.NUM_OBJECT_QUERIES == 5
    assert not cfg.MODEL.MASK_ON
    assert "does not say" not in caplog.text


def test_dilation_and_heads_are_kept(official_file, tmp_path, caplog):
    """A DC5 model has the same tensors; its name, its options or its config.json tell."""
    folder = tmp_path / "folder"
    with caplog.at_level(logging.INFO):
        convert_checkpoint(official_file, str(folder), "huggingface", None)
    assert "does not say whether it is a DC5 model" in caplog.text
    config = json.loads((folder / "config.json").read_text())
    assert (config["dilation"], config["encoder_attention_heads"]) == (False, 8)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        convert_checkpoint(str(folder), str(tmp_path / "o.pth"), "ours", None)
    assert "does not say" not in caplog.text
    (tmp_path / "o.pth").rename(tmp_path / "detr-r18-DC5.pth")
    with pytest.raises(UserError, match="DC5 model of a ResNet-18, which neither torchvision"):
        convert_checkpoint(str(tmp_path / "detr-r18-DC5.pth"), str(folder), "huggingface", None)


def test_what_cannot_be_converted(build, official, tmp_path, tiny_model):
    def convert(content, to="ours"):
        torch.save(content, tmp_path / "in.pth")
        convert_checkpoint(str(tmp_path / "in.pth"), str(tmp_path / "out"), to, None)

    state = official()
    headless = {n: x for n, x in state.items() if "class_embed" not in n}
    with pytest.raises(UserError, match=r"in\.pth holds no DETR: there is nothing to convert"):
        convert(headless)
    resnet = {n.split("body.")[1]: x for n, x in state.items() if "body." in n}
    with pytest.raises(UserError, match="holds no DETR"):
        convert(resnet)
    few = {n: x[:5] if "class_embed" in n else x for n, x in state.items()}
    with pytest.raises(UserError, match=r"has 5 class rows, which are not COCO's. Give --config"):
        convert(few)
    with pytest.raises(UserError, match="its backbone is none of ResNet-18 to -152"):
        convert(tiny_model().state_dict())
    with pytest.raises(UserError, match="format 'onnx' is none of ours, official, huggingface"):
        convert(state, "onnx")
    assert not (tmp_path / "out").exists()


def test_models_without_a_place_elsewhere(build, tiny_model):
    with pytest.raises(UserError, match="gets ResNet-18, -34, -50, -101 and -152 from here"):
        huggingface_checkpoint(tiny_model())
    model = build("MODEL.DETR.PRE_NORM", True)
    with pytest.raises(UserError, match="MODEL.DETR.PRE_NORM is True"):
        huggingface_checkpoint(model)
    model = build("MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", 0)
    with pytest.raises(UserError, match="Only models with a ResNet with batch norms"):
        official_checkpoint(model)


def test_reads_urls_and_uses_a_config(config, official_file, tmp_path, class_set):
    """With a config, the model is the config's; a file that lacks a part of it is an error."""
    url = (tmp_path / "official.pth").as_uri()
    convert_checkpoint(url, str(tmp_path / "deep" / "ours.pth"), "ours", config())
    assert len(weights(tmp_path / "deep" / "ours.pth")["class_embed.bias"]) == 134
    own = ["DATASETS.TRAIN", (class_set("ts"),), "MODEL.DETR.NUM_CLASSES", 2, "DATASETS.TEST", ()]
    for options, to, words in (
        (own, "ours", "does not hold all of the model.* The class head keeps"),
        (["MODEL.DETR.NUM_OBJECT_QUERIES", 6], "ours", "not hold all of .*the first 5 queries"),
        (["INPUT.FORMAT", "BGR"], "official", "INPUT.FORMAT is BGR"),
    ):
        with pytest.raises(UserError, match=words):
            convert_checkpoint(url, str(tmp_path / "x.pth"), to, config(*options))


def test_command(tmp_path, tiny_model, capsys):
    """To official DETR's format and back; an error is one line."""
    PanopticCheckpointer(tiny_model(), str(tmp_path)).save("ours")
    names = {name: str(tmp_path / f"{name}.pth") for name in ("ours", "official", "back", "no")}

    def run(source, target, *options):
        return main(
            ["convert-checkpoint", "--input", names[source], "--output", names[target]] + [*options]
        )

    config = ("--config-file", "shapes/tiny.yaml")
    assert run("ours", "official", "--format", "official", *config) == 0
    assert "detr.query_embed.weight" in weights(names["official"])
    assert run("official", "back", "--format", "ours", *config) == 0
    found = weights(names["back"])
    for name, tensor in weights(names["ours"]).items():
        # Official DETR's batch norms are frozen and count nothing.
        assert name.endswith("num_batches_tracked") or torch.equal(found[name], tensor), name
    with pytest.raises(SystemExit) as end:
        run("ours", "no", "--format", "huggingface")
    assert end.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "its backbone is none of ResNet-18 to -152. Give --config-file" in line
    with pytest.raises(SystemExit) as end:
        run("ours", "no", "--format", "ours", "MODEL.MASK_ON", "True")
    assert end.value.code == 2
    assert "give --config-file as well" in capsys.readouterr().err
    assert not (tmp_path / "no.pth").exists()
