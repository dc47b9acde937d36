"""Convert a dataset to COCO panoptic format, and write a config for training.

For data in splits, give each input option one path per split. The splits are named train, val and
test; --split-names changes the names. Files are written at the end, after everything is converted.
Existing files are never overwritten.

If all annotations of COCO or YOLO data are boxes, the result is a COCO instances json and a config
that trains without masks.

--tile cuts large images as predict --tile does, so that training and prediction see the same
scale. Tiles are stored as PNG, without loss. Tiles without a segment are left out.

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
from pathlib import Path

from ..errors import UserError
from ._options import set_up_console

_IMAGES = {"--images": "folder of the images"}
_MASKS = {**_IMAGES, "--masks": "folder of the masks"}
_CLASS_LIST = "list of the classes: json, csv, lines of 'R G B name', 'name,id' or 'name', or 'voc'"
_LABELS = {"--labels": {"type": Path, "required": True, "help": _CLASS_LIST}}
_SUFFIX_HELP = "a.jpg has the mask a<suffix> (default: found by the names of the masks)"
_SUFFIX = {"--mask-suffix": {"help": _SUFFIX_HELP}}
# Description of a format; inputs with a path per split, required and optional; other options.
_FORMATS: dict[str, tuple[str, dict, dict, dict]] = {
    "coco": (
        "COCO instances json, with or without semantic annotations",
        {"--instances": "the json", **_IMAGES},
        {"--semantic": "stuff: a COCO json, or a folder of class masks"},
        {"--labels": {"type": Path, "help": _CLASS_LIST}, **_SUFFIX},
    ),
    "instance-masks": (
        "a mask per image, pixel = number of the object, 0 = none",
        _MASKS,
        {},
        {
            "--category": {"default": "object", "help": "name of the objects' class"},
            "--void-value": {"type": int, "help": "value that is void, not an object"},
            **_SUFFIX,
        },
    ),
    "class-masks": (
        "a mask per image, pixel = class (number or color)",
        _MASKS,
        {"--objects": "folder of object masks (VOC), which separate the objects of thing classes"},
        {
            **_LABELS,
            "--void-value": {"type": int, "default": 255, "help": "unlabelled pixels (255)"},
            **_SUFFIX,
        },
    ),
    "labelme": (
        "LabelMe: a json per image",
        {"--annotations": "folder of the jsons"},
        {"--images": "folder that holds all images, if another"},
        {},
    ),
    "cvat": (
        "CVAT for images 1.1",
        {"--annotations": "the XML file", **_IMAGES},
        {},
        {"--subset": {"nargs": "+", "metavar": "NAME", "help": "subset of a project (all)"}},
    ),
    "yolo": (
        "YOLO: a text file with polygons or boxes per image",
        _IMAGES,
        {"--annotations": "folder of the text files (default: 'labels' in place of 'images')"},
        {"--labels": {**_LABELS["--labels"], "help": "data.yaml, or list of the classes"}},
    ),
    "label-studio": (
        "Label Studio's export 'JSON': polygons, brushes, other shapes",
        {"--annotations": "the json", **_IMAGES},
        {},
        {},
    ),
    "cityscapes": (
        "Cityscapes' leftImg8bit and gtFine",
        {"--images": "leftImg8bit/<split>", "--masks": "gtFine/<split>"},
        {},
        {},
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the formats and their options."""
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    common = _common_options()
    sub = formats.add_parser("auto", parents=[common], help="detect the format of a folder")
    sub.add_argument("folder", type=Path, help="folder with images and annotations")
    for name, (text, required, optional, options) in _FORMATS.items():
        sub = formats.add_parser(name, help=text, description=text, parents=[common])
        for option, help in {**required, **optional}.items():
            keywords = {"nargs": "+", "metavar": "PATH", "required": option in required}
            sub.add_argument(option, type=Path, help=help, **keywords)
        for option, keywords in options.items():
            sub.add_argument(option, **keywords)


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, help="output folder")
    add("--name", help="name of the dataset in the config (default: that of the output folder)")
    text = "_BASE_ of the written config (%(default)s)"
    add("--base", default="own_data/finetune_R50.yaml", help=text)
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--tile", type=int, metavar="SIZE", help="cut images into tiles of this side (pixels)")
    text = "smallest fraction of a tile that the next tile shares (%(default)s)"
    add("--overlap", type=float, default=0.2, help=text)
    add = common.add_argument_group("splits").add_argument
    text = "fractions for a random split, e.g. 0.8 0.2"
    add("--split", type=float, nargs="+", metavar="FRACTION", help=text)
    add("--split-names", nargs="+", metavar="NAME", help="default: train val test")
    add("--seed", type=int, default=0, help="seed of the random split (%(default)s)")
    text = "text files with the names of the images of each split"
    add("--image-lists", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    add = common.add_argument_group("classes").add_argument
    add("--classes", type=Path, help="list of classes that sets ids, order, colors and things")
    add("--things", nargs="+", default=[], metavar="NAME", help="classes that are things")
    add("--stuff", nargs="+", default=[], metavar="NAME", help="classes that are stuff")
    add("--ignore", nargs="+", default=[], metavar="NAME", help="classes that become void")
    add("--background", metavar="NAME", help="stuff class of unlabelled pixels (default: void)")
    text = "segments with fewer pixels become unlabelled (%(default)s)"
    add("--min-area", type=int, default=1, help=text)
    return common


def run(args: argparse.Namespace) -> int:
    """Convert, write the config, and print the next commands."""
    if args.tile is not None and args.tile < 1 or not 0 <= args.overlap < 1:
        args.parser.error("--tile must be 1 or more, --overlap at least 0 and less than 1")
    set_up_console(args)
    if args.format == "auto":
        args = _detected(args)
    from ..prepare.convert.program import run_conversion

    return run_conversion(args)


def _detected(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options for the format of a folder. Those of this call replace what was found."""
    from ..prepare.convert.detect import detect

    candidates = detect(args.folder)
    own = ["--output", str(args.output)]
    for description, arguments in candidates:
        print(f"{description}:\n  detr-panoptic convert {shlex.join([*arguments, *own])}\n")
    if len(candidates) > 1:
        raise UserError(f"'{args.folder}' may have several formats. Choose one of the commands.")
    detected = vars(args.parser.parse_args([*candidates[0].arguments, *own]))
    default = vars(args.parser.parse_args(["auto", ".", *own]))
    changed = {key: v for key, v in vars(args).items() if v != default.get(key) and key in detected}
    return argparse.Namespace(**{**detected, **changed, "parser": args.parser})
