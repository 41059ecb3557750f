from __future__ import annotations

import json
import os
import struct
import zlib
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import picture, write_shard
from trainer import BadSample, Source
from trainer.data.index import open_shard
from trainer.data.readers import EMPTY, Reading, Share, read_shard, read_share
from trainer.data.samples import ReadSample
from trainer.data.shards import CUT, MAX_BYTES
from trainer.data.streams import Dealt, Lane, Position, deal, expand, read_lane

TEXT = Reading(with_pictures=False)


def told(entry) -> str:
    """A caption, or in brackets why there is none."""
    return f"({entry.reason})" if isinstance(entry, BadSample) else entry.text


def captions(url, part: int = 0, parts: int = 1, start: int = 0) -> list[str]:
    return [told(one) for one in read_share(Share(str(url), part, parts), start, TEXT)]


def first_of_lane(paths, count: int, lane: int = 0, lanes: int = 1, shuffle: int = 10) -> list[str]:
    shares = deal([str(path) for path in paths], lanes, 0)[lane]
    return [
        told(one) for one in islice(read_lane(shares, lane, [0], shuffle, TEXT, Position()), count)
    ]


def sample(**parts: bytes | str) -> ReadSample:
    content = {k: v.encode() if isinstance(v, str) else v for k, v in parts.items()}
    return ReadSample("k", "0.tar", None, content)


def reason(what: str, **parts: bytes | str) -> str:
    """Why a sample of these parts has none of what is asked for."""
    with pytest.raises(BadSample) as raised:
        getattr(sample(**parts), what)
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


def test_a_compressed_shard_is_refused_with_another_way(tmp_path):
    (tmp_path / "0.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is compressed .*'pipe:zcat .*0.tar.gz'"):
        expand([str(tmp_path / "0.tar.gz")])


# What a sample is


def test_a_sample_has_its_caption_picture_and_label():
    whole = sample(txt=b" a dog \n", picture=b"...", json=b'{"id": 7}', cls=b"3")
    assert (whole.text, whole.image_bytes, whole.label) == ("a dog", b"...", "7")
    assert (whole.key, whole.shard) == ("k", "0.tar")
    assert sample(txt=b"a", json=b"{}", cls=b"3\n").label == "3"


def test_a_picture_may_have_no_caption_and_an_empty_one_is_none():
    assert sample(picture=b"...").text is None
    assert sample(picture=b"...", txt=" \u2003\n".encode()).text is None


def test_bad_parts_have_each_their_reason():
    assert reason("text", txt=b"\xff\xfe") == "undecodable text"
    assert reason("label", cls=b"\xff") == "undecodable text"
    assert reason("label", json="{") == reason("label", json=b"\xff") == "undecodable json"
    assert reason("label", json="[" * 100_000) == "undecodable json"
    assert reason("label", json="9" * 10_000) == "undecodable json"
    assert reason("label", json='{"id": "\\ud800"}') == "undecodable json"
    for long in ("x" * 301, "_!" * 151, "&#97" * 301):
        assert reason("text", txt=f"a {long}".encode()) == "caption too large"
    assert sample(txt=b"a " * 2_000 + b"x" * 300 + b"," + b"x" * 300).text
    assert reason("label", json='["id"]') == reason("label", json="null") == "json is no object"
    assert reason("label", json='{"id": {"a": 1}}').startswith("json has an id that is neither")
    assert reason("label", json=" " * 1_000_001) == "json too large"
    assert reason("image", txt="a") == "no picture"


