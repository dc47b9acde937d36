"""Pictures of the stages that belong to the queries: from the decoder to the panoptic result."""

import numpy as np
import torch

from ...data.metadata import thing_class_ids
from ...modeling.panoptic_inference import build_panoptic_inference
from ...visualization.draw import draw_panoptic
from ...visualization.visualizer import class_name
from .context import Context, Stage, array, shape
from .figures import Panel, SharedBar, columns_for, draw_sheet, in_rows
from .recorder import ImageRecord, Panoptic


def query_stages(c: Context) -> list[Stage]:
    """The stages in order."""
    stages = [
        _boxes(c),
        _cross_attention(c),
        _box_attention(c),
        _mask_head_steps(c),
        _mask_logits(c),
        _argmax(c),
        _merged(c),
    ]
    notes = [
        f"{c.prefix(i)}{note}" for i, r in enumerate(c.recording.per_image) if (note := c.note(r))
    ]
    for stage in stages:
        stage.text = " ".join([stage.text, *notes])
    return [*stages, _panoptic(c)]


def _boxes(c: Context) -> Stage:
    panels = []
    for i, record in enumerate(c.recording.per_image):
        titles = c.query_titles(record)
        boxes = c.query_boxes(i, range(len(titles)))
        # On the upper edges; where two would overlap, the better query keeps the place.
        texts = [
            ((box[0] + box[2]) / 2, box[1], titles[k])
            for k in c.by_score(record)
            for box, _ in [boxes[k]]
        ]
        panels.append(Panel(c.padded(i), c.prefix(i).rstrip(": "), boxes=boxes, texts=texts))
    detections = c.recording.detections
    columns = columns_for(len(panels), c.width, 300)
    png = draw_sheet(in_rows(panels, columns), c.aspect, width=c.width, most=560)
    return Stage(
        "08_queries",
        "Decoder: queries, classes and boxes",
        "Each of the N queries comes out of the decoder as a vector; two small heads read its "
        "class (or no-object) and box from it. Only queries whose best class is an object of at "
        "least SCORE_THRESH go on. q is the query's number, then its class and score; its colour "
        "is the same in all pictures.",
        [
            ("hs", shape(detections.hs)),
            ("pred_logits", shape(detections.pred_logits)),
            ("pred_boxes", shape(detections.pred_boxes)),
            *(
                (f"queries that go on, image {i + 1}", str(len(r.queries) if r.kept else 0))
                for i, r in enumerate(c.recording.per_image)
            ),
        ],
        {"08_queries.png": png},
    )


def _cross_attention(c: Context) -> Stage:
    call = c.recording.decoder[-1]
    grid = tuple(c.recording.detections.src_proj.shape[-2:])
    stage = Stage(
        "09_cross_attention",
        "Decoder cross-attention",
        "Where each query looks in the memory: weights of the last decoder layer, mean over the "
        "heads, each map with its own scale. The frame is the box that the query "
        "predicts, in its colour.",
        [
            (
                f"weights of each layer ({len(c.recording.decoder)} in all)",
                shape((c.batch, call.module.nheads, call.query.shape[1], grid[0] * grid[1])),
            )
        ],
    )
    for i, record in enumerate(c.recording.per_image):
        maps = array(call.weights(i, record.queries).mean(0).view(-1, *grid))
        titles = c.query_titles(record)
        panels = [
            Panel(maps[k], titles[k], bar=True, boxes=c.query_boxes(i, [k]))
            for k in c.by_score(record)
        ]
        panels.insert(0, Panel(c.padded(i), f"{c.prefix(i)}input"))
        stage.pictures[c.file_name(stage.name, i)] = _grid(c, panels)
    return stage


