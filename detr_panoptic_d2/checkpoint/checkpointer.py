"""The project's checkpointer."""

import logging
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from tabulate import tabulate
from torch import nn

from . import Plan, local_file, plan_load, read_checkpoint, to_canonical
from .atomic import AtomicCheckpointerMixin
from .resnet_names import find_resnet

logger = logging.getLogger(__name__)


class PanopticCheckpointer(AtomicCheckpointerMixin, DetectionCheckpointer):
    """Detectron2's checkpointer with crash-safe files, which reads tensors and never code.

    ``PanopticCheckpointer(model).load(path)`` takes checkpoints of this project, official DETR
    (panoptic, boxes, its ``d2/`` wrapper), Hugging Face's Detr (a file or the folder) and ResNets
    of torchvision, timm and Detectron2; local paths, URLs and names such as ``detectron2://...``.
    What was loaded, renamed and left out, and why, is logged in one table. A file that does not fit
    leaves the model as it was.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the state of the ``checkpointables`` where the file has it.

        Args:
            path: file, Hugging Face folder, URL or catalog name. "": nothing is loaded.
            checkpointables: names of those to load; None: all.

        Returns:
            what else the file holds (``iteration``, for example).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint, or that of another model.
            RuntimeError: it is broken, holds code, or does not fit the model.
        """
        if path:
            path, mark, query = str(path).partition("?")
            path = local_file(path) + mark + query
        try:
            return super().load(path, checkpointables)
        finally:
            # Detectron2 leaves this behind when loading fails, and then refuses to load again.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = read_checkpoint(filename)
        if "matching_heuristics=True" in getattr(self._parsed_url_during_load, "query", ""):
            data["matching_heuristics"] = True
        data["path"] = filename
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        path = checkpoint.pop("path")
        model_state = self.model.state_dict()
        file = to_canonical(checkpoint, set(model_state), path)
        checkpoint.pop("model")
        plan = plan_load(
            file,
            model_state,
            path,
            getattr(self.model, "dataset_ids", None),
            getattr(self.model, "class_names", None),
        )
        if file.renamed:
            for key in self.checkpointables.keys() & checkpoint.keys():
                del checkpoint[key]
                plan.left_out[key] = "state of another program"
            if not file.heuristics:
                plan.warnings += _differences(self.model, model_state, checkpoint)
        self.model.load_state_dict(plan.state, strict=False)
        log_plan(plan, path)


def _differences(
    model: nn.Module, model_state: Mapping[str, torch.Tensor], told: Mapping[str, Any]
) -> list[str]:
    """What the model does otherwise than the file's network although all tensors fit.

    Args:
        model: any model.
        model_state: its state dict.
        told: what the file tells about its network, see :func:`.read.read_checkpoint`.
    """
    differences = []
    if "query_embed.weight" in model_state:
        wide = model.backbone.output_shape()["res5"].stride == 16
        if told.get("dilation", wide) != wide:
            differences.append(
                "The weights are those of a model "
                + ("with dilated res5 (DC5)" if told["dilation"] else "without dilation")
                + f": set MODEL.RESNETS.RES5_DILATION to {2 if told['dilation'] else 1}"
            )
        heads = model.transformer.decoder.layers[0].self_attn.nheads
        if told.get("heads", heads) != heads:
            differences.append(
                f"The weights are those of a model with {told['heads']} attention heads: set "
                "MODEL.DETR.NHEADS to it"
            )
    resnet = find_resnet(model_state, "backbone.")
    if resnet is None or resnet.style != "detectron2":
        return differences
    bottleneck = f"{resnet.prefix}res3.0.conv3.weight" in model_state
    if bottleneck and model.get_submodule(f"{resnet.prefix}res3.0.conv1").stride != (1, 1):
        differences.append(
            "The weights are those of a ResNet with its strides in the 3x3 convolutions: set "
            "MODEL.RESNETS.STRIDE_IN_1X1 to False"
        )
    first = model.get_submodule(f"{resnet.prefix}res5.0.conv2")
    if first.dilation != (1, 1):
        differences.append(
            "The first 3x3 convolution of res5 is dilated, which is not DETR's DC5: set "
            "MODEL.BACKBONE.NAME to build_detr_resnet_backbone"
        )
    return differences


def log_plan(plan: Plan, path: str) -> None:
    """Log what became of each part of a checkpoint and of a model, as one table."""
    rows = [
        *_summary(plan.loaded, "loaded"),
        *_summary(plan.kept, "not loaded"),
        *_summary(plan.left_out, "left out of the file"),
    ]
    table = tabulate(
        rows, headers=["part", "tensors", "what", "note"], tablefmt="pipe", disable_numparse=True
    )
    logger.info("Loaded %s (%s):\n%s", path, plan.format, table)
    for warning in plan.warnings:
        logger.warning("%s", warning)


def _summary(notes: dict[str, str], what: str) -> list[tuple[str, int, str, str]]:
    """One row per part of the network and note."""
    keys = sorted((_part(name), note) for name, note in notes.items())
    return [(part, len(list(same)), what, note) for (part, note), same in groupby(keys)]


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "transformer" else words[0]
