"""Our networks with random weights that behave like trained ones, and inputs."""

import functools

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d
from torchvision.ops import masks_to_boxes

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError

_NORMS = (FrozenBatchNorm2d, TorchvisionFrozenBatchNorm2d, nn.BatchNorm2d)


def build(config_file: str, opts: list[str], device: torch.device, masks: bool = True) -> nn.Module:
    """Our network by seed, in eval mode; with and without masks its other weights are the same.

    Args:
        config_file: path, or name of a shipped config. ``MODEL.WEIGHTS`` is not read.
        opts: config keys and values.
        device: where it runs.
        masks: False: boxes alone.

    Raises:
        UserError: the config does not fit.
    """
    cfg = setup_cfg(config_file, [*map(str, opts), "MODEL.DEVICE", device.type])
    if not (cfg.MODEL.MASK_ON and cfg.MODEL.DETR.TEST.PANOPTIC_ON):
        raise UserError(
            "Panoptic and boxes are compared anyway: set MODEL.MASK_ON and "
            "MODEL.DETR.TEST.PANOPTIC_ON to True."
        )
    torch.manual_seed(0)
    panoptic = build_model(cfg).eval()
    calibrate(panoptic, make_images(1, (480, 640), device))
    if masks:
        return panoptic
    cfg.defrost()
    cfg.MODEL.MASK_ON = cfg.MODEL.DETR.FREEZE_DETECTOR = False
    test = cfg.MODEL.DETR.TEST
    test.PANOPTIC_ON, test.SEMANTIC_ON, test.INSTANCE_ON = False, False, True
    boxes = build_model(cfg).eval()
    weights = panoptic.state_dict()
    boxes.load_state_dict({name: weights[name] for name in boxes.state_dict()})
    return boxes


@torch.no_grad()
def calibrate(model: nn.Module, images: list[dict]) -> None:
    """Scale random weights so that activations look like a trained model's.

    Batch norms get the statistics of the images, attention maps become peaked, queries differ in
    class and mask, and none is no-object. No amount of work depends on it, but without it values
    explode through frozen norms, and all masks are the same.
    """

    def set_statistics(norm, args):
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3)).clamp(min=1e-6))

    norms = [m for m in model.backbone.modules() if isinstance(m, _NORMS)]
    handles = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    model.query_embed.weight *= 20
    hs = model.detect(model.preprocess(images)).hs[-1].flatten(0, 1)
    for handle in handles:
        handle.remove()
    for linear in (model.class_embed, model.bbox_attention.q_linear):
        linear.weight *= 4 / (hs @ linear.weight.T).std(0).mean()
        linear.bias.copy_(-linear.weight @ hs.mean(0))
    model.class_embed.bias[-1] -= 40


def keep_best(model: nn.Module, kept: int) -> None:
    """Keep the ``kept`` best queries of every image: a threshold on random weights keeps all.

    Raises:
        UserError: the model has fewer queries.
    """
    queries = model.query_embed.num_embeddings
    if not 0 < kept <= queries:
        raise UserError(f"--kept is {kept}, but must be from 1 to {queries}, the queries.")
    model.panoptic_inference.keep = functools.partial(best_queries, kept=kept)


def best_queries(pred_logits: torch.Tensor, kept: int) -> torch.Tensor:
    """B x N bool: the queries whose best class is the most probable of the image."""
    scores = pred_logits.float().softmax(-1).amax(-1)
    best = scores.topk(kept, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def make_images(batch: int, size: tuple[int, int], device: torch.device) -> list[dict]:
    """Detectron2's batched inputs: smooth random pictures of H x W on the device.

    Results are wanted at 0.6 of the size: 480 rows for 800, as for a COCO image.
    """
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, 12, 16, generator=generator)
    pictures = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    pictures = pictures + 0.05 * torch.randn(pictures.shape, generator=generator)
    pictures = (255 * pictures).clamp(0, 255).to(torch.uint8).to(device)
    height, width = (round(0.6 * side) for side in size)
    return [{"image": x, "height": height, "width": width} for x in pictures]


def add_segments(images: list[dict], segments: int, num_classes: int) -> list[dict]:
    """The images with ``instances``: every pixel belongs to one of some random segments."""
    generator = torch.Generator().manual_seed(2)
    result = []
    for x in images:
        size = tuple(x["image"].shape[-2:])
        centres = torch.rand(segments, 2, generator=generator)
        rows = (torch.arange(size[0]) + 0.5)[:, None, None] / size[0]
        columns = (torch.arange(size[1]) + 0.5)[None, :, None] / size[1]
        labels = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2).argmin(-1)
        masks = labels[None] == torch.unique(labels)[:, None, None]
        instances = Instances(size)
        instances.gt_classes = torch.randint(num_classes, (len(masks),), generator=generator)
        instances.gt_boxes = Boxes(masks_to_boxes(masks))
        instances.gt_masks = BitMasks(masks)
        result.append({**x, "instances": instances.to(x["image"].device)})
    return result
