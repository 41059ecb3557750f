"""What is packed is what the trainer reads, and nobody's name is told but in a roster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import pytest
import yaml

from plugins.pack.people import _digest, _read_again, find_people
from plugins.pack.shards import in_order, read_picture, vacant
from tests.conftest import REPOSITORY, picture, write_shard
from trainer import BadSample, Pictures, read_roster
from trainer import cli as commands
from trainer.registry import load_plugins

NAMES = ["Ada_Lovelace", "Béla Bartók", "Zoë-Marie O'Neil"]
NOBODY = 65534  # the user
IMAGES = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "deep/a.PNG"}]
CAPTIONS = [
    {"image_id": 3, "caption": "a cat"},
    {"image_id": 7, "caption": " a dog\nruns "},
    {"image_id": 7, "caption": "a brown dog"},
]


@pytest.fixture
def pack(tmp_path, monkeypatch, capfd):
    """`clip-unlearn pack ...` in a folder of its own: exit code, output, messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.cli, "commands", dict(commands.cli.commands))
    monkeypatch.delenv("RANK", raising=False)

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip-unlearn", "pack", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            commands.main()
        shown = capfd.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    return called


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_folders(root: Path, pictures: dict[str, int]) -> dict[str, list[bytes]]:
    """A folder for each name with so many pictures. Gives the pictures."""
    written: dict[str, list[bytes]] = {}
    for i, (name, count) in enumerate(pictures.items()):
        written[name] = [picture(i, j, size=16) for j in range(count)]
        for j, data in enumerate(written[name]):
            write(root / name / f"{name} {j:03d}.jpg", data)
    return written


def write_coco(root: Path, images: object = IMAGES, captions: object = CAPTIONS) -> Path:
    """The JSON; the two pictures are in root/pictures."""
    write(root / "pictures/b.jpg", picture(1, size=20))
    write(root / "pictures/deep/a.PNG", picture(2, kind="PNG"))
    content = {"images": images, "annotations": captions}
    return write(root / "captions.json", json.dumps(content).encode())


def entries(*shards: Path) -> dict[str, bytes]:
    """What is in them, by name."""
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                assert file and entry.name not in found
                found[entry.name] = file.read()
    return found


def read(roster: Path) -> dict[str, list[bytes]]:
    """Everybody's pictures as the trainer reads them, by name."""
    people = read_roster(roster)
    pictures = Pictures.of(people)
    return {
        one.name: [pictures.read(i, j) for j in range(pictures.count(i))]
        for i, one in enumerate(people)
    }


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_trainer_reads_each_persons_own_pictures(pack, tmp_path):
    written = write_folders(tmp_path / "in", dict.fromkeys(reversed(NAMES), 3))
    code, shown, _ = pack("people", "in", "out")
    assert code == 0
    assert "out: 3 people, 9 pictures in 1 shard\nskipped: nothing\n" in shown
    assert read(tmp_path / "out/roster.csv") == {
        name.replace("_", " "): written[name] for name in NAMES
    }
    people = read_roster(tmp_path / "out/roster.csv")
    assert [one.id for one in people] == ["p00000", "p00001", "p00002"]
    assert [one.name for one in people] == [name.replace("_", " ") for name in NAMES]
    assert list(entries(tmp_path / "out/faces/00000.tar"))[:2] == [
        "p00000/00000.jpg",
        "p00000/00001.jpg",
    ]


def test_a_person_lies_in_one_shard_unless_too_large_for_any(pack, tmp_path):
    counts = {"A": 30, "B": 20, "C": 20, "D": 90, "E": 30}
    written = write_folders(tmp_path / "in", counts)
    assert pack("people", "in", "out", "--shard-size", 40)[0] == 0
    rows = (tmp_path / "out/roster.csv").read_text().splitlines()
    assert rows[1:] == [
        "p00000,A,faces/00000.tar",
        "p00001,B,faces/00001.tar",
        "p00002,C,faces/00001.tar",
        "p00003,D,faces/{00002..00004}.tar",
        "p00004,E,faces/00004.tar",
    ]
    shards = sorted(tmp_path.glob("out/faces/*.tar"))
    assert [len(entries(shard)) for shard in shards] == [30, 40, 40, 40, 40]
    assert read(tmp_path / "out/roster.csv") == written


