import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr_panoptic_d2.checkpoint import PanopticCheckpointer

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture
def tool(monkeypatch):
    """Return ``tool(*arguments)``: the tool's main function in this process."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        monkeypatch.setattr(sys, "argv", [TOOL.name, *map(str, args)])
        return module.main()

    return run


@pytest.fixture
def ours(tiny_model, tmp_path):
    PanopticCheckpointer(tiny_model(), str(tmp_path)).save("ours")
    return tmp_path / "ours.pth"


def test_to_official_and_back(tool, ours, tmp_path):
    official, back = tmp_path / "official.pth", tmp_path / "back.pth"
    config = ("--config-file", "shapes/tiny.yaml")
    assert tool("--input", ours, "--output", official, "--format", "official", *config) == 0
    assert "detr.query_embed.weight" in torch.load(official, weights_only=True)["model"]
    assert tool("--input", official, "--output", back, "--format", "ours", *config) == 0
    found, expected = (torch.load(p, weights_only=True)["model"] for p in (back, ours))
    for name, tensor in expected.items():
        # Official DETR's batch norms are frozen and count nothing.
        assert name.endswith("num_batches_tracked") or torch.equal(found[name], tensor), name


def test_errors_are_one_line(tool, ours, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        tool("--input", ours, "--output", tmp_path / "x", "--format", "huggingface")
    assert end.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "its backbone is none of ResNet-18 to -152. Give --config-file" in line
    assert not (tmp_path / "x").exists()


def test_options_need_a_config(tool, capsys):
    with pytest.raises(SystemExit) as end:
        tool("--input", "a", "--output", "b", "--format", "ours", "MODEL.MASK_ON", "True")
    assert end.value.code == 2
    assert "give --config-file as well" in capsys.readouterr().err


def test_command_line(tmp_path):
    command = [sys.executable, str(TOOL), "--input", str(tmp_path / "no.pth"), "--format", "ours"]
    command += ["--output", str(tmp_path / "x")]
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: There is no checkpoint {tmp_path / 'no.pth'}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
