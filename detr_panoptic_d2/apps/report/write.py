"""Write the page."""

import logging
from pathlib import Path

from ...checkpoint.atomic import atomic_file
from . import sections
from .examples import register_data_sets
from .html_parts import note, text
from .quality import read_evaluations
from .run_folder import read_run
from .style import STYLE

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"


def write_report(output_dir: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run: finished, going on, or failed.

    The page holds all its pictures and needs no network. What is missing, a run that has not been
    evaluated for one, is left out of it or said in it.

    Args:
        output_dir: ``OUTPUT_DIR`` of a training or an evaluation.

    Returns:
        Path: of the page, which appears only when it is whole.

    Raises:
        FileNotFoundError: there is no such folder, or it holds nothing of a run.
    """
    folder = Path(output_dir)
    run = read_run(folder)
    evaluations = read_evaluations(folder)
    notes = []
    try:
        register_data_sets(run.config)
    except (OSError, ValueError) as error:
        # Only the pictures need the data.
        notes.append(note(str(error)))
        logger.warning("%s", error)
    title = folder.resolve().name
    body = [
        f'<h1>{text(title)} <span class="quiet">run report</span></h1>',
        sections.state(run),
        *notes,
        sections.overview(run, evaluations),
        sections.results(run, evaluations),
        sections.curves(run),
        *(sections.examples(evaluation) for evaluation in evaluations),
        sections.training_course(run),
        sections.time_and_memory(run),
        sections.config(run),
        sections.versions(run),
    ]
    path = folder / REPORT_FILE
    with atomic_file(path) as f:
        f.write(_page(title, "\n".join(part for part in body if part)))
    return path


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}: run report</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )
