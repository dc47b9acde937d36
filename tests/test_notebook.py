"""notebooks/quickstart.ipynb: its cells run, here in one process."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


def test_it_runs(run_main, tmp_path, monkeypatch):
    for package in ("IPython", "cv2"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITERATIONS", "2")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names, num_commands = {}, 0
    for source in ("".join(c["source"]) for c in cells if c["cell_type"] == "code"):
        if not source.startswith("%%bash"):
            # "!" starts a command of the shell: what is installed.
            exec(compile(re.sub(r"(?m)^( *)!.*", r"\1pass", source), "cell", "exec"), names)
            continue
        for line in source.replace("\\\n", " ").splitlines():
            if line.startswith("detr-panoptic "):
                words = shlex.split(os.path.expandvars(line.partition(">")[0]))
                assert run_main(*words[1:]) == 0
                num_commands += 1
    assert num_commands == 2 and list((tmp_path / "output/explained").glob("*.html"))
