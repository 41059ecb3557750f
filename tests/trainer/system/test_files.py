from __future__ import annotations

import errno
import os
import subprocess

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.system.files import is_full, replace, replace_text


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
    path = replace_text(tmp_path / "results.json", "first")

    def cut_off(aside):
        aside.write_text("sec")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError):
        replace(path, cut_off)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    assert replace_text(path, "second").read_text() == "second"


def test_a_link_in_the_place_of_what_is_written_aside_is_not_followed(tmp_path):
    (tmp_path / "keys").write_text("mine")
    (tmp_path / ".page.tmp").symlink_to(tmp_path / "keys")
    page = replace_text(tmp_path / "page", "theirs")
    assert (tmp_path / "keys").read_text() == "mine" and not page.is_symlink()


@pytest.fixture
def full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path]).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_known_by_what_each_library_raises(full_disk):
    with pytest.raises(OSError) as own:
        replace_text(full_disk / "page", "x" * 100_000)
    with pytest.raises(SafetensorError) as rust:
        save_file({"weight": torch.zeros(100_000)}, full_disk / "weights")
    assert is_full(own.value) and is_full(rust.value)
    for other in (OSError(errno.EACCES, "Permission denied"), ValueError("No space"), OSError()):
        assert not is_full(other)
