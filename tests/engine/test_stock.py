"""Detectron2's ``train_net.py`` with our mapper and optimizer: it and our trainer resume each
other's checkpoints."""

import itertools

import pytest
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOPanopticEvaluator

from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.engine import PanopticTrainer, build_optimizer


class StockTrainer(DefaultTrainer):
    """What tools/train_net.py of Detectron2 becomes."""

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=PanopticDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_evaluator(cls, cfg, name):
        return COCOPanopticEvaluator(name, cfg.OUTPUT_DIR)


def train(trainer_class, cfg, resume=False):
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    assert "PQ" in trainer._last_eval_results["panoptic_seg"]
    return trainer.start_iter, trainer.optimizer


@pytest.fixture
def config(make_cfg):
    return lambda max_iter: make_cfg("out", SOLVER__MAX_ITER=max_iter)


def steps(optimizer):
    """How often the optimizer has stepped: more than its own program did if it was resumed."""
    return {int(entry["step"]) for entry in optimizer.state.values()}


@pytest.mark.parametrize("pair", list(itertools.permutations([StockTrainer, PanopticTrainer])))
def test_train_net(config, pair):
    train(pair[0], config(2))
    start, optimizer = train(pair[1], config(4), resume=True)
    assert start == 2
    assert steps(optimizer) == {4}