def test_a_long_caption_has_its_own_reason_and_is_not_read(tmp_path):
    longest = MAX_BYTES["txt"]
    assert sample(txt="ab" * (longest // 2)).has("txt")
    assert sample(txt="a " * (longest // 2 - 1) + "ab").text.endswith("a ab")
    assert reason("text", txt="a" * 100_000) == "caption too large"
    path = write_shard(tmp_path / "0.tar", {"a": {"txt": "a" * 100_000}})
    for url in (str(path), f"pipe:cat {path}"):
        (one,) = read_share(Share(url), 0, TEXT)
        with pytest.raises(BadSample, match="^caption too large$"):
            _ = one.text


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_known_by_its_header():
    for side in (12_000, 30_000):  # the second is too large for Pillow itself
        with pytest.raises(BadSample, match="picture too large"):
            _ = sample(picture=bomb(side)).image


@pytest.mark.parametrize("data", [b"", b"not a picture", picture(1)[:300], bomb(300)])
def test_a_picture_that_does_not_decode_is_a_bad_sample(data):
    with pytest.raises(BadSample, match="^undecodable picture$"):
        _ = sample(picture=data).image


def test_what_is_not_asked_for_is_not_read(tmp_path, monkeypatch):
    shards = {f"{i}": {"jpg": picture(i), "json": "{}", "txt": f"c{i}"} for i in range(5)}
    path = str(write_shard(tmp_path / "0.tar", shards))
    read: list[int] = []
    whole = os.pread
    monkeypatch.setattr(
        os, "pread", lambda file, size, at: read.append(size) or whole(file, size, at)
    )
    assert captions(path) == [f"c{i}" for i in range(5)] and read == [2] * 5
    assert next(read_shard(path)).image_bytes == picture(0) and len(read) == 6


def test_a_caption_that_cannot_be_used_is_none_of_its_neighbours_business(tmp_path):
    texts = {"a": "first", "b": "x" * (MAX_BYTES["txt"] + 1), "d": "last", "e": "gone"}
    shards = {key: {"txt": text, "json": "{}"} for key, text in texts.items()}
    path = str(write_shard(tmp_path / "0.tar", shards | {"c": {"json": "{}"}}))
    read = list(read_shard(path))
    os.truncate(path, int(open_shard(path).extents[3, 0, 0]))

    def told_of(one) -> str | None:
        try:
            return one.text
        except BadSample as bad:
            return bad.reason

    found = {one.key: told_of(one) for one in read}
    short = "shard is shorter than it was"
    assert found == {"a": "first", "b": "caption too large", "d": "last", "e": short, "c": None}


def test_of_a_streamed_shard_smaller_parts_are_read_than_of_a_local_one(tmp_path, monkeypatch):
    """A hundred samples of it wait in memory, of each lane."""
    path = write_shard(tmp_path / "0.tar", {"a": {"jpg": picture(0)}, "b": {"txt": "a dog"}})
    monkeypatch.setattr("trainer.data.readers.MAX_STREAMED_BYTES", len(picture(0)) - 1)
    assert next(read_shard(str(path))).image_bytes == picture(0)
    large, small = read_share(Share(f"pipe:cat {path}"), 0, Reading())
    with pytest.raises(BadSample, match="picture file too large"):
        _ = large.image_bytes
    assert small.text == "a dog"


# Lanes


def test_a_lane_goes_round_for_ever_each_sample_once_a_lap(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(7)})
    found = first_of_lane([path], 21)
    laps = [found[:7], found[7:14], found[14:]]
    assert all(sorted(lap) == sorted(found[:7]) for lap in laps) and laps[0] != laps[1]


def test_the_parts_of_a_shard_are_the_shard(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(7)})
    parts = [captions(path, part, 3) for part in range(3)]
    assert parts == [["c0", "c3", "c6"], ["c1", "c4"], ["c2", "c5"]]
    assert captions(path, 0, 3, start=1) == ["c3", "c6"] and captions(path, 1, 3, start=2) == []


@pytest.mark.parametrize("shuffle", [1, 4, 100])
def test_a_lane_goes_on_from_any_position_as_if_it_had_never_stopped(tmp_path, shuffle):
    paths = [
        str(write_shard(tmp_path / f"{i}.tar", {f"{i}{j}": {"txt": f"c{i}{j}"} for j in range(n)}))
        for i, n in enumerate((5, 1, 9))
    ]
    shares = [Share(path) for path in paths]
    position = Position()
    lane = read_lane(shares, 3, [7], shuffle, TEXT, position)
    whole = [(told(next(lane)), replace(position)) for _ in range(40)]
    for stop, (_, after) in enumerate(whole[:-5]):
        rest = islice(read_lane(shares, 3, [7], shuffle, TEXT, after), 5)
        assert [told(one) for one in rest] == [told for told, _ in whole[stop + 1 : stop + 6]]


def test_sources_are_mixed_by_weight_in_every_stretch(tmp_path):
    for source, size in (("a", 3), ("b", 50)):
        write_shard(tmp_path / f"{source}.tar", {f"{i}": {"txt": source} for i in range(size)})
    sources = [f"{tmp_path}/a.tar", Source(shards=[f"{tmp_path}/b.tar"], weight=3.0)]
    for lane in range(2):
        mixed = Lane(Dealt.of(sources, 2, 0), lane, 0, 10, TEXT)
        drawn = [told(next(mixed)) for _ in range(1000)]
        for start in range(0, 1000, 100):
            assert Counter(drawn[start : start + 100])["b"] in range(73, 78)


@settings(max_examples=25, deadline=None)
@given(stop=st.integers(0, 200), shuffle=st.sampled_from([1, 3, 10]))
def test_a_mixed_lane_goes_on_from_its_state(tmp_path_factory, stop, shuffle):
    folder = tmp_path_factory.getbasetemp()
    for name, size in (("a", 3), ("b", 20), ("c", 7)):
        if not (folder / f"{name}.tar").exists():
            write_shard(
                folder / f"{name}.tar", {f"{i}": {"txt": f"{name}{i}"} for i in range(size)}
            )
    sources = [f"{folder}/{{a,b}}.tar", Source(shards=[f"{folder}/c.tar"], weight=0.5)]
    dealt = Dealt.of(sources, 2, 0)

    def lane(state=()):
        return Lane(dealt, 1, 0, shuffle, TEXT, state)

    whole = [told(one) for one in islice(lane(), stop + 30)]
    stopped = lane()
    assert [told(next(stopped)) for _ in range(stop)] == whole[:stop]
    assert [told(one) for one in islice(lane(stopped.state), 30)] == whole[stop:]


@pytest.mark.parametrize("shuffle", [1, 2, 5, 9])
def test_a_resumed_lane_opens_one_shard_before_its_first_sample(tmp_path, monkeypatch, shuffle):
    from trainer.data import streams

    paths = [
        str(write_shard(tmp_path / f"{i}.tar", {f"{j}": {"txt": "c"} for j in range(5)}))
        for i in range(20)
    ]
    opened = []
    whole = streams.read_share
    monkeypatch.setattr(
        streams, "read_share", lambda share, *rest: opened.append(share) or whole(share, *rest)
    )
    position = Position()
    lane = read_lane([Share(path) for path in paths], 0, [0], shuffle, TEXT, position)
    for stop in range(1, 120):
        next(lane)
        opened.clear()
        next(read_lane([Share(path) for path in paths], 0, [0], shuffle, TEXT, replace(position)))
        assert len(opened) == 1, stop
        opened.clear()


@pytest.mark.parametrize("data", [b"", b"no tar at all"])
def test_a_shard_that_is_none_is_one_bad_sample(tmp_path, data):
    (tmp_path / "0.tar").write_bytes(data)
    assert first_of_lane([tmp_path / "0.tar"], 2) == [f"({CUT})"] * 2


def test_more_lanes_than_samples_are_told_of(tmp_path):
    path = write_shard(tmp_path / "0.tar", {"a": {"txt": "c"}})
    with pytest.raises(ValueError, match=r"0.tar has none in part \d of 4, .* lower data.lanes"):
        for lane in range(4):
            first_of_lane([path], 1, lane, 4)


def test_an_empty_shard_beside_a_good_one_is_counted_and_passed_over(tmp_path):
    write_shard(tmp_path / "0.tar", {})
    write_shard(tmp_path / "1.tar", {"a": {"txt": "c"}})
    found = first_of_lane([tmp_path / "0.tar", tmp_path / "1.tar"], 4)
    assert sorted(found) == sorted(["c", f"({EMPTY})"] * 2)


def test_a_shard_that_vanishes_is_named(tmp_path):
    samples = read_lane([Share(f"{tmp_path}/gone.tar")], 0, [0], 10, TEXT, Position())
    with pytest.raises(FileNotFoundError, match="gone.tar"):
        next(samples)


# Streamed shards


def all_parts(url: str, part: int = 0, parts: int = 1, with_pictures: bool = True) -> list[tuple]:
    reading = Reading(with_pictures=with_pictures)
    return [
        (one.key, one.text, one.image_bytes if with_pictures else None, one.label)
        if not isinstance(one, BadSample)
        else one.reason
        for one in read_share(Share(url, part, parts), 0, reading)
    ]


def test_a_streamed_shard_gives_the_samples_of_a_local_one(tmp_path):
    samples = {
        f"{i}": {"txt": f"c{i}", "jpg": picture(i), "json": json.dumps({"id": i})} for i in range(5)
    }
    samples |= {"only": {"jpg": picture(9)}, "../out": {"txt": "x"}, "end": {"txt": "y"}}
    path = write_shard(tmp_path / "0.tar", samples)
    for with_pictures in (True, False):
        for part in (0, 1):
            local, piped = (
                all_parts(url, part, 2, with_pictures) for url in (str(path), f"pipe:cat {path}")
            )
            assert local == piped and len(local) == 4


def test_a_streamed_shard_that_was_cut_is_used_as_far_as_it_goes(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(5)})
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 512])
    assert captions(f"pipe:cat {path}") == captions(path) == ["c0", "c1", f"({CUT})", "c2"]


def test_a_streamed_shard_whose_command_fails_stops_with_its_name(tmp_path):
    path = write_shard(tmp_path / "0.tar", {f"{i}": {"txt": f"c{i}"} for i in range(5)})
    from trainer.data.remote import Patience

    reading = Reading(patience=Patience(seconds=0.5))
    for command in ("exit 1", f"head -c 2000 {path}; exit 3", "no-such-command"):
        with pytest.raises(OSError, match=r"^pipe:\w.*: .*its command (ended|cannot be run)"):
            list(read_share(Share(f"pipe:{command} 2>/dev/null"), 0, reading))


def test_a_path_is_of_the_folder_that_the_process_is_in(tmp_path, monkeypatch):
    read = {}
    for folder in ("here", "there"):
        write_shard(tmp_path / folder / "0.tar", {"0": {"txt": f"caption {folder}"}})
        monkeypatch.chdir(tmp_path / folder)
        read[folder] = captions("0.tar")
    assert read == {"here": ["caption here"], "there": ["caption there"]}
