"""Config keys of the project, and configs read from files.

Keys of the official DETR ``d2/`` wrapper keep their names and meaning.
"""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# Inside an installed package, beside it in a checkout.
_CONFIGS = next(filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "configs")))


def add_detr_panoptic_config(cfg: CN) -> None:
    """Add every key of the project to a config from :func:`detectron2.config.get_cfg`."""
    # See torch.set_float32_matmul_precision: "highest", "high" (TF32 on newer GPUs) or "medium".
    cfg.FLOAT32_MATMUL_PRECISION = "highest"
    # Writers beside the log: "tensorboard" (always), "wandb" (Weights & Biases), "mlflow".
    cfg.WRITERS = ["tensorboard"]
    _add_model_keys(cfg)
    _add_ema_and_test_keys(cfg)
    _add_backbone_and_data_keys(cfg)
    _add_solver_keys(cfg)


def _add_model_keys(cfg: CN) -> None:
    cfg.MODEL.DETR = CN()
    # Number of classes, things and stuff together, without no-object. -1: that of the dataset.
    cfg.MODEL.DETR.NUM_CLASSES = 133
    # Channels of the transformer and of the mask head's input.
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    # Attention heads; also the number M of box-attention maps per query.
    cfg.MODEL.DETR.NHEADS = 8
    # Dropout probability in attention, feed-forward blocks and residual connections.
    cfg.MODEL.DETR.DROPOUT = 0.1
    # Width of the feed-forward blocks in the transformer.
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    # Number of encoder layers; may be 0.
    cfg.MODEL.DETR.ENC_LAYERS = 6
    # Number of decoder layers, 1 or more.
    cfg.MODEL.DETR.DEC_LAYERS = 6
    # Layer norm before (True) or after (False, as published) attention and feed-forward.
    cfg.MODEL.DETR.PRE_NORM = False
    # Number of queries. An image can have at most this many segments.
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 100

    # Weight of the cross entropy of the classes, and of the class cost in matching.
    cfg.MODEL.DETR.CLASS_WEIGHT = 1.0
    # Weight of the generalized IoU of the boxes, in loss and matching.
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    # Weight of the L1 distance of the boxes, in loss and matching.
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    # Weight of the focal loss of the masks.
    cfg.MODEL.DETR.MASK_WEIGHT = 1.0
    # Weight of the dice loss of the masks.
    cfg.MODEL.DETR.DICE_WEIGHT = 1.0
    # Weight of the no-object class in the cross entropy.
    cfg.MODEL.DETR.NO_OBJECT_WEIGHT = 0.1
    # Weights of classes in the cross entropy: [["rider", 3.0]]. Others have 1.
    cfg.MODEL.DETR.CLASS_WEIGHTS = []
    # Class and box losses after every decoder layer (True) or only after the last one (False).
    cfg.MODEL.DETR.DEEP_SUPERVISION = True

    # Modules that are not trained, such as ("backbone", "transformer.encoder").
    cfg.MODEL.FREEZE = []
    # Train only the mask head and the box attention (second step of the two-step recipe).
    cfg.MODEL.DETR.FREEZE_DETECTOR = False

    cfg.MODEL.DETR.MASK_HEAD = CN()
    # A name in MASK_HEAD_REGISTRY.
    cfg.MODEL.DETR.MASK_HEAD.NAME = "MaskHeadSmallConv"
    # Factor of the box-attention maps of a new mask head: a number, or "auto" for
    # h w sqrt(C M / 3), with which masks learn at once. None: 1, as in official DETR.
    cfg.MODEL.DETR.MASK_HEAD.ATTENTION_SCALE = None

    # Recompute activations of the encoder in the backward pass: less memory, more time.
    cfg.MODEL.DETR.CHECKPOINT_ENCODER = False
    # The same for the mask head.
    cfg.MODEL.DETR.CHECKPOINT_MASK_HEAD = False
    # torch.compile of backbone, transformer and mask head with dynamic shapes.
    cfg.MODEL.DETR.COMPILE = False


def _add_ema_and_test_keys(cfg: CN) -> None:
    cfg.MODEL_EMA = CN()
    # Keep an exponential moving average of the weights, and evaluate it instead of the model.
    cfg.MODEL_EMA.ENABLED = False
    # The average keeps this fraction of itself in each iteration.
    cfg.MODEL_EMA.DECAY = 0.9997
    # The fraction rises from 0 to DECAY with 1 - exp(-iteration / WARMUP). 0: no rise.
    cfg.MODEL_EMA.WARMUP = 2000

    cfg.MODEL.DETR.TEST = CN()
    # A name in PANOPTIC_INFERENCE_REGISTRY.
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "DETRPanopticInference"
    # Average the queries of each image with those of its mirror image at inference.
    cfg.MODEL.DETR.TEST.FLIP = False
    # Whether the model returns "panoptic_seg".
    cfg.MODEL.DETR.TEST.PANOPTIC_ON = True
    # Whether it returns "instances".
    cfg.MODEL.DETR.TEST.INSTANCE_ON = False
    # Whether it returns "sem_seg".
    cfg.MODEL.DETR.TEST.SEMANTIC_ON = False
    # A query is kept if its best object class is more probable than this, and than no-object
    # (except in MaskNMSPanopticInference).
    cfg.MODEL.DETR.TEST.SCORE_THRESH = 0.85
    # Segments with at most this many pixels in the output image are dropped.
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = 4
    # Smallest allowed part of a mask that is not lost to other masks; 0: off. DETR's rule compares
    # after the argmax, as Mask2Former does; mask NMS before it, with the masks of better queries.
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.0
    # Images of different sizes in a batch: run each size on its own (False), so that results do
    # not depend on the batch, or pad them to one size (True) as the official code does.
    cfg.MODEL.DETR.TEST.PAD_MIXED_SIZES = False
    # Images per batch and process during evaluation.
    cfg.MODEL.DETR.TEST.BATCH_SIZE = 1
    # Number of images of DATASETS.TEST that are drawn every VIS_PERIOD (Detectron2's) iterations.
    cfg.TEST.VIS_IMAGES = 4
    # Write the losses on the first dataset of DATASETS.TEST, val/loss_*, at each evaluation.
    cfg.TEST.LOSS = False


