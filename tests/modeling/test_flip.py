"""Averaging an image with its mirror image."""

import pytest
import torch

from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.modeling.flip import average_views, mirror_masks
from detr_panoptic_d2.modeling.structures import Frame

# Without padding.
FRAME = Frame((16, 24), (16, 24), (16, 24))


def test_a_mirrored_image_gives_the_mirrored_result(tiny_model, make_input):
    options = ["MODEL.DETR.TEST.INSTANCE_ON", False, "MODEL.DETR.TEST.SCORE_THRESH", 0.3]
    options += ["MODEL.DETR.TEST.PANOPTIC_INFERENCE", "MaskNMSPanopticInference"]
    maps = {}
    for flip in (True, False):
        model = tiny_model(*options, "MODEL.DETR.TEST.FLIP", flip)
        for seed in range(3):
            image = make_input(64, 96, seed=seed)["image"]
            for mirrored in (False, True):
                x = {"image": image.flip(-1) if mirrored else image, "height": 50, "width": 72}
                (result,) = model([x])
                ids, segments = result["panoptic_seg"]
                categories = torch.tensor([-1, *(s["category_id"] for s in segments)])[ids.long()]
                maps[flip, seed, mirrored] = categories.flip(-1) if mirrored else categories
    equal = {
        flip: [(maps[flip, i, False] == maps[flip, i, True]).float().mean() for i in range(3)]
        for flip in (True, False)
    }
    # Pixels of equal masks may go to either query.
    assert min(equal[True]) > 0.95 > min(equal[False])


def test_matched_queries_are_averaged_and_others_are_halved():
    masks = torch.full((3, 4, 6), -2.0)
    masks[0, :2], masks[1, 2:], masks[2, :, :1] = 2.0, 2.0, 2.0
    first = torch.tensor([[0.8, 0.0, 0.2], [0.0, 0.6, 0.4]])
    second = torch.tensor([[0.0, 0.4, 0.6], [0.5, 0.0, 0.5]])
    probabilities, logits = average_views(first, masks[:2], second, 2 * masks[1:], FRAME)
    expected = [[0.4, 0.0, 0.6], [0.0, 0.5, 0.5], [0.25, 0.0, 0.75]]
    torch.testing.assert_close(probabilities, torch.tensor(expected))
    torch.testing.assert_close(logits, torch.stack([masks[0], 1.5 * masks[1], 2 * masks[2]]))
    none = average_views(first[:0], masks[:0], second[:0], masks[:0], FRAME)
    assert [len(x) for x in none] == [0, 0]


@pytest.mark.parametrize("width", [20, 18, 24])
def test_masks_are_mirrored_within_the_image(width):
    """Not within the canvas: the padding stays on the right. 18 pixels are 4.5 of 6 cells."""
    centers = torch.arange(6) * 4 + 2.0
    masks = (3 * centers)[None, None].expand(1, 4, 6)
    frame = Frame((16, 24), (16, width), (16, width))
    visible = centers <= width - 2
    expected = 3 * (width - centers)[visible]
    torch.testing.assert_close(mirror_masks(masks, frame)[0, 0, visible], expected)


def test_views_of_a_padded_image_are_aligned(tiny_model, make_input, monkeypatch):
    """The mask head is replaced by one that gives each view the same masks in the image."""
    model = tiny_model("MODEL.DETR.TEST.FLIP", True, "MODEL.DETR.TEST.SCORE_THRESH", 0.0)
    # A canvas of 64 x 96, with 24 columns of cells, 18 of them in the image.
    monkeypatch.setattr(type(model.backbone), "size_divisibility", 32)

    def predict_masks(detections, image_index, query_index):
        # Query 0 covers the first 8 columns of the image, the other queries the rest.
        column = torch.arange(24)
        first = torch.stack([column < 8, column >= 10])[image_index]
        covered = first == (query_index == 0)[:, None]
        return (8.0 * covered - 4)[:, None].expand(-1, 16, -1)

    monkeypatch.setattr(model, "predict_masks", predict_masks)
    averages = []
    model.panoptic_inference.register_forward_pre_hook(lambda _, args: averages.append(args[0]))
    model([make_input(64, 72)])
    # The average of two different masks would have values between.
    assert (averages[0][..., :18].abs() == 4).all()


def test_other_outputs_are_refused(tiny_model):
    with pytest.raises(UserError, match="FLIP is True, but must be .* INSTANCE_ON"):
        tiny_model("MODEL.DETR.TEST.FLIP", True, "MODEL.DETR.TEST.INSTANCE_ON", True)
