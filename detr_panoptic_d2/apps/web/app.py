"""The page itself, with Gradio: it turns what a visitor does into calls of :mod:`.analysis`."""

import ipaddress
import logging
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ...visualization.visualizer import class_name
from .analysis import Analysis, Analyzer, View
from .uploads import Limits, UploadError, read_upload

logger = logging.getLogger(__name__)

# Seconds after which an image that nobody looks at any more is forgotten.
_KEEP = 3600
_HEADERS = ["class", "kind", "score", "pixels", "%"]
# Without "share", which would send pictures to another site.
_BUTTONS = ["download", "fullscreen"]
_MOST_AREA = 2000
_START = "No image yet."


@dataclass
class Session:
    """What one visitor sees."""

    analysis: Analysis
    view: View
    factor: int


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


def build_app(analyzer: Analyzer, limits: Limits):
    """Make the page.

    Args:
        analyzer: the model.
        limits: of uploads.

    Returns:
        ``gradio.Blocks``.
    """
    gr = import_gradio()
    page = _Page(analyzer, limits)
    test = analyzer.cfg.MODEL.DETR.TEST
    with gr.Blocks(
        title="Panoptic segmentation", analytics_enabled=False, delete_cache=(_KEEP, _KEEP)
    ) as app:
        session = gr.State(None, time_to_live=_KEEP)
        gr.Markdown(
            "# Panoptic segmentation\nDrop an image, then click a segment, in the picture or in "
            f"the table. At most {limits.megabytes:g} MB and {limits.megapixels:g} million pixels."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Image", file_types=["image"], elem_id="upload")
                score = gr.Slider(
                    0, 1, test.SCORE_THRESH, step=0.01, label="Least score", elem_id="score"
                )
                most = max(_MOST_AREA, test.MIN_SEGMENT_AREA)
                area = gr.Slider(
                    0,
                    most,
                    test.MIN_SEGMENT_AREA,
                    step=1,
                    label="Drop segments of this many pixels and less",
                    elem_id="area",
                )
                status = gr.Markdown(_START, elem_id="status")
                table = gr.Dataframe(
                    headers=_HEADERS, label="Segments", interactive=False, elem_id="segments"
                )
            with gr.Column(scale=2, min_width=320):
                picture = _picture(gr, "Segments", "picture")
        details = gr.Markdown(elem_id="details")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                mask = _picture(gr, "Its pixels", "mask")
            with gr.Column(scale=2, min_width=320):
                maps = _picture(gr, "Its attention and mask logits", "maps")
        shown, chosen = [session, picture, status, table], [details, mask, maps]
        # One at a time and in their order: the late answer to a moved slider must not bring back an
        # image that was taken away or replaced meanwhile.
        in_turn = {"concurrency_id": "page", "concurrency_limit": 1}
        upload.upload(page.analyse, [upload, score, area], [*shown, *chosen], **in_turn)
        upload.clear(page.clear, None, [*shown, *chosen], **in_turn)
        gr.on(
            [score.change, area.change],
            page.change,
            [session, score, area],
            [*shown, *chosen],
            trigger_mode="always_last",
            show_progress="hidden",
            **in_turn,
        )

        def click_picture(current: Session | None, event: gr.SelectData):
            return page.choose_pixel(current, *event.index)

        def click_table(current: Session | None, event: gr.SelectData):
            return page.choose_row(current, event.index[0])

        picture.select(click_picture, session, chosen)
        table.select(click_table, session, chosen)
    return app


def _picture(gr, label: str, name: str):
    return gr.Image(label=label, interactive=False, format="png", buttons=_BUTTONS, elem_id=name)


def serve(app, limits: Limits, *, host: str, port: int | None, share: bool) -> None:
    """Serve the page until it is interrupted.

    Args:
        app: of :func:`build_app`.
        limits: of uploads.
        host: address to listen on.
        port: None: the first free one from 7860 on.
        share: make Gradio's public link as well.
    """
    if share or not is_loopback(host):
        logger.warning(
            "The page asks for no password: whoever reaches %s can use it.",
            "Gradio's public link" if share else f"{host} over the network",
        )
    app.queue(max_size=20).launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=int(limits.megabytes * 1e6),
        show_error=True,
        ssr_mode=False,
        footer_links=[],
    )


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Page:
    """The functions behind the page; each returns the values of the components that it changes."""

    def __init__(self, analyzer: Analyzer, limits: Limits):
        self._analyzer, self._limits = analyzer, limits

    def analyse(self, path: str, score: float, area: float) -> list[Any]:
        """A new image: the only place where the network runs."""
        try:
            image = read_upload(path, self._limits)
        except UploadError as error:
            return self._nothing(f"**{error}**")
        return self._show(self._analyzer(image), score, area)

    def clear(self) -> list[Any]:
        """The image was taken away."""
        return self._nothing(_START)

    def change(self, session: Session | None, score: float, area: float) -> list[Any]:
        """Other thresholds."""
        if session is None:
            return self._nothing(_START)
        return self._show(session.analysis, score, area)

    def choose_pixel(self, session: Session | None, x: float, y: float) -> list[Any]:
        """A click into the picture."""
        if session is None:
            return ["", None, None]
        segment = session.view.at(int(x) // session.factor, int(y) // session.factor)
        if segment is None:
            return ["Void: no segment has this pixel.", None, None]
        return self._details(session, segment)

    def choose_row(self, session: Session | None, row: int) -> list[Any]:
        """A click into the table."""
        if session is None or row >= len(session.view.segments):
            return ["", None, None]
        return self._details(session, session.view.segments[row])

    def _show(self, analysis: Analysis, score: float, area: float) -> list[Any]:
        view = analysis.view(score, int(area))
        picture = analysis.picture(view)
        factor = picture.shape[0] // view.ids.shape[0]
        height, width = view.ids.shape
        count = len(view.segments)
        status = f"{width} x {height} pixels, {count} segment{'' if count == 1 else 's'}."
        if not count:
            status += " No query passes: lower the least score."
        rows = [
            [
                class_name(s["category_id"], analysis.metadata),
                "thing" if s["isthing"] else "stuff",
                f"{s['score']:.3f}",
                str(s["area"]),
                f"{100 * s['area'] / view.ids.size:.1f}",
            ]
            for s in view.segments
        ]
        return [Session(analysis, view, factor), picture, status, rows, "", None, None]

    def _nothing(self, status: str) -> list[Any]:
        return [None, None, status, [], "", None, None]

    def _details(self, session: Session, segment: dict[str, Any]) -> list[Any]:
        analysis, view = session.analysis, session.view
        share = 100 * segment["area"] / view.ids.size
        count = len(analysis.queries(view, segment))
        text = (
            f"### {class_name(segment['category_id'], analysis.metadata)} "
            f"({'thing' if segment['isthing'] else 'stuff'})\n"
            f"score {segment['score']:.3f}, area {segment['area']} pixels ({share:.1f} % of the "
            f"image), made of {count} quer{'y' if count == 1 else 'ies'}"
        )
        return [text, analysis.mask_picture(view, segment), analysis.maps_picture(view, segment)]
