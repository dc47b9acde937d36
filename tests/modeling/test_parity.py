"""The same weights give the same numbers as Hugging Face's DETR and the official formulas.

Hugging Face's network is official DETR's, with one trap: under its ``auxiliary_loss`` it feeds each
decoder layer the normalised output of the one before, which official DETR does not. Here it is off,
and the outputs of the layers are taken with hooks.
"""

import copy
import re

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.data.metadata import dataset_ids
from detr_panoptic_d2.engine import setup_cfg

# The names of modules that are used below came with transformers 5.
transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("timm")

QUERIES = 12
# Rows of Hugging Face's class head: raw category ids, and no-object.
ROWS = 251
STAGES = ["stage1", "stage2", "stage3", "stage4"]
MEAN = torch.tensor([123.675, 116.280, 103.530])[:, None, None]
STD = torch.tensor([58.395, 57.120, 57.375])[:, None, None]
# Of the random weights, such that queries and pixels do not end up alike; the first that is found.
GAINS = {
    r"bbox_attention": 10,
    r"encoder_attn\.[qk]_proj": 6,
    r"_proj\.": 2,
    r"class_labels|bbox_predictor": 2,
    r"output_conv": 3,
    r"mlp|input_projection": 1,
    r"": 2**0.5,
}


def build_theirs(dilation=False, native=False):
    """Hugging Face's model with random weights that matter: no two queries or pixels alike."""
    options = {"use_timm_backbone": True, "backbone": "resnet50", "dilation": dilation}
    if native:
        config = transformers.ResNetConfig(out_features=STAGES)
        options = {"use_timm_backbone": False, "backbone": None, "backbone_config": config}
    config = transformers.DetrConfig(
        use_pretrained_backbone=False,
        num_labels=ROWS - 1,
        num_queries=QUERIES,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        dropout=0.0,
        **options,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.DetrForSegmentation(config)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            randomise(name, tensor)
    return model


def randomise(name, tensor):
    noise = torch.randn(tensor.shape)
    if name.endswith("running_mean"):
        tensor.copy_(0.1 * noise)
    elif name.endswith("running_var"):
        tensor.copy_(1 + 0.3 * noise.tanh())
    elif name.endswith("bias"):
        tensor.copy_(0.2 * noise)
    elif tensor.dim() == 1:
        # The last norm of a residual block stays small: sixteen blocks must not explode.
        last = ".bn3." in name or "layer.2.normalization" in name
        tensor.copy_((0.2 if last else 1.0) + 0.1 * noise)
    elif name.endswith("query_position_embeddings.weight"):
        tensor.copy_(noise)
    else:
        gain = next(gain for pattern, gain in GAINS.items() if re.search(pattern, name))
        tensor.copy_(gain * noise / tensor[0].numel() ** 0.5)
    if name == "mask_head.conv1.conv.weight":
        tensor[:, 256:] *= 300


def build_ours(*options):
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.DETR.NUM_OBJECT_QUERIES": QUERIES,
        "MODEL.DETR.ENC_LAYERS": 2,
        "MODEL.DETR.DEC_LAYERS": 2,
        "MODEL.DETR.DIM_FEEDFORWARD": 128,
        "MODEL.DETR.DROPOUT": 0.0,
    }
    pairs = [x for item in values.items() for x in item]
    return build_model(setup_cfg("detr_panoptic_R50.yaml", [*pairs, *options])).eval()


def load(model, theirs, folder):
    """The weights of a folder that ``save_pretrained`` wrote."""
    theirs.save_pretrained(folder)
    PanopticCheckpointer(model).load(str(folder))
    return model