def _add_backbone_and_data_keys(cfg: CN) -> None:
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

    # Your datasets: mappings with name, image_root, panoptic_root and panoptic_json, see
    # data.register. Paths in a config file are relative to the folder of the file.
    cfg.DATASETS.REGISTER = []
    # Augmentation: "detr" (None), "lsj", "color" or "flip-rotate", or a list of such names and of
    # Detectron2's augmentations with their arguments: ["detr", ["RandomBrightness", 0.8, 1.2]].
    cfg.INPUT.AUG = None
    # With this probability, "detr" first resizes the short edge to one of CROP.RESIZE_MIN_SIZES and
    # crops to INPUT.CROP.SIZE. Official DETR: 0.5.
    cfg.INPUT.CROP.PROB = 0.5
    # Lengths of the short edge before the crop, in pixels.
    cfg.INPUT.CROP.RESIZE_MIN_SIZES = [400, 500, 600]
    # Round the longer side of resized images down as official DETR does (1066 x 800), not to the
    # nearest as Detectron2 does (1067 x 800).
    cfg.INPUT.OFFICIAL_SIZES = False


def _add_solver_keys(cfg: CN) -> None:
    # "ADAMW" (DETR) or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # The learning rate of each stage of the backbone is that of the next stage times this.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Compute the gradients of each batch in this many parts, which needs less memory.
    # SOLVER.IMS_PER_BATCH stays the whole batch, and an iteration one optimizer step.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.SOLVER.EARLY_STOPPING = CN()
    # Stop after this many evaluations without a better PQ (AP without masks). 0: never.
    cfg.SOLVER.EARLY_STOPPING.PATIENCE = 0
    # A result is better if it exceeds the best one by more than this.
    cfg.SOLVER.EARLY_STOPPING.MIN_DELTA = 0.0
    # Autocast type under SOLVER.AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"


def list_config_files() -> list[str]:
    """Return the names of the configs of the package, sorted, with ``/`` between folders."""
    return sorted(path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.rglob("*.yaml"))


def get_config_file(name: str) -> str:
    """Return the path of a config: a path, or a name below ``configs/``."""
    if Path(name).is_file():
        return name
    names = list_config_files()
    if name not in names:
        raise FileNotFoundError(
            f"No config '{name}', neither in the current directory ({Path.cwd()}) nor in the "
            f"package, which has {', '.join(names)}"
        )
    return str(_CONFIGS / name)


def merged_cfg(config_file: str, opts: list[str] | None = None) -> CN:
    """Merge a config file and ``KEY VALUE`` pairs into the defaults. Nothing else happens.

    Only plain yaml is read. Tags that construct Python objects, which can run code, are refused.

    Args:
        config_file: see :func:`get_config_file`. "": none.
        opts: flat list of keys and values.

    Raises:
        FileNotFoundError: there is no such config.
        UserError: the file is not a config, a key does not exist, or a value has the wrong type.
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
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is not plain yaml with keys and values: {error}") from error
    except (KeyError, AssertionError, ValueError) as error:
        # The message of yacs names key and value.
        message = str(error.args[0])
        key = message.rpartition(" ")[2]
        similar = difflib.get_close_matches(key, _all_keys(cfg), n=1, cutoff=0.8)
        hint = f". Did you mean {similar[0]}?" if "Non-existent" in message and similar else ""
        raise UserError(f"{source}: {message}{hint}") from error
    return cfg


def _all_keys(cfg: CN, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CN):
            yield from _all_keys(value, f"{prefix}{key}.")


class _PlainYaml(CN):
    """Read yaml without Python tags. ``_BASE_`` may be the name of a config of the package."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        path = Path(filename)
        if not path.is_file():
            # fvcore puts the folder of the child config before the name in _BASE_.
            names = (_CONFIGS.joinpath(*path.parts[i:]) for i in range(len(path.parts)))
            path = next(filter(Path.is_file, names), path)
        cfg = super().load_yaml_with_base(str(path), allow_unsafe=False)
        datasets = cfg.get("DATASETS")
        items = datasets.get("REGISTER") if isinstance(datasets, dict) else None
        for item in items if isinstance(items, list) else ():
            # Paths are relative to the folder of the file.
            for key in item.keys() - {"name"} if isinstance(item, dict) else ():
                if isinstance(item[key], str) and item[key] and "://" not in item[key]:
                    item[key] = os.path.abspath(path.parent / os.path.expanduser(item[key]))
        return cfg
