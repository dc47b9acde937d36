"""Detectron2's ``train_net.py`` with our mapper and optimizer: it and our trainer resume each
other's checkpoints."""

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


def test_train_net(make_cfg):
    """One training by three programs; each but the first one resumes."""
    for number, trainer_class in enumerate((StockTrainer, PanopticTrainer, StockTrainer)):
        end = 2 * (number + 1)
        cfg = make_cfg("out", SOLVER__MAX_ITER=end)
        start, optimizer = train(trainer_class, cfg, resume=number > 0)
        assert start == end - 2
        # The optimizer has stepped more often than in this program.
        assert {int(entry["step"]) for entry in optimizer.state.values()} == {end}
