"""Pictures of the stages that belong to the image: from the padded input to the memory."""

import math

import numpy as np
import torch

from .context import Context, Stage, array, shape
from .figures import Panel, columns_for, draw_sheet, in_rows

_FEATURES = ("res2", "res3", "res4", "res5")


def image_stages(c: Context) -> list[Stage]:
    """The stages in order."""
    return [
        _input(c),
        _padding(c),
        _backbone(c),
        _projection(c),
        _position(c),
        _encoder_attention(c),
        _memory(c),
    ]


def _per_image(c: Context, name: str, panels: list[Panel], **options) -> dict[str, bytes]:
    """One picture of panels side by side, as many as fit."""
    columns = columns_for(len(panels), c.width, options.pop("least", 150))
    png = draw_sheet(in_rows(panels, columns), c.aspect, width=c.width, **options)
    return {f"{name}.png": png}


def _input(c: Context) -> Stage:
    panels = []
    for i, picture in enumerate(c.inputs):
        title = f"{c.prefix(i)}{picture.shape[0]} x {picture.shape[1]} pixels"
        if picture.shape[:2] != c.canvas:
            title += " (striped: padding)"
        panels.append(Panel(c.padded(i), title))
    return Stage(
        "01_input",
        "Padded input",
        "The images, resized and normalised, on one canvas. Padding lies to the right and below "
        "and is zero after normalisation.",
        [("images", shape(c.recording.images.tensor))],
        _per_image(c, "01_input", panels, least=240, most=480),
    )


def _padding(c: Context) -> Stage:
    stage = Stage(
        "02_padding_mask",
        "Padding mask",
        "Which cells of res5 are padding. The position encoding does not count them and no "
        "attention looks at them.",
        [],
    )
    padding = c.recording.detections.padding
    if padding is None:
        stage.shapes.append(("padding", "None: the images fill the canvas"))
        return stage
    stage.shapes.append(("padding", shape(padding)))
    panels = []
    for i in range(c.batch):
        count = int(padding[i].sum())
        title = f"{c.prefix(i)}{count} of {padding[i].numel()} cells are padding (yellow)"
        panels.append(Panel(array(padding[i]), title, "cividis", (0, 1)))
    stage.pictures = _per_image(c, stage.name, panels, least=240)
    return stage


def _backbone(c: Context) -> Stage:
    features = c.recording.detections.features
    rows, labels = [], []
    for i in range(c.batch):
        row = []
        for name in _FEATURES:
            x = features[name][i]
            title = f"{name}: {x.shape[1]} x {x.shape[2]}"
            row.append(Panel(array(x.mean(0)), title, "cividis", bar=True))
        rows.append(row)
        labels.append(f"image {i + 1}")
    png = draw_sheet(
        rows, c.aspect, width=c.width, row_labels=labels if c.batch > 1 else None, most=300
    )
    return Stage(
        "03_backbone",
        "Backbone features res2 to res5",
        "What the backbone makes of the images at four resolutions; the pictures show the mean "
        "over the channels. Only res5 goes into the transformer, res4 to res2 wait for the mask "
        "head.",
        [(name, shape(features[name])) for name in _FEATURES],
        {"03_backbone.png": png},
    )


def _projection(c: Context) -> Stage:
    return Stage(
        "04_projection",
        "Projected res5",
        "A 1x1 convolution brings res5 to the transformer's width C. Its cells, one after the "
        "other, are the encoder's sequence; the mask head takes the same tensor again.",
        [("src_proj", shape(c.recording.detections.src_proj))],
    )


def _position(c: Context) -> Stage:
    position = c.recording.position
    half = position.shape[1] // 2
    # Channel 0 turns once over the image. The other one of each axis turns a quarter of that.
    slow = 2 * round(half / 2 * math.log(4) / math.log(10000))
    chosen = [("y", 0), ("y", slow), ("x", half), ("x", half + slow)]
    rows, labels = [], []
    for i in range(position.shape[0]):
        panels = [
            Panel(array(position[i, k]), f"channel {k} (of {axis})", "PuOr", (-1, 1), bar=True)
            for axis, k in chosen
        ]
        rows.append(panels)
        labels.append(f"image {i + 1}")
    png = draw_sheet(
        rows,
        c.aspect,
        width=c.width,
        row_labels=labels if len(rows) > 1 else None,
        most=300,
    )
    return Stage(
        "05_position_encoding",
        "Position encoding",
        "Sines and cosines of the row (first half of the channels) and of the column (second "
        "half), counted over the cells that are not padding. It is added to queries and keys of "
        "every attention. The picture shows four channels.",
        [("position", shape(position))],
        {"05_position_encoding.png": png},
    )


