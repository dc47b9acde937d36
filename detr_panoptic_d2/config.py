"""Config keys of the project. Names shared with the official DETR ``d2/`` keep their meaning."""

from detectron2.config import CfgNode as CN


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
    cfg.MODEL.DETR.DROPOUT = 0.1
    # Width of the feed-forward blocks in the transformer.
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    cfg.MODEL.DETR.ENC_LAYERS = 6
    cfg.MODEL.DETR.DEC_LAYERS = 6
    # Layer norm before attention and feed-forward (True) or after (False, the published models).
    cfg.MODEL.DETR.PRE_NORM = False
    # Queries N: the most segments one image can have.
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 100

    # Loss weights. Class, L1 and GIoU are the matching costs as well.
    cfg.MODEL.DETR.CLASS_WEIGHT = 1.0
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    cfg.MODEL.DETR.MASK_WEIGHT = 1.0
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
    # Memory in MiB that the activations of one chunk of queries may take at inference.
    cfg.MODEL.DETR.MASK_HEAD.CHUNK_MB = 256

    # Recompute activations in the backward pass instead of keeping them: less memory, more time.
    cfg.MODEL.DETR.CHECKPOINT_ENCODER = False
    cfg.MODEL.DETR.CHECKPOINT_MASK_HEAD = False
    # torch.compile of backbone, transformer and mask head with dynamic shapes.
    cfg.MODEL.DETR.COMPILE = False


def _add_test_keys(cfg: CN) -> None:
    cfg.MODEL.DETR.TEST = CN()
    # A name in PANOPTIC_INFERENCE_REGISTRY.
    cfg.MODEL.DETR.TEST.PANOPTIC_INFERENCE = "DETRPanopticInference"
    # Which of "panoptic_seg", "instances" and "sem_seg" the model returns.
    cfg.MODEL.DETR.TEST.PANOPTIC_ON = True
    cfg.MODEL.DETR.TEST.INSTANCE_ON = False
    cfg.MODEL.DETR.TEST.SEMANTIC_ON = False
    # A query is kept if its best class is an object of at least this probability.
    cfg.MODEL.DETR.TEST.SCORE_THRESH = 0.85
    # Segments of this many pixels and less are dropped (in the output image).
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = 4
    # Drop segments that win less than this share of their own mask (Mask2Former's rule). 0: off.
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.0
    # Images of different sizes in one inference batch: False runs each size on its own, so that a
    # result never depends on the batch; True pads them to one canvas as the official code does.
    cfg.MODEL.DETR.TEST.PAD_MIXED_SIZES = False
    # Images per batch and process during evaluation.
    cfg.MODEL.DETR.TEST.BATCH_SIZE = 1
    # Detectron2's VIS_PERIOD: every so many iterations, truth and prediction of this many images of
    # DATASETS.TEST go to TensorBoard and to OUTPUT_DIR/pictures. VIS_PERIOD 0, the default: never.
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
    # Stage widths and blocks per stage of build_narrow_resnet_backbone.
    cfg.MODEL.DETR.BACKBONE.WIDTHS = [16, 32, 64, 128]
    cfg.MODEL.DETR.BACKBONE.BLOCKS = [1, 1, 1, 1]
    # Detectron2's Swin transformer (build_swin_backbone, wrapped by build_renamed_backbone with
    # FEATURES p0 to p3). These are Swin-T.
    cfg.MODEL.DETR.BACKBONE.SWIN = CN()
    # Channels of the first stage; each further stage doubles them.
    cfg.MODEL.DETR.BACKBONE.SWIN.EMBED_DIM = 96
    # Blocks and attention heads per stage.
    cfg.MODEL.DETR.BACKBONE.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.DETR.BACKBONE.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # Side of an attention window, in cells.
    cfg.MODEL.DETR.BACKBONE.SWIN.WINDOW_SIZE = 7
    # Probability of skipping the last block in training; it grows linearly from 0.
    cfg.MODEL.DETR.BACKBONE.SWIN.DROP_PATH_RATE = 0.2


def _add_data_keys(cfg: CN) -> None:
    # User data sets, registered when the config is set up. Each item is a mapping with the keys
    # name, image_root, panoptic_root, panoptic_json.
    cfg.DATASETS.REGISTER = []
    # Horizontal flip and multi-scale resizing are Detectron2's INPUT keys. In addition, with this
    # probability: resize the short edge to one of CROP.RESIZE_MIN_SIZES, take an absolute-range
    # crop of INPUT.CROP.SIZE (min, max), then resize as without it. Official DETR: 0.5.
    cfg.INPUT.CROP.PROB = 0.5
    cfg.INPUT.CROP.RESIZE_MIN_SIZES = [400, 500, 600]


def _add_solver_keys(cfg: CN) -> None:
    # "ADAMW" (DETR) or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Autocast type under SOLVER.AMP.ENABLED: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
