"""Files given as MODEL.WEIGHTS, and checkpoints to resume from, that are none or broken."""

import os

import pytest
import torch
from safetensors.torch import save_file

from detr_panoptic_d2.engine import PanopticTrainer, Predictor, setup_cfg


class Malicious:
    """Pickles to a call that makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def half(path, whole):
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def web_page(path, whole):
    path.write_text("<!DOCTYPE html><html>Sign in to download</html>")


def other_model(path, whole):
    torch.save({"model": torch.nn.Linear(3, 4).state_dict()}, path)


def code_in_zip(path, whole):
    torch.save({"model": {"a": torch.zeros(1)}, "x": Malicious(path.with_name("made"))}, path)


def other_width(path, whole):
    data = torch.load(whole, weights_only=True)["model"]
    data["input_proj.weight"] = data["input_proj.weight"][:16]
    torch.save({"model": data}, path)


def not_a_number(path, whole):
    data = torch.load(whole, weights_only=True)["model"]
    data["class_embed.bias"][0] = float("nan")
    torch.save({"model": data}, path)


def missing(path, whole):
    """No such file."""


def truncated_safetensors(path, whole):
    save_file(torch.load(whole, weights_only=True)["model"], path)
    path.write_bytes(path.read_bytes()[:-100])


DOWNLOAD = ["is it complete, and not a web page or a Git LFS pointer", "download it again"]
CASES = {
    half: DOWNLOAD,
    web_page: DOWNLOAD,
    truncated_safetensors: DOWNLOAD,
    other_model: ["another model"],
    code_in_zip: ["no code", "posix.mkdir"],
    other_width: ["input_proj"],
    not_a_number: ["class_embed.bias", "infinite or NaN"],
    missing: ["There is no checkpoint", "MODEL.WEIGHTS", "hf download NAME"],
}


@pytest.fixture
def whole(spoilt):
    """A good checkpoint."""
    cfg = setup_cfg("shapes/tiny.yaml", spoilt.opts("OUTPUT_DIR", spoilt.root / "whole"))
    model = PanopticTrainer.build_model(cfg)
    PanopticTrainer.build_checkpointer(cfg, model).save("model")
    return spoilt.root / "whole" / "model.pth"


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_weights(spoilt, whole, error_line, tmp_path, make):
    path = tmp_path / "weights" / "given.pth"
    path.parent.mkdir()
    make(path, whole)
    cfg = setup_cfg("shapes/tiny.yaml", spoilt.opts("MODEL.WEIGHTS", path))
    trainer = PanopticTrainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    line = error_line(trainer.resume_or_load, False)
    assert str(path) in line
    for word in CASES[make]:
        assert word in line
    # The model is as it was, nothing was written, and no code of the file was run.
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not path.with_name("made").exists()
    assert not list((spoilt.root / "output").glob("*.pth"))
    assert error_line(Predictor, cfg) == line


@pytest.mark.parametrize(
    ("make", "words"), [(web_page, "without --resume"), (code_in_zip, "no code")]
)
def test_no_checkpoint_that_can_be_resumed_from(spoilt, train, error_line, make, words):
    output = spoilt.root / "output"
    output.mkdir()
    make(output / "model_0000001.pth", None)
    (output / "last_checkpoint").write_text("model_0000001.pth")
    line = error_line(train, spoilt.opts(), True)
    assert str(output) in line and words in line
    assert not (output / "made").exists()
