from __future__ import annotations

import json
import struct
import warnings
import zlib
from itertools import islice

import pytest

from tests.conftest import picture, write_shard
from trainer import BadSample, Sample
from trainer.streams import (
    MAX_CAPTION_BYTES,
    Share,
    deal,
    expand,
    read_lane,
    read_share,
    to_sample,
)


def captions(path, lanes: int = 1, lane: int = 0, count: int | None = None) -> list[str]:
    """Of a lane; without a count of one lap's length, from the shard's order."""
    if count is None:
        return [entry().text for entry in read_share(Share(str(path), lane, lanes), True)]
    entries = read_lane(deal([str(path)], lanes, 0)[lane], lane, 0, 10, False)
    return [entry().text for entry in islice(entries, count)]


def reason(**parts: bytes | str) -> str:
    """Why a sample of these parts cannot be used."""
    content = {k: v.encode() if isinstance(v, str) else v for k, v in parts.items()}
    with pytest.raises(BadSample) as raised:
        to_sample("key", content)
    return raised.value.reason


def reason_in_shard(folder, **parts: bytes | str) -> str:
    (entry,) = read_share(Share(str(write_shard(folder / "0.tar", {"a": parts})), 0, 1), True)
    with pytest.raises(BadSample) as raised:
        entry()
    return raised.value.reason


def bomb(side: int) -> bytes:
    """The head of a PNG of that many pixels each way, and nothing more."""

    def chunk(content: bytes) -> bytes:
        return content + struct.pack(">I", zlib.crc32(content))

    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk(header)
    return head + struct.pack(">I", 0) + chunk(b"IDAT")


# Which shards


def test_patterns_and_globs_become_paths_and_addresses_stay(tmp_path):
    for name in ("0.tar", "1.tar", "2.tar"):
        write_shard(tmp_path / name, {})
    paths = [f"{tmp_path}/{i}.tar" for i in range(3)]
    assert expand([f"{tmp_path}/{{0..2}}.tar"]) == paths == expand([f"{tmp_path}/*.tar"])
    assert expand(["s3://a/{0..1}.tar"]) == ["s3://a/0.tar", "s3://a/1.tar"]


def test_a_shard_whose_own_name_has_brackets_is_found(tmp_path):
    path = str(write_shard(tmp_path / "a[1]{2}.tar", {}))
    assert expand([path]) == [path]


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        ("{0..1}.tar", FileNotFoundError, r"shard .*1.tar is not there \(1 of 2 are missing\)"),
        ("no*.tar", FileNotFoundError, "no shard matches .*no"),
        ("{0..", ValueError, "is not a pattern of shards; see to its braces"),
    ],
)
def test_shards_that_are_not_there_are_told_of(tmp_path, pattern, kind, message):
    write_shard(tmp_path / "0.tar", {})
    with pytest.raises(kind, match=message):
        expand([f"{tmp_path}/{pattern}"])


def test_no_shards_at_all_are_refused():
    with pytest.raises(FileNotFoundError, match="no shards were named"):
        expand([])


# What a sample is


def test_a_sample_has_its_caption_picture_and_label():
    parts = {"txt": b" a dog \n", "png": b"...", "json": b'{"id": 7}', "cls": b"3"}
    assert to_sample("k", parts) == Sample("k", "a dog", b"...", "7")
    assert to_sample("k", {"txt": b"a", "json": b"{}", "cls": b"3\n"}).label == "3"


def test_a_picture_may_have_no_caption_and_an_empty_one_is_none():
    assert to_sample("k", {"jpg": b"..."}).text is None
    assert to_sample("k", {"jpg": b"...", "txt": " \u2003\n".encode()}).text is None


def test_bad_parts_have_each_their_reason():
    assert reason(txt="  \n") == reason(cls="3") == reason() == "no caption"
    assert reason(txt=b"\xff\xfe", jpg="...") == "undecodable text"
    assert reason(txt="a", cls=b"\xff") == "undecodable text"
    assert reason(txt="a", json="{") == reason(txt="a", json=b"\xff") == "undecodable json"
    assert reason(txt="a", json="[" * 100_000) == "undecodable json"
    assert reason(txt="a", json="9" * 10_000) == "undecodable json"
    assert reason(txt="a", json='["id"]') == reason(txt="a", json="null") == "json is no object"
    assert reason(txt="a", json='{"id": {"a": 1}}').startswith("json has an id that is neither")
    assert reason(txt="a", json=" " * 1_000_001) == "json too large"