@torch.no_grad()
def their_outputs(theirs, batch, dtype=torch.float32):
    """Sliced class logits and boxes after every decoder layer, and mask logits after the last."""
    if dtype == torch.float64:
        theirs = copy.deepcopy(theirs).double()
    height, width = (max(x["image"].shape[i] for x in batch) for i in (1, 2))
    pixels = torch.zeros(len(batch), 3, height, width, dtype=dtype)
    mask = torch.zeros(len(batch), height, width)
    for i, x in enumerate(batch):
        h, w = x["image"].shape[1:]
        pixels[i, :, :h, :w] = (x["image"] - MEAN.to(dtype)) / STD.to(dtype)
        mask[i, :h, :w] = 1
    layers = []
    decoder = theirs.detr.model.decoder
    hooks = [
        layer.register_forward_hook(lambda module, args, output: layers.append(output))
        for layer in decoder.layers
    ]
    out = theirs(pixel_values=pixels, pixel_mask=mask)
    for hook in hooks:
        hook.remove()
    hs = decoder.layernorm(torch.stack(layers))
    logits = theirs.detr.class_labels_classifier(hs)
    boxes = theirs.detr.bbox_predictor(hs).sigmoid()
    assert torch.equal(logits[-1], out.logits)
    return logits[..., coco_rows()], boxes, out.pred_masks


def coco_rows():
    return [*dataset_ids(MetadataCatalog.get("coco_2017_train_panoptic")), ROWS - 1]


@torch.no_grad()
def our_outputs(ours, batch):
    found = ours.detect(ours.preprocess(batch))
    image, query = torch.ones(len(batch), QUERIES).nonzero(as_tuple=True)
    masks = ours.predict_masks(found, image, query)
    return found.pred_logits, found.pred_boxes, masks.unflatten(0, (len(batch), QUERIES))


@pytest.fixture
def assert_same(assert_within_rounding):
    """Class logits, boxes and mask logits agree with Hugging Face's within float32 rounding."""

    def check(ours, theirs, batch):
        found = our_outputs(ours, batch)
        reference = their_outputs(theirs, batch)
        exact = their_outputs(theirs, batch, torch.float64)
        names = ("logits", "boxes", "masks")
        for name, *numbers in zip(names, found, reference, exact, strict=True):
            if name != "masks":
                # Of the last decoder layer: inference computes no other.
                numbers = [x[-1] for x in numbers]
            # Numbers that hardly differ from query to query would agree whatever the network does.
            spread = numbers[2].std(1).max()
            assert spread > 200 * (numbers[1] - numbers[2]).abs().max(), name
            assert_within_rounding(*numbers, what=name)

    return check


