"""The web page, made with Gradio: it calls :mod:`.analysis` for each action of a visitor."""

import logging
from typing import Any

from detectron2.config import CfgNode

from ...engine import Predictor
from ...errors import UserError
from ...visualization.visualizer import class_name
from .analysis import MAX_MEGABYTES, MAX_MEGAPIXELS, View, analyze, read_upload

logger = logging.getLogger(__name__)

# Seconds after which unused images are deleted.
_KEEP = 3600
_START = "No image yet."


def build_app(cfg: CfgNode):
    """Load the model and build the page, a ``gradio.Blocks``.

    Args:
        cfg: a config with ``MODEL.WEIGHTS``.

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
    predictor = Predictor(cfg)
    if predictor.model.mask_head is None:
        raise UserError("MODEL.MASK_ON is False: without masks there is no panoptic result.")
    page = _Page(predictor)
    test = cfg.MODEL.DETR.TEST

    with gr.Blocks(
        title="Panoptic segmentation", analytics_enabled=False, delete_cache=(_KEEP, _KEEP)
    ) as app:
        view = gr.State(None, time_to_live=_KEEP)
        gr.Markdown(
            "# Panoptic segmentation\nDrop an image, then click a segment. "
            f"At most {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} million pixels."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Image", file_types=["image"], elem_id="upload")
                score = gr.Slider(
                    0, 1, test.SCORE_THRESH, step=0.01, label="Minimum score", elem_id="score"
                )
                area = gr.Slider(
                    *(0, max(2000, test.MIN_SEGMENT_AREA), test.MIN_SEGMENT_AREA),
                    step=1,
                    label="Drop segments of at most this many pixels",
                    elem_id="area",
                )
                status = gr.Markdown(_START, elem_id="status")
            with gr.Column(scale=2, min_width=320):
                # No "share" button: it sends pictures to another site.
                picture = gr.Image(
                    label="Segments",
                    interactive=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    elem_id="picture",
                )
        details = gr.Markdown(elem_id="details")
        maps = gr.Gallery(
            show_label=False,
            columns=5,
            object_fit="contain",
            format="png",
            buttons=[],
            elem_id="maps",
        )
        chosen = [details, maps]
        everything = [view, picture, status, *chosen]
        # Events run one at a time, in order. Otherwise a slow slider event could show an image
        # again that was removed or replaced meanwhile.
        in_turn = {"concurrency_id": "page", "concurrency_limit": 1}
        upload.upload(page.analyse, [upload, score, area], everything, **in_turn)
        upload.clear(lambda: page.nothing(_START), None, everything, **in_turn)
        gr.on(
            [score.change, area.change],
            page.change,
            [view, score, area],
            everything,
            trigger_mode="always_last",
            show_progress="hidden",
            **in_turn,
        )

        def click(current: View | None, event: gr.SelectData):
            return page.choose(current, *map(int, event.index))

        picture.select(click, view, chosen)
    return app


def serve(app, *, host: str, port: int | None) -> None:
    """Serve the page until interrupted.

    Args:
        app: from :func:`build_app`.
        host: address to listen on.
        port: None: the first free port from 7860 on.
    """
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("The page has no password: everyone who can connect to %s can use it.", host)
    app.queue(max_size=20).launch(
        server_name=host,
        server_port=port,
        max_file_size=MAX_MEGABYTES * 10**6,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
    )


class _Page:
    """Handlers of the page's events. Each returns the new values of the components."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor

    def analyse(self, path: str, score: float, area: float) -> list[Any]:
        """Show a new image. Only here the network runs."""
        try:
            analysis = analyze(self._predictor, read_upload(path))
        except UserError as error:
            return self.nothing(f"**{error}**")
        return self._show(analysis.view(score, int(area)))

    def change(self, view: View | None, score: float, area: float) -> list[Any]:
        """Show the image with other thresholds."""
        return self._show(view.analysis.view(score, int(area))) if view else self.nothing(_START)

    def nothing(self, status: str) -> list[Any]:
        """Show an empty page with a message."""
        return [None, None, status, "", None]

    def choose(self, view: View | None, x: int, y: int) -> list[Any]:
        """Show the segment at a pixel of the picture."""
        if view is None:
            return ["", None]
        index = view.at(x, y)
        if index is None:
            return ["Void: this pixel belongs to no segment.", None]
        segment, share = view.segments[index], 100 * view.segments[index]["area"] / view.ids.size
        text = (
            f"### {class_name(segment['category_id'], view.analysis.metadata)} "
            f"({'thing' if segment['isthing'] else 'stuff'})\nscore {segment['score']:.3f}, area "
            f"{segment['area']} pixels ({share:.1f} % of the image)\n\n"
            "Its pixels, the mask logits (purple: inside) and box-attention maps of its query:"
        )
        return [text, view.details(index)]

    def _show(self, view: View) -> list[Any]:
        height, width = view.ids.shape
        status = f"{width} x {height} pixels, {len(view.segments)} segments."
        if not view.segments:
            status += " No query has the minimum score: lower it."
        return [view, view.picture, status, "", None]
