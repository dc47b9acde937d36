"""Detectron2's checkpointer with crash-safe files, which reads tensors and never code."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from tabulate import tabulate

from ..errors import UserError
from .atomic import atomic_file, remove_unfinished
from .checks import differences, refuse_incomplete, refuse_misfit
from .names import Adapted, State, adapt, summary
from .read import local_file, read_checkpoint

logger = logging.getLogger(__name__)


class PanopticCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with crash-safe files, which reads tensors and never code.

    ``PanopticCheckpointer(model).load(path)`` takes checkpoints of this project, official DETR
    (panoptic, boxes, its ``d2/`` wrapper), Hugging Face's Detr (a file or the folder) and ResNets
    of torchvision, timm and Detectron2; local paths, URLs and names such as ``detectron2://...``.
    What was loaded, renamed and left out, and why, is logged in one table. A file that does not fit
    leaves the model as it was.

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
        path, mark, query = str(path).partition("?")
        self._complete = complete
        try:
            return super().load(local_file(path) + mark + query, checkpointables)
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
        if self._write(name, kwargs):
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **kwargs: Any) -> None:
        """As :meth:`save`, but resuming does not start from this one."""
        self._write(name, kwargs)

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
        data = read_checkpoint(filename)
        if "matching_heuristics=True" in getattr(self._parsed_url_during_load, "query", ""):
            data["matching_heuristics"] = True
        return {**data, "path": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        """Check, load and log; ``checkpoint`` keeps what is no part of the model."""
        path = checkpoint.pop("path")
        about = {key: checkpoint.pop(key, None) for key in ("class_names", "dilation", "heads")}
        author = checkpoint.pop("__author__", None)
        heuristics = checkpoint.pop("matching_heuristics", False) and author != "torchvision"
        model_state = self.model.state_dict()
        if heuristics:
            kind = f"{author or 'unknown author'}, names matched by Detectron2's heuristics"
            adapted = Adapted(kind, checkpoint["model"], backbone_only=True)
            checkpoint.update(matching_heuristics=True, __author__=author)
        else:
            adapted = self._adapt(checkpoint["model"], model_state, about["class_names"], path)
            refuse_misfit(adapted, model_state, path)
        if self._complete:
            refuse_incomplete(adapted, path)
        checkpoint["model"] = adapted.state
        incompatible = super()._load_model(checkpoint)
        for key in ("matching_heuristics", "__author__"):
            checkpoint.pop(key, None)
        unused = [*incompatible.unexpected_keys, *(x[0] for x in incompatible.incorrect_shapes)]
        adapted.left_out.update({name: "no place for it in the model" for name in unused})
        kept = {*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)}
        if len(kept) == len(model_state):
            raise UserError(f"{path} ({adapted.format}): none of its tensors is in the model")
        if not adapted.own:
            for key in self.checkpointables.keys() & checkpoint.keys():
                del checkpoint[key]
                adapted.left_out[key] = "state of another program"
            if not heuristics:
                adapted.warnings += differences(self.model, model_state, about)
        _log_table(adapted, [name for name in model_state if name not in kept], kept, path)

    def _adapt(self, weights: State, model_state: State, class_names, path: str) -> Adapted:
        ids, names = (getattr(self.model, key, None) for key in ("dataset_ids", "class_names"))
        adapted = adapt(weights, model_state, ids, names, class_names)
        if adapted is None:
            example = ", ".join(sorted(weights)[:3])
            raise UserError(
                f"{path} is a checkpoint of another model: it has {len(weights)} tensors, not all "
                f"of them known here (for example {example}). Known are PanopticDETR, "
                "facebookresearch/detr, Hugging Face Detr, and ResNets of torchvision, timm, "
                "Detectron2 and Hugging Face"
            )
        return adapted

    def _write(self, name: str, extra: dict[str, Any]) -> bool:
        if not self.save_dir or not self.save_to_disk:
            return False
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(extra)
        target = Path(self.save_dir, f"{name}.pth")
        self._refuse_broken_weights(data["model"], target)
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
        return True

    def _refuse_broken_weights(self, weights: State, target: Path) -> None:
        broken = [
            name
            for name, value in weights.items()
            if value.is_floating_point() and not torch.isfinite(value).all()
        ]
        if broken:
            raise UserError(
                f"{len(broken)} tensors of the model are infinite or NaN, {broken[0]} for one, so "
                f"{target} was not written. {self.resume_hint()} Lower SOLVER.BASE_LR, or use "
                "SOLVER.AMP.DTYPE bfloat16 in place of float16."
            )

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
    last, cause = error, error.__cause__ or error.__context__
    while not (isinstance(last, OSError) and last.strerror):
        if cause is None:
            return str(last).splitlines()[0]
        last, cause = cause, cause.__cause__ or cause.__context__
    return last.strerror


def _log_table(adapted: Adapted, loaded: list[str], kept: set[str], path: str) -> None:
    """Log what became of each part of a checkpoint and of a model, as one table."""
    default = "the file holds a backbone only" if adapted.backbone_only else "not in the file"
    parts = {
        "loaded": {name: adapted.notes.get(name, "") for name in loaded},
        "not loaded": {name: adapted.kept.get(name, default) for name in kept},
        "left out of the file": adapted.left_out,
    }
    rows = [
        (part, count, what, note)
        for what, notes in parts.items()
        for part, count, note in summary(notes)
    ]
    table = tabulate(
        rows, headers=["part", "tensors", "what", "note"], tablefmt="pipe", disable_numparse=True
    )
    logger.info("Loaded %s (%s):\n%s", path, adapted.format, table)
    for warning in adapted.warnings:
        logger.warning("%s", warning)
