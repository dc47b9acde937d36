"""Detectron2's checkpointer with crash-safe files, which reads tensors and never code."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..errors import UserError
from ..files import atomic_file, remove_unfinished
from .read import local_file, read_checkpoint
from .translate import ATTENTION_SCALE, COUNTER, Translation, translate

logger = logging.getLogger(__name__)


class PanopticCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with crash-safe files, which reads tensors and never code.

    ``PanopticCheckpointer(model).load(path)`` takes checkpoints of this project, official DETR
    (panoptic, boxes, its ``d2/`` wrapper), Hugging Face's Detr (a file or the folder) and ResNets
    of torchvision, timm and Detectron2; local paths, URLs and names such as ``detectron2://...``.
    What keeps its initial values, and why, is logged. A file that does not fit leaves the model as
    it was.

    Files are written under a temporary name, flushed to the disk and only then renamed, so that
    ``last_checkpoint`` names only whole ones. A checkpoint that is broken all the same (a full or
    faulty disk) is passed over for the one before.
    """

    _complete = False

    def load(
        self,
        path: str,
        checkpointables: list[str] | None = None,
        *,
        complete: bool = False,
    ) -> dict[str, Any]:
        """Load weights, and the state of the ``checkpointables`` where the file has it.

        Args:
            path: file, Hugging Face folder, URL or catalog name. "": nothing is loaded.
            checkpointables: names of those to load; None: all.
            complete: for evaluation and prediction: an error if any tensor of the model would keep
                its initial values, which an empty path means for all. Training may start with a
                new class head or mask head, with more queries, or without any weights.

        Returns:
            what else the file holds (``iteration``, for example).

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the file is no checkpoint, broken, holds code, is that of another model, or
                does not fit the model; or it is not ``complete``.
        """
        if not path:
            if complete:
                raise UserError(
                    "MODEL.WEIGHTS is empty: the network would have random weights. Name a "
                    "checkpoint, model_final.pth of a training or a published one"
                )
            return super().load(path, checkpointables)
        self._complete = complete
        try:
            return super().load(local_file(str(path).partition("?")[0]), checkpointables)
        finally:
            self._complete = False
            # Detectron2 leaves this behind when loading fails, and then refuses to load again.
            self._parsed_url_during_load = None

    def resume_or_load(
        self, path: str, *, resume: bool = True, complete: bool = False
    ) -> dict[str, Any]:
        """Load the newest whole checkpoint of ``save_dir``, or else the weights in ``path``.

        Args:
            path: see :meth:`load`; only the model's weights are loaded from there.
            resume: whether to look into ``save_dir``.
            complete: see :meth:`load`.

        Raises:
            UserError: there are checkpoints to resume from, but none is whole.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[], complete=complete)
        return self.load(self._newest_whole(), complete=complete)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` and make it the one that resuming starts from.

        Args:
            name: file name without suffix.
            kwargs: further data to save.

        Raises:
            UserError: weights are infinite or NaN.
            OSError: it cannot be written; older files are as they were.
        """
        if self.save_dir and self.save_to_disk:
            self.save_untagged(name, **kwargs)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **kwargs: Any) -> None:
        """As :meth:`save`, but resuming does not start from this one."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        target = Path(self.save_dir, f"{name}.pth")
        for tensor_name, tensor in data["model"].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(
                    f"{tensor_name} is infinite or NaN, so {target} was not written. "
                    f"{self.resume_hint()} Lower SOLVER.BASE_LR, or use SOLVER.AMP.DTYPE bfloat16 "
                    "in place of float16."
                )
        logger.info("Saving checkpoint to %s", target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target, "wb") as f:
                torch.save(data, f)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"The checkpoint {target} could not be written: {_reason(error)}. "
                f"{self.resume_hint()} Make room first."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that resuming starts from."""
        with atomic_file(Path(self.save_dir, "last_checkpoint")) as f:
            f.write(last_filename_basename)

    def resume_hint(self) -> str:
        """Say from what a training can go on, for error messages."""
        if not self.has_checkpoint():
            return "No checkpoint was written yet."
        last = self.get_checkpoint_file()
        return f"The last good checkpoint is {last} (--resume goes on from it)."

    def _load_file(self, filename: str) -> dict[str, Any]:
        return {**read_checkpoint(filename), "path": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        """Check, load and log; ``checkpoint`` keeps what is no part of the model."""
        path, dilated = checkpoint.pop("path"), checkpoint.pop("dilated", None)
        weights, classes = checkpoint.pop("model"), checkpoint.pop("class_names", None)
        translation = translate(self.model, weights, classes)
        _check(translation, self.model.state_dict(), path, self._complete)
        self.model.load_state_dict(translation.state, strict=False)
        if translation.foreign:
            # The state of another program.
            for key in self.checkpointables:
                checkpoint.pop(key, None)
            translation.warnings += _differences(self.model, dilated)
        translation.log(path)

    def _newest_whole(self) -> str:
        """The checkpoint to resume from: the same on every process, what the main one finds.

        The one that ``last_checkpoint`` names is tried first, then the others from the newest to
        the oldest; broken ones are named in a warning. Those of the best result do not count.
        """
        choice = None
        if comm.is_main_process():
            # A checkpoint of a process that was killed is as large as a whole one.
            remove_unfinished(self.save_dir, "*.pth")
            paths = [p for p in Path(self.save_dir).glob("*.pth") if p.stem[:10] != "model_best"]
            paths.sort(key=lambda p: p.stat().st_mtime, reverse=True)
            for path in dict.fromkeys([Path(self.get_checkpoint_file()), *paths]):
                problem = _what_is_broken(path)
                if problem is None:
                    choice = str(path)
                    break
                logger.warning("%s cannot be used (%s); trying the one before.", path, problem)
        choice = comm.all_gather(choice)[0]
        if choice is None:
            raise UserError(
                f"No checkpoint in {self.save_dir} can be read. Remove the folder, or train "
                "without --resume, to start anew."
            )
        return choice


def _what_is_broken(path: Path) -> str | None:
    """torch.save writes zip files with a checksum per entry: what is wrong with this one?"""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile) as e:
        return str(e)
    return f"bad checksum in {broken}" if broken else None


