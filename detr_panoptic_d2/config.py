"""Config keys of the project, and configs read from files.

Names that the official DETR ``d2/`` wrapper has keep their meaning.
"""

import os
from pathlib import Path, PurePath

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .errors import UserError


def add_detr_panoptic_config(cfg: CN) -> None:
    """Add every key of the project to a Detectron2 config, in place.

    Args:
        cfg: a config from :func:`detectron2.config.get_cfg`.
    """
    _add_model_keys(cfg)
    _add_test_keys(cfg)
    _add_backbone_keys(cfg)
    _add_data_keys(cfg)
    _add_solver_keys(cfg)


def _add_model_keys(cfg: CN) -> None:
    cfg.MODEL.DETR = CN()
    # Number of classes, things and stuff together; no-object is one more. 133 for COCO panoptic.
    # -1: taken from the metadata of the data set.
    cfg.MODEL.DETR.NUM_CLASSES = 133
    # Channels of the transformer and of the mask head's input.
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    # Attention heads; also the number M of box-attention maps per query.
    cfg.MODEL.DETR.NHEADS = 8
    # Probability in attention, feed-forward blocks and residual connections.
    cfg.MODEL.DETR.DROPOUT = 0.1
    # Width of the feed-forward blocks in the transformer.
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    # Encoder layers; 0: none.
    cfg.MODEL.DETR.ENC_LAYERS = 6
    # Decoder layers, 1 or more.
    cfg.MODEL.DETR.DEC_LAYERS = 6
    # Layer norm before attention and feed-forward (True) or after (False, the published models).
    cfg.MODEL.DETR.PRE_NORM = False
    # Queries N: the most segments one image can have.
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 100

    # Weight of the classes' cross entropy, and of the class cost in matching.
    cfg.MODEL.DETR.CLASS_WEIGHT = 1.0
    # Weight of the boxes' generalised IoU, in loss and matching.
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    # Weight of the boxes' L1 distance, in loss and matching.
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    # Weight of the masks' focal loss.
    cfg.MODEL.DETR.MASK_WEIGHT = 1.0
    # Weight of the masks' dice loss.
    cfg.MODEL.DETR.DICE_WEIGHT = 1.0
    # Weight of the no-object class in the cross entropy.
    cfg.MODEL.DETR.NO_OBJECT_WEIGHT = 0.1
    # Class and box losses after every decoder layer, not only after the last.
    cfg.MODEL.DETR.DEEP_SUPERVISION = True

    # Train the mask head and the box attention only (second step of the two-step recipe).
    cfg.MODEL.DETR.FREEZE_DETECTOR = False

    cfg.MODEL.DETR.MASK_HEAD = CN()
    # A name in MASK_HEAD_REGISTRY.
    cfg.MODEL.DETR.MASK_HEAD.NAME = "MaskHeadSmallConv"
    # The box-attention maps of a new mask head are multiplied by this: a number, or "auto" for
    # h w sqrt(C M / 3), with which masks learn at once. None: 1, as in official DETR. A checkpoint
    # with a mask head keeps its own value.
    cfg.MODEL.DETR.MASK_HEAD.ATTENTION_SCALE = None

    # Recompute activations in the backward pass instead of keeping them: less memory, more time.
    cfg.MODEL.DETR.CHECKPOINT_ENCODER = False
    # The same for the mask head.
    cfg.MODEL.DETR.CHECKPOINT_MASK_HEAD = False
    # torch.compile of backbone, transformer and mask head with dynamic shapes.
    cfg.MODEL.DETR.COMPILE = False


def _add_test_keys(cfg: CN) -> None:
    cfg.MODEL.DETR.TEST = CN()
    # A name in PANOPTIC_INFERENCE_REGISTRY.
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "DETRPanopticInference"
    # Whether the model returns "panoptic_seg".
    cfg.MODEL.DETR.TEST.PANOPTIC_ON = True
    # Whether it returns "instances".
    cfg.MODEL.DETR.TEST.INSTANCE_ON = False
    # Whether it returns "sem_seg".
    cfg.MODEL.DETR.TEST.SEMANTIC_ON = False
    # A query is kept if its best object class has a probability above this value. Rules other than
    # MaskNMSPanopticInference also require that no-object is less probable.
    cfg.MODEL.DETR.TEST.SCORE_THRESH = 0.85
    # Segments of this many pixels and less are dropped (in the output image).
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = 4
    # Smallest allowed part of a mask that is not lost to other masks; 0: off.
    # DETRPanopticInference drops a segment that wins less of its own mask in the argmax, as
    # Mask2Former does. MaskNMSPanopticInference removes a query, before the argmax, if less of its
    # mask is free of the masks of better queries.
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.0
    # Images of different sizes in one inference batch: False runs each size on its own, so that a
    # result never depends on the batch; True pads them to one canvas as the official code does.
    cfg.MODEL.DETR.TEST.PAD_MIXED_SIZES = False
    # Images per batch and process during evaluation.
    cfg.MODEL.DETR.TEST.BATCH_SIZE = 1
    # Every VIS_PERIOD (a key of Detectron2; 0, the default: never) iterations, ground truth and
    # prediction of this many images of DATASETS.TEST go to TensorBoard and OUTPUT_DIR/pictures.
    cfg.TEST.VIS_IMAGES = 4


