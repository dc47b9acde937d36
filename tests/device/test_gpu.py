"""What a GPU must give, compared with the CPU. Every test skips itself if there is no GPU.

``DETR_PANOPTIC_TEST_DEVICE=cpu pytest -m gpu tests/device`` runs the tests themselves on the CPU.
"""

import copy
import os

import pytest
import torch

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

DEVICE = os.environ.get("DETR_PANOPTIC_TEST_DEVICE", "cuda")
EVERYTHING = ("MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SEMANTIC_ON", True)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"
    ),
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """No TF32, which cuDNN uses by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def models(tiny_model):
    """Return ``build("KEY", value, ...)``: a model on the CPU and its copy on the device."""

    def build(*options):
        model = tiny_model(*options, "MODEL.DETR.DROPOUT", 0.0)
        return model, copy.deepcopy(model).to(DEVICE)

    return build


@pytest.fixture
def batch(make_input):
    """Two images of different sizes with their truth."""
    return [make_input(64, 48, [0, 3, 4]), make_input(48, 56, [1], seed=1)]


@torch.no_grad()
def predictions(model, batch):
    """Class logits, boxes and mask logits of all queries."""
    found = model.detect(model.preprocess(batch))
    image, query = torch.ones(found.pred_logits.shape[1:3]).nonzero(as_tuple=True)
    return found.pred_logits, found.pred_boxes, model.predict_masks(found, image, query)


def gradients(model, batch):
    """Losses and gradients of one training step."""
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_close_gradients(found, expected):
    """Relative to each tensor, or to all together for those that are rounding alone."""
    assert found.keys() == expected.keys()
    total = torch.cat([x.flatten().cpu() for x in expected.values()]).norm()
    for name, gradient in expected.items():
        difference = (found[name].cpu() - gradient.cpu()).norm()
        assert difference <= 1e-3 * gradient.cpu().norm() + 1e-4 * total, name


def test_float32_is_within_rounding(models, batch, assert_within_rounding):
    model, on_device = models("MODEL.DETR.TEST.PAD_MIXED_SIZES", True)
    outputs, reference = predictions(on_device, batch), predictions(model, batch)
    exact = predictions(model.double(), batch)
    for name, ours, *numbers in zip(
        ("logits", "boxes", "masks"), outputs, reference, exact, strict=True
    ):
        assert ours.device.type == DEVICE
        assert_within_rounding(ours.cpu(), *numbers, what=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_boxes_and_classes(models, batch, dtype):
    model, on_device = models()
    with torch.autocast(DEVICE, dtype=dtype):
        outputs = predictions(on_device, batch)
    eps = torch.finfo(dtype).eps
    for ours, reference, bound in zip(
        outputs, predictions(model, batch), (4 * eps, eps / 4, 4 * eps), strict=True
    ):
        difference = (ours.float().cpu() - reference).abs().mean()
        assert difference <= bound * reference.abs().max()
    assert outputs[0].dtype == outputs[1].dtype == torch.float32


def test_training_step(models, batch):
    model, on_device = models()
    expected, reference = gradients(model, batch)
    losses, found = gradients(on_device, batch)
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    assert_close_gradients(found, reference)


def test_checkpointing_and_images_without_segments(models, batch, make_input):
    options = ("MODEL.DETR.CHECKPOINT_ENCODER", True, "MODEL.DETR.CHECKPOINT_MASK_HEAD", True)
    _, plain = models()
    _, again = models(*options)
    losses, expected = gradients(plain, batch)
    others, found = gradients(again, batch)
    for name, loss in losses.items():
        assert others[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    assert_close_gradients(found, expected)
    losses, found = gradients(again, [make_input(48, 56, [])])
    assert all(loss.isfinite() for loss in losses.values()) and found.keys() == expected.keys()


def test_results_are_those_of_the_cpu(models, make_input):
    inputs = [make_input(40, 48), make_input(40, 48, height=61, width=33, seed=1)]
    model, on_device = models(*EVERYTHING)
    for result, expected in zip(on_device(inputs), model(inputs), strict=True):
        ids, info = result["panoptic_seg"]
        assert ids.device.type == DEVICE and ids.dtype == torch.int32
        assert (ids.cpu() == expected["panoptic_seg"][0]).float().mean() > 0.99
        classes = [[s["category_id"] for s in x] for x in (info, expected["panoptic_seg"][1])]
        assert classes[0] == classes[1]
        torch.testing.assert_close(
            result["sem_seg"].cpu(), expected["sem_seg"], rtol=1e-3, atol=1e-4
        )
        ours, reference = result["instances"].to("cpu"), expected["instances"]
        torch.testing.assert_close(ours.scores, reference.scores, rtol=1e-3, atol=1e-4)
        assert (ours.pred_masks == reference.pred_masks).float().mean() > 0.99


def test_two_runs_give_the_same_bits(models, make_input):
    _, model = models(*EVERYTHING)
    first, second = (model([make_input(64, 96)])[0] for _ in range(2))
    assert torch.equal(first["panoptic_seg"][0], second["panoptic_seg"][0])
    assert torch.equal(first["sem_seg"], second["sem_seg"])
    assert torch.equal(first["instances"].pred_masks, second["instances"].pred_masks)


@pytest.mark.parametrize("change", ["fold", "compile"])
def test_folded_and_compiled_on_the_device(models, batch, change):
    _, model = models()
    expected = predictions(model, batch)
    if change == "fold":
        model.fold_for_inference()
    else:
        model.compile_parts(dynamic=True, backend="inductor" if DEVICE == "cuda" else "eager")
    for found, reference in zip(predictions(model, batch), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_trainer_with_mixed_precision_resumes_and_evaluates(panoptic_set, scene, tmp_path, dtype):
    panoptic_set("gpu_set", [scene] * 4)
    options = ["DATASETS.TRAIN", "('gpu_set',)", "DATASETS.TEST", "('gpu_set',)"]
    options += ["MODEL.DEVICE", DEVICE, "OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", "True"]
    options += ["SOLVER.AMP.DTYPE", dtype, "SOLVER.CHECKPOINT_PERIOD", "2"]
    for iterations, resume in ((2, False), (4, True)):
        cfg = setup_cfg("shapes/tiny.yaml", [*options, "SOLVER.MAX_ITER", str(iterations)])
        trainer = PanopticTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        assert trainer.start_iter == (2 if resume else 0)
        trainer.train()
    weights = torch.load(tmp_path / "model_final.pth", map_location="cpu", weights_only=True)
    results = []
    for device in (DEVICE, "cpu"):
        cfg = setup_cfg("shapes/tiny.yaml", [*options, "MODEL.DEVICE", device])
        model = PanopticTrainer.build_model(cfg).eval()
        model.load_state_dict(weights["model"])
        results.append(PanopticTrainer.test(cfg, model)["panoptic_seg"])
    assert results[0].keys() == results[1].keys()
    assert results[0]["PQ"] == pytest.approx(results[1]["PQ"], abs=1)
