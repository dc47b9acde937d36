"""What a user of PanopticCheckpointer sees. Formats: the other files here."""

import logging

import pytest
import torch

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def saved(tiny_model, tmp_path):
    """The file of a tiny model, and the model."""
    model = tiny_model()
    PanopticCheckpointer(model, str(tmp_path)).save("model", iteration=4)
    return str(tmp_path / "model.pth"), model


@pytest.fixture
def change(saved, tmp_path):
    """Return ``change(function)``: let it edit the saved state dict; return the new file."""

    def make(edit):
        data = torch.load(saved[0], weights_only=True)
        edit(data["model"])
        path = tmp_path / "changed.pth"
        torch.save(data, path)
        return str(path)

    return make


def scramble(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return {name: x.clone() for name, x in model.state_dict().items()}


def assert_unchanged(model, before, *prefixes):
    for name, tensor in model.state_dict().items():
        if name.startswith(prefixes or ("",)):
            assert torch.equal(tensor, before[name]), name


def table(caplog):
    """Cells of the table in the log; a line below the headers is among them."""
    (text,) = (r.getMessage() for r in caplog.records if "Loaded " in r.getMessage())
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[1:]]


def test_own_checkpoint(saved, tiny_model, caplog):
    path, model = saved
    other = tiny_model()
    scramble(other)
    with caplog.at_level(logging.INFO):
        rest = PanopticCheckpointer(other).load(path)
    assert rest == {"iteration": 4}
    assert_unchanged(other, model.state_dict())
    (record,) = (r for r in caplog.records if "Loaded" in r.getMessage())
    assert record.levelno == logging.INFO
    assert f"Loaded {path} (PanopticDETR)" in record.getMessage()
    rows = table(caplog)
    assert rows[0] == ["part", "tensors", "what", "note"]
    # Every tensor is in the table, each part once.
    assert sum(int(row[1]) for row in rows[2:]) == len(model.state_dict())
    assert {row[2] for row in rows[2:]} == {"loaded"}
    assert len({row[0] for row in rows[2:]}) == len(rows) - 2
    assert [r[0] for r in rows if "." in r[0]] == ["transformer.decoder", "transformer.encoder"]


def test_other_number_of_classes(saved, tiny_model, class_set, caplog):
    path, model = saved
    options = ("DATASETS.TRAIN", (class_set("tst"),), "DATASETS.TEST", ())
    other = tiny_model(*options, "MODEL.DETR.NUM_CLASSES", 3)
    before = scramble(other)
    with caplog.at_level(logging.INFO):
        PanopticCheckpointer(other).load(path)
    assert_unchanged(other, before, "class_embed.")
    ours = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("class_embed.") or torch.equal(ours[name], tensor), name
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    classes = model.num_classes
    why = f"the file has {classes} classes, the model 3 (DATASETS.TRAIN, MODEL.DETR.NUM_CLASSES)"
    assert warnings == [f"The class head keeps its initial values: {why}"]
    assert ["class_embed", "2", "not loaded", why] in table(caplog)


@pytest.mark.parametrize("queries", [9, 5])
def test_other_number_of_queries(saved, tiny_model, queries, caplog):
    other = tiny_model("MODEL.DETR.NUM_OBJECT_QUERIES", queries)
    before = scramble(other)
    PanopticCheckpointer(other).load(saved[0])
    count = min(queries, 8)
    assert torch.equal(other.query_embed.weight[:count], saved[1].query_embed.weight[:count])
    assert torch.equal(other.query_embed.weight[8:], before["query_embed.weight"][8:])
    assert torch.equal(other.input_proj.weight, saved[1].input_proj.weight)
    assert f"the file has 8, MODEL.DETR.NUM_OBJECT_QUERIES is {queries}" in caplog.text


def test_wrong_shape_names_everything_and_loads_nothing(saved, tiny_model):
    other = tiny_model("MODEL.DETR.HIDDEN_DIM", 48, "MODEL.DETR.DEC_LAYERS", 1)
    before = scramble(other)
    with pytest.raises(UserError) as error:
        PanopticCheckpointer(other).load(saved[0])
    text = str(error.value)
    assert f"{saved[0]} (PanopticDETR) does not fit the model; nothing was loaded" in text
    assert "MODEL.DETR.HIDDEN_DIM is 48 in the model, 32 in the file" in text
    assert "MODEL.DETR.DEC_LAYERS is 1 in the model" in text
    assert "input_proj.weight is (32, 24, 1, 1), the model's (48, 24, 1, 1)" in text
    assert_unchanged(other, before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transformer.decoder.norm.weight", "transformer.decoder.norm.weight is not in the file"),
        ("mask_head.gn3.bias", "mask_head.gn3.bias is not in the file"),
        ("backbone.res3.0.conv1.weight", "backbone.res3.0.conv1.weight is not in the file"),
        ("class_embed.bias", "class_embed.bias is not in the file"),
    ],
)
def test_missing_tensor(change, tiny_model, name, message):
    path = change(lambda state: state.pop(name))
    with pytest.raises(UserError, match=message):
        PanopticCheckpointer(tiny_model()).load(path)


