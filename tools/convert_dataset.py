#!/usr/bin/env python
"""Convert a data set to COCO panoptic format.

    tools/convert_dataset.py coco --instances instances.json --images images --output mine \\
        --background background --split 0.8 0.2
    tools/convert_dataset.py instance-masks --images PNGImages --masks PedMasks \\
        --category pedestrian --background background --output penn_fudan --split 0.75 0.25
    tools/convert_dataset.py class-masks --images 701_StillsRaw_full --masks LabeledApproved_full \\
        --mask-suffix _L.png --labels label_colors.txt --things Car Pedestrian --ignore Void \\
        --output camvid
    tools/convert_dataset.py labelme --annotations folder --output mine
    tools/convert_dataset.py cvat --annotations annotations.xml --images images --output mine
    tools/convert_dataset.py cityscapes --root cityscapes --output cityscapes_panoptic

Interrupted, it goes on when it is called again in the same way. docs/own_data.md says more.
"""

import argparse
import logging
import os
import shlex
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from detectron2.utils.logger import setup_logger

from detr_panoptic_d2.engine.setup import resolve_config_file
from detr_panoptic_d2.prepare.convert import (
    Cityscapes,
    ClassMasks,
    ClassOptions,
    CocoInstances,
    Cvat,
    InstanceMasks,
    LabelMe,
    ModelStuff,
    WriteOptions,
    convert,
    describe,
    write_dataset_yaml,
)
from detr_panoptic_d2.prepare.convert.shapes import OVERLAP_RULES

logger = logging.getLogger("detr_panoptic_d2.tools.convert_dataset")

BASE = "own_data/finetune_R50.yaml"
MAKE = {
    "coco": lambda a, classes: CocoInstances(
        a.instances,
        a.images,
        overlap=a.overlap,
        semantic=a.semantic,
        semantic_labels=a.labels,
        mask_suffix=a.mask_suffix,
        classes=classes,
    ),
    "instance-masks": lambda a, classes: InstanceMasks(
        a.images,
        a.masks,
        category=a.category,
        mask_suffix=a.mask_suffix,
        void_value=a.void_value,
        classes=classes,
    ),
    "class-masks": lambda a, classes: ClassMasks(
        a.images,
        a.masks,
        a.labels,
        mask_suffix=a.mask_suffix,
        void_value=a.void_value,
        connectivity=a.connectivity,
        classes=classes,
    ),
    "labelme": lambda a, classes: LabelMe(
        a.annotations, a.images, overlap=a.overlap, classes=classes
    ),
    "cvat": lambda a, classes: Cvat(a.annotations, a.images, overlap=a.overlap, classes=classes),
    "cityscapes": lambda a, classes: Cityscapes(a.root, splits=a.splits, classes=classes),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    common = _common_options()

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return formats.add_parser(name, help=text, description=text, parents=[common])

    sub = add("coco", "COCO instances json, with or without semantic truth")
    sub.add_argument("--instances", type=Path, required=True, help="the json")
    sub.add_argument("--images", type=Path, required=True, help="folder of the images")
    sub.add_argument("--semantic", type=Path, help="stuff: a COCO json, or a folder of class masks")
    _add_mask_options(sub, ".png", labels_required=False)
    _add_overlap(sub)

    sub = add("instance-masks", "a mask per image, pixel = number of the object, 0 = none")
    sub.add_argument("--images", type=Path, required=True, help="folder of the images")
    sub.add_argument("--masks", type=Path, required=True, help="folder of the masks")
    sub.add_argument("--category", default="object", help="name of the objects' class")
    sub.add_argument("--mask-suffix", default="_mask.png", help="a.jpg has a<suffix> (%(default)s)")
    sub.add_argument("--void-value", type=int, help="value that is void, and no object")

    sub = add("class-masks", "a mask per image, pixel = class (number or colour)")
    sub.add_argument("--images", type=Path, required=True, help="folder of the images")
    sub.add_argument("--masks", type=Path, required=True, help="folder of the masks")
    _add_mask_options(sub, ".png", labels_required=True)
    sub.add_argument(
        "--void-value", type=int, default=255, help="value of unlabelled pixels (%(default)s)"
    )
    sub.add_argument(
        "--connectivity", type=int, choices=(4, 8), default=8, help="of objects (%(default)s)"
    )

    sub = add("labelme", "LabelMe: a json per image")
    sub.add_argument("--annotations", type=Path, required=True, help="folder of the jsons")
    sub.add_argument("--images", type=Path, help="folder that holds all images, if another")
    _add_overlap(sub)

    sub = add("cvat", "CVAT for images 1.1")
    sub.add_argument("--annotations", type=Path, required=True, help="the XML file")
    sub.add_argument("--images", type=Path, required=True, help="folder of the images")
    _add_overlap(sub)

    sub = add("cityscapes", "Cityscapes, fine annotations")
    sub.add_argument("--root", type=Path, required=True, help="has leftImg8bit and gtFine")
    sub.add_argument("--splits", nargs="+", default=["train", "val"], help="(train val)")
    return parser.parse_args()


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, help="folder; may hold other splits already")
    add("--name", help="of the data set, for the config (default: name of the output folder)")
    add("--base", default=BASE, help="config that the written one builds on (%(default)s)")
    add("--split", type=float, nargs="+", metavar="SHARE", help="such as 0.8 0.2, by chance")
    add("--split-names", nargs="+", metavar="NAME", help="(train val test, as many as needed)")
    add("--seed", type=int, default=0, help="of the split")
    add("--copy-images", action="store_true", help="into the output; else they stay where they are")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add = common.add_argument_group("classes").add_argument
    add("--classes", type=Path, help="list of the classes: sets ids, order, colours, things")
    add("--things", nargs="+", default=[], metavar="NAME", help="classes that are things")
    add("--stuff", nargs="+", default=[], metavar="NAME", help="classes that are stuff")
    add("--ignore", nargs="+", default=[], metavar="NAME", help="classes that become void")
    add("--background", metavar="NAME", help="stuff class of what is left (default: void)")
    add("--min-area", type=int, default=1, help="smaller segments are unlabelled (pixels)")
    add = common.add_argument_group("stuff from a model").add_argument
    add("--stuff-from-model", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="fills what is left")
    add("--stuff-threshold", type=float, default=0.7, help="least class score (%(default)s)")
    add("--stuff-opts", nargs="+", default=[], metavar="KEY VALUE", help="change its config")
    return common


