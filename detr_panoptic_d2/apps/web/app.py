"""The page itself, with Gradio: it turns what a visitor does into calls of :mod:`.analysis`."""

import logging
from typing import Any

from detectron2.config import CfgNode

from ...engine import Predictor
from ...errors import UserError
from ...visualization.visualizer import class_name
from .analysis import MOST_MEGABYTES, MOST_MEGAPIXELS, View, analyze, read_upload

logger = logging.getLogger(__name__)

# Seconds after which an image that nobody looks at any more is forgotten.
_KEEP = 3600
_START = "No image yet."


def build_app(cfg: CfgNode):
    """Load the model and make the page, a ``gradio.Blocks``.

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
            f"At most {MOST_MEGABYTES} MB and {MOST_MEGAPIXELS} million pixels."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Image", file_types=["image"], elem_id="upload")
                score = gr.Slider(
                    0, 1, test.SCORE_THRESH, step=0.01, label="Least score", elem_id="score"
                )
                area = gr.Slider(
                    *(0, max(2000, test.MIN_SEGMENT_AREA), test.MIN_SEGMENT_AREA),
                    step=1,
                    label="Drop segments of this many pixels and less",
                    elem_id="area",
                )
                status = gr.Markdown(_START, elem_id="status")
            with gr.Column(scale=2, min_width=320):
                # Without "share", which would send pictures to another site.
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
        # One at a time and in their order: the late answer to a moved slider must not bring back an
        # image that was taken away or replaced meanwhile.
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
    """Serve the page until it is interrupted.

    Args:
        app: of :func:`build_app`.
        host: address to listen on.
        port: None: the first free one from 7860 on.
    """
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("The page asks for no password: whoever reaches %s can use it.", host)
    app.queue(max_size=20).launch(
        server_name=host,
        server_port=port,
        max_file_size=MOST_MEGABYTES * 10**6,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
    )


class _Page:
    """The functions behind the page; each returns the values of the components that it changes."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor

    def analyse(self, path: str, score: float, area: float) -> list[Any]:
        """A new image: the only place where the network runs."""
        try:
            analysis = analyze(self._predictor, read_upload(path))
        except UserError as error:
            return self.nothing(f"**{error}**")
        return self._show(analysis.view(score, int(area)))

    def change(self, view: View | None, score: float, area: float) -> list[Any]:
        """Other thresholds."""
        return self._show(view.analysis.view(score, int(area))) if view else self.nothing(_START)

    def nothing(self, status: str) -> list[Any]:
        """An empty page with a message."""
        return [None, None, status, "", None]

    def choose(self, view: View | None, x: int, y: int) -> list[Any]:
        """A click into the picture."""
        if view is None:
            return ["", None]
        index = view.at(x, y)
        if index is None:
            return ["Void: no segment has this pixel.", None]
        segment, share = view.segments[index], 100 * view.segments[index]["area"] / view.ids.size
        text = (
            f"### {class_name(segment['category_id'], view.analysis.metadata)} "
            f"({'thing' if segment['isthing'] else 'stuff'})\nscore {segment['score']:.3f}, area "
            f"{segment['area']} pixels ({share:.1f} % of the image)\n\n"
            "Its pixels, mask logits (purple: inside) and box attention of its query, by head:"
        )
        return [text, view.details(index)]

    def _show(self, view: View) -> list[Any]:
        height, width = view.ids.shape
        status = f"{width} x {height} pixels, {len(view.segments)} segments."
        if not view.segments:
            status += " No query passes: lower the least score."
        return [view, view.picture, status, "", None]
