from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import picture, write_shard
from trainer import BadSample
from trainer.cli import cli
from trainer.data import index
from trainer.data.index import (
    CHANGED,
    find_index,
    index_path,
    is_of,
    kept_of,
    load_index,
    make_index,
    open_shard,
    save_index,
)
from trainer.data.readers import Reading, Share, read_share
from trainer.data.shards import PARTS


@pytest.fixture
def shard(tmp_path) -> str:
    samples = {f"{i:03}": {"jpg": picture(i), "json": "{}", "txt": f"c{i}"} for i in range(30)}
    samples |= {"../x": {"txt": "out"}, "é" * 60: {"txt": "long and not ASCII"}}
    return str(write_shard(tmp_path / "data/0.tar", samples))


def indexed(path: str, folder: str | None = None) -> str:
    """Where the index is."""
    found = CliRunner().invoke(cli, ["index", path, *(["--into", folder] if folder else [])])
    assert found.exit_code == 0, found.output
    return index_path(path, folder)


def captions(url: str, folder: str | None = None, start: int = 0) -> list[str]:
    open_shard.cache_clear()
    reading = Reading(with_pictures=False, index=folder)
    return [
        f"({one.reason})" if isinstance(one, BadSample) else one.text
        for one in read_share(Share(url), start, reading)
    ]


def test_with_its_index_a_shard_gives_what_it_gives_without(shard):
    without = captions(shard)
    index = load_index(indexed(shard))
    assert len(index.shard) == 32 and index.shard.extents.shape == (32, len(PARTS), 2)
    assert captions(shard) == without and "(path leads out of the shard)" in without


def test_with_its_index_a_shards_headers_are_not_walked(shard, monkeypatch):
    indexed(shard)
    without = captions(shard)
    monkeypatch.setattr("trainer.data.index.walk", None)
    assert captions(shard) == without
    with pytest.raises(TypeError):
        captions(str(shutil.copy(shard, f"{shard}.copy.tar")))


def test_a_shard_that_grows_while_it_is_read_is_refused(shard, monkeypatch):
    walk = index.walk

    def grow(path):
        yield from walk(path)
        with open(path, "ab") as file:
            file.write(bytes(512))

    monkeypatch.setattr(index, "walk", grow)
    with pytest.raises(OSError, match="0.tar changes while it is read; index it when it is fini"):
        make_index(shard)


def test_indexes_may_lie_in_a_folder_of_their_own(shard, tmp_path):
    path = indexed(shard, str(tmp_path / "indexes"))
    assert Path(path).parent == tmp_path / "indexes" and os.listdir(tmp_path / "data") == ["0.tar"]
    monkey = captions(shard, str(tmp_path / "indexes"))
    assert monkey == captions(shard)


def test_an_index_is_made_once_and_again_when_its_shard_is_another(shard):
    path = indexed(shard)
    made = os.stat(path).st_mtime_ns
    found = CliRunner().invoke(cli, ["index", shard])
    assert "32 samples in 1 shards; 0 indexes are new" in found.output
    assert "1 cannot be used: path leads out of the shard" in found.output
    assert os.stat(path).st_mtime_ns == made
    write_shard(Path(shard), {"a": {"txt": "b"}})
    assert "1 samples in 1 shards; 1 indexes are new" in (
        CliRunner().invoke(cli, ["index", shard]).output
    )


@pytest.mark.parametrize("change", ["longer", "cut", "another of the same size"])
def test_all_samples_of_a_shard_that_changed_are_wrong_and_as_many_as_before(shard, change):
    indexed(shard)
    if change == "longer":
        write_shard(Path(shard), {"a": {"txt": "b" * 100_000}})
    elif change == "cut":
        os.truncate(shard, os.path.getsize(shard) - 20_000)
    else:
        size = os.path.getsize(shard)
        samples = {f"{i:03}": {"txt": f"{i}"} for i in range(20)}
        write_shard(Path(shard), samples)
        with open(shard, "ab") as file:
            file.truncate(size)
        assert os.path.getsize(shard) == size
    assert captions(shard) == [f"({CHANGED})"] * 32
    assert captions(shard, start=30) == [f"({CHANGED})"] * 2


def test_a_caption_of_the_same_length_is_noticed_where_all_files_have_one_time(tmp_path):
    samples = {f"{i:03}": {"txt": f"caption {i:03}"} for i in range(50)}
    path = str(write_shard(tmp_path / "0.tar", samples))
    indexed(path)
    write_shard(tmp_path / "0.tar", samples | {"007": {"txt": "caption 700"}})
    os.utime(path, ns=(0, 0))
    assert captions(path) == [f"({CHANGED})"] * 50