def test_tensor_without_a_place(change, tiny_model):
    path = change(lambda state: state.update({"transformer.extra": torch.ones(1)}))
    with pytest.raises(UserError, match=r"transformer\.extra has no place in the model"):
        PanopticCheckpointer(tiny_model()).load(path)


def test_another_model(tmp_path, tiny_model):
    torch.save({"model": {"roi_heads.box.weight": torch.ones(2)}}, tmp_path / "r.pth")
    with pytest.raises(ValueError, match=r"r\.pth is a checkpoint of another model.*roi_heads"):
        PanopticCheckpointer(tiny_model()).load(str(tmp_path / "r.pth"))


def test_resnet_into_another_backbone(tmp_path, tiny_model):
    """Not a word would be loaded: a ResNet-18 has no place in the narrow ResNet."""
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=r"resnet18\.pth .*torchvision names.* does not fit"):
        PanopticCheckpointer(tiny_model()).load(str(tmp_path / "resnet18.pth"))


def test_without_masks_and_back(saved, tiny_model, tmp_path, caplog):
    """The two-step recipe: boxes first, then the mask head on top."""
    options = ("MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False)
    boxes = tiny_model(*options, "MODEL.DETR.TEST.INSTANCE_ON", True)
    scramble(boxes)
    PanopticCheckpointer(boxes, str(tmp_path)).save("boxes")
    model = tiny_model("MODEL.DETR.FREEZE_DETECTOR", True)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        PanopticCheckpointer(model).load(str(tmp_path / "boxes.pth"))
    assert_unchanged(model, before, "mask_head.", "bbox_attention.")
    ours = model.state_dict()
    assert all(torch.equal(ours[name], x) for name, x in boxes.state_dict().items())
    assert ["mask_head", "28", "not loaded", "the file has no masks (MODEL.MASK_ON)"] in table(
        caplog
    )


def test_nothing_to_load(tiny_model):
    model = tiny_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert PanopticCheckpointer(model).load("") == {}
    assert_unchanged(model, before)


def incomplete(kind, saved, tiny_model, class_set, tmp_path):
    """A file, and a model of which a part is not in the file."""
    if kind == "queries":
        return saved[0], tiny_model("MODEL.DETR.NUM_OBJECT_QUERIES", 9)
    if kind == "classes":
        options = ("DATASETS.TRAIN", (class_set("tst"),), "DATASETS.TEST", ())
        return saved[0], tiny_model(*options, "MODEL.DETR.NUM_CLASSES", 3)
    state = saved[1].state_dict()
    if kind == "masks":
        state = {n: x for n, x in state.items() if not n.startswith(("mask_head", "bbox_att"))}
    else:
        state = {n[9:]: x for n, x in state.items() if n.startswith("backbone.")}
    torch.save({"model": state}, tmp_path / "part.pth")
    return str(tmp_path / "part.pth"), tiny_model()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("queries", ["query_embed.weight is loaded in part", "MODEL.DETR.NUM_OBJECT_QUERIES"]),
        ("classes", ["The class head keeps its initial values", "DATASETS.TRAIN"]),
        ("masks", ["mask_head (28 tensors): the file has no masks (MODEL.MASK_ON)"]),
        ("backbone", ["it holds a backbone only"]),
    ],
)
def test_complete(kind, words, saved, tiny_model, class_set, tmp_path):
    """Evaluation and prediction take no weights that training would complete."""
    path, model = incomplete(kind, saved, tiny_model, class_set, tmp_path)
    before = scramble(model)
    with pytest.raises(UserError) as error:
        PanopticCheckpointer(model).load(path, complete=True)
    for word in [path, "does not hold all of the model", "config.yaml", *words]:
        assert word in str(error.value)
    assert_unchanged(model, before)
    PanopticCheckpointer(model).load(path)


def test_complete_file_or_none(saved, tiny_model):
    checkpointer = PanopticCheckpointer(tiny_model())
    checkpointer.load(saved[0], complete=True)
    assert_unchanged(checkpointer.model, saved[1].state_dict())
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty: .* random weights"):
        checkpointer.resume_or_load("", resume=False, complete=True)


def test_optimizer_comes_back(saved, tiny_model, tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    PanopticCheckpointer(model, str(tmp_path), optimizer=optimizer).save("step", iteration=1)
    other = torch.optim.SGD(model.parameters(), lr=1)
    checkpointer = PanopticCheckpointer(model, optimizer=other)
    assert checkpointer.load(str(tmp_path / "step.pth"), checkpointables=[])["iteration"] == 1
    assert other.param_groups[0]["lr"] == 1
    checkpointer.load(str(tmp_path / "step.pth"))
    assert other.param_groups[0]["lr"] == 0.25
