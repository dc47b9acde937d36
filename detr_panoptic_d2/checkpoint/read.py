"""Read a checkpoint of any format into tensors, without running code from it.

The first bytes of a file say what it is, not its name.
"""

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file

from ..errors import UserError
from .safe_pickle import data_types_allowed, load_arrays

# Names of the weights in a Hugging Face folder, best first.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ZIP = b"PK\x03\x04"
# torch.save before 1.6: a pickled magic number of torch's own comes first.
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = b"\x80"
# What torch names when it refuses a file.
_NOT_ALLOWED = re.compile(r"(?:GLOBAL|global|class|function) ([\w.]*\w\.\w+)")
# Where the weights are within a checkpoint: ours, official DETR's and Detectron2's; timm's and
# Lightning's; pycls's.
_WEIGHT_KEYS = ("model", "state_dict", "model_state")
# Data-parallel training puts this before all names.
_DATA_PARALLEL = "module."


def local_file(path: str) -> str:
    """The local file with the weights that ``MODEL.WEIGHTS`` means; URLs are downloaded.

    Args:
        path: file, Hugging Face folder, URL (``file://`` too) or a name of Detectron2's catalog.

    Raises:
        FileNotFoundError: it leads to no file; the message says what does.
    """
    if path.startswith("file://"):
        path = url2pathname(urlparse(path).path)
    if os.path.isdir(path):
        for name in _FOLDER_FILES:
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
        raise FileNotFoundError(
            f"The folder {path} has no weights in it: expected one of {', '.join(_FOLDER_FILES)}. "
            "Name the checkpoint file itself"
        )
    if "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no checkpoint {path}. MODEL.WEIGHTS takes a file, a folder with Hugging "
            "Face files, a URL, or a Detectron2 name such as "
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl. A model of the Hugging Face "
            "hub must be downloaded first: hf download NAME --local-dir FOLDER"
        )
    try:
        local = PathManager.get_local_path(path)
    except OSError as error:
        raise FileNotFoundError(
            f"{path} could not be downloaded: {_first_line(error)} Check the address and the "
            "connection, or get the file by other means and name it instead"
        ) from error
    if not os.path.isfile(local):
        raise FileNotFoundError(f"{path} leads to {local}, which is no file")
    return local


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a local file.

    Args:
        path: a file that :func:`local_file` returned.

    Returns:
        ``model``: the weights, name to tensor, on the CPU; whatever else the file holds besides
        (iteration, optimizer, ...); and where the file, its ``config.json`` (Hugging Face) or its
        name say so: ``class_names``, the name of each row of the class head that has one;
        ``dilation``, whether res5 is dilated; ``heads``, the number of attention heads.

    Raises:
        UserError: the file is no checkpoint, broken, or holds code.
    """
    read = _read_shards if path.endswith(".index.json") else _read_file
    data = _with_model(read(path), path)
    return {**_official_options(data, path), **_huggingface_config(path), **data}


def _read_file(path: str) -> Any:
    kind, read = _format(path)
    try:
        return read(path)
    except Exception as error:
        # Whatever goes wrong here is the file's fault.
        refused = isinstance(error, pickle.UnpicklingError)
        if named := _NOT_ALLOWED.search(str(error)) if refused else None:
            raise UserError(
                f"{path} holds more than tensors and plain values, so it was not loaded and no "
                f"code from it was run: it names '{named[1]}'. If you trust its author, load it "
                "with Python yourself and save its state dict with torch.save"
            ) from error
        raise UserError(
            f"{path} cannot be read as {kind}: {_first_line(error)} It is truncated or damaged: "
            "remove it and get it again"
        ) from error


def _format(path: str) -> tuple[str, Callable[[str], Any]]:
    """What a file is by its first bytes, in words, and the function that reads it.

    Raises:
        UserError: it is no checkpoint.
    """
    with open(path, "rb") as f:
        head = f.read(512)
    if head.startswith((_ZIP, _TORCH_LEGACY)):
        return "a file of torch.save", _read_torch
    # The length of the header in JSON, and then the header.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= os.path.getsize(path):
        return "safetensors", load_file
    if head.startswith(_PICKLE) or (path.endswith(".pkl") and head and head[:1] != b"<"):
        return "a pickle of NumPy arrays", _read_arrays
    if not head:
        kind = "is empty"
    elif head.lstrip()[:1] == b"<":
        kind = "is a web page (HTML or XML) and no checkpoint"
    elif head.startswith(b"version https://git-lfs"):
        kind = "is a Git LFS pointer and not the file itself"
    else:
        kind = f"is no checkpoint that is known here (it starts with {head[:8]!r})"
    raise UserError(
        f"{path} {kind}. Was the download complete, and the address that of the file itself? "
        "Remove it and get it again"
    )


def _read_torch(path: str) -> Any:
    with data_types_allowed():
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_arrays(path: str) -> Any:
    """A pickle of NumPy arrays, as Detectron2's and Detectron's model zoos have them."""
    with open(path, "rb") as f:
        data = load_arrays(f)
    if not isinstance(data, dict) or ("model" in data and "__author__" in data):
        return data
    data = data.get("blobs", data)
    arrays = {key: value for key, value in data.items() if not key.endswith("_momentum")}
    return {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__} and no object")
    return content


def _read_shards(index: str) -> dict[str, torch.Tensor]:
    """All shards that a Hugging Face index names."""
    weight_map = _read_json(index).get("weight_map")
    if not (isinstance(weight_map, dict) and all(isinstance(x, str) for x in weight_map.values())):
        raise UserError(f"{index} has no 'weight_map' of file names: it is no index of shards")
    weights = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}, which is not in its own folder")
        shard = str(Path(index).with_name(name))
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"{index} names {name}, which is missing: get all shards")
        weights.update(_with_model(_read_file(shard), shard)["model"])
    missing = sorted(weight_map.keys() - weights.keys())
    if missing:
        raise UserError(f"{index} names {len(missing)} tensors that no shard has: {missing[:3]}")
    return weights


def _with_model(data: Any, path: str) -> dict[str, Any]:
    """Check that there is a state dict, and put it under ``model``."""
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__} and no state dict")
    found = [key for key in _WEIGHT_KEYS if isinstance(data.get(key), dict)]
    if found:
        key = found[0]
        weights, extra = data[key], {k: v for k, v in data.items() if k != key}
        if key == "model_state":
            extra["matching_heuristics"] = True
    else:
        weights, extra = data, {}
    wrong = [k for k, v in weights.items() if not (isinstance(k, str) and _is_tensor(v))]
    if wrong or not weights:
        what = f"of which {len(wrong)} are no tensors (first: {wrong[0]!r})" if wrong else ""
        raise UserError(
            f"{path} holds no state dict: {len(weights)} entries {what}. A checkpoint is a state "
            f"dict, or a dict with one under one of {list(_WEIGHT_KEYS)}"
        )
    if all(name.startswith(_DATA_PARALLEL) for name in weights):
        weights = {name[len(_DATA_PARALLEL) :]: value for name, value in weights.items()}
    return {"model": {k: torch.as_tensor(v) for k, v in weights.items()}, **extra}


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor or an array of numbers."""
    numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub"
    return numbers or isinstance(value, torch.Tensor)


