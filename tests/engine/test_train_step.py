import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.engine.train_step import NonFiniteLossError, TrainStep, amp_dtype


class Regression(nn.Module):
    """Losses from a linear layer; remembers the precision that it ran in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)

    def forward(self, batch):
        out = self.linear(torch.stack([d["x"] for d in batch]))
        self.dtype = out.dtype
        return {"loss_a": out.float().square().mean(), "loss_b": out.float().abs().mean()}


def make_step(value=1.0, **kwargs):
    model = Regression()
    batch = [{"x": torch.full((4,), value), "file_name": f"{i}.jpg"} for i in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = TrainStep(model, [batch] * 50, optimizer, **kwargs)
    return step, model


def run(step, count):
    with EventStorage() as storage:
        for step.iter in range(count):
            step.run_step()
            storage.step()
        return storage.history("total_loss").values()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_loss_falls_in_every_precision(dtype):
    step, model = make_step(dtype=dtype)
    losses = [value for value, _ in run(step, 20)]
    assert losses[-1] < 0.5 * losses[0]
    assert model.dtype == (dtype or torch.float32)
    assert step.grad_scaler.is_enabled() == (dtype == torch.float16)
    other, _ = make_step(dtype=dtype)
    other.load_state_dict(step.state_dict())
    assert other.grad_scaler.state_dict() == step.grad_scaler.state_dict()


def test_nan_names_images_and_checkpoint():
    step, model = make_step(float("nan"), way_out=lambda: "The last is out/model_0000009.pth.")
    before = model.linear.weight.clone()
    with pytest.raises(NonFiniteLossError) as e:
        run(step, 1)
    for text in ("0.jpg, 1.jpg", "loss_a, loss_b", "iteration 0", "out/model_0000009.pth"):
        assert text in str(e.value)
    assert torch.equal(before, model.linear.weight)


def test_amp_dtype():
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    assert amp_dtype(cfg) is None
    cfg.SOLVER.AMP.ENABLED = True
    assert amp_dtype(cfg) == torch.float16
    cfg.SOLVER.AMP.DTYPE = "float8"
    with pytest.raises(ValueError, match="float8.*bfloat16"):
        amp_dtype(cfg)
