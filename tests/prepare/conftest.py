"""Sample images, and conversions that are read back."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detr_panoptic_d2.cli import check as check_command
from detr_panoptic_d2.cli import convert as convert_command
from detr_panoptic_d2.cli import main
from detr_panoptic_d2.prepare.check.dataset import DatasetPaths, check_dataset
from detr_panoptic_d2.prepare.convert.classes import ClassOptions
from detr_panoptic_d2.prepare.convert.writer import convert
from tests.prepare.folders import Result


@pytest.fixture
def convert_and_check(tmp_path: Path) -> Callable[..., Result]:
    """Return ``run(source, **options)``: convert into ``tmp_path/out``; no errors may be found."""

    def run(source: Any, output: str = "out", **options: Any) -> Result:
        keys = ("file", "things", "stuff", "ignore", "background")
        classes = ClassOptions(**{key: options.pop(key) for key in keys if key in options})
        (split,) = convert({"train": source}, tmp_path / output, classes, **options)
        paths = split.paths.values()
        report = check_dataset(DatasetPaths("converted", *map(str, paths)))
        assert not [f for f in report.findings if f.is_error]
        assert not [f for f in report.findings if f.kind in ("wrong-box", "split-stuff")]
        return Result(tmp_path / output, split)

    return run


@pytest.fixture
def run_command(capsys, caplog, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Return ``run(*arguments)`` of ``detr-panoptic``: exit status, what it printed and logged."""
    logger = logging.getLogger("detr_panoptic_d2")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "detr_panoptic_d2")
    for module in (convert_command, check_command):
        monkeypatch.setattr(module, "set_up_console", lambda args: None)

    def run(*arguments: Any) -> tuple[int, str]:
        caplog.clear()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        done = capsys.readouterr()
        return status, done.out + done.err + caplog.text

    return run
