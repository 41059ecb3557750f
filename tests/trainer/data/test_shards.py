from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import write_shard
from tests.trainer.webserver import serving
from trainer import BadSample
from trainer.data.readers import Reading, Share, read_share
from trainer.data.shards import CUT, MAX_OPEN_FILES, PARTS, Entry, _opened, read_extent, scan, walk

OUT = "path leads out of the shard"


def tar_of(*names: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar whose entries hold their own place, as text."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for i, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size = len(data := f"{i}".encode())
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def put(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def walked(path: str) -> list[str]:
    """The names of its files; in brackets what cannot be used."""
    return [one.name if isinstance(one, Entry) else f"({one.reason})" for one in walk(path)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_file_is_found_where_it_lies_in_all_formats(tmp_path, form):
    names = ["a.txt", "./b/c.txt", "d" * 90 + "/é.txt"]
    names += [] if form == tarfile.USTAR_FORMAT else ["long" * 100 + ".txt"]
    path = put(tmp_path / "0.tar", tar_of(*names, form=form))
    assert walked(path) == [name.removeprefix("./") for name in names]
    for i, entry in enumerate(walk(path)):
        assert read_extent(path, *entry[1:]) == f"{i}".encode()


def test_folders_links_and_devices_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo("a.txt")
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    assert walked(str(tmp_path / "0.tar")) == []


def test_paths_that_lead_out_of_the_shard_cannot_be_used(tmp_path):
    path = put(tmp_path / "0.tar", tar_of("/etc/a.txt", "../b.txt", "c/../../d.txt", "e..f.txt"))
    assert walked(path) == [f"({OUT})"] * 3 + ["e..f.txt"]


@pytest.mark.parametrize("kept_bytes", [2048, 1536 + 1, 1536, 1024 + 1, 1024])
def test_a_cut_tar_is_used_up_to_the_cut(tmp_path, kept_bytes):
    path = put(tmp_path / "0.tar", tar_of("a.txt", "b.txt")[:kept_bytes])
    assert walked(path) == ["a.txt", "b.txt"][: 1 + (kept_bytes > 1536)] + [f"({CUT})"]


def test_a_damaged_header_in_the_middle_ends_the_tar(tmp_path):
    data = bytearray(tar_of("a.txt", "b.txt", "c.txt"))
    data[1024:1100] = b"\xff" * 76
    assert walked(put(tmp_path / "0.tar", bytes(data))) == ["a.txt", f"({CUT})"]


@pytest.mark.parametrize("size", [b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11])
def test_a_size_that_leads_back_or_out_is_a_damage(tmp_path, size):
    data = tar_of("a.txt", "b.txt", form=tarfile.USTAR_FORMAT)
    header = data[1024:1536]
    header = with_checksum(header[:124] + size + header[136:])
    assert walked(put(tmp_path / "0.tar", data[:1024] + header + data[1536:])) == [
        "a.txt",
        f"({CUT})",
    ]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_asks_for_all_memory_is_a_damage(tmp_path, kind):
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 2**40
    path = put(tmp_path / "0.tar", entry.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert walked(path) == [f"({CUT})"]


def extended(kind: bytes, **fields: str) -> bytes:
    """A header of pax's with these fields."""
    records = ""
    for name, value in fields.items():
        record = f" {name.replace('_', '.')}={value}\n"
        records += f"{len(record) + 2}{record}"  # each is from 10 to 99 characters long
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, len(records)
    return entry.tobuf(tarfile.USTAR_FORMAT) + records.encode().ljust(512, b"\0")


def test_digits_without_end_in_a_header_are_a_damage(tmp_path):
    """Python before 3.12.6 takes the square of their number: hours for a file of them."""
    data = extended(tarfile.XHDTYPE, comment="1" * 80) + tar_of("a.txt")
    assert walked(put(tmp_path / "0.tar", data)) == ["a.txt"]
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 32_768
    hostile = entry.tobuf(tarfile.USTAR_FORMAT) + b"1" * 32_768
    assert walked(put(tmp_path / "1.tar", hostile + tar_of("a.txt"))) == [f"({CUT})"]


def unknown_kind() -> bytes:
    entry = tarfile.TarInfo("z")
    entry.type = b"Z"
    return entry.tobuf(tarfile.USTAR_FORMAT)


LEADING_BACK = {
    "size below nothing": extended(tarfile.XHDTYPE, size="-1000") + unknown_kind(),
    "map longer than its entry": (
        extended(tarfile.XHDTYPE, GNU_sparse_major="1", GNU_sparse_minor="0")
        + tarfile.TarInfo("b.txt").tobuf(tarfile.USTAR_FORMAT)
        + b"0\n".ljust(512, b"\0")
    ),
    "size of all": extended(tarfile.XGLTYPE, size="2000"),
}


@pytest.mark.parametrize("back", LEADING_BACK.values(), ids=LEADING_BACK)
def test_what_leads_back_is_a_damage_here_and_elsewhere(tmp_path, monkeypatch, back):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    whole = tar_of("a.txt", "c.txt", "d.txt", form=tarfile.USTAR_FORMAT)
    data = whole[:1024] + back + whole[1024:]
    assert walked(put(tmp_path / "0.tar", data)) == ["a.txt", f"({CUT})"]
    with serving({"/0.tar": data}) as server:
        found = list(read_share(Share(server.url("/0.tar")), 0, Reading()))
    told = [f"({one.reason})" if isinstance(one, BadSample) else one.text for one in found]
    assert sorted(told) == [f"({CUT})", "0"]


def test_endless_long_names_are_a_damage(tmp_path):
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 5
    one = entry.tobuf(tarfile.GNU_FORMAT) + b"a.txt".ljust(512, b"\0")
    assert walked(put(tmp_path / "0.tar", one * 3000)) == [f"({CUT})"]


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(5000)])
def test_what_is_no_tar_gives_nothing(tmp_path, data):
    assert walked(put(tmp_path / "0.tar", data)) == [f"({CUT})"]


def test_a_missing_tar_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(walk(str(tmp_path / "no.tar")))


WHOLE = tar_of("a.txt", "d" * 150 + "/b.txt", "c.txt", form=tarfile.PAX_FORMAT)


@settings(max_examples=300, deadline=1000)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) // 2), st.integers(0, 255)), max_size=6),
    mended=st.booleans(),
    kept=st.integers(0, len(WHOLE)),
)
def test_whatever_the_bytes_are_the_walk_ends_within_the_file(
    tmp_path_factory, changes, mended, kept
):
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    if mended:  # so that the change gets past the checksum
        for start in range(0, len(data), 512):
            if data[start + 257 : start + 262] == b"ustar":
                data[start : start + 512] = with_checksum(bytes(data[start : start + 512]))
    path = put(tmp_path_factory.getbasetemp() / "any.tar", bytes(data[:kept]))
    for entry in walk(path):
        if isinstance(entry, Entry):
            assert 0 <= entry.offset <= entry.offset + entry.size <= kept


