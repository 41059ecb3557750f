from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from trainer import BadSample
from trainer.data.readers import Reading, Share, read_share
from trainer.data.streams import Dealt, Lane


def told(entry) -> str:
    return f"({entry.reason})" if isinstance(entry, BadSample) else entry.text


def captions(path, part=0, parts=1, start=0, column=None) -> list[str]:
    reading = Reading(with_pictures=False, caption_column=column)
    return [told(one) for one in read_share(Share(str(path), part, parts), start, reading)]


def write_parquet(path, texts, column="caption", rows_a_group=7):
    table = pa.table({"url": ["u"] * len(texts), column: texts})
    parquet.write_table(table, path, row_group_size=rows_a_group)
    return path


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff", codec="utf-8"))),
    parts=st.integers(1, 5),
    ends=st.booleans(),
)
def test_the_parts_of_a_text_file_are_its_lines_each_once(tmp_path_factory, lines, parts, ends):
    path = tmp_path_factory.getbasetemp() / "captions.txt"
    path.write_bytes(("\n".join(lines) + "\n" * (ends and bool(lines))).encode())
    whole = captions(path)
    assert [line for part in range(parts) for line in captions(path, part, parts)] == whole
    given_lines = [line.strip() or "(no caption)" for line in lines]
    if not ends and lines and not lines[-1]:
        given_lines.pop()  # nothing stands after the last end of a line
    assert whole == given_lines


def test_a_line_that_is_no_caption_has_its_reason(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa dog\r\n\n\xff\xfe\n" + b"x" * 3_000_000 + b"\nlast")
    assert captions(path) == [
        "a dog", "(no caption)", "(undecodable text)", "(caption too large)", "last",
    ]  # fmt: skip
    assert captions(path, start=3) == ["(caption too large)", "last"]
    path.write_bytes(b"x" * 301 + b"\n" + b"a " * 500)
    assert captions(path) == ["(caption too large)", ("a " * 500).strip()]


@pytest.mark.parametrize("column", ["caption", "TEXT", "text", "alt"])
def test_a_column_of_captions_is_read_from_any_row_on(tmp_path, column):
    texts = [f"caption {i}" for i in range(40)]
    path = write_parquet(tmp_path / "meta.parquet", texts, column)
    named = column if column == "alt" else None
    assert captions(path, column=named) == texts
    assert captions(path, start=23, column=named) == texts[23:]
    for parts in (3, 64):
        dealt = [one for part in range(parts) for one in captions(path, part, parts, column=named)]
        assert dealt == texts
    assert captions(path, 1, 3, 5, column=named) == texts[18:26]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = write_parquet(tmp_path / "meta.parquet", ["a"], "alt")
    with pytest.raises(ValueError, match="no column caption or TEXT or text; set .*: url, alt"):
        captions(path)


def test_rows_that_are_no_captions_have_their_reason(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", ["a", None, " ", "x" * 100_000, "b " + "x" * 2_000]
    )
    large = "(caption too large)"
    assert captions(path) == ["a", "(no caption)", "(no caption)", large, large]
    numbers = write_parquet(tmp_path / "b.parquet", [1, 2])
    assert captions(numbers) == ["(caption is no text)"] * 2


def test_a_row_that_is_no_utf8_is_one_bad_sample(tmp_path):
    """pyarrow neither writes nor reads with a check."""
    import pyarrow

    texts = pyarrow.array([b"first", b"\xff\xfe", b"last"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"caption": texts}), tmp_path / "a.parquet")
    assert captions(tmp_path / "a.parquet") == ["first", "(caption is no text)", "last"]


@pytest.mark.parametrize("kept", [0, 10, 200, -100])
def test_a_parquet_file_that_was_cut_is_one_bad_sample(tmp_path, kept):
    path = write_parquet(tmp_path / "a.parquet", ["a"] * 100)
    path.write_bytes(path.read_bytes()[:kept])
    assert captions(path) == ["(parquet file cut off or damaged)"]


def test_a_parquet_file_whose_columns_have_no_readable_name_is_one_bad_sample(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["first", "second"])
    path.write_bytes(path.read_bytes().replace(b"caption", b"cap\xffion"))
    assert captions(path) == ["(parquet file cut off or damaged)"]


def test_a_parquet_file_that_cannot_be_read_now_is_an_error_of_the_system(tmp_path):
    (tmp_path / "a.parquet").symlink_to("a.parquet")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        captions(tmp_path / "a.parquet")


def test_lanes_of_captions_give_each_once_a_lap_and_go_on_from_their_state(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(90)))
    write_parquet(tmp_path / "b.parquet", [f"row {i}" for i in range(30)])
    dealt = Dealt.of([str(tmp_path / "a.txt"), str(tmp_path / "b.parquet")], 8, 0)
    keys = []
    for number in range(8):
        lane = Lane(dealt, number, 0, 5, Reading(with_pictures=False))
        while lane.positions[0].lap == 0:
            keys.append(next(lane).key)
            again = Lane(dealt, number, 0, 5, Reading(with_pictures=False), lane.state)
        assert next(again).key == next(lane).key  # the first of the next lap
    assert len(keys) == len(set(keys)) == 120


def test_remote_captions_are_read_from_a_cache_only():
    share = Share("https://example.org/a.parquet")
    with pytest.raises(ValueError, match="is read from a disk only; set data.cache to a folder"):
        next(iter(read_share(share, 0, Reading())))
