"""Several processes and machines, on the CPU: two machines are two torchrun agents on loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_panoptic_d2.data.shapes import make_shapes
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

REPO = Path(__file__).parents[2]
TRAIN_NET = REPO / "tools" / "train_net.py"
IMAGES = 7
# So that a hanging test ends.
LONG = 900


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    paths = make_shapes(tmp_path_factory.mktemp("shapes"), "few", IMAGES, size=32, seed=0)
    item = {"name": "few_shapes", **vars(paths)}
    opts = ["DATASETS.REGISTER", [item], "DATASETS.TRAIN", ("few_shapes",)]
    opts += ["DATASETS.TEST", ("few_shapes",), "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 6]
    opts += ["INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32, "SOLVER.MAX_ITER", 4]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 1, "MODEL.RESNETS.NORM", "FrozenBN"]
    opts += ["MODEL.DETR.DROPOUT", 0.0, "MODEL.DETR.TEST.SCORE_THRESH", 0.0]
    opts += ["MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SEMANTIC_ON", True]
    opts += ["MODEL.DETR.TEST.BATCH_SIZE", 1, "MODEL.DETR.TEST.MIN_SEGMENT_AREA", 0]
    opts += ["MODEL.DETR.TEST.OVERLAP_THRESH", 0.0]
    yield [str(value) for value in opts]
    if "few_shapes" in DatasetCatalog.list():
        DatasetCatalog.remove("few_shapes")
        MetadataCatalog.remove("few_shapes")


def start(launcher, script, flags, options, output):
    command = [sys.executable, *launcher, *script, "--config-file", "shapes/tiny.yaml", *flags]
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


def predictions(output):
    content = json.loads((output / "inference" / "few_shapes" / "predictions.json").read_text())
    return sorted(content["annotations"], key=lambda a: a["image_id"])


@pytest.fixture(scope="module")
def one(options, tmp_path_factory):
    """A training by one process."""
    output = tmp_path_factory.mktemp("one") / "out"
    finish(start([], [TRAIN_NET], [], options, output))
    return output


def check_like_one(one, output):
    """The same training, up to rounding, which AdamW makes large where a gradient is almost 0."""
    first, second = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (one, output)
    )
    far = sum((first[key] - second[key]).abs().sum() for key in first)
    assert far / sum(value.numel() for value in first.values()) < 1e-4
    assert [a["image_id"] for a in predictions(output)] == list(range(1, IMAGES + 1))
    assert not list(output.rglob("*.jsonl"))


def test_killed_worker_is_started_again_and_the_training_ends(one, options, tmp_path):
    output, flag = tmp_path / "out", tmp_path / "died"
    launcher = torchrun(2, "--standalone", "--max-restarts", "2")
    script = [Path(__file__).with_name("dying_worker.py"), flag, 1, 2]
    (log,) = finish(start(launcher, script, [], options, output))
    # The other process fails when the connection breaks. If torchrun looks late, on a busy machine,
    # it names that one: its exit code is 1, not -9.
    assert flag.exists() and "exitcode" in log
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    check_like_one(one, output)


@pytest.mark.slow
def test_two_machines(one, options, tmp_path):
    output = tmp_path / "out"
    endpoint = f"127.0.0.1:{free_port()}"
    launcher = torchrun(1, "--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint)
    machines = [start(launcher, [TRAIN_NET], [], options, output) for _ in range(2)]
    finish(*machines)
    assert (output / "log.txt.rank1").exists()
    check_like_one(one, output)


@pytest.mark.slow
def test_killed_worker_of_one_of_two_machines(one, options, tmp_path, monkeypatch):
    """The machines count the restarts differently."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    output, flag = tmp_path / "out", tmp_path / "died"
    endpoint = f"127.0.0.1:{free_port()}"
    launcher = torchrun(1, "--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint)
    launcher += ["--max-restarts", "2"]
    script = [Path(__file__).with_name("dying_worker.py"), flag, 1, 2]
    finish(*[start(launcher, script, [], options, output) for _ in range(2)])
    assert flag.exists()
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    check_like_one(one, output)


@pytest.fixture(scope="module")
def evaluated(options, tmp_path_factory):
    """Weights that see something in every image, and their evaluation by one process."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    cfg = setup_cfg("shapes/tiny.yaml", [*options, "OUTPUT_DIR", str(output)])
    torch.manual_seed(0)
    model = PanopticTrainer.build_model(cfg)
    with torch.no_grad():
        model.class_embed.bias[-1] = -20
        model.class_embed.weight.mul_(40)
        model.query_embed.weight.mul_(3)
    PanopticTrainer.build_checkpointer(cfg, model).save("model_final")
    PanopticTrainer.test(cfg, model)
    return output


@pytest.mark.parametrize(
    "how", ["torchrun", pytest.param("launch on two machines", marks=pytest.mark.slow)]
)
def test_evaluation_loses_nothing_and_counts_nothing_twice(evaluated, options, tmp_path, how):
    """7 images in 2 processes: the same weights give the same predictions and results."""
    output = tmp_path / "out"
    opts = [*options, "MODEL.WEIGHTS", str(evaluated / "model_final.pth")]
    if how == "torchrun":
        launcher = torchrun(2, "--standalone")
        finish(start(launcher, [TRAIN_NET], ["--eval-only"], opts, output))
    else:
        flags = ["--num-gpus", 1, "--num-machines", 2]
        flags += ["--dist-url", f"tcp://127.0.0.1:{free_port()}", "--eval-only"]
        machines = [
            start([], [TRAIN_NET], [*flags, "--machine-rank", r], opts, output) for r in (0, 1)
        ]
        finish(*machines)
    found = predictions(output)
    assert found == predictions(evaluated)
    assert [a["image_id"] for a in found] == list(range(1, IMAGES + 1))
    assert any(a["segments_info"] for a in found)
    instances = [instance_results(folder) for folder in (evaluated, output)]
    assert instances[0] == instances[1]
    assert {r["image_id"] for r in instances[0]} == set(range(1, IMAGES + 1))
    log = (output / "log.txt").read_text()
    assert "were not predicted" not in log and "predicted twice" not in log


def instance_results(output):
    path = output / "inference" / "few_shapes" / "coco_instances_results.json"
    return sorted(json.loads(path.read_text()), key=lambda r: (r["image_id"], json.dumps(r)))


@pytest.mark.slow
def test_detectron2_launch_without_a_gpu(one, options, tmp_path):
    output = tmp_path / "out"
    flags = ["--num-gpus", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    finish(start([], [TRAIN_NET], flags, options, output))
    check_like_one(one, output)