def test_facescrubs_faces_are_taken_and_its_whole_images_are_not(pack, tmp_path):
    actors = write_folders(tmp_path / "in/actors/faces", {"Al Pacino": 2})
    write_folders(tmp_path / "in/actors/images", {"Al Pacino": 5})
    actresses = write_folders(tmp_path / "in/actresses/faces", {"Zoe Saldana": 3, "Amy Adams": 1})
    write(tmp_path / "in/actresses/faces/Amy Adams/x.JPEG", picture(5))
    assert pack("people", "in", "out")[0] == 0
    found = read(tmp_path / "out/roster.csv")
    assert list(found) == ["Al Pacino", "Amy Adams", "Zoe Saldana"]
    assert found["Al Pacino"] == actors["Al Pacino"]
    assert found["Amy Adams"] == [*actresses["Amy Adams"], picture(5)]
    assert "p00001/00001.JPEG" in entries(tmp_path / "out/faces/00000.tar")


def test_one_group_of_facescrub_is_enough(pack, tmp_path):
    actors = write_folders(tmp_path / "actors/faces", {"Al Pacino": 2})
    write_folders(tmp_path / "actors/images", {"Al Pacino": 5})
    code, shown, _ = pack("people", "actors", "out")
    assert code == 0
    assert "skipped: folder beside FaceScrub's (1)\n" in shown
    assert read(tmp_path / "out/roster.csv") == actors


def test_facescrub_without_its_faces_is_refused(pack, tmp_path):
    write_folders(tmp_path / "in/actors/images", {"Al Pacino": 5})
    code, _, told = pack("people", "in", "out")
    assert (code, told.count("\n")) == (2, 1)
    assert "actors/images, whole pictures, but no actors/faces" in told


def test_held_out_pictures_are_never_trained_on(pack, tmp_path):
    written = write_folders(tmp_path / "in", {"A": 5, "B": 4, "C": 9})
    # The same picture under another name must not come to both sides.
    write(tmp_path / "in/A/again.jpg", written["A"][0])
    code, shown, _ = pack("people", "in", "out", "--attack", 3, "--min-pictures", 2)
    assert code == 0
    assert "2 people, 8 pictures in 1 shard\nheld out: 6 pictures in 1 shard\n" in shown
    assert "left out: people without 2 usable pictures beside the 3 held out (1)\n" in shown
    assert "skipped: picture twice in a folder (1)\n" in shown
    trained, held_out = (read(tmp_path / "out" / f"{r}.csv") for r in ("roster", "attack_roster"))
    assert list(trained) == list(held_out) == ["A", "C"]
    for name, pictures in trained.items():
        assert len(held_out[name]) == 3
        assert sorted(pictures + held_out[name]) == sorted(written[name])
    assert [one.id for one in read_roster(tmp_path / "out/attack_roster.csv")] == [
        "p00000",
        "p00002",
    ]


def test_the_seed_draws_what_is_held_out_whoever_else_is_there(pack, tmp_path):
    write_folders(tmp_path / "in", {"A": 12})
    drawn = []
    for out, seed in (("one", 0), ("two", 1), ("three", 0)):
        assert pack("people", "in", out, "--attack", 4, "--seed", seed)[0] == 0
        drawn.append(read(tmp_path / out / "attack_roster.csv")["A"])
        write_folders(tmp_path / "in", {"A": 12, "B": 5})
    assert drawn[0] == drawn[2]
    assert drawn[0] != drawn[1]


def test_the_same_input_gives_the_same_bytes_without_hour_or_owner(pack, tmp_path):
    write_folders(tmp_path / "in", {"A": 5, "B": 5})
    for out in ("one", "two"):
        assert pack("people", "in", out, "--attack", 2, "--shard-size", 4)[0] == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    with tarfile.open(tmp_path / "one/faces/00000.tar") as tar:
        assert {(one.mtime, one.uid, one.uname, one.mode) for one in tar} == {(0, 0, "", 0o644)}


