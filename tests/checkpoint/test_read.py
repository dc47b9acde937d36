"""Reading files without running their code."""

import functools
import http.server
import io
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.checkpoint.read import read_checkpoint
from detr_panoptic_d2.errors import UserError

WEIGHTS = {"weight": torch.eye(2), "bias": torch.ones(2)}


class Attack:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.fixture
def read(tmp_path):
    """Return ``read(content, name)``: write bytes to a file and read it as a checkpoint."""

    def make(content, name="weights.pth"):
        path = tmp_path / name
        path.write_bytes(content)
        return read_checkpoint(str(path))

    return make


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_formats_of_any_name(read, tmp_path, key):
    content = WEIGHTS if key is None else {key: WEIGHTS, "best": np.float32(0.25)}
    for legacy in (False, True):
        data = read(saved(content, _use_new_zipfile_serialization=not legacy))
        assert torch.equal(data["model"]["weight"], torch.eye(2))
        assert data.get("best") == (None if key is None else 0.25)
    save_file(WEIGHTS, tmp_path / "safe.pth")
    data = read_checkpoint(str(tmp_path / "safe.pth"))
    assert torch.equal(data["model"]["bias"], torch.ones(2))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("attack", [(os.mkdir, "trace"), (getattr, np.ndarray, "tofile")])
def test_code_is_refused(read, tmp_path, monkeypatch, kind, attack):
    monkeypatch.chdir(tmp_path)
    if kind == "pickle":
        content = pickle.dumps({"model": {"weight": np.zeros(2)}, "x": Attack(*attack)})
    else:
        content = {"model": WEIGHTS, "x": Attack(*attack)}
        content = saved(content, _use_new_zipfile_serialization=kind == "zip")
    words = rf"weights\.pth cannot be read as a checkpoint: .*{attack[0].__name__}.* no code"
    with pytest.raises(UserError, match=words):
        read(content)
    assert not (tmp_path / "trace").exists()


def test_no_file(tmp_path):
    words = r"There is no checkpoint .*none\.pth\. MODEL\.WEIGHTS takes .*hf download NAME"
    with pytest.raises(FileNotFoundError, match=words):
        PanopticCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "none.pth"))


def test_arrays_of_both_generations_of_numpy(read):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = pickle.dumps({"a": array, "b": np.float64(2), "c": np.array(3)}, protocol=2)
    for version in (content, content.replace(b"numpy._core.", b"numpy.core.")):
        found = read(version, "weights.pkl")["model"]
        assert np.array_equal(found["a"], array)
        assert (found["b"], found["c"]) == (2, 3)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([1, 2], "has no state dict: 0 entries"),
        ({"model": {}}, r"1 entries, of which 1 are not tensors \['model'\]"),
        ({"weight": torch.ones(1), "lr": 1}, r"2 entries, of which 1 are not tensors \['lr'\]"),
    ],
)
def test_no_state_dict(read, content, kind):
    with pytest.raises(UserError, match=rf"weights\.pth .*{kind}"):
        read(saved(content))


@pytest.mark.parametrize("part", [0, 0.9])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_truncated(read, tmp_path, kind, part):
    weights = {f"layer{i}.weight": torch.rand(40, 40) for i in range(4)}
    if kind == "safetensors":
        save_file(weights, tmp_path / "whole")
        content = (tmp_path / "whole").read_bytes()
    elif kind == "pickle":
        content = pickle.dumps({k: v.numpy() for k, v in weights.items()})
    else:
        content = saved(weights, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"weights\.pth cannot be read .* is it complete"):
        read(content[: int(len(content) * part)])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder on the loopback interface; downloads go to a cache of this test's own."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_url(server):
    folder, address = server
    (folder / "weights.pth").write_bytes(saved({"model": WEIGHTS}))
    (folder / "page.pth").write_bytes(b"<html>Log in first</html>")
    checkpointer = PanopticCheckpointer(nn.Linear(2, 2))
    checkpointer.load(f"{address}/weights.pth?download=true")
    assert torch.equal(checkpointer.model.weight, torch.eye(2))
    with pytest.raises(UserError, match=r"page\.pth cannot be read .* not a web page"):
        checkpointer.load(f"{address}/page.pth")
    with pytest.raises(FileNotFoundError, match=r"/gone\.pth could not be downloaded: .*404"):
        checkpointer.load(f"{address}/gone.pth")
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        checkpointer.load("http://127.0.0.1:9/other.pth")
    # A failure leaves nothing behind that would stop the next one.
    checkpointer.load(f"{address}/weights.pth")