def test_a_copy_of_a_shard_with_its_index_is_known_by_its_headers(shard, tmp_path):
    path = indexed(shard)
    copy = tmp_path / "copy/0.tar"
    copy.parent.mkdir()
    shutil.copyfile(shard, copy)
    os.utime(copy, ns=(0, 0))
    shutil.copyfile(path, f"{copy}.index.npz")
    assert is_of(load_index(f"{copy}.index.npz"), str(copy))
    assert captions(str(copy)) == captions(shard)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_index_is_named_with_the_next_step(shard, data):
    path = indexed(shard)
    Path(path).write_bytes(data)
    with pytest.raises(ValueError, match=r"0.tar.index.npz is no index .* clip-unlearn index"):
        captions(shard)


def test_an_index_that_leads_out_of_its_shard_is_refused(shard):
    path, index = indexed(shard), make_index(shard)
    index.shard.extents[3, 0, 1] = 10**12
    save_index(index, path)
    with pytest.raises(ValueError, match="leads out of its shard"):
        find_index(shard, None)


def test_a_compressed_index_is_refused_before_it_is_unpacked(shard):
    path = indexed(shard)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("format.npy", bytes(10**6))
    with pytest.raises(ValueError, match="it is compressed"):
        load_index(path)


def test_an_index_with_python_objects_is_refused(shard):
    path = indexed(shard)
    with open(path, "wb") as file:
        np.savez(file, format=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="is no index"):
        load_index(path)


def short_size(columns: dict) -> None:
    columns["size"] = np.arange(2)


def no_lists(columns: dict) -> None:
    columns["wrong_rows"] = np.int64(1)


def float_extents(columns: dict) -> None:
    columns["extents"] = columns["extents"].astype(float)


def float_ends(columns: dict) -> None:
    columns["ends"] = columns["ends"].astype(float)


def scalar_ends(columns: dict) -> None:
    columns["ends"] = columns["ends"][0]


def fewer_rows(columns: dict) -> None:
    columns["extents"] = columns["extents"][1:]


@pytest.mark.parametrize(
    "spoil", [short_size, no_lists, float_extents, float_ends, scalar_ends, fewer_rows]
)
def test_an_index_of_other_columns_is_refused(shard, spoil):
    path = indexed(shard)
    with np.load(path) as found:
        columns = dict(found)
    spoil(columns)
    np.savez(path, **columns)
    with pytest.raises(ValueError, match=r"0.tar.index.npz is no index .* clip-unlearn index"):
        load_index(path)


def claimed(shape: str) -> bytes:
    """An array of numpy's that says it is of this shape, and has no values."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "member", [b"no array", claimed(f"({2**57},)}}"), claimed("(")], ids=["none", "huge", "cut"]
)
def test_an_index_whose_members_are_no_arrays_is_refused(shard, member):
    path = indexed(shard)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"extents.npy": member}).items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"0.tar.index.npz is no index .* clip-unlearn index"):
        load_index(path)


def test_what_is_kept_of_a_shard_is_found_and_what_a_kill_left_of_it(shard):
    kept = [f"{shard}.text-{'0' * 16}.safetensors", f"{shard}.image-{'0' * 16}.safetensors"]
    left = [f"{kept[0]}.node.7.tmp", f"{kept[1]}.node.7.tmp", f"{shard}.index.npz.7.tmp"]
    for path in (*kept, *left, f"{shard}.txt", f"{shard}.index.npz.own", f"{shard}.tmp"):
        Path(path).touch()
    assert sorted(kept_of(shard, None)) == sorted([*kept, *left])
    path = indexed(shard)
    assert sorted(kept_of(shard, None)) == sorted([*kept, *left, path])


def test_a_full_disk_leaves_no_half_index(shard, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_index(make_index(shard), index_path(shard, None))
    assert os.listdir(os.path.dirname(shard)) == ["0.tar"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("http://h/0.tar", "say --into FOLDER"), ("a.txt", "needs no index")],
)
def test_what_needs_no_index_or_a_folder_for_it_is_told_of(tmp_path, name, message):
    if "://" not in name:
        name = str(tmp_path / name)
        Path(name).write_text("a\n")
    found = CliRunner().invoke(cli, ["index", name])
    assert found.exit_code == 1 and message in str(found.exception)
