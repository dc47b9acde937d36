"""Files that transformers writes. Panoptic folders, and equal numbers: tests/modeling."""

import pytest
import torch
from safetensors.torch import load_file

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.errors import UserError

# The names of modules that are used below came with transformers 5.
transformers = pytest.importorskip("transformers", minversion="5")


@pytest.fixture
def hugging_face():
    """Return ``make(masks=True, native=False, rows=251)``: a model of theirs."""

    def make(masks=True, native=False, rows=251, **options):
        if native:
            config = transformers.ResNetConfig(
                depths=[2, 2, 2, 2],
                hidden_sizes=[64, 128, 256, 512],
                layer_type="basic",
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )
            options.update(use_timm_backbone=False, backbone=None, backbone_config=config)
        else:
            pytest.importorskip("timm")
            options.update(use_timm_backbone=True, backbone="resnet18")
        config = transformers.DetrConfig(
            use_pretrained_backbone=False,
            num_labels=rows - 1,
            num_queries=5,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            **options,
        )
        torch.manual_seed(0)
        kind = "DetrForSegmentation" if masks else "DetrForObjectDetection"
        return getattr(transformers, kind)(config)

    return make


def assert_loaded(model, theirs):
    """Spot checks: what is renamed, stacked or sliced."""
    detr = getattr(theirs, "detr", theirs)
    ours = model.state_dict()
    attention = detr.model.decoder.layers[1].encoder_attn
    stacked = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    name = "transformer.decoder.layers.1.multihead_attn"
    assert torch.equal(ours[f"{name}.in_proj_weight"], stacked)
    assert torch.equal(ours[f"{name}.out_proj.weight"], attention.o_proj.weight)
    assert torch.equal(ours["class_embed.weight"][-1], detr.class_labels_classifier.weight[-1])
    assert torch.equal(ours["class_embed.weight"][0], detr.class_labels_classifier.weight[1])
    assert torch.equal(ours["input_proj.weight"], detr.model.input_projection.weight)
    last = list(detr.model.backbone.parameters())
    convolutions = [p for p in last if p.dim() == 4 and p.shape == (512, 512, 3, 3)]
    assert torch.equal(ours["backbone.res5.1.conv2.weight"], convolutions[-1])
    if hasattr(theirs, "mask_head"):
        stage = theirs.mask_head.fpn_stages[2]
        assert torch.equal(ours["mask_head.adapter3.weight"], stage.fpn_adapter.weight)
        assert torch.equal(ours["mask_head.lay5.weight"], stage.refine.conv.weight)


def test_boxes_only(build, hugging_face, boxes_only, tmp_path):
    theirs = hugging_face(masks=False, rows=92)
    theirs.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        model = build(*boxes_only)
        PanopticCheckpointer(model).load(str(path))
        assert_loaded(model, theirs)


def test_bin_and_what_its_config_says(build, hugging_face, tmp_path, caplog):
    theirs = hugging_face(native=True)
    theirs.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "detr", "dilation": true}')
    model = build()
    PanopticCheckpointer(model).load(str(tmp_path))
    assert_loaded(model, theirs)
    assert "set MODEL.RESNETS.RES5_DILATION to 2" in caplog.text
    for content in ("{", '{"model_type": "detr", "id2label": ["a"]}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(
            UserError, match=r"config\.json is not a config of a Hugging Face model"
        ):
            PanopticCheckpointer(model).load(str(tmp_path))
