"""Training by one process, by several and on several machines, on the CPU: two machines are two
torchrun agents on loopback.

Run as a script, this file is train_net.py whose process of one rank kills itself once:

    test_torchrun.py FLAG RANK ITERATION [options of train_net.py]

It makes the file FLAG and dies within the iteration, unless the file is there: a worker that is
started again trains to the end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase, default_argument_parser

from detr_panoptic_d2.apps.demo import make_shapes
from detr_panoptic_d2.engine import PanopticTrainer, launch_job, setup_cfg, setup_job

REPO = Path(__file__).parents[2]
TRAIN_NET = REPO / "tools" / "train_net.py"
IMAGES = 7
# So that a hanging test ends.
LONG = 900


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Config entries, with weights that see something in every image."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = make_shapes(folder, "few", IMAGES, size=32, seed=0)
    item = {"name": "few_shapes", **paths}
    opts = ["DATASETS.REGISTER", [item], "DATASETS.TRAIN", ("few_shapes",)]
    opts += ["DATASETS.TEST", ("few_shapes",), "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 6]
    opts += ["INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "SOLVER.MAX_ITER", 4]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 1]
    opts += ["MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.TEST.SCORE_THRESH", 0.0]
    opts += ["MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SEMANTIC_ON", True]
    opts += ["MODEL.DETR.TEST.MIN_SEGMENT_AREA", 0, "MODEL.DETR.TEST.OVERLAP_THRESH", 0.0]
    opts = [str(value) for value in opts]
    cfg = setup_cfg("shapes/tiny.yaml", [*opts, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    model = PanopticTrainer.build_model(cfg)
    with torch.no_grad():
        model.class_embed.bias[-1] = -20
        model.class_embed.weight.mul_(40)
        model.query_embed.weight.mul_(3)
    PanopticTrainer.build_checkpointer(cfg, model).save("start")
    yield [*opts, "MODEL.WEIGHTS", str(folder / "start.pth")]
    DatasetCatalog.remove("few_shapes")
    MetadataCatalog.remove("few_shapes")


def start(launcher, script, flags, options, output, config="shapes/tiny.yaml"):
    command = [sys.executable, *launcher, *script, "--config-file", config, *flags]
    return subprocess.Popen(
        [*map(str, command), *options, "OUTPUT_DIR", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        cwd=output.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    """Return the logs of processes that must all end well."""
    logs = [process.communicate(timeout=LONG)[0] for process in processes]
    for process, log in zip(processes, logs, strict=True):
        assert process.returncode == 0, log[-5000:]
    return logs


def torchrun(processes, *more):
    return ["-m", "torch.distributed.run", *more, "--nproc_per_node", processes]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def results(output):
    """Panoptic predictions and instances of the last evaluation, by image."""
    folder = output / "inference" / "few_shapes"
    content = json.loads((folder / "predictions.json").read_text())
    instances = json.loads((folder / "coco_instances_results.json").read_text())
    return (
        sorted(content["annotations"], key=lambda a: a["image_id"]),
        sorted(instances, key=lambda r: (r["image_id"], json.dumps(r))),
    )


@pytest.fixture(scope="module")
def one(options, tmp_path_factory, run_main):
    """The folder of a training by one process: this one."""
    output = tmp_path_factory.mktemp("one") / "out"
    words = ["--config-file", "shapes/tiny.yaml", *options, "OUTPUT_DIR", output]
    assert run_main("train", *words) == 0
    return output


def check_like_one(one, output, options):
    """The same training, up to rounding, which AdamW makes large where a gradient is almost 0; and
    the same evaluation as by one process: nothing is lost, and nothing counts twice."""
    first, second = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (one, output)
    )
    far = sum((first[key] - second[key]).abs().sum() for key in first)
    assert far / sum(value.numel() for value in first.values()) < 1e-4
    log = (output / "log.txt").read_text()
    assert "were not predicted" not in log
    panoptic, instances = results(output)
    assert [a["image_id"] for a in panoptic] == list(range(1, IMAGES + 1))
    assert any(a["segments_info"] for a in panoptic)
    again = output.parent / "again"
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", str(again)]
    cfg = setup_cfg("shapes/tiny.yaml", [*options, *weights])
    model = PanopticTrainer.build_model(cfg)
    PanopticTrainer.build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    PanopticTrainer.test(cfg, model)
    assert results(again) == (panoptic, instances)


def test_trains_evaluates_and_writes_files(one):
    output = one
    names = {p.name for p in output.iterdir()}
    assert names >= {"config.yaml", "metrics.json", "last_checkpoint", "model_final.pth"}
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    folder = output / "inference" / "few_shapes" / "panoptic"
    assert len(list(folder.glob("*.png"))) == IMAGES
    log = (output / "log.txt").read_text()
    assert "Learning rate 0.001" in log and "Panoptic Evaluation Results" in log


def test_eval_only_gives_the_same_pq(one, command, tmp_path):
    """With the config that the training wrote, as the docs do it."""
    output = one
    rows = map(json.loads, (output / "metrics.json").read_text().splitlines())
    (pq,) = (row["panoptic_seg/PQ"] for row in rows if "panoptic_seg/PQ" in row)
    words = ["train", "--config-file", output / "config.yaml", "--eval-only"]
    words += ["MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    words += ["TEST.EXPECTED_RESULTS", [["panoptic_seg", "PQ", pq, 1e-6]]]
    status, _, err = command(*words)
    assert status == 0, err
    assert "Results verification passed" in (tmp_path / "out" / "log.txt").read_text()


def test_killed_worker_is_started_again_and_the_training_ends(one, options, tmp_path):
    output, flag = tmp_path / "out", tmp_path / "died"
    launcher = torchrun(2, "--standalone", "--max-restarts", "2")
    (log,) = finish(start(launcher, [__file__, flag, 1, 2], [], options, output))
    # The other process fails when the connection breaks. If torchrun looks late, on a busy machine,
    # it names that one: its exit code is 1, not -9.
    assert flag.exists() and "exitcode" in log
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    check_like_one(one, output, options)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_two_machines(one, options, tmp_path, monkeypatch, dies):
    """A worker of one of them is killed, so that they count the restarts differently."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    output, flag = tmp_path / "out", tmp_path / "died"
    launcher = torchrun(1, "--nnodes", "2", "--rdzv_backend", "c10d")
    launcher += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--max-restarts", "2"]
    script = [__file__, flag, 1, 2] if dies else [TRAIN_NET]
    finish(*[start(launcher, script, [], options, output) for _ in range(2)])
    assert flag.exists() == dies and (output / "log.txt.rank1").exists()
    check_like_one(one, output, options)


class Die(HookBase):
    def __init__(self, flag, iteration):
        self.flag, self.iteration = flag, iteration

    def after_backward(self):
        if self.trainer.iter == self.iteration and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main(args):
    trainer = PanopticTrainer(setup_job(args))
    trainer.resume_or_load(resume=True)
    if int(os.environ["RANK"]) == args.rank:
        hook = Die(args.flag, args.iteration)
        trainer._trainer.register_hooks([hook])
        hook.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    flag, rank, iteration, *rest = sys.argv[1:]
    parsed = default_argument_parser().parse_args(rest)
    parsed.flag, parsed.rank, parsed.iteration = Path(flag), int(rank), int(iteration)
    launch_job(main, parsed)
