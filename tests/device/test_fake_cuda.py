"""All steps of the model on tensors that claim to be on a GPU: devices, types and syncs.

PyTorch's ``FakeTensorMode`` computes shapes, types and devices without data. It refuses operators
on tensors of two devices, and follows CUDA's autocast rules. Values and the backward pass need a
real GPU, see ``test_gpu.py``.
"""

import contextlib
from collections import Counter

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detr_panoptic_d2.modeling.mask_ops import (
    argmax_at_output,
    masks_at_output,
    semantic_scores,
    to_instances,
)
from detr_panoptic_d2.modeling.matcher import Targets
from detr_panoptic_d2.modeling.structures import Frame

BACKBONE = "MODEL.DETR.BACKBONE.MODEL_NAME"
OPTIONS = {
    "DC5": (),
    "no DC5": ("MODEL.RESNETS.RES5_DILATION", 1),
    "checkpointing": (
        *("MODEL.DETR.CHECKPOINT_ENCODER", True, "MODEL.DETR.CHECKPOINT_MASK_HEAD", True),
        *("MODEL.DETR.DROPOUT", 0.1),
    ),
    "pre-norm, no deep supervision": (
        *("MODEL.DETR.PRE_NORM", True, "MODEL.DETR.DEEP_SUPERVISION", False),
    ),
    "frozen detector": ("MODEL.DETR.FREEZE_DETECTOR", True),
    "boxes": (
        *("MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False),
        *("MODEL.DETR.TEST.INSTANCE_ON", True),
    ),
    "renamed FPN": (
        *("MODEL.BACKBONE.NAME", "build_renamed_backbone", BACKBONE, "build_resnet_fpn_backbone"),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.DEPTH", 18),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.RES5_DILATION", 1),
    ),
    "torchvision": (
        *("MODEL.BACKBONE.NAME", "build_torchvision_backbone", BACKBONE, "resnet18"),
        *("MODEL.RESNETS.RES5_DILATION", 1),
    ),
    "timm": (
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", BACKBONE, "convnext_atto"),
        *("MODEL.RESNETS.RES5_DILATION", 1),
    ),
}
CASES = [(name, torch.bfloat16) for name in OPTIONS]
CASES += [("DC5", torch.float32), ("DC5", torch.float16)]
SIZES = [(96, 128), (64, 100)]
COUNTS = [3, 2]
FRAME = Frame(canvas=(96, 128), image=(64, 100), output=(48, 75))


class Recorder(TorchDispatchMode):
    """Counts the operators that wait for the device, and refuses float64 on it."""

    def __init__(self):
        super().__init__()
        self.syncs = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        on_device = any(x.device.type == "cuda" for x in tensors)
        outputs = result if isinstance(result, tuple | list) else [result]
        for x in outputs:
            if isinstance(x, torch.Tensor) and x.device.type == "cuda":
                assert x.dtype != torch.float64, function
        to_host = any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in outputs)
        waits = function in (torch.ops.aten._local_scalar_dense.default,
                             torch.ops.aten.nonzero.default)  # fmt: skip
        if on_device and (to_host or waits):
            self.syncs[function.overloadpacket.__name__] += 1
        return result


@contextlib.contextmanager
def fake_cuda(model, dtype=torch.float32):
    """Move a model to a GPU that does not exist, and record its operators under autocast.

    ``Module.to`` cannot move fake tensors, and ``torch.autocast`` is off if there is no GPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Recorder() as recorder:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = nn.Parameter(p.detach().to("cuda"), requires_grad=p.requires_grad)
                    module._parameters[name] = fake
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to("cuda")
        torch.set_autocast_enabled("cuda", dtype != torch.float32)
        torch.set_autocast_dtype("cuda", dtype)
        recorder.syncs.clear()
        try:
            yield recorder
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()


def fake_images():
    """A padded batch. ``ImageList.from_tensors`` reads sizes from tensors."""
    return ImageList(torch.empty(len(SIZES), 3, *SIZES[0], device="cuda"), SIZES)


def batch(masks):
    """Two images with segments, on the host as the loader gives them."""
    inputs = []
    for count, size in zip(COUNTS, SIZES, strict=True):
        instances = Instances(size)
        instances.gt_classes = torch.zeros(count, dtype=torch.long)
        instances.gt_boxes = Boxes(torch.zeros(count, 4))
        if masks:
            instances.gt_masks = BitMasks(torch.zeros(count, *size, dtype=torch.bool))
        inputs.append({"image": torch.zeros(3, *size), "instances": instances})
    return inputs


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_training_step_waits_once_for_the_matching(tiny_model, monkeypatch, name, dtype):
    model = tiny_model(*OPTIONS[name]).train()
    pairs = [k for count in COUNTS for k in range(count)]
    layers = 1 if model.freeze_detector or not model.deep_supervision else 2
    monkeypatch.setattr(model.criterion.matcher, "assign", lambda *_: ([pairs] * layers,) * 2)
    monkeypatch.setattr(model, "preprocess", lambda batch: fake_images())
    with fake_cuda(model, dtype) as recorder:
        losses = model(batch(masks=model.mask_head is not None))
        assert recorder.syncs == {"_to_copy": 1}
        # As the trainer does if it accumulates gradients.
        inputs = [x["instances"] for x in batch(masks=False)]
        targets = Targets.from_instances(inputs, torch.device("cuda"))
        assert targets.labels.device == targets.boxes.device == model.device
    assert losses
    for loss_name, loss in losses.items():
        assert loss.device.type == "cuda" and loss.dtype == torch.float32, loss_name


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_inference_waits_once_for_the_selection(tiny_model, name, dtype):
    model = tiny_model(*OPTIONS[name], "TEST.DETECTIONS_PER_IMAGE", 2)
    model.instance_on = True
    with fake_cuda(model, dtype) as recorder, torch.no_grad():
        found = model.detect(fake_images())
        model.select(found)
        assert recorder.syncs == {"_to_copy": 1}
        recorder.syncs.clear()
        assert found.pred_logits.dtype == found.pred_boxes.dtype == torch.float32
        # Under CUDA's autocast layer norm and softmax give float32, unlike on a CPU.
        assert found.hs.dtype == found.memory.dtype == torch.float32
        assert found.src_proj.dtype == dtype
        masks = None
        scores, labels = torch.zeros(4, device="cuda"), torch.zeros(4, dtype=torch.long)
        if model.mask_head is not None:
            image, query = torch.zeros(4, dtype=torch.long), torch.arange(4)
            masks = model.predict_masks(found, image, query)
            assert masks.shape[0] == 4 and masks.device.type == "cuda" and masks.dtype == dtype
            owner = argmax_at_output(masks, FRAME, [0, 2])
            assert owner.device.type == "cuda" and owner.shape == FRAME.output
            assert masks_at_output(masks, FRAME).device.type == "cuda"
            probabilities = found.pred_logits[-1, 0, :4].softmax(-1)[:, :-1]
            semantic = semantic_scores(masks, probabilities, FRAME)
            assert semantic.device.type == "cuda" and semantic.dtype == torch.float32
        boxes = found.pred_boxes[-1, 0, :4]
        instances = to_instances(boxes, scores, labels.to("cuda"), masks, FRAME)
        assert instances.pred_boxes.tensor.device.type == "cuda"
        assert not recorder.syncs