def _add_backbone_keys(cfg: CN) -> None:
    cfg.MODEL.DETR.BACKBONE = CN()
    # build_torchvision_backbone: a name in torchvision.models; build_timm_backbone: one in timm;
    # build_renamed_backbone: one in BACKBONE_REGISTRY.
    cfg.MODEL.DETR.BACKBONE.MODEL_NAME = "resnet50"
    # Load the library's own ImageNet weights (network access needed once).
    cfg.MODEL.DETR.BACKBONE.PRETRAINED = False
    # Output names of the wrapped Detectron2 backbone, finest first (build_renamed_backbone).
    cfg.MODEL.DETR.BACKBONE.FEATURES = ["p2", "p3", "p4", "p5"]
    # Channels per stage of build_narrow_resnet_backbone.
    cfg.MODEL.DETR.BACKBONE.WIDTHS = [16, 32, 64, 128]
    # Blocks per stage of build_narrow_resnet_backbone.
    cfg.MODEL.DETR.BACKBONE.BLOCKS = [1, 1, 1, 1]
    # Its stem's stride, and with it that of res2 and of the masks: 4, or 2 (no max pooling).
    cfg.MODEL.DETR.BACKBONE.STEM_STRIDE = 4


def _add_data_keys(cfg: CN) -> None:
    # User data sets, registered when the config is set up. Each item is a mapping with the keys
    # name, image_root, panoptic_root, panoptic_json. Paths in a config file are relative to the
    # folder of the file.
    cfg.DATASETS.REGISTER = []
    # Horizontal flip and multi-scale resizing are Detectron2's INPUT keys. In addition, with this
    # probability: resize the short edge to one of CROP.RESIZE_MIN_SIZES, take an absolute-range
    # crop of INPUT.CROP.SIZE (min, max), then resize as without it. Official DETR: 0.5.
    cfg.INPUT.CROP.PROB = 0.5
    # Lengths of the short edge before the crop, in pixels.
    cfg.INPUT.CROP.RESIZE_MIN_SIZES = [400, 500, 600]
    # Compute sizes of resized images as official DETR does, which rounds the longer side down.
    # Detectron2 rounds to the nearest: 640 x 480 becomes 1066 x 800 (True) or 1067 x 800 (False).
    cfg.INPUT.OFFICIAL_SIZES = False


def _add_solver_keys(cfg: CN) -> None:
    # "ADAMW" (DETR) or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Autocast type under SOLVER.AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"


def list_config_files() -> list[str]:
    """Return the names that :func:`get_config_file` takes, sorted, with ``/`` between folders."""
    root = _config_dir()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))


def get_config_file(name: str) -> str:
    """Return the path of a config given by path, or by the name that it has in the package.

    Args:
        name: a path, or one below ``configs/``: ``"detr_panoptic_R50.yaml"``, for example.

    Raises:
        FileNotFoundError: there is no such config; the message lists those there are.
    """
    if Path(name).is_file():
        return name
    names = list_config_files()
    if name not in names:
        raise FileNotFoundError(
            f"No config '{name}', neither in the current directory ({Path.cwd()}) nor among those "
            f"of the package: {', '.join(names)}"
        )
    return str(_config_dir() / name)


def merged_cfg(config_file: str, opts: list[str] | None = None) -> CN:
    """Merge a config file and ``KEY VALUE`` pairs into the defaults. Nothing else happens.

    Only plain yaml is read: Detectron2's default is to make the Python objects that tags ask for,
    which can run code.

    Args:
        config_file: a path, or the name of a config that comes with the package. "": none.
        opts: flat list of keys and values.

    Raises:
        FileNotFoundError: there is no such config.
        UserError: it is no config, a key is not known, or a value of another type.
    """
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    source = "KEY VALUE pairs of the command"
    try:
        if config_file:
            path = get_config_file(config_file)
            source = f"Config '{path}'"
            cfg.merge_from_other_cfg(CN(_PlainYaml.load_yaml_with_base(path)))
            source = "KEY VALUE pairs of the command"
        cfg.merge_from_list(opts or [])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is no plain yaml: {error}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{source} is not a mapping of keys to values ({error}).") from error
    except (KeyError, AssertionError, ValueError) as error:
        # yacs names key and value.
        raise UserError(f"{source}: {error.args[0]}") from error
    return cfg


class _PlainYaml(CN):
    """Reads yaml without Python tags, and finds a ``_BASE_`` by its name in the package as well."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        # The name of a base arrives here behind the folder of the file that names it.
        parts = PurePath(filename).parts
        if not Path(filename).is_file() and "://" not in filename:
            for name in sorted(list_config_files(), key=len, reverse=True):
                if parts[-len(PurePath(name).parts) :] == PurePath(name).parts:
                    filename = get_config_file(name)
                    break
        cfg = super().load_yaml_with_base(filename, allow_unsafe=False)
        _resolve_paths(cfg, Path(filename).parent)
        return cfg


def _resolve_paths(cfg: dict, folder: Path) -> None:
    """Make paths of ``DATASETS.REGISTER`` absolute. They are relative to the folder of the file."""
    datasets = cfg.get("DATASETS")
    items = datasets.get("REGISTER") if isinstance(datasets, dict) else None
    for item in items if isinstance(items, list) else ():
        for key in item.keys() - {"name"} if isinstance(item, dict) else ():
            if isinstance(item[key], str) and item[key] and "://" not in item[key]:
                item[key] = os.path.abspath(folder / os.path.expanduser(item[key]))


def _config_dir() -> Path:
    """An installed package has the yaml files inside, a checkout has them beside."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
