"""Read a checkpoint of any format into tensors, without running code from it.

The first bytes of a file say what it is, not its name. A pickle may name any function of Python and
have it called; here a name that is not on a short list of data types is refused before that.
"""

import argparse
import codecs
import collections
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file

from ..errors import UserError

# Names of the weights in a Hugging Face folder, best first.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
# A zip archive, or as torch.save wrote before 1.6: a pickled magic number of torch's own.
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
# Wherever this NumPy has them; NumPy 2 renamed numpy.core.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_TYPES: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in "efdbhilB?")]
_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(0).__reduce_ex__(5)[0],
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


def local_file(path: str) -> str:
    """The local file with the weights that ``MODEL.WEIGHTS`` means; URLs are downloaded.

    Args:
        path: file, Hugging Face folder, URL or a name of Detectron2's catalog.

    Raises:
        FileNotFoundError: it leads to no file; the message says what does.
    """
    for name in _FOLDER_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    if "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no checkpoint {path}. MODEL.WEIGHTS takes a file, a Hugging Face folder "
            f"with {' or '.join(_FOLDER_FILES)}, a URL, or a Detectron2 name such as "
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl. A model of the Hugging Face "
            "hub must be downloaded first: hf download NAME --local-dir FOLDER"
        )
    try:
        return PathManager.get_local_path(path)
    except OSError as error:
        raise FileNotFoundError(
            f"{path} could not be downloaded: {_first_line(error)} Check the address and the "
            "connection, or get the file by other means and name it instead"
        ) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a local file.

    Args:
        path: a file that :func:`local_file` returned.

    Returns:
        ``model``: the weights, name to tensor, on the CPU; whatever else the file holds besides
        (iteration, optimizer, ...); and where the file, its ``config.json`` (Hugging Face) or its
        name say so: ``class_names``, by category id; ``dilated``, whether res5 is.

    Raises:
        UserError: the file is no checkpoint, broken, or holds code.
    """
    try:
        data = _read_file(path)
    except Exception as error:
        # Whatever goes wrong here is the file's fault.
        raise UserError(
            f"{path} cannot be read as a checkpoint: {_first_line(error)} It must be safetensors, "
            "a file of torch.save or a pickle of NumPy arrays, with nothing but tensors and plain "
            "values; no code from it was run. If it was downloaded: is it whole, and no web page "
            "or Git LFS pointer? Remove it and get it again"
        ) from error
    data = _with_model(data, path)
    options = data.get("args")
    if isinstance(options, argparse.Namespace) and hasattr(options, "dilation"):
        data["dilated"] = bool(options.dilation)
    if "dc5" in os.path.basename(path).lower():
        data["dilated"] = True
    return {**_huggingface_config(path), **data}


def _read_file(path: str) -> Any:
    with open(path, "rb") as f:
        head = f.read(16)
        if head[8:9] == b"{":
            # The length of the header comes first, and then the header, which is JSON.
            return load_file(path)
        f.seek(0)
        if not head.startswith(_TORCH):
            return _ArrayUnpickler(f, encoding="latin1").load()
    # Official training files hold a Namespace of options, and NumPy scalars.
    torch.serialization.add_safe_globals([argparse.Namespace, _SCALAR, *_NUMPY_TYPES])
    return torch.load(path, map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers, as Detectron2's model zoo has them."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is no NumPy array.")
        return _ARRAY_PARTS[module, name]


def _with_model(data: Any, path: str) -> dict[str, Any]:
    """Check that there is a state dict, and put it under ``model``."""
    content = dict(data) if isinstance(data, dict) else {}
    # Ours, official DETR's and Detectron2's; timm's and Lightning's; the file is a state dict.
    key = next((k for k in ("model", "state_dict") if isinstance(content.get(k), dict)), None)
    weights, content = (content, {}) if key is None else (content.pop(key), content)
    wrong = [k for k, v in weights.items() if not (isinstance(k, str) and _is_tensor(v))]
    if wrong or not weights:
        raise UserError(
            f"{path} holds no state dict: {len(weights)} entries, of which {len(wrong)} are no "
            f"tensors {wrong[:3]}. A checkpoint is a state dict, or has one under 'model' or "
            "'state_dict'"
        )
    if all(name.startswith("module.") for name in weights):
        # Data-parallel training.
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return {**content, "model": {k: torch.as_tensor(v) for k, v in weights.items()}}


def _is_tensor(value: Any) -> bool:
    numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub"
    return numbers or isinstance(value, torch.Tensor)


def _huggingface_config(path: str) -> dict[str, Any]:
    """What the ``config.json`` of a DETR beside the file says of classes and dilation."""
    config = Path(path).with_name("config.json")
    if not config.is_file():
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        if content.get("model_type") != "detr":
            return {}
        names = {int(k): str(v) for k, v in (content.get("id2label") or {}).items()}
        stride = (content.get("backbone_config") or {}).get("output_stride")
    except (AttributeError, ValueError) as error:
        raise UserError(f"{config} is no config of a Hugging Face model: {error}") from error
    return {
        "class_names": {k: v for k, v in names.items() if v != "N/A" and v[:6] != "LABEL_"},
        "dilated": bool(content.get("dilation")) or stride == 16,
    }


def _first_line(error: BaseException) -> str:
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    line = text.splitlines()[0] if text else type(error).__name__
    # What a pickle wants to call, in the middle of torch's advice.
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        line = f"it names '{named[1]}'"
    return line if line.endswith(".") else f"{line}."
