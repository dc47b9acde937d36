"""Detectron2's checkpointer, which reads tensors without running code and writes atomic files."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..errors import UserError
from ..files import atomic_file, remove_unfinished
from .read import local_file, read_checkpoint, split_weights_key
from .translate import ATTENTION_SCALE, COUNTER, Translation, first_nonfinite, translate

logger = logging.getLogger(__name__)


class PanopticCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which reads tensors without running code and writes atomic files.

    It loads checkpoints of this project, official DETR (panoptic, boxes, its ``d2/`` wrapper),
    Hugging Face's Detr and ResNets of torchvision, timm and Detectron2. The log says which parts
    keep their initial values, and why. The model is not changed if a file does not fit.
    ``description`` has entries for each written checkpoint, see :func:`.description.describe`.
    """

    _complete = False
    _weights_key: str | None = None

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        description: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(model, save_dir, **options)
        self._description = dict(description or {})

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, complete: bool = False
    ) -> dict[str, Any]:
        """Load the weights, and the state of the ``checkpointables`` that are in the file.

        Args:
            path: file, Hugging Face folder, URL or catalog name. "": nothing is loaded. A suffix
                such as ``#model`` or ``#ema`` chooses between the weights of a file that has an
                exponential moving average (EMA) beside the model. The default is the EMA.
            checkpointables: names of those to load; None: all.
            complete: raise an error if a tensor of the model would keep its initial values. For
                evaluation and prediction; a training may start with new parts.

        Returns:
            the other content of the file (``iteration``, for example).

        Raises:
            FileNotFoundError, UserError: there is no such file, or it cannot be used.
        """
        if not path:
            if complete:
                raise UserError(
                    "MODEL.WEIGHTS is empty: the network would have random weights. Set it to a "
                    "checkpoint, such as model_final.pth of a training or a published one"
                )
            return super().load(path, checkpointables)
        path, self._weights_key = split_weights_key(str(path))
        self._complete = complete
        try:
            return super().load(local_file(path), checkpointables)
        finally:
            self._complete, self._weights_key = False, None
            # Detectron2 does not reset this if loading fails, and then refuses to load again.
            self._parsed_url_during_load = None

    def resume_or_load(
        self, path: str, *, resume: bool = True, complete: bool = False
    ) -> dict[str, Any]:
        """Load the last checkpoint of ``save_dir`` if there is one and ``resume``, or else only
        the weights in ``path``; see :meth:`load`."""
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[], complete=complete)
        if comm.is_main_process():
            # A killed process leaves a temporary file as large as a checkpoint.
            remove_unfinished(self.save_dir, "*.pth")
        last = self.get_checkpoint_file()
        try:
            if not os.path.isfile(last):
                raise UserError(f"{last} does not exist")
            return self.load(f"{last}#model", complete=complete)
        except UserError as error:
            raise UserError(
                f"Training cannot be resumed: {error}. To resume from an earlier checkpoint, write "
                f"its name into {Path(self.save_dir, 'last_checkpoint')}. To start from the "
                "beginning, train without --resume"
            ) from error

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` with further data, and make it the one that resuming starts from.

        Raises:
            UserError: weights are infinite or NaN.
            OSError: the file cannot be written. Older files are not changed.
        """
        if self.save_dir and self.save_to_disk:
            self.save_untagged(name, **kwargs)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` as :meth:`save` does. Resuming does not start from it."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **self._description}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        target = Path(self.save_dir, f"{name}.pth")
        if tensor := first_nonfinite(data["model"]):
            raise UserError(
                f"{tensor} is infinite or NaN, so {target} was not written. {self.resume_hint()} "
                "Lower SOLVER.BASE_LR, or use SOLVER.AMP.DTYPE bfloat16 instead of float16."
            )
        logger.info("Saving checkpoint to %s", target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target, "wb") as f:
                torch.save(data, f)
        except (OSError, RuntimeError) as error:
            # torch.save raises a RuntimeError while it handles the OSError of the file.
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise OSError(
                f"The checkpoint {target} could not be written: {reason}. {self.resume_hint()} "
                "Check the free space of the disk."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Store the name of the checkpoint that resuming starts from."""
        with atomic_file(Path(self.save_dir, "last_checkpoint")) as f:
            f.write(last_filename_basename)

    def resume_hint(self) -> str:
        """Return a sentence for error messages about the checkpoint to resume from."""
        if not self.has_checkpoint():
            return "No checkpoint was written yet."
        last = self.get_checkpoint_file()
        return f"The last good checkpoint is {last} (--resume continues from it)."

    def _load_file(self, filename: str) -> dict[str, Any]:
        return {**read_checkpoint(filename, self._weights_key), "path": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        """Check, load and log the weights. Other entries stay in ``checkpoint``."""
        path, dilated = checkpoint.pop("path"), checkpoint.pop("dilated", False)
        weights, classes = checkpoint.pop("model"), checkpoint.pop("class_names", None)
        translation = translate(self.model, weights, classes)
        if not translation.foreign:
            # A checkpoint of this project has the names of its classes.
            names = [category["name"] for category in checkpoint.get("categories", ())]
            own_names = getattr(self.model, "class_names", None) or names
            if len(names) == len(own_names) and names != own_names:
                first = next(x for x in zip(names, own_names, strict=True) if x[0] != x[1])
                translation.warnings.append(
                    f"The class head is for other classes: {first[0]!r} is {first[1]!r} in "
                    "DATASETS.TRAIN"
                )
        _check_fit(translation, self.model.state_dict(), path, self._complete)
        try:
            self.model.load_state_dict(translation.state, strict=False)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if translation.foreign:
            # The state of another program.
            for key in self.checkpointables:
                checkpoint.pop(key, None)
            if dilated and self.model.backbone.output_shape()["res5"].stride != 16:
                translation.warnings.append(
                    "The weights are those of a model with dilated res5 (DC5): set "
                    "MODEL.RESNETS.RES5_DILATION to 2"
                )
        translation.log(path)


def _check_fit(translation: Translation, own: dict, path: str, complete: bool) -> None:
    """Raise a ``UserError`` that names the tensors of a file that do not fit the state dict ``own``
    of the model; if ``complete``, also the parts that would keep their initial values."""
    state = translation.state
    if not state:
        raise UserError(
            f"{path} is a checkpoint of another model: it has none of the model's tensors, but "
            f"{', '.join(translation.unknown[:3])}. MODEL.WEIGHTS can be a checkpoint of this "
            "project, of facebookresearch/detr or of Hugging Face's Detr, or of a "
            "backbone of torchvision, timm, Detectron2 or Hugging Face"
        )
    problems = [
        f"{name} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != own[name].shape
    ]
    problems += [f"{name} has no place in the model" for name in translation.unknown]
    problems += [
        f"{name} is not in the file"
        for name in own
        if name not in state
        and not name.endswith((COUNTER, ATTENTION_SCALE))
        and name.partition(".")[0] not in translation.kept
    ]
    summary = "does not fit the model; nothing was loaded"
    if complete and not problems and translation.warnings:
        problems = translation.warnings
        summary = "has not all weights of the model"
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{path} {summary}: {'; '.join(problems[:8])}{more}. Use the config that the weights "
            "were trained with, config.yaml in the OUTPUT_DIR of their training"
        )