def _box_attention(c: Context) -> Stage:
    maps = array(c.recording.box_attention)
    stage = Stage(
        "10_box_attention",
        "Box attention: the N x M maps",
        "One row per query, one map per head. The softmax runs over the heads and the cells "
        "together, so the M maps of a row sum to 1 and share one scale; its largest weight stands "
        "on the left. These maps, next to the projected res5, are the mask head's input.",
        [("attention (P pairs x M heads x h x w)", shape(maps))],
    )
    for i, record in enumerate(c.recording.per_image):
        titles, own = c.query_titles(record), maps[record.pairs]
        rows, labels = [], []
        for k in c.by_score(record):
            most = float(own[k].max())
            head = "head " if maps.shape[1] * 60 < c.width else ""
            rows.append(
                [
                    Panel(np.sqrt(m / most), f"{head}{n + 1}" if not rows else "", limits=(0, 1))
                    for n, m in enumerate(own[k])
                ]
            )
            labels.append(f"{titles[k]}\nmax {most:.2g}")
        bar = SharedBar("square root of weight / largest weight of the row", "viridis", (0, 1))
        stage.pictures[c.file_name(stage.name, i)] = draw_sheet(
            rows, c.aspect, width=c.width, row_labels=labels, shared_bar=bar, most=160
        )
    return stage


def _mask_head_steps(c: Context) -> Stage:
    recording = c.recording
    stage = Stage(
        "11_mask_head",
        "Mask head, step by step",
        "Five convolutions, each with group norm and ReLU, grow the maps from the grid of res5 to "
        "that of res2; res4, res3 and res2 come in on the way. The pictures show the mean over "
        "the channels after each step, each with its own scale, and the mask logits last.",
        [(name, shape(s)) for name, s in recording.step_shapes.items()],
    )
    if not recording.steps:
        stage.text = "This mask head has no steps that can be looked into (no group norms)."
        return stage
    for i, record in enumerate(recording.per_image):
        titles, rows, labels = c.query_titles(record), [], []
        logits = array(recording.mask_logits[record.pairs])
        for k in c.by_score(record):
            row = []
            for name, maps in recording.steps.items():
                size = f"{maps.shape[1]} x {maps.shape[2]}"
                title = "" if rows else f"{name}: {size}"
                row.append(Panel(array(maps[record.pairs][k]), title, "cividis"))
            last = "" if rows else f"logits: {logits.shape[1]} x {logits.shape[2]}"
            row.append(Panel(logits[k], last, "PuOr", _limits(logits[k])))
            rows.append(row)
            labels.append(titles[k])
        stage.pictures[c.file_name(stage.name, i)] = draw_sheet(
            rows, c.aspect, width=c.width, row_labels=labels, most=180
        )
    return stage


def _mask_logits(c: Context) -> Stage:
    logits = c.recording.mask_logits
    stage = Stage(
        "12_mask_logits",
        "Mask logits of every kept query",
        "Above 0 (purple) a query takes a pixel for its own, below 0 (orange) it does not. The "
        "scale is the same for all; beyond its ends the colour stays as it is.",
        [("mask logits", shape(logits))],
    )
    for i, record in enumerate(c.recording.per_image):
        maps, titles = array(logits[record.pairs]), c.query_titles(record)
        limits = _limits(maps)
        panels = [Panel(maps[k], titles[k], "PuOr", limits) for k in c.by_score(record)]
        bar = SharedBar("mask logit", "PuOr", limits)
        stage.pictures[c.file_name(stage.name, i)] = _grid(c, panels, shared_bar=bar)
    return stage


def _argmax(c: Context) -> Stage:
    stage = Stage(
        "13_argmax",
        "Argmax",
        "Padding is cut off, the logits are resized to the output, and every pixel goes to the "
        "query of greatest logit. One colour per query.",
        [],
    )
    for i, record in enumerate(c.recording.per_image):
        stage.shapes.append((f"owner of each pixel, image {i + 1}", shape(record.owner)))
        owner = record.owner.cpu().numpy()
        titles = [title.rsplit(" ", 1)[0] for title in c.query_titles(record)]
        positions = np.unique(owner).tolist()
        picture = _segments_picture(
            c,
            owner,
            {k: titles[k] for k in positions},
            dict(zip(positions, positions, strict=True)),
        )
        stage.pictures[c.file_name(stage.name, i)] = _wide(c, i, picture)
    return stage


