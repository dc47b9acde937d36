"""What PanopticCheckpointer checks, says and writes. Formats: the other files here."""

import logging
import multiprocessing
import re
import time

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.files import atomic_file


@pytest.fixture
def saved(tiny_model, tmp_path):
    """The file of a tiny model, and the model."""
    model = tiny_model()
    PanopticCheckpointer(model, str(tmp_path)).save("model", iteration=4)
    return str(tmp_path / "model.pth"), model


def scramble(model):
    """Change all parameters; return a copy of the state dict."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return {name: x.clone() for name, x in model.state_dict().items()}


def assert_same(model, state, *prefixes):
    """Of all tensors, or of those whose names start so."""
    for name, tensor in model.state_dict().items():
        if name.startswith(prefixes or ("",)):
            assert torch.equal(tensor, state[name]), name


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_own_checkpoint(saved, tiny_model, caplog):
    path, model = saved
    other = tiny_model()
    scramble(other)
    with caplog.at_level(logging.INFO):
        assert PanopticCheckpointer(other).load(path, complete=True) == {"iteration": 4}
    assert_same(other, model.state_dict())
    assert f"Loaded {len(model.state_dict())} tensors from {path}\n" in caplog.text
    assert not warnings(caplog)
    assert PanopticCheckpointer(other).load("") == {}
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty: .* random weights"):
        PanopticCheckpointer(other).resume_or_load("", resume=False, complete=True)


QUERIES = "MODEL.DETR.NUM_OBJECT_QUERIES"


@pytest.mark.parametrize(
    ("options", "keep", "warning", "new"),
    [
        ((QUERIES, 9), "", "the first 8 queries are loaded: the file has 8, .*QUERIES is 9", ()),
        ((QUERIES, 5), "", "Only the first 5 queries are loaded", ()),
        (
            None,
            "",
            "file's 5 classes are not for the model's 3 classes .DATASETS.TRAIN",
            ("class_embed",),
        ),
        ((), "(?!mask_head|bbox_att)", "nothing for bbox_attention, mask_head", ("bbox_a", "mask")),
        ((), "backbone", "holds a backbone only", ("input", "query", "tr", "class", "bbox", "m")),
    ],
    ids=["more queries", "fewer queries", "classes", "no masks", "backbone"],
)
def test_part_of_a_model(
    options, keep, warning, new, saved, tiny_model, class_set, tmp_path, caplog
):
    """Training completes it and logs one warning; evaluation and prediction refuse it."""
    if options is None:
        options = ("DATASETS.TRAIN", (class_set("tst"),), "DATASETS.TEST", ())
        options += ("MODEL.DETR.NUM_CLASSES", 3)
    state = {n: x for n, x in saved[1].state_dict().items() if re.match(keep, n)}
    path, model = str(tmp_path / "part.pth"), tiny_model(*options)
    torch.save({"model": state}, path)
    before = scramble(model)
    with pytest.raises(UserError) as error:
        PanopticCheckpointer(model).load(path, complete=True)
    assert re.search(
        rf"part\.pth has not all weights of the model.*{warning}.*config", str(error.value)
    )
    assert_same(model, before)
    PanopticCheckpointer(model).load(path)
    (line,) = warnings(caplog)
    assert re.search(warning, line)
    for name, tensor in model.state_dict().items():
        expected = before[name] if name.startswith(new) else state[name]
        if name == "query_embed.weight" and not name.startswith(new):
            count = min(8, len(tensor))
            assert torch.equal(tensor[8:], before[name][8:])
            tensor, expected = tensor[:count], expected[:count]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda state: state.pop("mask_head.gn3.bias"), ["mask_head.gn3.bias is not in the file"]),
        (
            lambda state: state.update(
                {"transformer.more": torch.ones(1), "input_proj.weight": torch.ones(1, 2)}
            ),
            [
                "transformer.more has no place in the model",
                "input_proj.weight is (1, 2), the model's (32, 24, 1, 1)",
                "Use the config that the weights were trained with",
            ],
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(saved, tiny_model, tmp_path, edit, words):
    data = torch.load(saved[0], weights_only=True)
    edit(data["model"])
    torch.save(data, tmp_path / "changed.pth")
    model = tiny_model()
    before = scramble(model)
    with pytest.raises(UserError) as error:
        PanopticCheckpointer(model).load(str(tmp_path / "changed.pth"))
    for word in ["changed.pth does not fit the model; nothing was loaded", *words]:
        assert word in str(error.value)
    assert_same(model, before)


def test_nonfinite_weights_are_named_by_every_loader(saved, tiny_model, tmp_path):
    data = torch.load(saved[0], weights_only=True)
    data["model"]["class_embed.bias"][2] = float("nan")
    torch.save(data, tmp_path / "broken.pth")
    model = tiny_model()
    before = scramble(model)
    with pytest.raises(
        UserError, match=r"broken\.pth: tensor class_embed\.bias has infinite or NaN"
    ):
        PanopticCheckpointer(model).load(str(tmp_path / "broken.pth"))
    with pytest.raises(UserError, match="^tensor class_embed.bias has infinite or NaN"):
        DetectionCheckpointer(model).load(str(tmp_path / "broken.pth"))
    assert_same(model, before)


@pytest.mark.parametrize("layout", ["wrapped", "averaged model", "state dict", "timm", "swa"])
def test_ema_beside_the_model(saved, tiny_model, tmp_path, layout, caplog):
    """The EMA is loaded, the log says so, and a suffix of the path chooses the other weights."""
    model = saved[1].state_dict()
    ema = {name: x + 1 if x.is_floating_point() else x for name, x in model.items()}
    prefixed = {f"module.{name}": x for name, x in ema.items()}
    contents = {
        "wrapped": {"model": model, "ema": {"module": ema, "updates": 3}},
        "averaged model": {"model": model, "ema": {**prefixed, "n_averaged": torch.tensor(3)}},
        "state dict": {"model": model, "ema_model": ema, "optimizer": {"state": {}}},
        "timm": {"state_dict": model, "state_dict_ema": ema},
        "swa": {"model": model, "swa_state": prefixed},
    }
    torch.save(contents[layout], tmp_path / "both.pth")
    path, other = str(tmp_path / "both.pth"), tiny_model()
    with caplog.at_level(logging.INFO):
        PanopticCheckpointer(other).load(path, complete=True)
    assert_same(other, ema)
    key = "state_dict" if layout == "timm" else "model"
    assert f"is loaded. For the other: MODEL.WEIGHTS {path}#{key}\n" in caplog.text
    PanopticCheckpointer(other).load(f"{path}#{key}", complete=True)
    assert_same(other, model)
    with pytest.raises(UserError, match=r"both\.pth has no weights under 'best', but under \['"):
        PanopticCheckpointer(other).load(f"{path}#best")


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "network.model.", "model.detr."])
def test_prefixes_of_wrappers(saved, tiny_model, tmp_path, prefix):
    """DataParallel, torch.compile (of the model or of its parts), AveragedModel, Lightning."""
    model = saved[1].state_dict()
    wrapped = {
        prefix + name.replace("encoder.", "encoder._orig_mod."): model[name] for name in model
    }
    torch.save({"model": {**wrapped, "n_averaged": torch.tensor(2)}}, tmp_path / "wrapped.pth")
    for checkpointer in (PanopticCheckpointer, DetectionCheckpointer):
        other = tiny_model()
        scramble(other)
        checkpointer(other).load(str(tmp_path / "wrapped.pth"))
        assert_same(other, model)


def test_another_model(tmp_path, tiny_model):
    torch.save({"model": {"roi_heads.box.weight": torch.ones(2)}}, tmp_path / "r.pth")
    with pytest.raises(UserError, match=r"r\.pth is a checkpoint of another model.*roi_heads"):
        PanopticCheckpointer(tiny_model()).load(str(tmp_path / "r.pth"))


@pytest.fixture
def job(tmp_path):
    """A checkpointer that has saved the values 1, 2 and 3 as weights and learning rate."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=9)
    checkpointer = PanopticCheckpointer(model, str(tmp_path), optimizer=optimizer)
    for value in (1, 2, 3):
        optimizer.param_groups[0]["lr"] = value
        nn.init.constant_(model.weight, value)
        checkpointer.save(f"model_{value:07d}", iteration=value)
    optimizer.param_groups[0]["lr"] = 9
    return checkpointer, lambda: optimizer.param_groups[0]["lr"]


