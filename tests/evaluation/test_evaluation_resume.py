"""An evaluation that is broken off and gone on with."""

import json

import pytest
import torch
from detectron2.data import MetadataCatalog

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.evaluation import prediction_key
from detr_panoptic_d2.evaluation.records import ImageRecords

IMAGES = 7
BROKEN_AFTER = 4


class Stopped(Exception):
    """Stands for what ends a process."""


@pytest.fixture
def make_cfg(panoptic_set, scene, tmp_path):
    flipped = scene[0][:, ::-1].copy(), scene[1]
    panoptic_set("resumed_set", [scene, flipped] * 3 + [scene])

    def make(**more):
        opts = ["DATASETS.TRAIN", "('resumed_set',)", "DATASETS.TEST", "('resumed_set',)"]
        opts += ["OUTPUT_DIR", str(tmp_path / "output"), "MODEL.DEVICE", "cpu"]
        opts += ["INPUT.MIN_SIZE_TEST", "32", "MODEL.DETR.TEST.SCORE_THRESH", "0.0"]
        opts += ["MODEL.DETR.TEST.BATCH_SIZE", "2", "MODEL.DETR.TEST.RESUME", "True"]
        opts += ["MODEL.DETR.TEST.INSTANCE_ON", "True", "MODEL.DETR.TEST.SEMANTIC_ON", "True"]
        for key, value in more.items():
            opts += [key.replace("__", "."), str(value)]
        return setup_cfg("shapes/tiny.yaml", opts)

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "output" / "inference" / "resumed_set"


class Counted(torch.nn.Module):
    """A model that counts the images it predicts, and stops after some."""

    def __init__(self, cfg, stop=None):
        super().__init__()
        torch.manual_seed(0)
        self.model = PanopticTrainer.build_model(cfg)
        self.stop = stop
        self.images = []

    def forward(self, inputs):
        if self.stop is not None and len(self.images) >= self.stop:
            raise Stopped
        self.images += [x["image_id"] for x in inputs]
        return self.model(inputs)


def evaluate(cfg, stop=None, change=None):
    model = Counted(cfg, stop)
    if change is not None:
        with torch.no_grad():
            change(model.model)
    if stop is None:
        return PanopticTrainer.test(cfg, model), model
    with pytest.raises(Stopped):
        PanopticTrainer.test(cfg, model)
    return None, model


def same(one, two):
    assert one.keys() == two.keys()
    for task in one:
        assert one[task] == pytest.approx(two[task], nan_ok=True), task


def test_goes_on_where_it_was_broken_off(make_cfg, folder):
    whole, model = evaluate(make_cfg())
    assert sorted(model.images) == list(range(IMAGES))
    predictions = (folder / "predictions.json").read_text()
    assert not list(folder.glob("*.jsonl"))

    evaluate(make_cfg(), stop=BROKEN_AFTER)
    # A kill in the middle of a line.
    with open(folder / "predictions.rank0.jsonl", "a") as f:
        f.write('{"image_id": 4, "record": {"annota')
    resumed, model = evaluate(make_cfg())
    assert model.images == list(range(BROKEN_AFTER, IMAGES))
    same(resumed, whole)
    assert json.loads((folder / "predictions.json").read_text()) == json.loads(predictions)
    assert not list(folder.glob("*.jsonl"))


def test_nothing_is_left_to_predict(make_cfg, folder):
    whole, _ = evaluate(make_cfg())
    cfg = make_cfg()
    model = Counted(cfg)
    evaluator = PanopticTrainer.build_evaluator(
        cfg, "resumed_set", prediction_key(cfg, model, "resumed_set")
    )
    evaluator.reset()
    for inputs in PanopticTrainer.build_test_loader(cfg, "resumed_set"):
        with torch.no_grad():
            evaluator.process(inputs, model.model.eval()(inputs))
    model.images.clear()
    same(PanopticTrainer.test(cfg, model), whole)
    assert model.images == []


@pytest.mark.parametrize(
    "case", ["weights", "config", "annotations", "switched off", "PNG gone", "another evaluation"]
)
def test_stale_predictions_are_not_taken_up(make_cfg, folder, case):
    evaluate(make_cfg(), stop=BROKEN_AFTER)
    cfg, change, expected = make_cfg(), None, IMAGES
    if case == "weights":

        def change(model):
            model.query_embed.weight[0, 0] += 1e-6

    elif case == "config":
        cfg = make_cfg(MODEL__DETR__TEST__SCORE_THRESH=0.01)
    elif case == "annotations":
        path = MetadataCatalog.get("resumed_set").panoptic_json
        with open(path, "a") as f:
            f.write("\n")
    elif case == "switched off":
        cfg = make_cfg(MODEL__DETR__TEST__RESUME=False)
    elif case == "PNG gone":
        (folder / "panoptic" / "002.png").unlink()
        expected = IMAGES - BROKEN_AFTER + 1
    else:
        # Its PNGs lie over those of the first: the first's records are gone with its start.
        evaluate(make_cfg(MODEL__DETR__TEST__SCORE_THRESH=0.01), stop=2)
    _, model = evaluate(cfg, change=change)
    assert len(model.images) == expected


def test_another_number_of_processes(tmp_path):
    """What four processes wrote is taken up by one, whatever their files are called."""
    for rank in range(4):
        path = tmp_path / f"x.rank{rank}.jsonl"
        lines = [{"key": "k"}, {"image_id": rank, "record": [rank]}, {"image_id": 9, "record": []}]
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    records = ImageRecords(tmp_path, "x", "k")
    records.open()
    assert records.done == {0, 1, 2, 3, 9}
    records.write(9, ["again"])
    records.write(10, ["new"])
    assert [p.name for p in tmp_path.iterdir()] == ["x.rank0.jsonl"]
    assert dict(records.gather()) == {0: [0], 1: [1], 2: [2], 3: [3], 9: [], 10: ["new"]}
    records.open(lambda record: len(record) > 0)
    assert records.done == {0, 1, 2, 3, 10}


def test_evaluators_that_keep_results_in_memory_predict_all(make_cfg, caplog, monkeypatch):
    from detectron2.evaluation import COCOPanopticEvaluator

    from detr_panoptic_d2.evaluation import images_done

    cfg = make_cfg()
    evaluator = COCOPanopticEvaluator("resumed_set")
    assert images_done(evaluator) == set()
    assert "MODEL.DETR.TEST.RESUME is without effect" in caplog.text
    assert prediction_key(cfg, torch.nn.Linear(1, 1), "resumed_set")