def _merged(c: Context) -> Stage:
    stage = Stage(
        "14_merging",
        "Merging of stuff",
        "Queries of the same stuff class become one segment, things stay one segment per query. "
        "Nothing is dropped yet.",
        [],
    )
    for i, record in enumerate(c.recording.per_image):
        ids, segments = _without_filters(c, record)
        stage.shapes.append(
            (f"segments, image {i + 1}", f"{len(record.queries)} queries -> {len(segments)}")
        )
        owner, ids = record.owner.cpu().numpy(), ids.cpu().numpy()
        # A segment keeps the colour of its first query in the picture before.
        names, colors = {}, {}
        for s in segments:
            first = np.unique(owner[ids == s["id"]])[0]
            names[s["id"]], colors[s["id"]] = class_name(s["category_id"], c.metadata), first
        stage.pictures[c.file_name(stage.name, i)] = _wide(
            c, i, _segments_picture(c, ids, names, colors)
        )
    return stage


def _without_filters(c: Context, record: ImageRecord) -> Panoptic:
    """The panoptic inference with nothing to drop."""
    cfg = c.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = 0
    cfg.MODEL.DETR.TEST.OVERLAP_THRESH = 0.0
    rule = build_panoptic_inference(cfg, thing_class_ids(c.metadata))
    masks = c.recording.mask_logits[record.pairs]
    with torch.no_grad():
        return rule(masks, record.scores, record.labels, record.frame)


def _panoptic(c: Context) -> Stage:
    test = c.cfg.MODEL.DETR.TEST
    stage = Stage(
        "15_panoptic",
        "Panoptic result",
        f"Segments of {test.MIN_SEGMENT_AREA} pixels and less are dropped"
        + (
            f", and those that win less than {test.OVERLAP_THRESH:g} of their own mask"
            if test.OVERLAP_THRESH > 0
            else ""
        )
        + "; their pixels go to the best of the rest, and stuff is merged again. This is what "
        "the model returns.",
        [],
    )
    for i, record in enumerate(c.recording.per_image):
        ids, segments = record.panoptic
        found = f"{shape(ids)}, {len(segments)} segments" + ("" if segments else " (all void)")
        stage.shapes.append((f"panoptic_seg, image {i + 1}", found))
        picture = draw_panoptic(c.originals[i], ids, segments, c.metadata, min_size=400)
        stage.pictures[c.file_name(stage.name, i)] = _wide(c, i, Panel(picture))
    return stage


def _grid(c: Context, panels: list[Panel], **options) -> bytes:
    columns = columns_for(len(panels), c.width, 150)
    return draw_sheet(in_rows(panels, columns), c.aspect, width=c.width, most=240, **options)


def _wide(c: Context, image: int, panel: Panel) -> bytes:
    """One panel with the output's shape."""
    height, width = c.originals[image].shape[:2]
    panel.title = c.prefix(image).rstrip(": ")
    return draw_sheet([[panel]], height / width, width=c.width, most=560)


def _limits(logits: np.ndarray) -> tuple[float, float]:
    """A scale about 0 that shows the insides of masks well; the outsides may go far beyond."""
    inside = logits[logits > 0]
    most = float(np.percentile(inside if inside.size else -logits, 98)) * 1.5
    return -max(most, 1e-3), max(most, 1e-3)


def _segments_picture(
    c: Context, ids: np.ndarray, names: dict[int, str], colors: dict[int, int]
) -> Panel:
    """Each id in the colour of a query, with its name at its middle; what has no name is grey.

    Args:
        c: has the colours.
        ids: H x W.
        names: of the ids.
        colors: position of the query whose colour an id has.
    """
    picture = np.full((*ids.shape, 3), 220, dtype=np.uint8)
    texts = []
    for value, name in names.items():
        inside = ids == value
        picture[inside] = c.color(int(colors[value]))
        y, x = _middle(inside)
        texts.append(((x + 0.5) / ids.shape[1], (y + 0.5) / ids.shape[0], name))
    if min(ids.shape) > 200:
        picture[:, 1:][ids[:, 1:] != ids[:, :-1]] = 0
        picture[1:][ids[1:] != ids[:-1]] = 0
    return Panel(picture, texts=texts)


def _middle(inside: np.ndarray) -> tuple[int, int]:
    """A pixel of a mask near the middle of its broadest part."""
    rows = inside.sum(1)
    row = int(np.median(np.flatnonzero(rows >= 0.7 * rows.max())))
    row = min(np.flatnonzero(rows), key=lambda y: abs(y - row))
    columns = np.flatnonzero(inside[row])
    return int(row), int(columns[len(columns) // 2])
