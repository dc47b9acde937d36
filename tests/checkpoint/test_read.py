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

from detr_panoptic_d2.checkpoint import PanopticCheckpointer, local_file, read_checkpoint
from detr_panoptic_d2.checkpoint.safe_pickle import load_arrays
from detr_panoptic_d2.errors import UserError


class Attack:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Tiny(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)


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


WEIGHTS = {"weight": torch.eye(2), "bias": torch.ones(2)}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_torch_files(read, legacy, key):
    content = WEIGHTS if key is None else {key: WEIGHTS, "iteration": 5}
    data = read(saved(content, _use_new_zipfile_serialization=not legacy))
    assert torch.equal(data["model"]["weight"], torch.eye(2))
    assert data.get("iteration") == (None if key is None else 5)


def test_pycls_file(read):
    assert read(saved({"model_state": WEIGHTS}), "model.pyth")["matching_heuristics"]


def test_numpy_scalars(read):
    data = read(saved({"model": WEIGHTS, "best": np.float32(0.25), "step": np.int64(3)}))
    assert (data["best"], data["step"]) == (0.25, 3)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_type_is_told_by_content(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    assert torch.equal(read_checkpoint(str(tmp_path / name))["model"]["bias"], torch.ones(2))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
@pytest.mark.parametrize("protocol", [0, 4])
def test_malicious_pickle_is_refused(read, tmp_path, name, protocol):
    trace = tmp_path / "trace"
    attack = {"model": {"weight": np.zeros(2)}, "x": Attack(os.mkdir, str(trace))}
    content = pickle.dumps(attack, protocol=protocol)
    refused = r"no code from it was run: it names '\w+\.mkdir'"
    if protocol == 0 and name == "weights.pth":
        refused = "is no checkpoint that is known here"
    with pytest.raises((RuntimeError, ValueError), match=refused) as error:
        read(content, name)
    assert name in str(error.value)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_torch_file_is_refused(read, tmp_path, legacy):
    trace = tmp_path / "trace"
    content = {"model": WEIGHTS, "args": Attack(os.mkdir, str(trace))}
    with pytest.raises(UserError, match=r"weights\.pth holds more than tensors .* no code"):
        read(saved(content, _use_new_zipfile_serialization=not legacy))
    assert not trace.exists()


@pytest.mark.parametrize(
    "attack",
    [
        Attack(eval, "1"),
        Attack(getattr, np.ndarray, "tofile"),
        Attack(np.load, "file", None, True),
        Attack(torch.load, "file"),
        Attack(functools.partial, print),
    ],
)
def test_arrays_and_nothing_else(attack):
    with pytest.raises(pickle.UnpicklingError, match="is no NumPy array"):
        load_arrays(io.BytesIO(pickle.dumps(attack)))


def test_arrays_of_both_generations_of_numpy():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for protocol in (2, 4):
        content = pickle.dumps([array, np.float64(2), np.array(3)], protocol=protocol)
        old = content.replace(b"numpy._core.", b"numpy.core.")
        if protocol == 4:
            # Protocol 4 writes the length before a name.
            old = old.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
            old = old.replace(b"\x8c\x13numpy.core", b"\x8c\x12numpy.core")
            frame = int.from_bytes(old[3:11], "little") - (len(content) - len(old))
            old = old[:3] + frame.to_bytes(8, "little") + old[11:]
        for version in (content, old):
            found = load_arrays(io.BytesIO(version))
            assert np.array_equal(found[0], array)
            assert found[1:] == [2, 3]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"hello world", "is no checkpoint that is known here"),
        (saved([1, 2]), "holds a list and no state dict"),
        (saved({"model": {}}), "holds no state dict: 0 entries"),
        (saved({"weight": torch.ones(1), "lr": 1}), r"1 are no tensors \(first: 'lr'\)"),
        (pickle.dumps([1]), "holds a list and no state dict"),
    ],
)
def test_no_checkpoint(read, content, kind):
    with pytest.raises(ValueError, match=rf"weights\.pth .*{kind}"):
        read(content)


@pytest.mark.parametrize("part", [0.1, 0.99])
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
    message = r"weights\.pth cannot be read .* truncated or damaged: remove it and get it again"
    with pytest.raises(UserError, match=message):
        read(content[: int(len(content) * part)])


def test_no_such_file():
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint no\.pth.*hf download"):
        local_file("no.pth")
    # A Hugging Face hub name looks like a path.
    with pytest.raises(FileNotFoundError, match="hf download NAME"):
        PanopticCheckpointer(Tiny()).load("facebook/detr-resnet-50-panoptic")


def test_file_url(tmp_path):
    path = tmp_path / "my weights.pth"
    path.write_bytes(saved(WEIGHTS))
    model = Tiny()
    PanopticCheckpointer(model).load(path.as_uri())
    assert torch.equal(model.bias, torch.ones(2))
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        PanopticCheckpointer(model).load((tmp_path / "no.pth").as_uri())


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
    model = Tiny()
    checkpointer = PanopticCheckpointer(model)
    checkpointer.load(f"{address}/weights.pth?download=true")
    assert torch.equal(model.weight, torch.eye(2))
    with pytest.raises(ValueError, match=r"page\.pth is a web page"):
        checkpointer.load(f"{address}/page.pth")
    with pytest.raises(FileNotFoundError, match=r"/gone\.pth could not be downloaded: .*404"):
        checkpointer.load(f"{address}/gone.pth")
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        checkpointer.load("http://127.0.0.1:9/other.pth")
    # A failure leaves nothing behind that would stop the next one.
    checkpointer.load(f"{address}/weights.pth")