def _reason(error: BaseException) -> str:
    """The operating system's words, which torch hides behind its own."""
    last: BaseException | None = error
    while last is not None:
        if isinstance(last, OSError) and last.strerror:
            return last.strerror
        last = last.__cause__ or last.__context__
    return str(error).splitlines()[0]


def _check(translation: Translation, own: dict, path: str, complete: bool) -> None:
    """Raise a ``UserError`` if a file does not fit the model, or not all of it where that is asked.

    The message names what differs.
    """
    state = translation.state
    if not state:
        raise UserError(
            f"{path} is a checkpoint of another model: it has none of the model's tensors, but "
            f"{', '.join(translation.unknown[:3])}. Known are PanopticDETR, facebookresearch/detr, "
            "Hugging Face's Detr, and ResNets of torchvision, timm, Detectron2 and Hugging Face"
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
    what = "does not fit the model; nothing was loaded"
    if complete and not problems and translation.warnings:
        problems = translation.warnings
        what = "does not hold all of the model, the rest would be random"
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{path} {what}: {'; '.join(problems[:8])}{more}. Use the config that the weights were "
            "trained with, config.yaml in the OUTPUT_DIR of their training"
        )


def _differences(model: nn.Module, dilated: bool | None) -> list[str]:
    """What the model does otherwise than the network of a foreign file although all tensors fit.

    Args:
        model: any model.
        dilated: whether res5 is dilated in the file's network; None: not known.
    """
    found = []
    backbone = getattr(model, "backbone", None)
    if dilated not in (None, backbone is not None and backbone.output_shape()["res5"].stride == 16):
        found.append(
            f"The weights are those of a model {'with' if dilated else 'without'} dilated res5 "
            f"(DC5): set MODEL.RESNETS.RES5_DILATION to {2 if dilated else 1}"
        )
    blocks = [getattr(backbone, stage, [None])[0] for stage in ("res3", "res5")]
    bottlenecks = [block for block in blocks if hasattr(block, "conv3")]
    if any(b.conv1.stride != (1, 1) or b.conv2.dilation != (1, 1) for b in bottlenecks):
        found.append(
            "The backbone has its strides or dilation elsewhere than torchvision's ResNet: set "
            "MODEL.RESNETS.STRIDE_IN_1X1 to False and MODEL.BACKBONE.NAME to "
            "build_detr_resnet_backbone"
        )
    return found
