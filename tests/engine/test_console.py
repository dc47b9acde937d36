"""What the console shows of the log."""

import logging

import pytest


@pytest.mark.parametrize("name", ["torch.utils.cpp_extension", "onnxscript.optimizer"])
def test_warnings_that_no_user_can_act_on_are_hidden(name, command, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger(name.partition(".o")[0]), "level", logging.NOTSET)
    command("report", tmp_path)
    logging.getLogger(name).warning("Skipping constant folding")
    assert "Skipping" not in caplog.text
