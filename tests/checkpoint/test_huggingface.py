"""Files that transformers writes. Panoptic folders, and equal numbers: tests/modeling."""

import pytest
import torch
from safetensors.torch import load_file

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.errors import UserError

# The names of modules that are used below came with transformers 5.
transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("timm")


def assert_loaded(model, theirs):
    """Spot checks of what is renamed and sliced."""
    ours, attention = model.state_dict(), theirs.model.decoder.layers[1].encoder_attn
    name = "transformer.decoder.layers.1.multihead_attn.out_proj.weight"
    assert torch.equal(ours[name], attention.o_proj.weight)
    assert torch.equal(ours["class_embed.weight"][-1], theirs.class_labels_classifier.weight[-1])
    assert torch.equal(ours["class_embed.weight"][0], theirs.class_labels_classifier.weight[1])


def test_boxes_as_folder_and_as_files(build, boxes_only, tmp_path, caplog):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
    sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_labels": 91}
    config = transformers.DetrConfig(
        use_timm_backbone=True, backbone="resnet18", use_pretrained_backbone=False, **sizes
    )
    torch.manual_seed(0)
    theirs = transformers.DetrForObjectDetection(config)
    theirs.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = build(*boxes_only)
        PanopticCheckpointer(model).load(str(path))
        assert_loaded(model, theirs)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "detr", "dilation": true}')
    model = build(*boxes_only)
    PanopticCheckpointer(model).load(str(tmp_path))
    assert_loaded(model, theirs)
    assert "set MODEL.RESNETS.RES5_DILATION to 2" in caplog.text
    for content in ("{", '{"model_type": "detr", "id2label": ["a"]}'):
        (tmp_path / "config.json").write_text(content)
        words = r"config\.json is not a config of a Hugging Face model"
        with pytest.raises(UserError, match=words):
            PanopticCheckpointer(model).load(str(tmp_path))
