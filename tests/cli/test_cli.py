"""The command ``detr-panoptic`` as a whole; what each command does is tested with its subject."""

import runpy
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from detr_panoptic_d2.cli import COMMANDS, build_parser


def parser_of(command):
    return build_parser()._subparsers._group_actions[0].choices[command]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = parser_of(command) if command else build_parser()
    lines = parser.format_help().splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    if command:
        assert f"  detr-panoptic {command} " in parser.format_help()


def test_train_takes_what_detectron2_takes():
    """The same names, defaults and types, so that its launcher and users find all of them."""
    ours = {a.dest: (a.default, a.type, a.nargs) for a in parser_of("train")._actions}
    assert ours.pop("verbosity")
    theirs = {a.dest: (a.default, a.type, a.nargs) for a in default_argument_parser()._actions}
    assert ours == theirs


def test_train_net_is_the_command_train(monkeypatch, capsys):
    path = Path(__file__).parents[2] / "tools" / "train_net.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    assert "detr-panoptic train" in capsys.readouterr().out


def test_error_that_a_user_can_fix_is_one_line(command, tmp_path):
    status, _, lines = command("report", tmp_path / "nowhere")
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ") and lines[0].endswith("the OUTPUT_DIR of a run.")


@pytest.mark.parametrize(
    "words",
    [
        *((), ("fly",), ("convert-checkpoint", "--input", "a")),
        # One of --weights and --config-file; a checkpoint has no dataset to evaluate on.
        ("explain", "--input", "a.png", "--output", "out"),
        ("web", "--weights", "a.pth", "--config-file", "a.yaml"),
        ("export", "--output", "out", "--weights", "a.pth", "--evaluate"),
        ("predict", "--input", "a", "--output", "out", "--weights", "a.pth", "--tile", "0"),
        ("convert", "auto", "a", "--output", "out", "--tile", "8", "--overlap", "1"),
    ],
)
def test_usage_errors_have_status_2(command, words):
    assert command(*words)[0] == 2
