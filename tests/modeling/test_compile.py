import pytest
import torch
from detectron2.modeling import build_model
from torch._dynamo.utils import counters

from detr_panoptic_d2.engine import setup_cfg

SIZES = [(96, 90), (96, 128), (100, 120), (97, 113)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(setup_cfg("shapes/tiny.yaml", ["MODEL.DEVICE", "cpu"])).eval()
    yield model
    torch.compiler.reset()


@torch.no_grad()
def masks(model, image, num_queries):
    detections = model.detect(model.preprocess([{"image": image}]))
    return model.predict_masks(
        detections, torch.zeros(num_queries, dtype=torch.long), torch.arange(num_queries)
    )


def test_results_are_the_same_and_new_image_sizes_are_not_compiled_anew(model):
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) for size in SIZES]
    images = [(255 * image, 2 + i % 3) for i, image in enumerate(images)]
    expected = [masks(model, *image) for image in images]
    torch.compiler.reset()
    counters.clear()
    # Without code generation: what counts here is tracing, guards and graphs.
    model.compile_parts(dynamic=True, backend="eager")
    graphs = []
    for image, reference in zip(images, expected, strict=True):
        torch.testing.assert_close(masks(model, *image), reference)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    # The first three sizes show which dimensions differ; after them nothing is compiled.
    assert graphs[-1] == graphs[2]


def test_training_compiles(model):
    model.train()
    parameter = model.mask_head.lay5.weight
    batch = [{"image": 255 * torch.rand(3, 64, 80)}]
    images = model.preprocess(batch)

    def gradient():
        torch.manual_seed(3)
        out = model.detect(images)
        predicted = model.predict_masks(out, torch.zeros(3, dtype=torch.long), torch.arange(3))
        return torch.autograd.grad(predicted.square().mean(), parameter)[0]

    expected = gradient()
    model.compile_parts(dynamic=True, backend="eager")
    torch.testing.assert_close(gradient(), expected)
