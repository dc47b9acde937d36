"""Convert a data set to COCO panoptic format, and write a config that names it.

Data that come in splits: give the inputs of each, one after the other; they are named train, val
and test unless --split-names says otherwise. Nothing is written before all is converted, and
nothing that is there is overwritten, but a config that this command wrote learns of new splits.

Examples:
  detr-panoptic convert class-masks --images train val --masks trainannot valannot \\
      --labels classes.txt --things car pedestrian --output mine
  detr-panoptic convert coco --instances instances.json --images images \\
      --background background --split 0.8 0.2 --output mine
  detr-panoptic convert instance-masks --images PNGImages --masks PedMasks \\
      --category pedestrian --background background --split 0.75 0.25 --output mine
  detr-panoptic convert labelme --annotations folder --split 0.8 0.2 --output mine
  detr-panoptic convert cvat --annotations annotations.xml --images images --output mine
"""

import argparse
import os
import shlex
from pathlib import Path

from ._options import set_up_console

# Options that may have a value per split, and those that a format takes besides.
_INPUTS = ("images", "masks", "instances", "semantic", "annotations")
_OPTIONS = ("labels", "mask_suffix", "void_value", "connectivity", "category")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the formats and their options."""
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    common = _common_options()

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return formats.add_parser(name, help=text, description=text, parents=[common])

    def add_input(sub: argparse.ArgumentParser, name: str, text: str, required: bool = True):
        sub.add_argument(name, type=Path, nargs="+", required=required, metavar="PATH", help=text)

    sub = add("coco", "COCO instances json, with or without semantic annotations")
    add_input(sub, "--instances", "the json")
    add_input(sub, "--images", "folder of the images")
    add_input(sub, "--semantic", "stuff: a COCO json, or a folder of class masks", required=False)
    _add_mask_options(sub, labels_required=False)

    sub = add("instance-masks", "a mask per image, pixel = number of the object, 0 = none")
    add_input(sub, "--images", "folder of the images")
    add_input(sub, "--masks", "folder of the masks")
    sub.add_argument("--category", default="object", help="name of the objects' class")
    sub.add_argument("--mask-suffix", default="_mask.png", help="a.jpg has a<suffix> (%(default)s)")
    sub.add_argument("--void-value", type=int, help="value that is void, and no object")

    sub = add("class-masks", "a mask per image, pixel = class (number or colour)")
    add_input(sub, "--images", "folder of the images")
    add_input(sub, "--masks", "folder of the masks")
    _add_mask_options(sub, labels_required=True)
    sub.add_argument(
        "--void-value", type=int, default=255, help="value of unlabelled pixels (%(default)s)"
    )
    sub.add_argument(
        "--connectivity", type=int, choices=(4, 8), default=8, help="of objects (%(default)s)"
    )

    sub = add("labelme", "LabelMe: a json per image")
    add_input(sub, "--annotations", "folder of the jsons")
    add_input(sub, "--images", "folder that holds all images, if another", required=False)

    sub = add("cvat", "CVAT for images 1.1")
    add_input(sub, "--annotations", "the XML file")
    add_input(sub, "--images", "folder of the images")


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, help="folder; may hold other splits already")
    add("--name", help="of the data set, for the config (default: name of the output folder)")
    add(
        "--base",
        default="own_data/finetune_R50.yaml",
        help="config that the written one builds on (%(default)s)",
    )
    add("--split", type=float, nargs="+", metavar="SHARE", help="such as 0.8 0.2, by chance")
    add("--split-names", nargs="+", metavar="NAME", help="(train val test, as many as needed)")
    add("--seed", type=int, default=0, help="of the split")
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


def _add_mask_options(parser: argparse.ArgumentParser, *, labels_required: bool) -> None:
    text = "list of the masks' classes: json, csv, 'R G B name', 'name,id' or 'name' lines"
    parser.add_argument("--labels", type=Path, required=labels_required, help=text)
    parser.add_argument(
        "--mask-suffix", default=".png", help="a.jpg has the mask a<suffix> (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, write the config, and say how to go on."""
    from ..config import get_config_file
    from ..prepare.convert.categories import ClassOptions
    from ..prepare.convert.dataset_config import write_dataset_config
    from ..prepare.convert.inputs import open_splits
    from ..prepare.convert.writer import convert

    set_up_console()
    base = get_config_file(args.base)
    given = vars(args)
    splits = open_splits(
        args.format,
        {key: given[key] for key in _INPUTS if given.get(key)},
        {key: given[key] for key in _OPTIONS if key in given},
        names=args.split_names,
        shares=args.split,
        seed=args.seed,
    )
    classes = ClassOptions(args.classes, args.things, args.stuff, args.ignore, args.background)
    if args.stuff_from_model:
        from ..prepare.convert.model_stuff import ModelStuff

        model = ModelStuff(*args.stuff_from_model, args.stuff_threshold, args.stuff_opts)
        splits = {name: model.under(source) for name, source in splits.items()}
    try:
        converted = convert(
            splits,
            args.output,
            classes,
            min_area=args.min_area,
            workers=1 if args.stuff_from_model else args.workers,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. Nothing was written.") from None
    for split in converted:
        counts = ", ".join(f"{number} {name}" for name, number in split.num_segments.items())
        print(f"\n{split.name}: {split.num_images} images with segments: {counts}.")
        if split.num_covered:
            print(f"{split.num_covered} objects lie completely under others and are left out.")
        if split.num_small:
            print(f"{split.num_small} segments under {args.min_area} pixels are unlabelled.")
    empty = [n for n in converted[0].num_segments if not any(s.num_segments[n] for s in converted)]
    if empty:
        print(f"\nNot a single segment of {', '.join(empty)}.")
    config = write_dataset_config(converted, args.name or args.output.resolve().name, base)
    if config is None:
        return 1
    path = shlex.quote(str(config))
    print("\nCheck the result, then train:\n")
    print(f"detr-panoptic check --config-file {path}")
    print(f"detr-panoptic train --config-file {path} OUTPUT_DIR output/{config.stem}")
    return 0
