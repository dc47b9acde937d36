import os

import pytest

from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.files import check_not_overwritten


@pytest.mark.parametrize("make", [os.symlink, os.link, None])
def test_an_output_must_not_be_an_input(tmp_path, make):
    """The same file by its own name, a symbolic link or a hard link; a folder that is a link."""
    source = tmp_path / "a.png"
    source.write_text("photo")
    target = tmp_path / "b.png" if make else tmp_path / "folder" / ".." / "a.png"
    (tmp_path / "folder").mkdir()
    if make:
        make(source, target)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for output in (target, tmp_path / "link" / target.name):
        with pytest.raises(UserError, match=r"would overwrite the input .*a\.png'"):
            check_not_overwritten([tmp_path / "none.png", source], [tmp_path / "new.png", output])
    check_not_overwritten([source, tmp_path / "none.png"], [tmp_path / "none.png"])
