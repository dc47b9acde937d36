"""Files given as MODEL.WEIGHTS that are no checkpoints, or broken. Kinds of files and what does
not fit: tests/checkpoint."""

import os

import torch
from detectron2.modeling import build_model

from detr_panoptic_d2.engine import PanopticTrainer, Predictor, setup_cfg


class Malicious:
    """Pickles to a call that makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def half(path, model):
    torch.save({"model": model}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def web_page(path, model):
    path.write_text("<!DOCTYPE html><html>Sign in to download</html>")


def code_in_zip(path, model):
    torch.save({"model": {"a": torch.zeros(1)}, "x": Malicious(path.with_name("made"))}, path)


def other_width(path, model):
    torch.save({"model": {**model, "input_proj.weight": model["input_proj.weight"][:16]}}, path)


def not_a_number(path, model):
    torch.save(
        {"model": {**model, "class_embed.bias": model["class_embed.bias"] * torch.nan}}, path
    )


def missing(path, model):
    """No such file."""


CASES = {
    half: ["is it complete, and not a web page or a Git LFS pointer", "download it again"],
    web_page: ["not a web page"],
    code_in_zip: ["no code", "posix.mkdir"],
    other_width: ["input_proj"],
    not_a_number: ["class_embed.bias", "infinite or NaN"],
    missing: ["There is no checkpoint", "MODEL.WEIGHTS", "hf download NAME"],
}


def test_weights(spoilt, error_line, tmp_path):
    model = build_model(setup_cfg("shapes/tiny.yaml", spoilt.opts())).state_dict()
    trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", spoilt.opts()))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for make, words in CASES.items():
        path = tmp_path / f"{make.__name__}.pth"
        make(path, model)
        cfg = setup_cfg("shapes/tiny.yaml", spoilt.opts("MODEL.WEIGHTS", path))
        line = error_line(trainer.checkpointer.resume_or_load, str(path))
        for word in (str(path), *words):
            assert word in line
        assert error_line(Predictor, cfg) == line
    # The model is as it was, nothing was written, and no code of the file was run.
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not (tmp_path / "made").exists()
    assert not list((spoilt.root / "output").glob("*.pth"))


def test_no_checkpoint_that_can_be_resumed_from(spoilt, train, error_line):
    output = spoilt.root / "output"
    output.mkdir()
    code_in_zip(output / "model_0000001.pth", None)
    (output / "last_checkpoint").write_text("model_0000001.pth")
    line = error_line(train, spoilt.opts(), True)
    assert str(output) in line and "no code" in line
    assert not (output / "made").exists()
