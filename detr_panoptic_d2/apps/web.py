"""A web page, made with Gradio: show the segments of an image and change the thresholds."""

import logging
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from ..data.dataset_mapper import read_image
from ..data.metadata import thing_class_ids
from ..engine import Predictor
from ..errors import UserError
from ..modeling.panoptic_inference import build_panoptic_inference
from ..visualization.draw import draw_panoptic
from ..visualization.visualizer import class_name
from .queries import QueryRecord, build_predictor, record_queries

logger = logging.getLogger(__name__)

# Largest upload, in millions of bytes and of pixels.
_MAX_MEGABYTES, _MAX_MEGAPIXELS = 20, 16
# Approximate smallest shorter side of the picture with labels, and width of the maps, in pixels.
_SIDE, _MAP_WIDTH = 480, 240
# Seconds after which unused images are deleted.
_KEEP = 3600
_START = "No image yet."


class View(NamedTuple):
    """The panoptic result of an image at some thresholds.

    The record has every query that any threshold can keep. The picture shows the segments, enlarged
    by a whole factor.
    """

    record: QueryRecord
    ids: np.ndarray
    segments: list[dict[str, Any]]
    picture: np.ndarray

    def segment_at(self, x: int, y: int) -> dict[str, Any] | None:
        """Return the segment of the panoptic map at a pixel of the picture; None: void."""
        factor = self.picture.shape[0] // self.ids.shape[0]
        segment_id = self.ids[y // factor, x // factor]
        return next((s for s in self.segments if s["id"] == segment_id), None)

    def details(self, segment: dict[str, Any]) -> list[tuple[np.ndarray, str]]:
        """Return pictures with captions: the pixels of a segment, and the maps of its query."""
        inside, image = self.ids == segment["id"], self.record.image
        faded = (255 - (255 - image.astype(np.float32)) * 0.25).round().astype(np.uint8)
        pictures = {"pixels": np.where(inside[..., None], image, faded)}
        pictures |= self.record.draw_maps(self.record.find_query(self.ids, segment), _MAP_WIDTH)
        return [(picture, name) for name, picture in pictures.items()]


class Page:
    """Handlers of the page's events. Each returns the new values of the components."""

    def __init__(self, cfg: CfgNode):
        self._predictor: Predictor = build_predictor(cfg)

    def analyze(self, path: str, score: float, area: float) -> list[Any]:
        """Show a new image. Only here the network runs."""
        try:
            image = read_upload(path)
        except UserError as error:
            return self.clear(f"**{error}**")
        record = record_queries(self._predictor, image, self._rule(0, 0))
        logger.info("Network: one image of %d x %d pixels.", image.shape[1], image.shape[0])
        return self._show(self.view(record, score, area))

    def change(self, view: View | None, score: float, area: float) -> list[Any]:
        """Show the image with other thresholds."""
        return self._show(self.view(view.record, score, area)) if view else self.clear()

    def clear(self, status: str = _START) -> list[Any]:
        """Show an empty page with a message."""
        return [None, None, status, "", None]

    def choose(self, view: View | None, x: int, y: int) -> list[Any]:
        """Show the segment at a pixel of the picture."""
        if view is None:
            return ["", None]
        segment = view.segment_at(x, y)
        if segment is None:
            return ["Void: this pixel belongs to no segment.", None]
        text = (
            f"### {class_name(segment['category_id'], self._predictor.metadata)} "
            f"({'thing' if segment['isthing'] else 'stuff'})\nscore {segment['score']:.3f}, area "
            f"{segment['area']} pixels ({segment['area'] / view.ids.size:.1%} of the image)\n\n"
            "Its pixels, and attention maps and mask logits (purple: inside) of its query:"
        )
        return [text, view.details(segment)]

    def view(self, record: QueryRecord, score: float, area: float) -> View:
        """Apply the panoptic rule with these thresholds, without the network."""
        ids, segments = record.segment(self._rule(score, area))
        metadata = self._predictor.metadata
        picture = draw_panoptic(record.image, ids, segments, metadata, min_size=_SIDE)
        return View(record, ids, segments, picture)

    def _rule(self, score: float, area: float) -> nn.Module:
        cfg = self._predictor.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DETR.TEST.SCORE_THRESH = float(score)
        cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA = int(area)
        return build_panoptic_inference(cfg, thing_class_ids(self._predictor.metadata))

    def _show(self, view: View) -> list[Any]:
        height, width = view.ids.shape
        status = f"{width} x {height} pixels, {len(view.segments)} segments."
        if not view.segments:
            status += " No query has the minimum score: lower it."
        return [view, view.picture, status, "", None]


def read_upload(path: str) -> np.ndarray:
    """Read an uploaded image as H x W x 3 uint8 RGB. A too large one is not decoded.

    Raises:
        UserError: it is too large or not an image. The message has no paths of this machine.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
        if width * height <= _MAX_MEGAPIXELS * 1e6:
            return read_image(path, "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        logger.info("Refused an upload: %s", error)
        raise UserError(
            "This file cannot be read as an image: it is damaged, or of an unknown type. JPEG, "
            "PNG, WebP, BMP and TIFF work."
        ) from error
    raise UserError(
        f"The image has {width} x {height} pixels. The maximum is {_MAX_MEGAPIXELS} million: make "
        "it smaller."
    )


def build_app(cfg: CfgNode):
    """Load the model and build the page, a ``gradio.Blocks``.

    Raises:
        UserError: Gradio is not installed, the weights do not fit, or there is no mask head.
    """
    try:
        import gradio as gr
    except ImportError as e:
        raise UserError(
            "The web page needs Gradio, which is not installed: "
            "pip install '.[web]' or pip install 'gradio>=6'."
        ) from e
    page, test = Page(cfg), cfg.MODEL.DETR.TEST
    text = (
        "# Panoptic segmentation\nDrop an image, then click a segment. "
        f"At most {_MAX_MEGABYTES} MB and {_MAX_MEGAPIXELS} million pixels."
    )
    area_label, max_area = "Drop segments of at most this many pixels", 2000
    with gr.Blocks(
        title="Panoptic segmentation", analytics_enabled=False, delete_cache=(_KEEP, _KEEP)
    ) as app:
        view = gr.State(None, time_to_live=_KEEP)
        gr.Markdown(text)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Image", file_types=["image"], elem_id="upload")
                score = gr.Slider(0, 1, test.SCORE_THRESH, label="Minimum score", elem_id="score")
                area = gr.Slider(
                    *(0, max(max_area, test.MIN_SEGMENT_AREA), test.MIN_SEGMENT_AREA),
                    step=1,
                    label=area_label,
                    elem_id="area",
                )
                status = gr.Markdown(_START, elem_id="status")
            with gr.Column(scale=2, min_width=320):
                # The default buttons include "share", which sends pictures to another site.
                shown = {"interactive": False, "format": "png", "buttons": ["fullscreen"]}
                picture = gr.Image(label="Segments", elem_id="picture", **shown)
        details = gr.Markdown(elem_id="details")
        maps = gr.Gallery(show_label=False, columns=5, format="png", buttons=[], elem_id="maps")
        everything = [view, picture, status, details, maps]
        # Events run one at a time, in order. Otherwise a slow slider event could show an image
        # again that was removed or replaced meanwhile.
        in_turn = {"concurrency_id": "page", "concurrency_limit": 1}
        upload.upload(page.analyze, [upload, score, area], everything, **in_turn)
        upload.clear(page.clear, None, everything, **in_turn)
        latest = {"trigger_mode": "always_last", "show_progress": "hidden", **in_turn}
        changes = [score.change, area.change]
        gr.on(changes, page.change, [view, score, area], everything, **latest)

        def click(current: View | None, event: gr.SelectData):
            return page.choose(current, *map(int, event.index))

        picture.select(click, view, [details, maps])
    return app


def serve(app, *, host: str, port: int | None) -> None:
    """Serve the page until interrupted; without ``port``, on the first free port from 7860 on."""
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("The page has no password: everyone who can connect to %s can use it.", host)
    app.queue(max_size=20).launch(
        server_name=host,
        server_port=port,
        max_file_size=_MAX_MEGABYTES * 10**6,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
    )
