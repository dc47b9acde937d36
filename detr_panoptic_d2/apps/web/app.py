"""The page itself, with Gradio: it turns what a visitor does into calls of :mod:`.analysis`."""

import logging
from typing import Any, NamedTuple

from ...errors import UserError
from ...visualization.visualizer import class_name
from .analysis import MOST_MEGABYTES, MOST_MEGAPIXELS, Analysis, Analyzer, View, read_upload

logger = logging.getLogger(__name__)

# Seconds after which an image that nobody looks at any more is forgotten.
_KEEP = 3600
_START = "No image yet."


class Session(NamedTuple):
    """What one visitor sees."""

    analysis: Analysis
    view: View


def import_gradio():
    """Import Gradio.

    Raises:
        UserError: it is not installed; the message says how to install it.
    """
    try:
        import gradio
    except ImportError as e:
        raise UserError(
            "The web page needs Gradio, which is not installed: "
            "pip install 'detr_panoptic_d2[web]' or pip install 'gradio>=6'."
        ) from e
    return gradio


def build_app(analyzer: Analyzer):
    """Make the page.

    Args:
        analyzer: the model.

    Returns:
        ``gradio.Blocks``.
    """
    gr = import_gradio()
    page = _Page(analyzer)
    test = analyzer.cfg.MODEL.DETR.TEST

    def image(label: str, name: str):
        # Without "share", which would send pictures to another site.
        buttons = ["download", "fullscreen"]
        return gr.Image(label=label, interactive=False, format="png", buttons=buttons, elem_id=name)

    with gr.Blocks(
        title="Panoptic segmentation", analytics_enabled=False, delete_cache=(_KEEP, _KEEP)
    ) as app:
        session = gr.State(None, time_to_live=_KEEP)
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
                picture = image("Segments", "picture")
        details = gr.Markdown(elem_id="details")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                mask = image("Its pixels", "mask")
            with gr.Column(scale=2, min_width=320):
                maps = gr.Gallery(
                    show_label=False,
                    columns=5,
                    object_fit="contain",
                    format="png",
                    buttons=[],
                    elem_id="maps",
                )
        chosen = [details, mask, maps]
        everything = [session, picture, status, *chosen]
        # One at a time and in their order: the late answer to a moved slider must not bring back an
        # image that was taken away or replaced meanwhile.
        in_turn = {"concurrency_id": "page", "concurrency_limit": 1}
        upload.upload(page.analyse, [upload, score, area], everything, **in_turn)
        upload.clear(lambda: page.nothing(_START), None, everything, **in_turn)
        gr.on(
            [score.change, area.change],
            page.change,
            [session, score, area],
            everything,
            trigger_mode="always_last",
            show_progress="hidden",
            **in_turn,
        )

        def click(current: Session | None, event: gr.SelectData):
            return page.choose(current, *map(int, event.index))

        picture.select(click, session, chosen)
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

    def __init__(self, analyzer: Analyzer):
        self._analyzer = analyzer

    def analyse(self, path: str, score: float, area: float) -> list[Any]:
        """A new image: the only place where the network runs."""
        try:
            image = read_upload(path)
        except UserError as error:
            return self.nothing(f"**{error}**")
        return self._show(self._analyzer(image), score, area)

    def change(self, session: Session | None, score: float, area: float) -> list[Any]:
        """Other thresholds."""
        return self._show(session.analysis, score, area) if session else self.nothing(_START)

    def nothing(self, status: str) -> list[Any]:
        """An empty page with a message."""
        return [None, None, status, "", None, None]

    def choose(self, session: Session | None, x: int, y: int) -> list[Any]:
        """A click into the picture."""
        if session is None:
            return ["", None, None]
        analysis, view = session
        index = view.at(x, y)
        if index is None:
            return ["Void: no segment has this pixel.", None, None]
        segment = view.segments[index]
        share = 100 * segment["area"] / view.ids.size
        text = (
            f"### {class_name(segment['category_id'], analysis.metadata)} "
            f"({'thing' if segment['isthing'] else 'stuff'})\nscore {segment['score']:.3f}, area "
            f"{segment['area']} pixels ({share:.1f} % of the image)\n\n"
            "Its pixels, mask logits (purple: inside) and box attention of its query, by head:"
        )
        return [text, analysis.mask_picture(view, index), analysis.maps(view, index)]

    def _show(self, analysis: Analysis, score: float, area: float) -> list[Any]:
        view = analysis.view(score, int(area))
        height, width = view.ids.shape
        status = f"{width} x {height} pixels, {len(view.segments)} segments."
        if not view.segments:
            status += " No query passes: lower the least score."
        return [Session(analysis, view), view.picture, status, "", None, None]