def test_resumes_from_the_last_that_is_not_the_best(job, tmp_path):
    checkpointer, rate = job
    killed = tmp_path / f".model_0000004.pth.{'0' * 32}.tmp"
    killed.write_bytes(b"of a process that was killed")
    checkpointer.save_untagged("model_best")
    path = str(tmp_path / "model_0000001.pth")
    assert checkpointer.resume_or_load(path, resume=False)["iteration"] == 1
    assert rate() == 9 and checkpointer.model.weight.unique().tolist() == [1]
    assert checkpointer.resume_or_load(path, resume=True)["iteration"] == 3
    assert rate() == 3 and checkpointer.model.weight.unique().tolist() == [3]
    assert not killed.exists()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_last_checkpoint_that_cannot_be_loaded(job, tmp_path, damage):
    """The error tells how to resume from an earlier one."""
    checkpointer, rate = job
    last = tmp_path / "model_0000003.pth"
    content = last.read_bytes()
    last.unlink()
    if damage == "cut":
        last.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model_0000003\.pth .*last_checkpoint.*without --resume"):
        checkpointer.resume_or_load("", resume=True)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    checkpointer.resume_or_load("", resume=True)
    assert rate() == 2


def test_resuming_loads_the_model_and_not_the_ema(job):
    checkpointer, _ = job
    ema = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    before = ema.module.weight.clone()
    checkpointer.add_checkpointable("ema", ema)
    checkpointer.save("model_0000004")
    nn.init.zeros_(ema.module.weight)
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.model.weight.unique().tolist() == [3]
    assert torch.equal(ema.module.weight, before)


def test_failed_save_leaves_the_old_file(job, tmp_path, monkeypatch):
    checkpointer, _ = job
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(data, f):
        f.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"model_0000003\.pth could not be written: .*No space left"):
        checkpointer.save("model_0000003")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def write_often(target, letter):
    for _ in range(40):
        with atomic_file(target) as f:
            f.write(letter * 50_000)


def test_two_processes_write_one_file(tmp_path):
    target = tmp_path / "a.txt"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(target, letter)) for letter in "äb"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        time.sleep(0.002)
        if target.exists():
            seen.add(target.read_text(encoding="utf-8"))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {"ä" * 50_000, "b" * 50_000}
    assert list(tmp_path.iterdir()) == [target]