@pytest.fixture(scope="module")
def theirs():
    return build_theirs()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    return load(build_ours(), theirs, tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def picture(make_input):
    """An input with smooth blobs; of independent pixels a ResNet makes the same everywhere."""

    def make(h, w, seed, **options):
        blobs = 255 * torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
        image = F.interpolate(blobs, (h, w), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
        return {**make_input(h, w, seed=seed, **options), "image": image}

    return make


@pytest.fixture
def one_image(picture):
    return [picture(66, 97, seed=0)]


@pytest.fixture
def mixed_sizes(picture):
    return [picture(45, 70, seed=1), picture(75, 40, seed=2), picture(33, 64, seed=3)]


def test_mixed_sizes(ours, theirs, mixed_sizes, assert_same):
    assert_same(ours, theirs, mixed_sizes)


def test_padded_batch_through_the_whole_model(
    ours, theirs, mixed_sizes, monkeypatch, assert_within_rounding
):
    monkeypatch.setattr(ours, "pad_mixed_sizes", True)
    monkeypatch.setattr(ours, "instance_on", True)
    logits, boxes, _ = their_outputs(theirs, mixed_sizes, torch.float64)
    reference = their_outputs(theirs, mixed_sizes)
    # The best object class, also where no-object is better (official d2/detr/detr.py, inference).
    best, label = logits[-1].softmax(-1)[..., :-1].max(-1)
    rough = reference[0][-1].softmax(-1)[..., :-1].max(-1)[0]
    for i, (x, result) in enumerate(zip(mixed_sizes, ours(mixed_sizes), strict=True)):
        # The 80 things come first in this set's contiguous order.
        things = (label[i] < 80).nonzero()[:, 0]
        order = things[best[i, things].argsort(descending=True)]
        found = result["instances"]
        assert len(found) == len(order) > 0
        assert_within_rounding(found.scores, rough[i, order], best[i, order])
        assert found.pred_classes.tolist() == label[i, order].tolist()
        h, w = x["image"].shape[1:]
        size = torch.tensor([w, h, w, h])
        exact, rounded = (
            torch.minimum((box_convert(b, "cxcywh", "xyxy") * size).clamp(min=0), size)
            for b in (boxes[-1, i, order], reference[1][-1, i, order])
        )
        assert_within_rounding(found.pred_boxes.tensor, rounded, exact)


@pytest.mark.parametrize("name", ["build_detr_resnet_backbone", "build_torchvision_backbone"])
def test_dilated_network(name, mixed_sizes, tmp_path, assert_same):
    theirs = build_theirs(dilation=True)
    options = ["MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.RES5_DILATION", "2"]
    assert_same(load(build_ours(*options), theirs, tmp_path), theirs, mixed_sizes)


def test_hugging_face_own_resnet(one_image, tmp_path, assert_same):
    theirs = build_theirs(native=True)
    assert_same(load(build_ours(), theirs, tmp_path), theirs, one_image)


def test_sum_of_weighted_losses(ours, theirs, picture, assert_within_rounding):
    sizes, classes = [(45, 70), (75, 40), (33, 64)], [[0, 17, 100], [132, 3], [80, 80, 5, 90]]
    batch = [picture(*sizes[i], classes=classes[i], seed=i) for i in range(3)]
    losses = ours.train()(batch)
    ours.eval()
    reference = official_losses(*their_outputs(theirs, batch), batch)
    exact = official_losses(*their_outputs(theirs, batch, torch.float64), batch)
    assert losses.keys() == exact.keys()
    for name, value in exact.items():
        assert_within_rounding(losses[name].detach(), reference[name], value, what=name)


def official_losses(logits, boxes, masks, batch):
    """Losses by the formulas of facebookresearch/detr: models/matcher.py, detr.py, segmentation.py.

    Written anew and the slow way. Masks are padded to the largest of the batch, the padding counts
    as background, and every sum is divided by the number of targets of the batch.
    """
    targets = []
    for x in batch:
        h, w = x["image"].shape[1:]
        corners = x["instances"].gt_boxes.tensor.to(logits.dtype) / torch.tensor([w, h, w, h])
        targets.append((x["instances"].gt_classes, box_convert(corners, "xyxy", "cxcywh")))
    count = sum(len(labels) for labels, _ in targets)
    losses = {}
    for layer in range(len(logits)):
        suffix = "" if layer == len(logits) - 1 else f"_{layer}"
        wanted = torch.full(logits.shape[1:3], logits.shape[-1] - 1)
        l1, giou, pairs = 0.0, 0.0, []
        for i, (labels, truth) in enumerate(targets):
            rows, columns = match(logits[layer, i], boxes[layer, i], labels, truth)
            wanted[i, rows] = labels[columns]
            l1 = l1 + (boxes[layer, i, rows] - truth[columns]).abs().sum()
            giou = giou + (1 - paired_giou(boxes[layer, i, rows], truth[columns]).diag()).sum()
            pairs += [(i, row, column) for row, column in zip(rows, columns, strict=True)]
        weight = torch.ones(logits.shape[-1], dtype=logits.dtype)
        weight[-1] = 0.1
        losses[f"loss_ce{suffix}"] = F.cross_entropy(logits[layer].transpose(1, 2), wanted, weight)
        losses[f"loss_bbox{suffix}"] = 5 * l1 / count
        losses[f"loss_giou{suffix}"] = 2 * giou / count
    canvas = [max(x["image"].shape[k] for x in batch) for k in (1, 2)]
    focal, dice = 0.0, 0.0
    for i, row, column in pairs:
        truth = torch.zeros(canvas, dtype=masks.dtype)
        mask = batch[i]["instances"].gt_masks.tensor[column]
        truth[: mask.shape[0], : mask.shape[1]] = mask.to(masks.dtype)
        full = F.interpolate(masks[i, row][None, None], canvas, mode="bilinear")[0, 0]
        focal = focal + sigmoid_focal_loss(full, truth, alpha=0.25, gamma=2, reduction="mean")
        p = full.sigmoid()
        dice = dice + 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    return {**losses, "loss_mask": focal / count, "loss_dice": dice / count}


def match(logits, boxes, labels, truth):
    cost = -logits.softmax(-1)[:, labels] + 5 * torch.cdist(boxes, truth, p=1)
    return linear_sum_assignment(cost - 2 * paired_giou(boxes, truth))


def paired_giou(boxes, truth):
    return generalized_box_iou(*(box_convert(x, "cxcywh", "xyxy") for x in (boxes, truth)))