def _encoder_attention(c: Context) -> Stage:
    calls = c.recording.encoder
    stage = Stage(
        "06_encoder_attention",
        "Encoder self-attention",
        "Where a cell looks. Each row is one point (ring), each column one encoder layer; weights "
        "are the mean over the heads and sum to 1 over the map. Every map has its own scale.",
        [],
    )
    if not calls:
        stage.shapes.append(("weights", "MODEL.DETR.ENC_LAYERS is 0: there is no encoder"))
        return stage
    grid = tuple(c.recording.detections.src_proj.shape[-2:])
    cells, heads = grid[0] * grid[1], calls[0].module.nheads
    stage.shapes.append(
        (f"weights of each layer ({len(calls)} in all)", shape((c.batch, heads, cells, cells)))
    )
    rows, labels = [], []
    for i, points in enumerate(c.points):
        index = torch.tensor([c.cell(i, p, grid) for p in points])
        maps = [call.weights(i, index).mean(0).view(-1, *grid) for call in calls]
        for k, point in enumerate(points):
            ring = [c.on_canvas(i, *point)]
            height, width = c.originals[i].shape[:2]
            x, y = round(point[0] * width - 0.5), round(point[1] * height - 0.5)
            row = [Panel(c.padded(i), "the point", points=ring)]
            row += [
                Panel(array(m[k]), f"layer {n + 1}", "viridis", bar=True, points=ring)
                for n, m in enumerate(maps)
            ]
            rows.append(row)
            labels.append(f"{c.prefix(i)}\nx {x}, y {y}")
    png = draw_sheet(rows, c.aspect, width=c.width, row_labels=labels, most=240)
    stage.pictures = {"06_encoder_attention.png": png}
    return stage


def _memory(c: Context) -> Stage:
    memory = c.recording.detections.memory
    components = principal_components(memory, c.recording.detections.padding)
    rows, labels = [], []
    for i in range(c.batch):
        panels = [Panel(array(memory[i].norm(dim=0)), "length of the vector", "cividis", bar=True)]
        panels += [
            Panel(component, f"principal component {k + 1}", "PuOr", _symmetric(component), True)
            for k, component in enumerate(components[i])
        ]
        rows.append(panels)
        labels.append(f"image {i + 1}")
    png = draw_sheet(
        rows, c.aspect, width=c.width, row_labels=labels if c.batch > 1 else None, most=300
    )
    return Stage(
        "07_memory",
        "Memory: the encoded image",
        "The encoder's output, one vector per cell. Cells of one object get similar vectors: the "
        "first principal components often show the segments already.",
        [("memory", shape(memory))],
        {"07_memory.png": png},
    )


def principal_components(
    memory: torch.Tensor, padding: torch.Tensor | None, count: int = 3
) -> np.ndarray:
    """Coordinates of each cell along the directions of greatest variance.

    Args:
        memory: B x C x h x w.
        padding: B x h x w bool, or None.
        count: number of directions.

    Returns:
        B x count x h x w; NaN on padding.
    """
    x = memory.float().permute(0, 2, 3, 1)
    valid = torch.ones(x.shape[:3], dtype=torch.bool) if padding is None else ~padding
    valid = valid.to(x.device)
    cells = x[valid] - x[valid].mean(0)
    directions = torch.linalg.eigh(cells.T @ cells)[1].flip(1)[:, :count]
    # An eigenvector's sign means nothing: make its largest entry positive, the same every time.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    out = x.new_full((*x.shape[:3], count), float("nan"))
    out[valid] = cells @ (directions * largest.sign())
    return array(out.permute(0, 3, 1, 2))


def _symmetric(values: np.ndarray) -> tuple[float, float]:
    most = float(np.nanmax(np.abs(values)))
    return -max(most, 1e-6), max(most, 1e-6)