def _official_options(data: dict[str, Any], path: str) -> dict[str, Any]:
    """What official training options, or else the file's name, say of dilation and heads."""
    options = vars(data["args"]) if isinstance(data.get("args"), argparse.Namespace) else {}
    about = {"dilation": options.get("dilation"), "heads": options.get("nheads")}
    if "dc5" in os.path.basename(path).lower():
        about["dilation"] = True
    return {key: value for key, value in about.items() if value is not None}


def _huggingface_config(path: str) -> dict[str, Any]:
    """What the ``config.json`` of a DETR beside the file says of classes and dilation."""
    config = Path(path).with_name("config.json")
    if not config.is_file():
        return {}
    content = _read_json(config)
    if content.get("model_type") != "detr":
        return {}
    if content.get("position_embedding_type", "sine") != "sine":
        raise UserError(
            f"{config}: position_embedding_type is {content['position_embedding_type']!r}, but "
            "PanopticDETR has sine position embeddings, as all published models"
        )
    try:
        names = {int(k): str(v) for k, v in (content.get("id2label") or {}).items()}
        stride = (content.get("backbone_config") or {}).get("output_stride")
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"{config}: id2label must map numbers to names, and backbone_config be an object"
        ) from error
    return {
        "class_names": {k: v for k, v in names.items() if v != "N/A" and v[:6] != "LABEL_"},
        "dilation": bool(content.get("dilation")) or stride == 16,
        "heads": content.get("encoder_attention_heads", 8),
    }


def _first_line(error: BaseException) -> str:
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    line = text[0] if text else type(error).__name__
    return line if line.endswith(".") else f"{line}."
