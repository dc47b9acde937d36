"""The work of ``detr-panoptic convert``: open the inputs, convert, write the config, report."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config import get_config_file
from .boxes import convert_boxes
from .categories import ClassOptions
from .dataset_config import write_dataset_config
from .inputs import open_splits
from .writer import Converted, convert


def run_conversion(
    format_name: str,
    inputs: Mapping[str, Sequence[Path]],
    options: Mapping[str, Any],
    *,
    output: Path,
    name: str | None,
    base: str,
    classes: ClassOptions,
    split_options: Mapping[str, Any],
    min_area: int,
    workers: int,
    boxes_only: bool,
) -> int:
    """Convert a data set, print a summary and the next commands, and return the exit status.

    Args:
        format_name, inputs, options, split_options: see :func:`.inputs.open_splits`.
        output: folder of the result.
        name: of the data set; default: the name of ``output``.
        base: config that the written config builds on.
        classes: options about classes.
        min_area: segments of fewer pixels become unlabelled.
        workers: number of processes.
        boxes_only: write boxes, to train without masks.
    """
    get_config_file(base)
    splits = open_splits(format_name, inputs, options, **split_options)
    try:
        if boxes_only:
            converted = convert_boxes(splits, output, classes)
        else:
            converted = convert(splits, output, classes, min_area=min_area, workers=workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. Nothing was written.") from None
    _print_summary(converted, "boxes" if boxes_only else "segments", min_area)
    config = write_dataset_config(converted, output, name or output.resolve().name, base)
    if config is None:
        return 1
    path = shlex.quote(str(config))
    if boxes_only:
        print("\nBoxes alone: the config trains without masks (MODEL.MASK_ON False). Train:\n")
    else:
        print("\nCheck the result, then train:\n")
        print(
            f"detr-panoptic check --config-file {path} --output {shlex.quote(str(output))}/checked"
        )
    print(f"detr-panoptic train --config-file {path} OUTPUT_DIR output/{config.stem}")
    return 0


def _print_summary(converted: Sequence[Converted], what: str, min_area: int) -> None:
    for split in converted:
        counts = ", ".join(
            f"{number} {name}" for name, number in split.num_segments.items() if number
        )
        crowds = f", and {split.num_crowds} crowds" if split.num_crowds else ""
        print(f"\n{split.name}: {split.num_images} images with {what}: {counts or 'none'}{crowds}.")
        print(f"At most {split.max_segments} {what} in an image.")
        if split.num_covered:
            print(f"{split.num_covered} objects lie completely under others and are left out.")
        if split.num_small:
            print(
                f"{split.num_small} segments under {min_area} pixels are unlabelled (--min-area)."
            )
    names = converted[0].num_segments
    if unused := [name for name in names if not any(s.num_segments[name] for s in converted)]:
        print(f"\nClasses without {what}: {', '.join(unused)}.")