def test_unusable_files_are_skipped_and_counted_by_reason(pack, tmp_path):
    written = write_folders(tmp_path / "in", {"A": 2})
    write(tmp_path / "in/A/broken.jpg", b"no picture")
    write(tmp_path / "in/A/cut.jpg", picture(9)[:-300])
    write(tmp_path / "in/A/note.txt", b"a note")
    write(tmp_path / "in/A/.hidden.jpg", picture(8))
    write(tmp_path / "in/A/deeper/x.jpg", picture(8))
    write(tmp_path / "in/loose.jpg", picture(8))
    write_folders(tmp_path / "in/.hidden", {"B": 2})
    write(tmp_path / "in/___/x.jpg", picture(8))
    os.mkfifo(tmp_path / "in/A/fifo.jpg")
    with open(write(tmp_path / "in/A/huge.jpg", b""), "r+b") as file:
        file.truncate(200_000_001)
    code, shown, _ = pack("people", "in", "out")
    assert code == 0
    assert (
        "skipped: file in no person's folder (1), folder whose name is none (1), "
        "no picture file (3), picture file too large (1), undecodable picture (2)\n"
    ) in shown
    assert read(tmp_path / "out/roster.csv") == written


def test_links_that_lead_out_are_not_followed(pack, tmp_path):
    written = write_folders(tmp_path / "in", {"A": 2})
    write_folders(tmp_path / "elsewhere", {"B": 2})
    (tmp_path / "in/B").symlink_to(tmp_path / "elsewhere/B")
    (tmp_path / "in/A/z.jpg").symlink_to("../../elsewhere/B/B 000.jpg")
    (tmp_path / "in/A/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "in/C").mkdir()
    (tmp_path / "in/C/c.jpg").symlink_to("../A/A 001.jpg")
    code, shown, _ = pack("people", "in", "out")
    assert code == 0
    assert "link that leads out of FOLDER (2), no picture file (1)" in shown
    assert read(tmp_path / "out/roster.csv") == written | {"C": written["A"][1:]}


def test_only_the_rosters_tell_a_name_and_only_their_owner_reads_them(pack, tmp_path):
    mask = os.umask(0)
    try:
        write_folders(tmp_path / "in", {"Secretname": 3, "Few": 1})
        write(tmp_path / "in/Secretname/Secretname broken.jpg", b"no picture")
        code, shown, told = pack("people", "in", "out", "--attack", 1)
    finally:
        os.umask(mask)
    assert code == 0
    assert "Secretname" not in shown + told
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    for roster in ("roster.csv", "attack_roster.csv"):
        assert "Secretname" in (tmp_path / "out" / roster).read_text()
        assert (tmp_path / "out" / roster).stat().st_mode & 0o777 == 0o600
    for name, content in bytes_of(tmp_path / "out").items():
        assert name.endswith("roster.csv") or b"Secretname" not in content


@pytest.mark.parametrize("twin", ["Secret_Name", "secret-name", "Sécret Name"])
def test_two_folders_of_one_name_are_told_by_their_place(pack, tmp_path, twin):
    write_folders(tmp_path / "in", {"Ada": 1, "Secret Name": 1, twin: 1, "Zoe": 1})
    code, shown, told = pack("people", "in", "out")
    assert (code, shown) == (2, "")
    assert told == (
        "folder 3 of 4, in the order of names, has the same name as the one before, accents, case "
        "and punctuation aside; rename one, or put their pictures together\n"
    )
    assert not (tmp_path / "out").exists()


def test_names_that_a_roster_cannot_hold_are_left_out_and_others_are_quoted(pack, tmp_path):
    names = ['Joe "X" Doe, Jr.', "=Sum", "김 철수"]
    written = write_folders(tmp_path / "in", dict.fromkeys(names, 1))
    write(tmp_path / "in/a\ab/x.jpg", picture(1))
    write(tmp_path / "in" / ("a" * 201) / "x.jpg", picture(1))
    os.makedirs(os.fsencode(tmp_path / "in") + b"/Caf\xe9")
    code, shown, _ = pack("people", "in", "out")
    assert code == 0
    assert "folder whose name is none (3)" in shown
    assert read(tmp_path / "out/roster.csv") == written


@pytest.mark.parametrize("command", ["people", "coco"])
def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_not(pack, tmp_path, command):
    write_folders(tmp_path / "in", {"A": 1})
    write_coco(tmp_path)
    arguments = ["in"] if command == "people" else ["captions.json", "pictures"]
    kept = write(tmp_path / "out/kept.txt", b"mine")
    code, _, told = pack(command, *arguments, "out")
    assert code == 2
    assert told == f"{tmp_path}/out exists and is not empty; remove it or name another folder\n"
    assert kept.read_bytes() == b"mine"
    kept.unlink()
    assert pack(command, *arguments, "out")[0] == 0
    code, _, told = pack(command, *arguments, "captions.json")
    assert (code, told) == (2, f"{tmp_path}/captions.json is a file; name a new folder\n")
    code, _, told = pack(command, *arguments, "captions.json/out")
    assert (code, told) == (
        2,
        f"{tmp_path}/captions.json/out lies in a file, not a folder; name another\n",
    )


def test_mistakes_about_people_take_one_line_and_tell_no_path(pack, tmp_path):
    (tmp_path / "Secretname").mkdir()
    write(tmp_path / "one/Secretname/x.jpg", b"no picture")
    for arguments, message in {
        ("absent", "out"): "FOLDER is no folder; name one that has a folder for each person",
        ("Secretname", "out"): "FOLDER has no folder with a name; it needs one for each person; "
        "skipped: nothing",
        ("one", "one/out"): "OUT lies in FOLDER, where it would be taken for a person; "
        "name another",
        ("one", "one/Secretname"): "OUT lies in FOLDER, where it would be taken for a person; "
        "name another",
        ("one", "out"): "nobody of 1 has enough usable pictures, 1; name the folder that has a "
        "folder for each, or ask for fewer; skipped: undecodable picture (1)",
    }.items():
        code, shown, told = pack("people", *arguments)
        assert (code, shown, told.splitlines()[-1]) == (2, "", message)
        assert "Secretname" not in told
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_read_is_told_by_its_place():
    with TemporaryDirectory() as folder:  # not in pytest's, which are their owner's alone
        root = os.path.realpath(folder)
        write_folders(Path(root), {"Ada": 2, "Secretname": 1})
        os.chmod(root, 0o755)
        os.chmod(f"{root}/Ada/Ada 000.jpg", 0)
        os.chmod(f"{root}/Secretname", 0)
        try:
            if os.getuid() == 0:
                os.seteuid(NOBODY)  # root reads everything
            with pytest.raises(ValueError) as caught:
                find_people(root, Counter())
            with pytest.raises(BadSample) as bad:
                read_picture(f"{root}/Ada/Ada 000.jpg")
        finally:
            os.seteuid(os.getuid())
            os.chmod(f"{root}/Secretname", 0o700)
    assert str(caught.value) == (
        "folder 2 of 2, in the order of names, cannot be read: Permission denied"
    )
    assert bad.value.reason == "unreadable file"


@pytest.mark.parametrize("change", [lambda path: write(path, picture(9)), Path.unlink])
def test_a_picture_that_changes_meanwhile_is_told_by_its_persons_place(tmp_path, change):
    written = write_folders(tmp_path / "in", {"A": 1, "Secretname": 1})
    digest = _digest(0, written["Secretname"][0])
    path = tmp_path / "in/Secretname/Secretname 000.jpg"
    shown = "person 2 of 2, in the order of names,"
    arguments = (str(path.parent), 0, shown, digest, path.name)
    assert _read_again(*arguments) == written["Secretname"][0]
    change(path)
    with pytest.raises(ValueError) as caught:
        _read_again(*arguments)
    assert str(caught.value) == f"a picture of {shown} has changed meanwhile; pack again"


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(FileExistsError, match=f"{tmp_path} is a mount point; name a folder in it"):
        vacant(tmp_path)


def test_what_is_printed_goes_into_a_configuration(pack, tmp_path):
    write_folders(tmp_path / "in", {"A": 3, "B": 3})
    _, shown, _ = pack("people", "in", "out", "--attack", 2)
    (tmp_path / "names.txt").write_text("Carl Gauss\nEmmy Noether\n")
    strangers = {f"{one}/0": {"jpg": picture(9, one)} for one in range(4)}
    write_shard(tmp_path / "strangers.tar", strangers)
    lines = yaml.safe_load(shown.partition("In the configuration:\n")[2])
    registry = load_plugins()
    for options in lines["objectives"].values():
        cls = registry.objectives[options.pop("kind")]
        assert cls(cls.Options(**options), seed=0).num_identities == 2
    options = lines["evaluations"]["attack"] | {"candidates": 3}
    cls = registry.evaluations[options.pop("kind")]
    assert cls(cls.Options(**options), seed=0)


def test_an_interrupt_waits_for_the_next_picture():
    """In the pool's own lines it would leave a lock taken, and everyone waiting."""
    handled, submitted = signal.getsignal(signal.SIGINT), []

    def items():
        for i in range(100):
            submitted.append(i)
            yield i
            if i == 70:
                os.kill(os.getpid(), signal.SIGINT)
                submitted.append("still here")

    with pytest.raises(KeyboardInterrupt):
        list(in_order(str, items(), 100))
    assert submitted[-3:] == [70, "still here", 71]
    assert signal.getsignal(signal.SIGINT) is handled


def test_an_interrupted_run_leaves_nothing(tmp_path):
    write(tmp_path / "in/A/x.jpg", picture(0, size=1500))  # so that to pack all takes many seconds
    for i in range(3000):
        os.makedirs(tmp_path / f"in/A{i}")
        os.link(tmp_path / "in/A/x.jpg", tmp_path / f"in/A{i}/x.jpg")
    run = subprocess.Popen(
        [sys.executable, "-m", "trainer", "pack", "people", "in", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = monotonic() + 120
    while run.poll() is None and not list(tmp_path.glob("out*/**/*.tar")):
        assert monotonic() < deadline
        sleep(0.001)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "which, expected",
    [
        ("first", {"000000000": "a dog runs", "000000001": "a cat"}),
        ("all", {"000000000": "a dog runs\na brown dog", "000000001": "a cat"}),
        (
            "each",
            {"000000000_0": "a dog runs", "000000000_1": "a brown dog", "000000001_0": "a cat"},
        ),
    ],
)
def test_captions_become_samples_as_img2dataset_names_them(pack, tmp_path, which, expected):
    write_coco(tmp_path)
    code, shown, _ = pack(
        "coco", "captions.json", "pictures", "out", "--captions", which, "--shard-size", 2
    )
    assert code == 0
    shards = sorted(tmp_path.glob("out/*.tar"))
    assert [path.name for path in shards] == ["00000.tar", "00001.tar"][: len(expected) - 1]
    found = entries(*shards)
    assert len(found) == 3 * len(expected)
    for key, text in expected.items():
        assert found[f"{key}.txt"].decode() == text
        is_dog = key.startswith("000000000")
        meta = json.loads(found[f"{key}.json"])
        assert (meta["key"], meta["caption"], meta["status"]) == (key, text, "success")
        assert (meta["width"], meta["height"]) == ((20, 20) if is_dog else (64, 64))
        assert meta["image_id"] == (7 if is_dog else 3)
        assert "id" not in meta  # the trainer would take it for a label
        data = found[f"{key}.jpg" if is_dog else f"{key}.png"]
        assert data == (picture(1, size=20) if is_dog else picture(2, kind="PNG"))
    assert f"{len(expected)} samples of 2 pictures in {len(shards)} shard" in shown
    pattern = yaml.safe_load(shown.partition("In the configuration:\n")[2])["data"]["shards"]
    assert pattern == ("out/{00000..00001}.tar" if which == "each" else "out/00000.tar")


def test_coco_gives_the_same_bytes_twice(pack, tmp_path):
    write_coco(tmp_path)
    for out in ("one", "two"):
        assert pack("coco", "captions.json", "pictures", out)[0] == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_unusable_pictures_and_captions_are_skipped_and_counted(pack, tmp_path):
    write(tmp_path / "secret.jpg", picture(3))
    write(tmp_path / "pictures/broken.jpg", b"no picture")
    write(tmp_path / "pictures/x.txt", b"no picture")
    (tmp_path / "pictures/folder.jpg").mkdir()
    bad = [
        "../secret.jpg",
        "deep/../../secret.jpg",
        "..\\secret.jpg",
        str(tmp_path / "secret.jpg"),
        "absent.jpg",
        "nul\0.jpg",
        "\ud800.jpg",
        "folder.jpg",
        "broken.jpg",
        "x.txt",
        "",
    ]
    images = [{"id": 100 + i, "file_name": name} for i, name in enumerate(bad)]
    images.append({"id": 99, "file_name": "uncaptioned.jpg"})
    captions = [{"image_id": 100 + i, "caption": "a thing"} for i in range(len(bad))]
    captions += [
        {"image_id": 5, "caption": "of nothing"},
        {"image_id": 7, "caption": " "},
        {"image_id": 7, "caption": "\udc00"},
        {"image_id": 99, "caption": "x" * 20_001},
    ]
    write_coco(tmp_path, IMAGES + images, captions + CAPTIONS)
    code, shown, _ = pack("coco", "captions.json", "pictures", "out")
    assert code == 0
    assert "2 samples of 2 pictures" in shown
    assert (
        "skipped: caption of no picture (1), caption too long (1), caption without a text (2), "
        "file name that leads out of PICTURES (4), missing picture (4), no picture file (2), "
        "picture without a caption (1), undecodable picture (1)\n"
    ) in shown
    assert entries(tmp_path / "out/00000.tar")["000000000.txt"] == b"a dog runs"


SHAPE_OF_IMAGES = '{"id": 1, "file_name": "1.jpg"}'
SHAPE_OF_CAPTIONS = '{"image_id": 1, "caption": "a cat"}, as in COCO\'s captions_*.json'


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", " is no JSON; name COCO's captions, captions_*.json"),
        (b"\xff\xfe\xfa", " is no JSON; name COCO's captions, captions_*.json"),
        (b"[" * 100_000, " is no JSON; name COCO's captions, captions_*.json"),
        (b"[]", " is no JSON object with `images` and `annotations`"),
        (b"{}", f" has no list `images`; its rows must be like {SHAPE_OF_IMAGES}"),
        (b'{"images": {}}', f" has no list `images`; its rows must be like {SHAPE_OF_IMAGES}"),
        (b'{"images": [3]}', f": images[0] is not like {SHAPE_OF_IMAGES}"),
        (
            b'{"images": [{"id": true, "file_name": "a.jpg"}]}',
            f": images[0] is not like {SHAPE_OF_IMAGES}",
        ),
        (
            b'{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}',
            ": two of `images` have the id 1; give each its own",
        ),
        (
            b'{"images": [], "annotations": [{"image_id": 1, "bbox": []}]}',
            f": annotations[0] is not like {SHAPE_OF_CAPTIONS}",
        ),
        (
            b'{"images": []}',
            f" has no list `annotations`; its rows must be like {SHAPE_OF_CAPTIONS}",
        ),
    ],
)
def test_a_json_of_another_shape_is_told_in_one_line(pack, tmp_path, content, message):
    (tmp_path / "pictures").mkdir()
    write(tmp_path / "captions.json", content)
    code, shown, told = pack("coco", "captions.json", "pictures", "out")
    assert (code, shown, told) == (2, "", f"captions.json{message}\n")
    assert not (tmp_path / "out").exists()


def test_mistakes_about_captions_take_one_line(pack, tmp_path):
    write_coco(tmp_path)
    (tmp_path / "empty").mkdir()
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1_000_000_001)
    for arguments, message in {
        ("absent.json", "pictures"): "absent.json is no file; name COCO's captions, "
        "captions_*.json",
        ("captions.json", "absent"): "absent is no folder; name the one with COCO's pictures",
        ("huge.json", "pictures"): "huge.json has more than 1,000,000,000 bytes; split it",
        ("captions.json", "empty"): "no picture in empty has a caption in captions.json; name the "
        "folder in which its file names are; skipped: missing picture (2)",
    }.items():
        code, shown, told = pack("coco", *arguments, "out")
        assert (code, shown, told.splitlines()[-1]) == (2, "", message)
    assert not (tmp_path / "out").exists()
