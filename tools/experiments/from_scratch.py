#!/usr/bin/env python
"""Compare variants of a training: with and without the scale of the attention maps, and others.

    tools/experiments/from_scratch.py --output output/from_scratch --seeds 1 2 3 4 5

Trains every seed once per variant, with the same initial weights and batches, in one thread. The
config's ``MODEL.DETR.MASK_HEAD.ATTENTION_SCALE`` should be "auto", which is the variant "equal". A
finished run is not repeated, so the command can be interrupted and repeated. At the end it prints
the tables of docs/training_from_scratch.md.
"""

import argparse
import json
import math
import os
import statistics
from pathlib import Path

import torch
from detectron2.engine import HookBase
from tabulate import tabulate
from variants import VARIANTS

from detr_panoptic_d2.engine import setup_job


class _ProcessTime(HookBase):
    """CPU seconds of the training steps, without evaluation."""

    seconds = 0.0

    def before_step(self):
        self._start = _cpu_seconds()

    def after_step(self):
        self.seconds += _cpu_seconds() - self._start


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def run(
    config_file: str, variant: str, seed: int, folder: Path, opts: list[str], stop: int | None
) -> dict:
    """Train once, or read the result of a finished run.

    Args:
        config_file: path or name of a config.
        variant: a key of :data:`variants.VARIANTS`.
        seed: seed of weights and batches.
        folder: output folder of the run.
        opts: config keys and values; ``{seed}`` in a value is the seed.
        stop: last iteration; the schedule is that of the whole training.

    Returns:
        ``curve`` (list of [iteration, metrics]), ``iterations`` and ``cpu_seconds`` of the steps.
    """
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))

    changes = VARIANTS[variant]

    class Trainer(changes.trainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            changes.start(model)
            return model

    # No worker processes, so that the CPU time of this process is the total.
    own = ["OUTPUT_DIR", str(folder), "SEED", str(seed), "DATALOADER.NUM_WORKERS", "0"]
    opts = [*own, *(opt.replace("{seed}", str(seed)) for opt in opts)]
    arguments = argparse.Namespace(config_file=config_file, opts=opts, eval_only=False)
    cfg = setup_job(arguments)
    (folder / "metrics.json").unlink(missing_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = min(stop or trainer.max_iter, trainer.max_iter)
    clock = _ProcessTime()
    trainer.register_hooks([clock])
    # As the first hook it does not measure the work of other hooks.
    trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.train()
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if "panoptic_seg/PQ" in entry]
    # Entries are numbered from 0, except for the one after the last step.
    curve = {
        min(entry["iteration"] + 1, trainer.max_iter): {
            key.removeprefix("panoptic_seg/"): value
            for key, value in entry.items()
            if key.startswith("panoptic_seg/")
        }
        for entry in entries
    }
    content = {
        "curve": sorted(curve.items()),
        "iterations": trainer.max_iter,
        "cpu_seconds": clock.seconds,
    }
    result.write_text(json.dumps(content), encoding="utf-8")
    return content


def tables(results: dict[str, dict[int, dict]], metric: str, levels: list[float]) -> str:
    """Return tables of mean and standard error over seeds, per iteration and to reach ``levels``.

    Args:
        results: variant -> seed -> what :func:`run` returned.
        metric: its name in the curves, "PQ" or "PQ_th" for example.
        levels: values of the metric; the first iteration that reaches each is reported.
    """
    seeds = sorted(set.intersection(*(set(runs) for runs in results.values())))
    all_runs = [runs[seed] for runs in results.values() for seed in seeds]
    iterations = sorted(set.intersection(*({i for i, _ in run["curve"]} for run in all_runs)))
    rows, ends = [], {}
    for name, runs in results.items():
        curves = [dict(map(tuple, runs[seed]["curve"])) for seed in seeds]
        along = [mean_and_error([curve[i][metric] for curve in curves]) for i in iterations]
        reached = [
            [next((i for i in iterations if c[i][metric] >= level), None) for c in curves]
            for level in levels
        ]
        spent = [runs[seed]["cpu_seconds"] for seed in seeds]
        pace = sum(spent) / sum(runs[seed]["iterations"] for seed in seeds)
        first = [_first(r, pace) for r in reached]
        rows.append([name, *along, *first, mean_and_error(spent, digits=0)])
        ends[name] = [curve[iterations[-1]][metric] for curve in curves]
    header = [metric, *map(str, iterations), *(f"to {x:g}" for x in levels), "CPU s"]
    base = next(iter(ends))
    pairs = {name: zip(ends[name], ends[base], strict=True) for name in ends if name != base}
    paired = [
        f"{name} - {base}: {mean_and_error([a - b for a, b in both])}"
        for name, both in pairs.items()
    ]
    single = [
        f"{name}, seeds {seeds}: " + ", ".join(f"{x:.1f}" for x in ends[name]) for name in ends
    ]
    return "\n".join([tabulate(rows, header, disable_numparse=True), "", *single, *paired])


def _first(iterations: list[int | None], pace: float) -> str:
    """Return the mean iteration and CPU seconds, or how many seeds never reached the level."""
    reached = [i for i in iterations if i is not None]
    if len(reached) < len(iterations):
        return f"never: {len(iterations) - len(reached)} of {len(iterations)}"
    return f"{mean_and_error(reached, digits=0)} ({pace * statistics.mean(reached):.0f} s)"


def mean_and_error(values: list[float], digits: int = 1) -> str:
    """Return the mean and its standard error as text."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} +- {error:.{digits}f}"


def main() -> None:
    """Run the missing trainings, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="shapes/detr_panoptic_shapes.yaml")
    parser.add_argument("--output", type=Path, default=Path("output/from_scratch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=["kaiming", "equal"]
    )
    parser.add_argument("--metrics", nargs="+", default=["PQ", "PQ_th"])
    parser.add_argument("--levels", type=float, nargs="+", default=[60, 75])
    parser.add_argument("--stop", type=int, help="last iteration; the schedule does not change")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[int, dict]] = {name: {} for name in args.variants}
    for seed in args.seeds:
        for name in args.variants:
            folder = args.output / f"{name}_{seed}"
            results[name][seed] = run(args.config_file, name, seed, folder, args.opts, args.stop)
    for metric in args.metrics:
        print(f"\n{tables(results, metric, args.levels)}")


if __name__ == "__main__":
    main()