def scanned(path: str) -> list[tuple[str, str]]:
    """Of each sample its key and the parts it has, or why it cannot be used."""
    shard = scan(walk(path))
    return [
        (shard.keys[row], shard.wrong.get(row) or " ".join(parts_of(shard.extents[row])))
        for row in range(len(shard))
    ]


def parts_of(extents) -> list[str]:
    return [part for part, (offset, _) in zip(PARTS, extents) if offset >= 0]


def test_samples_are_grouped_by_webdatasets_rule(tmp_path):
    names = ["a.JPG", "a.txt", "a.npy", "b/c.d/e.txt", "b/c.d/e.seg.txt", ".hidden.jpg"]
    names += ["x/._a.jpg", "bare", "dot.", "only.npy", "é.cls"]
    assert scanned(put(tmp_path / "0.tar", tar_of(*names))) == [
        ("a", "txt picture"), ("b/c.d/e", "txt"), ("é", "cls"),
    ]  # fmt: skip


def test_a_key_that_comes_back_or_has_a_part_twice_is_a_duplicate(tmp_path):
    names = ["a.txt", "b.txt", "b.txt", "a.jpg", "c.txt", "a.txt"]
    assert scanned(put(tmp_path / "0.tar", tar_of(*names))) == [
        ("a", "txt"), ("", "duplicate key"), ("", "duplicate key"), ("c", "txt"),
        ("", "duplicate key"),
    ]  # fmt: skip


def test_what_cannot_be_used_has_its_place_among_the_samples(tmp_path):
    whole = tar_of("a.txt", "../b.txt", "c.txt", "d.txt")
    path = put(tmp_path / "0.tar", whole[: 3 * 1024 + 512])
    # Not after `a`: whether it has more files is known at `c` only.
    assert scanned(path) == [("", OUT), ("a", "txt"), ("", CUT), ("c", "txt")]


@pytest.mark.parametrize("names", [("a.png", "a.gif", "a.jpg"), ("a.jpg", "a.png", "a.gif")])
def test_the_first_kind_of_picture_counts(tmp_path, names):
    path = put(tmp_path / "0.tar", tar_of(*names))
    (extents,) = scan(walk(path)).extents
    assert read_extent(path, *extents[-1].tolist()) == f"{names.index('a.jpg')}".encode()


def test_a_file_that_became_shorter_or_went_is_a_bad_sample(tmp_path):
    path = write_shard(tmp_path / "0.tar", {"a": {"txt": "caption"}})
    caption = scan(walk(str(path))).extents[0, 0].tolist()
    assert read_extent(str(path), *caption) == b"caption"
    os.truncate(path, 514)
    with pytest.raises(BadSample, match="^shard is shorter than it was$"):
        read_extent(str(path), *caption)
    with pytest.raises(BadSample, match="^shard cannot be read: No such file or directory$"):
        read_extent(str(tmp_path / "gone.tar"), 0, 1)


def test_no_more_files_are_held_open_than_the_bound(tmp_path):
    _opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for i in range(MAX_OPEN_FILES + 50):
        assert read_extent(put(tmp_path / f"{i}", b"x"), 0, 1) == b"x"
    assert len(os.listdir("/proc/self/fd")) == before + MAX_OPEN_FILES
    _opened.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before


def _read_backwards(path, extents, told):
    told.put([read_extent(path, *extent) for extent in reversed(extents)])


def test_forked_processes_read_the_same_file_at_once(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i:03}": {"txt": f"{i}"} for i in range(200)})
    extents = scan(walk(str(path))).extents[:, 0].tolist()
    expected = [read_extent(str(path), *extent) for extent in extents]  # held open from here on
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    arguments = (str(path), extents, told)
    processes = [fork.Process(target=_read_backwards, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert [read_extent(str(path), *extent) for extent in extents] == expected
    assert [told.get() for _ in processes] == [expected[::-1]] * 2
    for process in processes:
        process.join()
    assert read_extent(str(path), *extents[0]) == b"0"  # what they closed was theirs
