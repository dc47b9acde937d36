"""Our models under test: one set of random weights, with and without masks."""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from ..errors import UserError
from ..modeling.mask_head import MaskHeadSmallConv
from ..modeling.transformer import MultiheadAttention

_NORMS = (
    FrozenBatchNorm2d,
    TorchvisionFrozenBatchNorm2d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    NaiveSyncBatchNorm,
)
# Spread over queries of what a trained model gives: class logits, attention logits, mask logits.
_CLASS_SPREAD, _ATTENTION_SPREAD, _MASK_SPREAD = 4.0, 3.0, 4.0
# With the usual start all queries look at the same places.
_QUERY_SCALE = 20.0


def build_panoptic(cfg: CfgNode, images: list[dict]) -> nn.Module:
    """The config's model with random weights that behave like trained ones, in eval mode.

    Args:
        cfg: from :func:`detr_panoptic_d2.engine.setup_cfg`; ``MODEL.WEIGHTS`` is not read.
        images: batched inputs to set the scales by.

    Raises:
        UserError: the config has no masks.
    """
    if not (cfg.MODEL.MASK_ON and cfg.MODEL.DETR.TEST.PANOPTIC_ON):
        raise UserError(
            "the benchmark compares panoptic with boxes alone by itself: MODEL.MASK_ON and "
            "MODEL.DETR.TEST.PANOPTIC_ON must be True"
        )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    calibrate(model, images)
    return model


def build_boxes(cfg: CfgNode, panoptic: nn.Module) -> nn.Module:
    """The same detector with the same weights, without masks, in eval mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = False
    test = cfg.MODEL.DETR.TEST
    test.PANOPTIC_ON, test.SEMANTIC_ON, test.INSTANCE_ON = False, False, True
    cfg.MODEL.DETR.FREEZE_DETECTOR = False
    model = build_model(cfg).eval()
    weights = panoptic.state_dict()
    model.load_state_dict({key: weights[key] for key in model.state_dict()})
    return model


def build_not_compiled(cfg: CfgNode, panoptic: nn.Module) -> nn.Module:
    """The same model with the same weights, without ``torch.compile``, in eval mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.COMPILE = False
    model = build_model(cfg).eval()
    model.load_state_dict(panoptic.state_dict())
    return model


def keep_best(model: nn.Module, kept: int) -> None:
    """Let the model's inference hook keep the ``kept`` best queries of every image.

    Random weights would keep none or all.

    Raises:
        UserError: the model has fewer queries.
    """
    queries = model.query_embed.num_embeddings
    if not 0 < kept <= queries:
        raise UserError(f"--kept is {kept}, but must lie in 1..{queries}, the number of queries")
    model.panoptic_inference.keep = functools.partial(best_queries, kept=kept)


def best_queries(pred_logits: torch.Tensor, kept: int) -> torch.Tensor:
    """B x N bool: the queries whose best class has the highest probabilities of the image."""
    scores = pred_logits.float().softmax(-1).amax(-1)
    best = scores.topk(kept, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


@torch.no_grad()
def calibrate(model: nn.Module, images: list[dict]) -> None:
    """Scale random weights so that activations look like a trained model's.

    Batch norms get the statistics of the images, attention maps become peaked, queries differ in
    class and mask, and no query is no-object. No amount of work depends on it, but without it
    values explode through frozen norms, and all masks are the same.

    Args:
        model: ``PanopticDETR`` with a mask head, in eval mode.
        images: batched inputs.
    """
    model.query_embed.weight *= _QUERY_SCALE
    canvas = model.preprocess(images)
    with _statistics_from_input(model.backbone):
        model.backbone(canvas.tensor)
    out = model.detect(canvas)

    classes = model.class_embed
    hs = out.hs[-1].flatten(0, 1)
    classes.weight *= _CLASS_SPREAD / (hs @ classes.weight.T).std(0).mean()
    classes.bias.copy_(-classes.weight @ hs.mean(0))
    classes.bias[-1] -= 10 * _CLASS_SPREAD

    attention = model.bbox_attention
    attention.q_linear.bias.copy_(-attention.q_linear.weight @ hs.mean(0))
    maps = attention(out.hs[-1], out.memory, out.padding)
    scale = _ATTENTION_SPREAD / maps.clamp(min=1e-30).log().flatten(2).std(-1).mean()
    attention.q_linear.weight *= scale
    attention.q_linear.bias *= scale

    head = model.mask_head
    if not isinstance(head, MaskHeadSmallConv):
        return
    maps = attention(out.hs[-1], out.memory, out.padding).flatten(0, 1)
    weight = head.lay1.weight
    from_image = F.conv2d(out.src_proj, weight[:, : head.hidden_dim], padding=1).std()
    from_query = F.conv2d(maps, weight[:, head.hidden_dim :], padding=1).std()
    weight[:, head.hidden_dim :] *= from_image / from_query
    image, query = (torch.arange(n, dtype=torch.long) for n in out.hs.shape[1:3])
    pairs = torch.cartesian_prod(image, query[: min(len(query), 8)])
    masks = model.predict_masks(out, pairs[:, 0], pairs[:, 1])
    scale = _MASK_SPREAD / masks.std()
    head.out_lay.weight *= scale
    head.out_lay.bias -= masks.mean()
    head.out_lay.bias *= scale


@contextmanager
def _statistics_from_input(module: nn.Module) -> Iterator[None]:
    """Give every norm that runs in here the statistics of its input."""

    def fit(norm, args):
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3)).clamp(min=1e-6))

    norms = [m for m in module.modules() if isinstance(m, _NORMS)]
    handles = [norm.register_forward_pre_hook(fit) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def no_dropout(model: nn.Module) -> AbstractContextManager[None]:
    """Switch every dropout of a model off, in training mode as well."""
    switches = [(m, "p") for m in model.modules() if isinstance(m, nn.Dropout)]
    switches += [(m, "dropout") for m in model.modules() if isinstance(m, MultiheadAttention)]
    return _zeros(switches)


def fixed_statistics(model: nn.Module) -> AbstractContextManager[None]:
    """Let batch norms that are trained leave their running statistics as they are."""
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return _zeros([(m, "momentum") for m in model.modules() if isinstance(m, norms)])


@contextmanager
def _zeros(switches: list[tuple[nn.Module, str]]) -> Iterator[None]:
    """Set attributes to 0 for a while."""
    before = [getattr(m, name) for m, name in switches]
    try:
        for m, name in switches:
            setattr(m, name, 0.0)
        yield
    finally:
        for (m, name), value in zip(switches, before, strict=True):
            setattr(m, name, value)
