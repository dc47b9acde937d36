"""Read a checkpoint of any format into tensors, without running code from it.

The first bytes of a file tell its format. A pickle can call any Python function; names that are not
on a short list of data types are refused.
"""

import argparse
import codecs
import collections
import json
import logging
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

logger = logging.getLogger(__name__)

# Names of the weights in a Hugging Face folder, in order of preference.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
# Keys of an average of the weights (EMA, SWA), such as "ema", "model_ema" or "state_dict_ema".
_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
# A zip archive, or the format of torch.save before 1.6, which starts with a pickled magic number.
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
# Taken from objects, because NumPy 2 renamed numpy.core.
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


def split_weights_key(path: str) -> tuple[str, str | None]:
    """Split a value of ``MODEL.WEIGHTS`` such as ``both.pth#ema`` into path and key."""
    if "#" not in path or os.path.exists(path):
        return path, None
    path, _, key = path.rpartition("#")
    return path, key


def local_file(path: str) -> str:
    """Return the local file for a value of ``MODEL.WEIGHTS``. URLs are downloaded.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = path.partition("?")[0]
    for name in _FOLDER_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    if "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no checkpoint {path}. MODEL.WEIGHTS takes a file, a Hugging Face folder "
            f"with {' or '.join(_FOLDER_FILES)}, a URL, or a Detectron2 name such as "
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl. Download a model of the Hugging "
            "Face hub first: hf download NAME --local-dir FOLDER"
        )
    try:
        return PathManager.get_local_path(path)
    except OSError as error:
        raise FileNotFoundError(
            f"{path} could not be downloaded: {_first_line(error)} Check the address and the "
            "connection, or download the file in another way and set MODEL.WEIGHTS to it"
        ) from error


def read_checkpoint(path: str, weights_key: str | None = None) -> dict[str, Any]:
    """Read a local file.

    Args:
        path: a file that :func:`local_file` returned.
        weights_key: key of the weights in a file that has several, such as "model" or "ema".
            None: the average of the weights if there is one, else the model.

    Returns:
        ``model``: the weights, name to tensor, on the CPU; the other content of the file
        (iteration, optimizer, ...); ``dilated``: whether res5 is known to be; and
        ``class_names`` by category id, if a ``config.json`` of Hugging Face is there.

    Raises:
        UserError: the file is not a checkpoint, is broken or contains code, or has no weights
            under the key.
    """
    try:
        data = _read_file(path)
    except Exception as error:
        # Any exception here is caused by the file.
        raise UserError(
            f"{path} cannot be read as a checkpoint: {_first_line(error)} It must be safetensors, "
            "a file of torch.save or a pickle of NumPy arrays, with tensors and plain values only; "
            "no code of the file was run. If it was downloaded: is it complete, and not a web page "
            "or a Git LFS pointer? Delete it and download it again"
        ) from error
    data = {**_huggingface_config(path), **_choose_weights(data, path, weights_key)}
    dilation = getattr(data.get("args"), "dilation", data.get("dilation"))
    return {**data, "dilated": bool(dilation) or "dc5" in os.path.basename(path).lower()}


def _read_file(path: str) -> Any:
    with open(path, "rb") as f:
        head = f.read(16)
        if head[8:9] == b"{":
            # safetensors: 8 bytes with the length of the header, then the header in JSON.
            return load_file(path)
        f.seek(0)
        if not head.startswith(_TORCH):
            return _ArrayUnpickler(f, encoding="latin1").load()
    # Official training files hold a Namespace of options, and NumPy scalars.
    torch.serialization.add_safe_globals([argparse.Namespace, _SCALAR, *_NUMPY_TYPES])
    return torch.load(path, map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers, the format of Detectron2's model zoo."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of a NumPy array.")
        return _ARRAY_PARTS[module, name]


def _choose_weights(data: Any, path: str, key: str | None) -> dict[str, Any]:
    """Return the content of a file with the chosen weights as tensors under ``model``."""
    content = data if isinstance(data, dict) else {}
    candidates = _state_dicts(content)
    if not candidates:
        not_tensors = [name for name, value in content.items() if not _is_tensor(value)]
        raise UserError(
            f"{path} has no state dict: {len(content)} entries, of which {len(not_tensors)} are "
            f"not tensors {not_tensors[:3]}. A checkpoint is a state dict, or has one under "
            "'model', 'state_dict' or 'ema'"
        )
    if key is None:
        key = next(filter(_AVERAGE.search, candidates), next(iter(candidates)))
        if others := " or ".join(f"{path}#{other}" for other in candidates if other != key):
            text = "%s has several sets of weights; '%s' is loaded. For the other: MODEL.WEIGHTS %s"
            logger.info(text, path, key, others)
    if key not in candidates:
        raise UserError(f"{path} has no weights under '{key}', but under {list(candidates)}")
    rest = {} if _is_state_dict(content) else content
    weights = {name: torch.as_tensor(value) for name, value in candidates[key].items()}
    return {**{k: v for k, v in rest.items() if k != "state_dict"}, "model": weights}


def _state_dicts(content: dict) -> dict[str, dict]:
    """Find the state dicts of a file: of the model, and averages of its weights. A wrapper
    (``module``, ``state_dict``) may surround an average."""
    if _is_state_dict(content):
        return {"model": content}
    candidates = {}
    for key in content:
        if key in ("model", "state_dict") or _AVERAGE.search(str(key)):
            value = content[key] if isinstance(content[key], dict) else {}
            for inner in (value.get("state_dict"), value.get("module"), value):
                if isinstance(inner, dict) and _is_state_dict(inner):
                    candidates[key] = inner
    return candidates


def _is_state_dict(value: dict) -> bool:
    return bool(value) and all(isinstance(k, str) and _is_tensor(v) for k, v in value.items())


def _is_tensor(value: Any) -> bool:
    numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub"
    return numbers or isinstance(value, torch.Tensor)


def _huggingface_config(path: str) -> dict[str, Any]:
    """Read classes and dilation from the ``config.json`` of Hugging Face beside the file."""
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
        raise UserError(f"{config} is not a config of a Hugging Face model: {error}") from error
    return {
        "class_names": {k: v for k, v in names.items() if v != "N/A" and v[:6] != "LABEL_"},
        "dilation": bool(content.get("dilation")) or stride == 16,
    }


def _first_line(error: BaseException) -> str:
    # torch names the object that a pickle asks for in the middle of a long message.
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it names '{named[1]}'."
    text = str(error) or type(error).__name__
    return f"{text.splitlines()[0].rstrip('.')}."
