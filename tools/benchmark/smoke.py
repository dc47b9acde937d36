"""A minute of measuring, against the figures in smoke.json: which ratio moved by more than 10 %?

    python tools/benchmark/smoke.py            # or `make bench-smoke`
    python tools/benchmark/smoke.py --write    # these figures are the new ones

It compares ratios within one run, which hold better from machine to machine than times, and says
what moved; it fails nothing. Times are processor times, so that other programs count less.
"""

import argparse
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import torch
from measure import describe_machine
from tabulate import tabulate
from works import ALL, BOXES, OURS, Inference, Training

from detr_panoptic_d2.checkpoint.atomic import atomic_file

COMMITTED = Path(__file__).with_name("smoke.json")
MOVED = 0.1
_SMALL = {"config_file": "detr_panoptic_R50.yaml", "opts": [], "against": None, "device": "cpu"}
_SMALL |= {"dtype": "float32", "compile": False, "segments": 11, "cpu_time": True}
# Inference from 480x640 on shows the mask head; training steps of small images are quick.
_INFERENCE = {"size": (480, 640), "batch": 1, "repeats": 5}
_TRAINING = {"size": (256, 320), "batch": 2, "kept": None, "repeats": 3}


def measure(changes: dict) -> dict[str, float]:
    """Ratios of times, and of memory, by name.

    Args:
        changes: options that differ, for tests.
    """
    figures = {}
    for kept in (15, 100):
        options = {**_SMALL, **_INFERENCE, "kept": kept, **changes}
        work = Inference(Namespace(**options))
        work.check()
        figures |= _ratios(f"inference, {options['kept']} kept", work.measure(), BOXES)
        if "kept" in changes:
            break
    work = Training(Namespace(**{**_SMALL, **_TRAINING, **changes}))
    work.check()
    result = work.measure()
    return figures | _ratios("training", result, BOXES) | _ratios("training", result, ALL)


def _ratios(name: str, result: dict, other: str) -> dict[str, float]:
    a, b = (OURS, other) if other == BOXES else (other, OURS)
    memory = result["memory"]
    return {
        f"{name}: {a} / {b}": result["ratios"][f"{a} / {b}"],
        f"{name}: {a} / {b}, peak memory": memory[a] / memory[b],
    }


def compare(found: dict[str, float], before: dict[str, float]) -> str:
    """A table of the ratios beside those of before, and a line about those that moved."""
    rows, moved = [], []
    for name, value in found.items():
        old = before.get(name)
        change = None if old is None else value / old - 1
        if change is not None and abs(change) > MOVED:
            moved.append(f"{name} by {change:+.0%}")
        numbers = ("", "") if old is None else (f"{old:.2f}", f"{change:+.1%}")
        rows.append([name, f"{value:.2f}", *numbers])
    table = tabulate(
        rows, ["ratio", "now", "before", "change"], tablefmt="github", disable_numparse=True
    )
    if moved:
        return f"{table}\n\nMoved by more than {MOVED:.0%}: {'; '.join(moved)}\n"
    return f"{table}\n\nNothing moved by more than {MOVED:.0%}.\n"


def main() -> int:
    """Measure and compare; 0 in any case."""
    parser = argparse.ArgumentParser(prog="smoke", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write smoke.json anew")
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    found = measure({})
    before = {}
    if COMMITTED.is_file():
        content = json.loads(COMMITTED.read_text(encoding="utf-8"))
        before, machine = content["ratios"], content["machine"]
        sys.stdout.write(
            f"before: {machine['date'][:10]}, {machine['cpu']}, {machine['threads']} threads\n\n"
        )
    sys.stdout.write(compare(found, before))
    if options.write:
        content = {"machine": describe_machine(torch.device("cpu")), "ratios": found}
        with atomic_file(COMMITTED) as file:
            file.write(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
