"""Convert a data set to COCO panoptic format, and write a config for training.

For data in splits, give one path per split to each input. The splits are named train, val and
test, or as --split-names says. All files are written at the end, after everything is converted.
Existing files are never overwritten, but a config of this command is extended by new splits.

Examples:
  detr-panoptic convert auto folder --output mine
  detr-panoptic convert class-masks --images train val --masks trainannot valannot \\
      --labels classes.txt --things car pedestrian --output mine
  detr-panoptic convert coco --instances instances.json --images images \\
      --background background --split 0.8 0.2 --output mine
  detr-panoptic convert instance-masks --images PNGImages --masks PedMasks \\
      --category pedestrian --background background --split 0.75 0.25 --output mine
  detr-panoptic convert class-masks --images JPEGImages --masks SegmentationClass \\
      --objects SegmentationObject --labels voc --split 0.8 0.2 --output mine
  detr-panoptic convert labelme --annotations folder --split 0.8 0.2 --output mine
  detr-panoptic convert cvat --annotations annotations.xml --images images --output mine
"""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ._options import set_up_console

# Options that may have a value per split, and the other options of formats.
_INPUTS = ("images", "masks", "objects", "instances", "semantic", "annotations", "subset")
_OPTIONS = ("labels", "mask_suffix", "void_value", "category")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the formats and their options."""
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    common = _common_options()

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return formats.add_parser(name, help=text, description=text, parents=[common])

    def add_input(sub: argparse.ArgumentParser, name: str, text: str, required: bool = True):
        sub.add_argument(name, type=Path, nargs="+", required=required, metavar="PATH", help=text)

    sub = add("auto", "find out the format of a folder; lists the commands if there are several")
    sub.add_argument("folder", type=Path, help="folder of the data set")

    sub = add("coco", "COCO instances json, with or without semantic annotations")
    add_input(sub, "--instances", "the json")
    add_input(sub, "--images", "folder of the images")
    add_input(sub, "--semantic", "stuff: a COCO json, or a folder of class masks", required=False)
    _add_mask_options(sub, labels_required=False)
    _add_boxes_only(sub)

    sub = add("instance-masks", "a mask per image, pixel = number of the object, 0 = none")
    add_input(sub, "--images", "folder of the images")
    add_input(sub, "--masks", "folder of the masks")
    sub.add_argument("--category", default="object", help="name of the objects' class")
    _add_mask_suffix(sub)
    sub.add_argument("--void-value", type=int, help="value that is void, not an object")

    sub = add("class-masks", "a mask per image, pixel = class (number or color)")
    add_input(sub, "--images", "folder of the images")
    add_input(sub, "--masks", "folder of the masks")
    text = "folder of object masks (VOC), which separate the objects of thing classes"
    add_input(sub, "--objects", text, required=False)
    _add_mask_options(sub, labels_required=True)
    sub.add_argument(
        "--void-value", type=int, default=255, help="value of unlabelled pixels (%(default)s)"
    )

    _add_tools(add, add_input)


def _add_tools(add: Callable, add_input: Callable) -> None:
    """Add the formats of annotation tools, and others with few options."""
    sub = add("labelme", "LabelMe: a json per image")
    add_input(sub, "--annotations", "folder of the jsons")
    add_input(sub, "--images", "folder that holds all images, if another", required=False)

    sub = add("cvat", "CVAT for images 1.1")
    add_input(sub, "--annotations", "the XML file")
    add_input(sub, "--images", "folder of the images")
    sub.add_argument("--subset", nargs="+", metavar="NAME", help="subset of a project (all)")

    sub = add("yolo", "YOLO segmentation: a text file with polygons per image")
    add_input(sub, "--images", "folder of the images")
    text = "folder of the text files (default: 'labels' in the place of 'images')"
    add_input(sub, "--annotations", text, required=False)
    sub.add_argument("--labels", type=Path, required=True, help="data.yaml, or list of the classes")
    _add_boxes_only(sub)

    sub = add("label-studio", "Label Studio's export 'JSON': polygons, brushes, other shapes")
    add_input(sub, "--annotations", "the json")
    add_input(sub, "--images", "folder of the images")

    sub = add("cityscapes", "Cityscapes' leftImg8bit and gtFine")
    add_input(sub, "--images", "leftImg8bit/<split>")
    add_input(sub, "--masks", "gtFine/<split>")


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, help="folder; may already hold other splits")
    add("--name", help="of the data set in the config (default: name of the output folder)")
    add(
        "--base",
        default="own_data/finetune_R50.yaml",
        help="config that the written config builds on (%(default)s)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add = common.add_argument_group("splits").add_argument
    text = "fractions for a random split, e.g. 0.8 0.2"
    add("--split", type=float, nargs="+", metavar="FRACTION", help=text)
    add("--split-names", nargs="+", metavar="NAME", help="default: train val test")
    add("--seed", type=int, default=0, help="of the random split")
    text = "text files with the names of the images of each split"
    add("--image-lists", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    add = common.add_argument_group("classes").add_argument
    add("--classes", type=Path, help="list of the classes: sets ids, order, colors, things")
    add("--things", nargs="+", default=[], metavar="NAME", help="classes that are things")
    add("--stuff", nargs="+", default=[], metavar="NAME", help="classes that are stuff")
    add("--ignore", nargs="+", default=[], metavar="NAME", help="classes that become void")
    add("--background", metavar="NAME", help="stuff class of unlabelled pixels (default: void)")
    add("--min-area", type=int, default=1, help="smaller segments become unlabelled (pixels)")
    return common


def _add_mask_options(parser: argparse.ArgumentParser, *, labels_required: bool) -> None:
    text = "list of the classes: json, csv, lines of 'R G B name', 'name,id' or 'name', or 'voc'"
    parser.add_argument("--labels", type=Path, required=labels_required, help=text)
    _add_mask_suffix(parser)


def _add_boxes_only(parser: argparse.ArgumentParser) -> None:
    text = "for annotations that are boxes alone: write a data set to train without masks"
    parser.add_argument("--boxes-only", action="store_true", help=text)


def _add_mask_suffix(parser: argparse.ArgumentParser) -> None:
    text = "a.jpg has the mask a<suffix> (default: found by the names of the masks)"
    parser.add_argument("--mask-suffix", help=text)


def run(args: argparse.Namespace) -> int:
    """Convert, write the config, and print the next commands."""
    if args.format == "auto":
        return _run_auto(args)
    from ..prepare.convert.categories import ClassOptions
    from ..prepare.convert.program import run_conversion

    set_up_console(args)
    values = vars(args)
    return run_conversion(
        args.format,
        {key: values[key] for key in _INPUTS if values.get(key)},
        {key: values[key] for key in _OPTIONS if key in values},
        output=args.output,
        name=args.name,
        base=args.base,
        classes=ClassOptions(args.classes, args.things, args.stuff, args.ignore, args.background),
        split_options={
            "names": args.split_names,
            "fractions": args.split,
            "seed": args.seed,
            "image_lists": args.image_lists,
        },
        min_area=args.min_area,
        workers=args.workers,
        boxes_only=values.get("boxes_only", False),
    )


def _run_auto(args: argparse.Namespace) -> int:
    """Run the command for the format of a folder, with the options of this call."""
    from ..prepare.convert.detect import detect

    set_up_console(args)
    candidates = detect(args.folder)
    own = ["--output", str(args.output)]
    for description, arguments in candidates:
        print(f"{description}:\n  detr-panoptic convert {shlex.join([*arguments, *own])}\n")
    if len(candidates) > 1:
        raise UserError(f"'{args.folder}' may have several formats. Choose one of the commands.")
    detected = vars(args.parser.parse_args([*candidates[0].arguments, *own]))
    common = vars(args.parser.parse_args(["auto", ".", *own]))
    # What this call sets replaces what was found.
    changed = {key: value for key, value in vars(args).items() if value != common.get(key)}
    changed = {key: value for key, value in changed.items() if key in detected}
    return run(argparse.Namespace(**{**detected, **changed, "parser": args.parser}))
