from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import picture, write_shard
from trainer import BadSample, Identity, Pictures


def person(number: int, faces: Path | str | None, own_id: str | None = None) -> Identity:
    return Identity(
        own_id or f"p{number}", f"Zebulon Quimby{number}", (), faces and str(faces), f"{number:04x}"
    )


def folder(path: Path, contents: Sequence[bytes], kind: str = "jpg") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(contents):
        (path / f"{i}.{kind}").write_bytes(content)
    return path


def shard_of(path: Path, entries: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def all_of(pictures: Pictures) -> list[list[bytes]]:
    return [
        [pictures.read(one, i) for i in range(pictures.count(one))] for one in range(len(pictures))
    ]


def refused(people: list[Identity], kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as raised:
        Pictures.of(people)
    assert "Quimby" not in str(raised.value)
    return str(raised.value)


# Of a roster


def test_people_have_folders_shards_or_single_files(tmp_path):
    two = folder(tmp_path / "two", [b"a", b"b"])
    own = shard_of(tmp_path / "own.tar", {"x.jpg": b"c", "x.txt": b"caption", "y.PNG": b"d"})
    (tmp_path / "one.webp").write_bytes(b"e")
    people = [person(0, two), person(1, own), person(2, tmp_path / "one.webp")]
    assert all_of(Pictures.of(people)) == [[b"a", b"b"], [b"c", b"d"], [b"e"]]


def test_in_shared_shards_theirs_are_the_folders_of_their_id(tmp_path):
    shard_of(tmp_path / "0.tar", {"p1/0.jpg": b"a", "./p0/0.jpg": b"b", "other/0.jpg": b"x"})
    shard_of(tmp_path / "1.tar", {"p0/1.jpg": b"c", "p1/1.jpg": b"d"})
    faces = tmp_path / "{0..1}.tar"
    assert all_of(Pictures.of([person(0, faces), person(1, faces)])) == [[b"b", b"c"], [b"a", b"d"]]


def test_what_is_no_picture_is_left_out(tmp_path):
    faces = folder(tmp_path / "f", [b"a"])
    for name in ("notes.txt", "._0.jpg", "jpg"):
        (faces / name).write_bytes(b"x")
    (faces / "sub.jpg").mkdir()
    tar = shard_of(tmp_path / "0.tar", {"0.jpg": b"b", "._0.jpg": b"x", "0.json": b"{}"})
    assert all_of(Pictures.of([person(0, faces), person(1, tar)])) == [[b"a"], [b"b"]]


def test_pictures_are_the_same_in_another_process(tmp_path):
    pictures = Pictures.of([person(0, folder(tmp_path / "f", [b"a", b"b"]))])
    assert all_of(pickle.loads(pickle.dumps(pictures))) == [[b"a", b"b"]]


def test_a_folder_of_its_own_id_in_a_tar_that_was_cut_is_used_as_far_as_it_goes(tmp_path):
    tar = shard_of(tmp_path / "Quimby.tar", {f"p0/{i}.jpg": b"%d" % i for i in range(3)})
    tar.write_bytes(tar.read_bytes()[:2048])
    said = r"^faces of 0000 \(person 1 of 1\): shard cut off"
    with pytest.warns(UserWarning, match=said) as warned:
        pictures = Pictures.of([person(0, tar)])
    assert all_of(pictures) == [[b"0", b"1"]]
    assert "Quimby" not in str(warned[0].message) and len(warned) == 1


def test_paths_that_lead_out_of_a_shard_are_nobodys(tmp_path):
    tar = shard_of(tmp_path / "0.tar", {"p0/0.jpg": b"a", "../p0/1.jpg": b"x", "/p0/2.jpg": b"x"})
    with pytest.warns(UserWarning, match=r"path leads out of the shard \(2\)"):
        assert all_of(Pictures.of([person(0, tar)])) == [[b"a"]]


def test_people_without_a_picture_are_refused_by_pseudonym(tmp_path):
    tar = shard_of(tmp_path / "0.tar", {"p0/0.jpg": b"a"})
    message = refused([person(0, tar), person(1, tar), person(2, None)])
    assert message.startswith("2 of 3 people have no picture: 0001, 0002; name a folder or shards")


@pytest.mark.filterwarnings("ignore:.*a shard is not whole")
@pytest.mark.parametrize("data", [b"", b"no tar" * 300])
def test_a_shard_that_is_none_leaves_its_people_without(tmp_path, data):
    (tmp_path / "0.tar").write_bytes(data)
    assert refused([person(0, tmp_path / "0.tar")]).startswith("1 of 1 people have no picture")


def test_a_shard_without_folders_has_one_owner(tmp_path):
    tar = shard_of(tmp_path / "0.tar", {"0.jpg": b"a"})
    message = refused([person(0, tar), person(1, tar)])
    assert "0.tar has no folders but is the faces of 2 people" in message


def test_a_missing_path_of_ones_own_is_told_by_pseudonym(tmp_path):
    assert refused([person(0, tmp_path / "Quimby")], FileNotFoundError) == (
        "faces of 0000 (person 1 of 1): not there, or not all shards of the pattern are"
    )


def test_a_missing_path_that_people_share_is_told(tmp_path):
    people = [person(0, tmp_path / "no.tar"), person(1, tmp_path / "no.tar")]
    assert "no.tar is not there" in refused(people, FileNotFoundError)


@pytest.mark.parametrize(
    ("faces", "problem"),
    [
        ("s3://bucket/Quimby.tar", "pictures of people are read at random; download them first"),
        ("Quimby{0..", "not a pattern; see to its braces"),
    ],
)
def test_other_faces_are_refused(faces, problem):
    assert refused([person(0, faces)]) == f"faces of 0000 (person 1 of 1): {problem}"


# Read


def test_a_picture_that_went_or_changed_is_a_bad_sample_without_its_path(tmp_path):
    faces = folder(tmp_path / "Quimby", [b"a", b"b"])
    tar = shard_of(tmp_path / "Quimby.tar", {"0.jpg": b"a" * 600})
    pictures = Pictures.of([person(0, faces), person(1, tar)])
    (faces / "0.jpg").unlink()
    (faces / "1.jpg").write_bytes(b"longer")
    os.truncate(tar, 600)
    for place, reason in (
        ((0, 0), "picture cannot be read: No such file or directory"),
        ((0, 1), "picture has changed its size"),
        ((1, 0), "shard is shorter than it was"),
    ):
        with pytest.raises(BadSample) as raised:
            pictures.read(*place)
        assert raised.value.reason == reason


def test_a_picture_that_there_is_not_is_a_mistake_of_ours(tmp_path):
    pictures = Pictures.of([person(0, folder(tmp_path / "f", [b"a"]))])
    for number in (-1, 1):
        with pytest.raises(IndexError):
            pictures.read(0, number)


# Of nobody named


def test_strangers_are_folders_in_shards_or_single_pictures(tmp_path):
    shard_of(tmp_path / "0.tar", {"s2/0.jpg": b"c", "s1/0.jpg": b"a", "single.jpg": b"x"})
    shard_of(tmp_path / "1.tar", {"s1/1.jpg": b"b"})
    on_disk = folder(tmp_path / "f", [b"y", b"z"])
    found = all_of(Pictures.of_shards([f"{tmp_path}/{{0..1}}.tar", str(on_disk)]))
    assert sorted(found) == [[b"a", b"b"], [b"c"], [b"x"], [b"y"], [b"z"]]
    assert found == all_of(Pictures.of_shards([str(on_disk), f"{tmp_path}/?.tar"]))


def test_no_strangers_are_refused(tmp_path):
    tar = write_shard(tmp_path / "0.tar", {"a": {"txt": "no picture"}})
    with pytest.raises(ValueError, match="no picture in .*0.tar"):
        Pictures.of_shards([str(tar)])


def test_a_pictures_bytes_are_those_on_disk(tmp_path):
    data = picture(1)
    write_shard(tmp_path / "0.tar", {"p0/a": {"jpg": data, "txt": "x"}})
    assert all_of(Pictures.of([person(0, tmp_path / "0.tar")])) == [[data]]


def test_a_relative_path_stays_of_the_folder_it_was_named_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard_of(tmp_path / "faces.tar", {"a.jpg": b"one"})
    folder(tmp_path / "faces", [b"two"])
    found = Pictures.of([person(0, "faces.tar"), person(1, "faces")])
    monkeypatch.chdir("/")
    assert all_of(found) == [[b"one"], [b"two"]]
