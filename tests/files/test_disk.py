"""Files that take the place of others."""

import os

import pytest

from plugins.errors import UserError
from plugins.files.disk import replace_when_done


def test_output_through_a_link_keeps_the_link(tmp_path):
    """A user's `data/` often links to another disk."""
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with replace_when_done(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_device_or_folder_is_never_replaced(tmp_path):
    """For root, renaming a file over /dev/null succeeds."""
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is not a regular file"), replace_when_done(target):
            pytest.fail("entered")
    assert (tmp_path / "pipe").is_fifo()