def test_a_long_caption_has_its_own_reason_and_is_not_read(tmp_path):
    assert to_sample("k", {"txt": b"a" * MAX_CAPTION_BYTES}).text == "a" * MAX_CAPTION_BYTES
    assert reason(txt="a" * 100_000) == "caption too large"
    assert reason_in_shard(tmp_path, txt="a" * 100_000) == "caption too large"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_known_by_its_header():
    for side in (12_000, 30_000):  # the second is too large for Pillow itself
        with pytest.raises(BadSample, match="picture too large"):
            _ = to_sample("k", {"png": bomb(side)}).image


@pytest.mark.parametrize("data", [b"", b"not a picture", picture(1)[:300], bomb(300)])
def test_a_picture_that_does_not_decode_is_a_bad_sample(data):
    with pytest.raises(BadSample, match="^undecodable picture$"):
        _ = to_sample("k", {"jpg": data}).image


def test_pictures_are_read_only_where_they_are_wanted(tmp_path):
    parts = {"jpg": picture(1), "txt": "a", "npy": b"x"}
    share = Share(str(write_shard(tmp_path / "0.tar", {"a": parts})), 0, 1)
    assert [e().image_bytes for e in read_share(share, True)] == [picture(1)]
    assert [e().image_bytes for e in read_share(share, False)] == [None]


# Lanes


def test_a_lane_goes_round_for_ever_each_sample_once_a_lap(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(7)})
    found = captions(path, count=21)
    laps = [found[:7], found[7:14], found[14:]]
    assert all(sorted(lap) == sorted(found[:7]) for lap in laps) and laps[0] != laps[1]


def test_the_parts_of_a_shard_are_the_shard(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(7)})
    parts = [captions(path, lanes=3, lane=lane) for lane in range(3)]
    assert parts == [["c0", "c3", "c6"], ["c1", "c4"], ["c2", "c5"]]


@pytest.mark.parametrize("data", [b"", b"no tar at all"])
def test_a_lane_of_nothing_but_an_empty_shard_stops_with_its_name(tmp_path, data):
    (tmp_path / "0.tar").write_bytes(data)
    with (
        pytest.warns(UserWarning, match=f"{tmp_path}/0.tar: a shard is not whole"),
        pytest.raises(ValueError, match=f"lane 0 has no sample: shard {tmp_path}/0.tar has none, "),
    ):
        captions(tmp_path / "0.tar", count=1)


def test_more_lanes_than_samples_are_told_of(tmp_path):
    path = write_shard(tmp_path / "0.tar", {"a": {"txt": "c"}})
    with pytest.raises(ValueError, match=r"0.tar has none in part \d of 4, .* lower data.lanes"):
        for lane in range(4):
            captions(path, lanes=4, lane=lane, count=1)


def test_an_empty_shard_beside_a_good_one_is_only_warned_of(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    write_shard(tmp_path / "1.tar", {"a": {"txt": "c"}})
    shares = [Share(f"{tmp_path}/{i}.tar", 0, 1) for i in range(2)]
    with pytest.warns(UserWarning, match="0.tar: a shard is not whole"):
        entries = list(islice(read_lane(shares, 0, 0, 10, False), 3))
    assert [entry().text for entry in entries] == ["c"] * 3


def test_a_shard_that_vanishes_is_named(tmp_path):
    entries = read_lane([Share(f"{tmp_path}/gone.tar", 0, 1)], 0, 0, 10, False)
    with pytest.raises(FileNotFoundError, match="gone.tar"):
        next(entries)


# Streamed shards


def test_a_streamed_shard_gives_the_samples_of_a_local_one(tmp_path):
    samples = {
        f"{i}": {"txt": f"c{i}", "jpg": picture(i), "json": json.dumps({"id": i})} for i in range(5)
    }
    path = write_shard(tmp_path / "0.tar", samples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for with_pictures in (True, False):
            local, piped = (
                [entry() for entry in read_share(Share(url, 1, 2), with_pictures)]
                for url in (str(path), f"pipe:cat {path}")
            )
            assert local == piped and len(local) == 2


def test_a_streamed_shard_that_was_cut_is_used_as_far_as_it_goes(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(5)})
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 512])
    with pytest.warns(UserWarning, match="0.tar: a shard is not whole: cut off or damaged"):
        found = captions(f"pipe:cat {path}")
    assert found == ["c0", "c1"]  # whether the third had more files, nobody knows


def test_a_streamed_shard_whose_command_fails_stops_with_its_name(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(5)})
    for command in ("exit 1", f"head -c 2000 {path}; exit 3", "no-such-command"):
        with pytest.raises(ValueError, match="shard pipe:.* cannot be read: its download failed"):
            captions(f"pipe:{command} 2>/dev/null")
