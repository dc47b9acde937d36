"""Inputs made by seed: images, segments and mask logits that look like real ones to the code."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes


def make_images(
    batch: int, size: tuple[int, int], output: tuple[int, int], device: torch.device
) -> list[dict]:
    """Detectron2's batched inputs: smooth random pictures on the device.

    Args:
        batch: number of images.
        size: (H, W) of the images.
        output: ``height`` and ``width`` that results are wanted in.
        device: where the images lie.
    """
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, 12, 16, generator=generator)
    pictures = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    pictures = pictures + 0.05 * torch.randn(pictures.shape, generator=generator)
    pictures = (255 * pictures).clamp(0, 255).to(torch.uint8).to(device)
    return [{"image": x, "height": output[0], "width": output[1]} for x in pictures]


def make_label_map(
    segments: int, size: tuple[int, int], generator: torch.Generator
) -> torch.Tensor:
    """H x W int64 labels 0 to ``segments - 1``: cells around random centres."""
    centres = torch.rand(segments, 2, generator=generator)
    y = (torch.arange(size[0]) + 0.5)[:, None, None] / size[0]
    x = (torch.arange(size[1]) + 0.5)[None, :, None] / size[1]
    wobble = 0.03 * torch.sin(20 * x + 7 * y)
    distance = (y + wobble - centres[:, 0]) ** 2 + (x + wobble - centres[:, 1]) ** 2
    return distance.argmin(-1)


def add_segments(
    images: list[dict], segments: int, num_classes: int, with_masks: bool = True
) -> list[dict]:
    """The images with ``instances``: every pixel belongs to one of some random segments.

    Args:
        images: from :func:`make_images`; not changed.
        segments: per image.
        num_classes: K; classes are random.
        with_masks: add ``gt_masks``.
    """
    generator = torch.Generator().manual_seed(2)
    result = []
    for x in images:
        size = tuple(x["image"].shape[-2:])
        labels = make_label_map(segments, size, generator)
        masks = labels[None] == torch.unique(labels)[:, None, None]
        instances = Instances(size)
        instances.gt_classes = torch.randint(num_classes, (len(masks),), generator=generator)
        instances.gt_boxes = Boxes(masks_to_boxes(masks))
        if with_masks:
            instances.gt_masks = BitMasks(masks)
        result.append({**x, "instances": instances.to(x["image"].device)})
    return result


def make_blobs(
    queries: int, duplicates: int, grid: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Mask logits Q x h x w: smooth hills over random places, negative elsewhere.

    Args:
        queries: Q.
        duplicates: how many of them are weaker copies of others, which win no pixel.
        grid: (h, w).
        device: where they lie.
    """
    generator = torch.Generator().manual_seed(3)
    centre = torch.rand(queries, 2, 1, 1, generator=generator)
    width = 0.08 + 0.2 * torch.rand(queries, 2, 1, 1, generator=generator)
    y = (torch.arange(grid[0]) + 0.5)[:, None] / grid[0]
    x = (torch.arange(grid[1]) + 0.5)[None, :] / grid[1]
    logits = 6 - ((y - centre[:, 0]) / width[:, 0]) ** 2 - ((x - centre[:, 1]) / width[:, 1]) ** 2
    logits = logits.clamp(min=-12) + 0.2 * torch.randn(logits.shape, generator=generator)
    for i in range(duplicates):
        logits[queries - 1 - i] = logits[i] - 0.5
    return logits.to(device)