def _add_mask_options(
    parser: argparse.ArgumentParser, suffix: str, *, labels_required: bool
) -> None:
    text = "list of the masks' classes: json, csv, 'R G B name' lines or names"
    parser.add_argument("--labels", type=Path, required=labels_required, help=text)
    parser.add_argument(
        "--mask-suffix", default=suffix, help="a.jpg has the mask a<suffix> (%(default)s)"
    )


def _add_overlap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overlap", choices=OVERLAP_RULES, default=OVERLAP_RULES[0], help="(%(default)s)"
    )


def write_options(args: argparse.Namespace) -> WriteOptions:
    """Turn arguments into options.

    Raises:
        ValueError: names and shares of splits do not fit.
    """
    names = args.split_names or ["train", "val", "test"][: len(args.split or [0])]
    fractions = None
    if args.split:
        if len(set(names)) != len(args.split):
            raise ValueError(f"--split has {len(args.split)} shares, --split-names are {names}.")
        fractions = dict(zip(names, args.split, strict=True))
    elif len(names) > 1:
        raise ValueError("Several --split-names need --split with a share for each.")
    return WriteOptions(
        split_name=names[0],
        fractions=fractions,
        seed=args.seed,
        copy_images=args.copy_images,
        background=args.background,
        min_area=args.min_area,
        workers=args.workers,
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and say how to go on."""
    classes = ClassOptions(
        file=args.classes,
        things=tuple(args.things),
        stuff=tuple(args.stuff),
        ignore=tuple(args.ignore),
    )
    options = write_options(args)
    base = resolve_config_file(args.base)
    source = MAKE[args.format](args, classes)
    for line in source.skipped.lines() if hasattr(source, "skipped") else []:
        logger.warning("Left out: %s", line)
    filler = None
    if args.stuff_from_model:
        filler = ModelStuff(
            *args.stuff_from_model, threshold=args.stuff_threshold, opts=args.stuff_opts
        )
    splits = convert(source, args.output, options, filler)
    config = write_dataset_yaml(splits, args.name or args.output.resolve().name, base)
    print(f"\n{describe(splits)}\n\nCheck the result, then train:\n")
    path = shlex.quote(str(config))
    print(f"tools/check_dataset.py --config-file {path}")
    print(f"tools/train_net.py --config-file {path} OUTPUT_DIR output/{config.stem}")


def main() -> int:
    """Return the exit code."""
    args = parse_args()
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    try:
        run(args)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 1
    except BrokenProcessPool:
        logger.error(
            "A process was killed, most often because memory ran out. The same command goes on "
            "from here; with --workers 1 it needs the least."
        )
        return 1
    except KeyboardInterrupt:
        logger.error("Interrupted. The same command goes on from here.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
