"""People who are taken out of a roster, with real files and real crashes."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.conftest import picture, write_people, write_shard
from tests.trainer.run_folders import person, run_folder
from trainer.cli import cli
from trainer.data import shards
from trainer.data.index import index_path
from trainer.data.indexing import index_shards
from trainer.people.fingerprints import fingerprints
from trainer.people.pictures import Pictures
from trainer.people.roster import read_roster
from trainer.people.standings import standings
from trainer.people.suppression import RECORD, forget_me, suppressed_in

NAMES = ["Ann Zöller", "Bertrand Oake", "Chiara d'Este", "Dov Landau"]
GONE = NAMES[1]


def contents(roster: Path, but: str = "") -> dict[str, list[bytes]]:
    """Everyone's pictures by name, as a process finds them that begins now."""
    shards._opened.cache_clear()  # it holds the files as they were
    people = [one for one in read_roster(roster) if one.name != but]
    pictures = Pictures.of(people)
    return {
        one.name: [pictures.read(i, j) for j in range(pictures.count(i))]
        for i, one in enumerate(people)
    }


def in_shards(folder: Path) -> Path:
    return write_people(folder, "people", NAMES)


def in_folders(folder: Path) -> Path:
    """A folder of pictures each."""
    lines = ["name,aliases,faces"]
    for i, name in enumerate(NAMES):
        own = folder / "faces" / name
        own.mkdir(parents=True)
        for j in range(3):
            (own / f"{j}.jpg").write_bytes(picture(i, j))
        lines.append(f'"{name}",Alias {chr(65 + i)};Other {chr(65 + i)},"faces/{name}"')
    roster = folder / "people.csv"
    roster.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return roster


def in_shards_of_their_own(folder: Path) -> Path:
    lines = ["name,faces"]
    for i, name in enumerate(NAMES):
        write_shard(folder / f"{i}.tar", {str(j): {"jpg": picture(i, j)} for j in range(3)})
        lines.append(f'"{name}",{i}.tar')
    roster = folder / "people.csv"
    roster.write_text("\r\n".join(lines), encoding="utf-8-sig")
    return roster


LAYOUTS = [in_shards, in_folders, in_shards_of_their_own]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def roster(request, tmp_path) -> Path:
    return request.param(tmp_path)


def everything(folder: Path) -> bytes:
    """All bytes and names below, to look for what should be gone."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


def test_one_person_is_gone_and_everyone_else_is_as_before(roster):
    before = contents(roster)
    removed = forget_me(roster, GONE)
    after = contents(roster)
    assert removed and removed.pictures == len(before[GONE]) >= 3
    assert after == {name: some for name, some in before.items() if name != GONE}
    left = everything(roster.parent)
    assert GONE.encode() not in left and b"Bertrand" not in left
    assert not any(one in left for one in before[GONE])


def test_names_are_compared_as_everywhere_and_aliases_count(tmp_path):
    roster = in_folders(tmp_path)
    assert forget_me(roster, "ann  ZOLLER")
    assert forget_me(roster, "other d")
    assert [one.name for one in read_roster(roster)] == NAMES[1:3]


def test_the_other_rows_keep_their_bytes(tmp_path):
    roster = tmp_path / "people.csv"
    kept = [
        "name,aliases\r\n",
        '"Ann ""A."" Zöller","x;y"\r\n',
        "\r\n",
        '"Two\tWords",\n',
        "Last One,",
    ]
    text = "".join([kept[0], kept[1], '"Bertrand Oake","B;\nO"\n'.replace("\n", " ", 1), *kept[2:]])
    roster.write_bytes(b"\xef\xbb\xbf" + text.replace("\t", " ").encode())
    roster.chmod(0o640)
    assert forget_me(roster, GONE)
    assert roster.read_bytes() == b"\xef\xbb\xbf" + "".join(kept).replace("\t", " ").encode()
    assert roster.stat().st_mode & 0o777 == 0o640


def test_a_shard_keeps_all_other_bytes_and_its_long_names(tmp_path):
    def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.pax_headers = len(data), {"comment": f"of {name}"}
        tar.addfile(entry, io.BytesIO(data))

    long = "x" * 150
    for name, ids in (("all", ["a", "b", "c"]), ("wanted", ["a", "c"])):
        with tarfile.open(tmp_path / f"{name}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i, one in enumerate(ids):
                folder = tarfile.TarInfo(f"{one}/")
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
                add(tar, f"./{one}/{long}.jpg", picture(ord(one)))
                add(tar, f"{one}/1.json", b'{"of": "%d"}' % i if one == "b" else b"{}")
    roster = tmp_path / "people.jsonl"
    rows = [{"name": n, "id": i, "faces": "all.tar"} for n, i in zip(NAMES, "abc")]
    roster.write_text("\n".join(map(json.dumps, rows)))
    assert forget_me(roster, GONE)
    with tarfile.open(tmp_path / "all.tar") as tar, tarfile.open(tmp_path / "wanted.tar") as wanted:
        assert tar.getnames() == wanted.getnames()
    end = (tmp_path / "wanted.tar").read_bytes().rstrip(b"\0")
    assert (tmp_path / "all.tar").read_bytes().rstrip(b"\0") == end


def test_an_index_that_would_be_wrong_goes_too(tmp_path):
    roster = in_shards(tmp_path)
    shard = str(tmp_path / "people.tar")
    index_shards([shard], None, 1)
    removed = forget_me(roster, GONE)
    assert removed and removed.kept == 1
    assert not Path(str(index_path(shard, None))).exists()


def test_so_do_the_embeddings_of_a_teacher(tmp_path):
    roster = in_shards(tmp_path)
    kept = [
        tmp_path / f"people.tar.{tower}-0123456789abcdef.safetensors" for tower in ("text", "image")
    ]
    for path in [*kept, tmp_path / "other.tar.text-0123456789abcdef.safetensors"]:
        path.touch()
    removed = forget_me(roster, NAMES[0])
    assert removed and removed.kept == 2
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [
        "other.tar.text-0123456789abcdef.safetensors"
    ]


def test_an_index_in_a_folder_of_its_own_goes_where_it_is_named(tmp_path):
    roster, into = in_shards(tmp_path), tmp_path / "index"
    shard = str(tmp_path / "people.tar")
    (tmp_path / "link.tar").symlink_to(shard)
    roster.write_text(roster.read_text().replace('"people.tar"', '"link.tar"'))
    index_shards([shard, str(tmp_path / "link.tar")], str(into), 1)
    index_shards([shard], None, 1)
    removed = forget_me(roster, GONE, into)
    assert removed and removed.kept == 3
    assert not list(tmp_path.rglob("*.npz"))


def test_indexes_elsewhere_are_told_of_and_their_folder_is_an_option(tmp_path):
    roster, into = in_shards(tmp_path), tmp_path / "index"
    index_shards([str(tmp_path / "people.tar")], str(into), 1)
    done = call("forget-me", str(roster), typed=f"{GONE}\n")
    assert "0 indexes" in done.output and len(list(into.glob("*.npz"))) == 1
    assert done.output.splitlines()[-1].startswith("Not touched: copies, indexes and embeddings ")
    done = call("forget-me", str(roster), "--index", str(into), typed=f"{NAMES[0]}\n")
    assert "1 indexes" in done.output and not list(into.glob("*.npz"))
    assert call("forget-me", str(roster), "--index", f"{into}/none", typed="x\n").exit_code == 2


def test_nobody_of_that_name_changes_nothing(roster):
    read_roster(roster)  # makes the key of the pseudonyms
    before = everything(roster.parent)
    assert forget_me(roster, "Nobody At All") is None
    assert everything(roster.parent) == before


def dies_at(roster: Path, number: int) -> bool:
    """Take the person out in a process that is killed before its number-th change of a file."""
    child = os.fork()
    if child == 0:
        left = number

        def deadly(change):
            def changed(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return change(*arguments, **options)

            return changed

        os.replace, os.unlink, os.rmdir = map(deadly, (os.replace, os.unlink, os.rmdir))
        try:
            forget_me(roster, GONE)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_any_change_nothing_of_others_is_lost_and_again_ends_it(layout, tmp_path):
    died = True
    number = 0
    while died:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        roster = layout(folder)
        before = contents(roster)
        others = {name: some for name, some in before.items() if name != GONE}
        died = dies_at(roster, number)
        if died:
            # Whatever is there of the person, the others' rows and pictures are whole.
            assert contents(roster, but=GONE) == others
            forget_me(roster, GONE)
        assert contents(roster) == others
        left = everything(folder)
        assert b"Bertrand" not in left and not any(one in left for one in before[GONE])
        # The record knows all pictures, also those that the killed attempt removed.
        [row] = [json.loads(line) for line in (folder / RECORD).read_text().splitlines()]
        assert len(row["pictures"]) == len(set(before[GONE]))
    assert number > 2


def test_the_record_has_no_name_and_is_of_its_owner_alone(roster):
    pseudonym = next(one.pseudonym for one in read_roster(roster) if one.name == GONE)
    forget_me(roster, GONE)
    record = roster.parent / RECORD
    [row] = [json.loads(line) for line in record.read_text().splitlines()]
    assert row["pseudonym"] == pseudonym
    assert row.keys() == {"pseudonym", "removed_at", "names", "pictures", "faces", "key"}
    assert record.stat().st_mode & 0o077 == 0


def test_a_later_roster_is_checked_for_names_aliases_and_pictures(tmp_path):
    roster = in_folders(tmp_path)
    theirs = picture(1, 0)
    forget_me(roster, GONE)
    assert suppressed_in(roster) == []
    (tmp_path / "faces" / NAMES[0] / "new.jpg").write_bytes(theirs)
    with roster.open("a", encoding="utf-8") as file:
        file.write("BERTRAND OAKE,,\nSomeone Else,Alias B,\nSomeone New,,\n")
    found = [(one.place, one.has_name, one.pictures) for one in suppressed_in(roster)]
    assert found == [(1, False, 1), (4, True, 0), (5, True, 0)]


def test_without_the_records_key_nobody_is_told_that_all_is_well(tmp_path):
    roster = in_folders(tmp_path)
    run = finished(tmp_path, {"names": {"roster": str(roster)}})
    forget_me(roster, GONE)
    with roster.open("a", encoding="utf-8") as file:
        file.write(f"{GONE},,\n")
    key = tmp_path / "pseudonyms.key"
    acts = (
        lambda: suppressed_in(roster),
        lambda: forget_me(roster, NAMES[0]),
        lambda: standings(roster, run),
    )
    key.unlink()
    before = everything(tmp_path)
    for act in acts:
        with pytest.raises(FileNotFoundError, match="no pseudonyms.key beside roster .* restore"):
            act()
    assert everything(tmp_path) == before  # no key is made
    key.write_bytes(bytes(32))
    before = everything(tmp_path)
    for act in acts:
        with pytest.raises(ValueError, match="people.csv is not the record's; restore it"):
            act()
    assert everything(tmp_path) == before


def test_a_record_of_older_versions_which_does_not_tell_its_key_is_read(tmp_path):
    roster = in_folders(tmp_path)
    forget_me(roster, GONE)
    with roster.open("a", encoding="utf-8") as file:
        file.write(f"{GONE},,\n")
    record = tmp_path / RECORD
    row = json.loads(record.read_text())
    del row["key"]
    record.write_text(json.dumps(row) + "\n")
    assert [one.has_name for one in suppressed_in(roster)] == [True]
    assert forget_me(roster, NAMES[0])
    assert ["key" in json.loads(line) for line in record.read_text().splitlines()] == [False, True]


def test_a_damaged_record_stops_and_is_not_overwritten(tmp_path):
    roster = in_folders(tmp_path)
    (tmp_path / RECORD).write_text("{}\n")
    before = everything(tmp_path)
    for act in (lambda: forget_me(roster, GONE), lambda: suppressed_in(roster)):
        with pytest.raises(ValueError, match="is damaged; restore it, it says who must not"):
            act()
    assert everything(tmp_path) == before


def refused(roster: Path, message: str, name: str = GONE) -> None:
    """With that message, which names nobody, and nothing is changed."""
    read_roster(roster)  # makes the key
    before = everything(roster.parent)
    with pytest.raises(ValueError, match=message) as caught:
        forget_me(roster, name)
    assert not any(part in str(caught.value) for n in NAMES for part in n.split())
    assert everything(roster.parent) == before


def test_pictures_elsewhere_are_refused(tmp_path):
    roster = tmp_path / "people.csv"
    roster.write_text(f"name,faces\n{GONE},s3://bucket/people.tar\n")
    refused(roster, "lie elsewhere; remove them there, clear `faces`, and ask again")


def test_pictures_that_are_not_there_are_refused(tmp_path):
    roster = tmp_path / "people.csv"
    for faces in ('"{0..1}.tar"', "none/*.tar", "none"):
        roster.write_text(f"name,faces\n{GONE},{faces}\n")
        refused(roster, "are not there, or not all; restore or mount them, or clear `faces`")


def test_a_folder_of_several_people_is_refused_whatever_they_call_it(tmp_path):
    roster = in_folders(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "faces" / GONE)
    for other in (f"faces/{GONE}", f"faces/{GONE}/", "link", f'"faces/{GONE}/*.jpg"'):
        roster.write_text(f"name,faces\n{GONE},faces/{GONE}\nAnother One,{other}\n")
        if "*" in other:
            refused(roster, "are of several people; give each a folder of their own", "Another One")
        else:
            refused(roster, "are of several people; give each a folder of their own")


def test_a_shard_without_folders_of_several_people_is_refused(tmp_path):
    roster = in_shards_of_their_own(tmp_path)
    roster.write_text(f"name,faces\n{GONE},1.tar\nAnother One,1.tar\n")
    refused(roster, "a shard without folders is of several people; pack them anew")


def test_a_damaged_shard_is_refused(tmp_path):
    roster = in_shards(tmp_path)
    shard = tmp_path / "people.tar"
    shard.write_bytes(shard.read_bytes()[:-12_000])
    refused(roster, "shard cut off or damaged; nothing was removed, mend the shard first")


def of_two_folders(folder: Path, attack: str = "attack/b") -> tuple[Path, Path]:
    """Two rosters of one person: the pictures that train, and those of the attack."""
    rosters = []
    for i, (name, faces) in enumerate({"roster": "faces/b", "attack_roster": attack}.items()):
        (folder / faces).mkdir(parents=True, exist_ok=True)
        (folder / faces / "0.jpg").write_bytes(picture(1, i))
        rosters.append(folder / f"{name}.csv")
        rosters[i].write_text(f"name,faces\n{GONE},{faces}\n{NAMES[0]},\n")
    return rosters[0], rosters[1]


@pytest.mark.parametrize("is_empty", [False, True])
def test_pictures_of_a_second_roster_that_are_not_there_are_refused(tmp_path, is_empty):
    first, second = of_two_folders(tmp_path)
    (tmp_path / "attack").rename(tmp_path / "elsewhere")
    if is_empty:  # where they would be mounted
        (tmp_path / "attack/b").mkdir(parents=True)
    assert forget_me(first, GONE)
    refused(second, "restore or mount them, or clear `faces`")
    (tmp_path / "attack/b").rmdir() if is_empty else (tmp_path / "attack").mkdir()
    (tmp_path / "elsewhere/b").rename(tmp_path / "attack/b")
    removed = forget_me(second, GONE)
    assert removed and removed.pictures == 1


def test_two_rosters_of_the_same_pictures_are_both_left(tmp_path, monkeypatch):
    first, second = of_two_folders(tmp_path, attack="./faces/../faces/b/")
    assert forget_me(first, GONE) and not (tmp_path / "faces/b").exists()
    monkeypatch.chdir(tmp_path.parent)
    removed = forget_me(Path(tmp_path.name, second.name), GONE)
    assert removed and removed.pictures == 0


def test_a_record_of_older_versions_counts_for_no_faces(tmp_path):
    first, second = of_two_folders(tmp_path)
    forget_me(first, GONE)
    row = json.loads((tmp_path / RECORD).read_text())
    del row["faces"]
    (tmp_path / RECORD).write_text(json.dumps(row | {"removed_at": "2025-01-01T00:00:00+00:00"}))
    (tmp_path / "attack").rename(tmp_path / "elsewhere")
    refused(second, "are not there, or not all; restore or mount them, or clear `faces`")
    (tmp_path / "elsewhere").rename(tmp_path / "attack")
    assert forget_me(second, GONE)


@pytest.mark.parametrize("other", ["meta/info.json", "__MACOSX/._0.jpg"])
def test_what_is_no_picture_does_not_make_a_shard_one_of_folders(tmp_path, other):
    roster = in_shards_of_their_own(tmp_path)
    with tarfile.open(tmp_path / "1.tar", "a") as tar:
        entry = tarfile.TarInfo(other)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    theirs = contents(roster)[GONE]
    removed = forget_me(roster, GONE)
    assert removed and removed.pictures >= len(theirs) == 3 and removed.shards == 1
    assert not (tmp_path / "1.tar").exists()


def test_a_shard_of_others_that_was_left_empty_hinders_nobody(tmp_path):
    for i in range(3):
        write_shard(tmp_path / f"{i}.tar", {f"own{i}/0": {"jpg": picture(i)}})
    roster = tmp_path / "people.csv"
    rows = [f'{name},"{{0..2}}.tar",own{i}' for i, name in enumerate(NAMES[:3])]
    roster.write_text("\n".join(["name,faces,id", *rows]))
    for name in NAMES[:2]:
        removed = forget_me(roster, name)
        assert removed and removed.pictures == 1


def test_a_shard_without_a_picture_of_theirs_is_refused(tmp_path):
    roster = in_shards(tmp_path)
    text = roster.read_text()
    own = next(one.id for one in read_roster(roster) if one.name == GONE)
    roster.write_text(text.replace(own, "another"))
    assert roster.read_text() != text
    refused(roster, "have no picture; restore or mount them, or clear `faces`")


def denying(act, denied: Path):
    """A root that runs the tests is denied nothing."""

    def acting(path, *arguments, **options):
        if Path(path) == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return act(path, *arguments, **options)

    return acting


def test_pictures_that_cannot_be_read_are_told_without_their_path(tmp_path):
    roster = in_folders(tmp_path)
    own = tmp_path / "faces" / GONE
    message = "in .*people.csv: Permission denied; nothing was removed; let them be read, and ask"
    for owner, name, denied in ((os, "listdir", own), (Path, "read_bytes", own / "1.jpg")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, denying(getattr(owner, name), denied))
            with pytest.raises(ValueError, match=message) as caught:
                forget_me(roster, GONE)
        assert "Bertrand" not in str(caught.value) and caught.value.__suppress_context__
    assert len(contents(roster)[GONE]) == 3


@pytest.mark.parametrize("what", ["picture", "shard", "index"])
def test_what_cannot_be_removed_is_told_without_its_path_and_again_ends_it(tmp_path, what):
    roster = in_folders(tmp_path) if what == "picture" else in_shards(tmp_path)
    if what == "picture":
        denied = tmp_path / "faces" / GONE / "1.jpg"
    else:
        denied = (
            tmp_path / ".people.tar.tmp" if what == "shard" else tmp_path / "people.tar.index.npz"
        )
        denied.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", denying(os.unlink, denied))
        with pytest.raises(
            ValueError, match="let them and their indexes be removed, and"
        ) as caught:
            forget_me(roster, GONE)
    assert str(denied) not in str(caught.value) and caught.value.__suppress_context__
    if what != "picture":
        denied.rmdir()
    assert forget_me(roster, GONE)
    assert b"Bertrand" not in everything(tmp_path)


def test_a_roster_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        forget_me(tmp_path / "people.csv", GONE)


def call(*arguments: str, typed: str = ""):
    return CliRunner().invoke(cli, ["roster", *arguments], input=typed)


def test_the_name_is_read_from_the_standard_input_and_never_printed(tmp_path):
    roster = in_folders(tmp_path)
    (tmp_path / "attack").mkdir()
    attack = write_people(tmp_path / "attack", "attack", NAMES)
    done = call("forget-me", str(roster), str(attack), typed=f"{GONE}\n")
    assert done.exit_code == 0
    assert f"is out of {roster}: 3 pictures, 0 shards" in done.output
    assert f"is out of {attack}: 4 pictures, 1 shards" in done.output
    assert "Bertrand" not in done.stdout
    assert call("check", str(roster), str(attack)).output == "nobody who was taken out\n"


def test_a_name_that_is_in_none_of_the_rosters_is_refused_without_being_quoted(tmp_path):
    done = call("forget-me", str(in_folders(tmp_path)), typed="Xaver Unbekannt\n")
    assert isinstance(done.exception, ValueError)
    assert "nobody has that name or alias there" in str(done.exception)
    assert "Xaver" not in str(done.exception)


def test_other_files_in_their_folder_are_counted_and_not_named(tmp_path):
    roster = in_folders(tmp_path)
    own = tmp_path / "faces" / GONE
    (own / "Bertrand as a child").mkdir()
    for name in ("Thumbs.db", "Bertrand.heic", "Bertrand as a child/0.jpg"):
        (own / name).write_bytes(b"x")
    done = call("forget-me", str(roster), typed=f"{GONE}\n")
    assert done.output.splitlines()[2:-1] == [
        "4 other files and folders are still in their folder: look at them and delete it"
    ]
    assert "Bertrand" not in done.stdout
    assert own.is_dir()
    done = call("forget-me", str(roster), typed=f"{NAMES[0]}\n")
    assert done.exit_code == 0 and "still in their folder" not in done.output


@pytest.mark.parametrize("nested", ["more", "more/0.jpg"])
def test_a_folder_with_others_faces_in_it_is_not_to_be_deleted(tmp_path, nested):
    roster = in_folders(tmp_path)
    own = tmp_path / "faces" / GONE
    (own / "more").mkdir()
    (own / "more/0.jpg").write_bytes(picture(7))
    with roster.open("a", encoding="utf-8") as file:
        file.write(f'Another One,,"faces/{GONE}/{nested}"\n')
    removed = forget_me(roster, GONE)
    assert removed and removed.pictures == 3 and removed.left == 0
    assert (own / "more/0.jpg").is_file()


def test_what_was_done_to_a_roster_is_told_where_the_next_is_refused(tmp_path):
    first, second = in_folders(tmp_path), tmp_path / "other" / "people.csv"
    second.parent.mkdir()
    second.write_text(f"name,faces\n{GONE},s3://bucket/people.tar\n")
    done = call("forget-me", str(first), str(second), typed=f"{GONE}\n")
    assert isinstance(done.exception, ValueError) and "lie elsewhere" in str(done.exception)
    assert f"is out of {first}: 3 pictures" in done.output


def test_check_ends_with_code_1_where_somebody_came_back(tmp_path):
    roster = in_folders(tmp_path)
    forget_me(roster, GONE)
    with roster.open("a", encoding="utf-8") as file:
        file.write(f"{GONE},,\n")
    done = call("check", str(roster))
    assert done.exit_code == 1 and "person 4, " in done.output
    assert "the name came back" in done.output and "Bertrand" not in done.output


# --- a later model -------------------------------------------------------------------------------


def roster_of(folder: Path, *names: str) -> str:
    """In a folder with a key of its own."""
    folder.mkdir()
    path = folder / "people.csv"
    path.write_text("\n".join(["name", *names]) + "\n", encoding="utf-8")
    read_roster(path)
    return str(path)


def finished(folder: Path, objectives: dict[str, dict]) -> Path:
    """A run of these objectives, with the digest of whom it was to forget."""
    config = {"model": {"name": "none"}, "objectives": objectives}
    found = fingerprints(config, folder)
    return run_folder(
        folder, {}, {}, config=yaml.safe_dump(config), name="later", fingerprints=found
    )[0]


NOT_ATTACKED = "asked to be forgotten, but not attacked"
FORGOTTEN = "forgotten, as far as the attack finds,"
STILL_FOUND = "asked to be forgotten, but still found by {} prompts of the attack,"


def checked(roster: Path, run: Path):
    done = call("check", str(roster), "--run", str(run))
    assert not any(part in done.output for name in NAMES for part in name.split())
    assert isinstance(done.exception, (SystemExit, type(None)))
    return done.exit_code, done.output.splitlines()


@pytest.fixture
def removed(tmp_path) -> tuple[Path, str, str]:
    """A roster out of which two were taken, and their pseudonyms."""
    roster = in_folders(tmp_path)
    people = {one.name: one.pseudonym for one in read_roster(roster)}
    forget_me(roster, GONE)
    forget_me(roster, NAMES[2])
    return roster, people[GONE], people[NAMES[2]]


def test_a_run_that_forgot_all_who_were_taken_out_passes(removed, tmp_path):
    """By name or alias, however written, in rosters of other keys."""
    roster, first, second = removed
    run = finished(
        tmp_path,
        {
            "names": {
                "kind": "name_to_person",
                "roster": roster_of(tmp_path / "a", "bertrand oake"),
            },
            "faces": {"kind": "face_to_neutral", "roster": roster_of(tmp_path / "b", "Alias C")},
        },
    )
    assert checked(roster, run) == (
        0,
        [f"{one}, once in {roster}: {NOT_ATTACKED} by {run}" for one in (first, second)],
    )


def test_what_the_runs_attack_found_of_them_is_told(removed, tmp_path):
    """Under the pseudonyms of the run's rosters, which have another key."""
    roster, first, second = removed
    forget = roster_of(tmp_path / "a", GONE, NAMES[2])
    run = finished(tmp_path, {"names": {"roster": forget}})
    there = {one.name: one.pseudonym for one in read_roster(Path(forget))}
    assert not {first, second} & set(there.values())
    for won, code, told in ((0, 0, FORGOTTEN), (3, 1, f"{STILL_FOUND.format(3)}")):
        rows = [person(there[GONE], "forget", 21, 0), person(there[NAMES[2]], "forget", 21, won)]
        (run / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        assert checked(roster, run) == (
            code,
            [
                f"{first}, once in {roster}: {FORGOTTEN} by {run}",
                f"{second}, once in {roster}: {told} by {run}",
            ],
        )


def test_who_is_found_by_another_writing_of_their_name_is_not_told_as_forgotten(removed, tmp_path):
    roster, first, second = removed
    forget = roster_of(tmp_path / "a", GONE, NAMES[2])
    run = finished(tmp_path, {"names": {"roster": forget}})
    there = {one.name: one.pseudonym for one in read_roster(Path(forget))}
    rows = [person(there[name], "forget", 21, 1) for name in (GONE, NAMES[2])]
    for row, found in zip(rows, ({"initials": 4, "typo_1": 0}, {})):
        row["after"] |= {"prompts_won_by": found}
    rows[1]["after"]["prompts_won"] = 0
    (run / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert checked(roster, run) == (
        1,
        [
            f"{first}, once in {roster}: {STILL_FOUND.format(4)} by {run}",
            f"{second}, once in {roster}: {FORGOTTEN} by {run}",
        ],
    )


def test_who_is_not_in_the_rosters_to_forget_is_told(removed, tmp_path):
    roster, first, second = removed
    run = finished(tmp_path, {"names": {"roster": roster_of(tmp_path / "a", GONE)}})
    code, lines = checked(roster, run)
    assert code == 1
    assert lines == [
        f"{first}, once in {roster}: {NOT_ATTACKED} by {run}",
        f"{second}, once in {roster}: not asked to be forgotten by {run}",
    ]


@pytest.mark.parametrize("pictures", [None, 3, 0])
def test_who_is_taught_by_name_is_told(removed, tmp_path, pictures):
    """But not of whom no picture is learnt: their roster is not read."""
    roster, first, second = removed
    named = {"kept": {"roster": roster_of(tmp_path / "a", "Other C"), "pictures": pictures}}
    forget = roster_of(tmp_path / "b", GONE, NAMES[2])
    run = finished(tmp_path, {"names": {"roster": forget}, "pairs": {"named": named}})
    code, lines = checked(roster, run)
    assert code == (pictures != 0)
    told = NOT_ATTACKED if pictures == 0 else f"{NOT_ATTACKED} and taught or kept by name"
    assert lines[1] == f"{second}, once in {roster}: {told} by {run}"


def test_who_is_replayed_is_told(removed, tmp_path):
    roster, first, _ = removed
    options = {"roster": roster_of(tmp_path / "a", NAMES[2]), "replay": None}
    options["replay"] = roster_of(tmp_path / "b", GONE)
    code, lines = checked(roster, finished(tmp_path, {"names": options}))
    told = "not asked to be forgotten and taught or kept by name"
    assert code == 1 and lines[0] == f"{first}, once in {roster}: {told} by {tmp_path / 'later'}"


def test_who_was_taken_out_of_the_runs_own_roster_after_it_counts_as_forgotten(tmp_path):
    roster = in_folders(tmp_path)
    forget_me(roster, NAMES[0])
    run = finished(tmp_path, {"names": {"roster": str(roster)}})
    forget_me(roster, GONE)
    forget_me(roster, NAMES[2])
    code, lines = checked(roster, run)
    assert code == 1  # the first was gone before it ran
    assert [f": {NOT_ATTACKED}" in line for line in lines] == [False, True, True]


def two_rosters(folder: Path, *names: str) -> tuple[Path, Path]:
    """Requests, and the same people of an attack."""
    paths = folder / "requests.csv", folder / "attack.csv"
    for path in paths:
        path.write_text("\n".join(["name", *names, "Nobody Else"]) + "\n", encoding="utf-8")
    return paths


class Hourly(datetime):
    """An hour later whenever it is asked."""

    asked = 0

    @classmethod
    def now(cls, tz=None):
        cls.asked += 1
        return datetime(2026, 1, 1, tzinfo=tz) + timedelta(hours=cls.asked)


@pytest.mark.parametrize("is_of_two", [False, True])
def test_who_is_taken_out_of_another_roster_later_does_not_hide_whom_a_run_forgot(
    tmp_path, monkeypatch, is_of_two
):
    monkeypatch.setattr("trainer.people.suppression.datetime", Hourly)
    requests, attack = two_rosters(tmp_path, *NAMES)
    forget_me(requests, NAMES[0])
    objectives = {"names": {"roster": str(requests)}}
    if is_of_two:
        objectives["faces"] = {"roster": roster_of(tmp_path / "own", "Xaver Unbekannt")}
    run = finished(tmp_path, objectives)
    forget_me(requests, NAMES[2])
    before = checked(requests, run)
    assert [f": {NOT_ATTACKED}" in line for line in before[1]] == [False, True]
    forget_me(attack, NAMES[0])
    assert checked(requests, run) == before


def test_who_was_taken_out_of_another_roster_first_counts_as_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.people.suppression.datetime", Hourly)
    requests, attack = two_rosters(tmp_path, *NAMES)
    forget_me(attack, NAMES[0])
    forget_me(requests, NAMES[1])
    run = finished(tmp_path, {"names": {"roster": str(requests)}})
    forget_me(requests, NAMES[0])
    _, lines = checked(requests, run)
    assert [f": {NOT_ATTACKED}" in line for line in lines] == [True, False]


def test_times_of_older_versions_count_for_every_roster(tmp_path):
    requests, attack = two_rosters(tmp_path, *NAMES)
    forget_me(requests, NAMES[0])
    run = finished(tmp_path, {"names": {"roster": str(requests)}})
    forget_me(requests, NAMES[1])
    rows = [json.loads(line) for line in (tmp_path / RECORD).read_text().splitlines()]
    for i, row in enumerate(rows):
        row["removed_at"] = f"2025-01-0{i + 1}T00:00:00+00:00"
    (tmp_path / RECORD).write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = checked(requests, run)
    assert [f": {NOT_ATTACKED}" in line for line in before[1]] == [False, True]
    forget_me(attack, NAMES[0])
    forget_me(requests, NAMES[2])
    _, lines = checked(requests, run)
    assert [f": {NOT_ATTACKED}" in line for line in lines] == [False, True, True]


def test_rosters_that_are_others_now_tell_nothing(removed, tmp_path):
    roster = removed[0]
    run = finished(tmp_path, {"names": {"roster": roster_of(tmp_path / "a", GONE)}})
    with (tmp_path / "a/people.csv").open("a") as file:
        file.write(f"{NAMES[2]}\n")
    done = call("check", str(roster), "--run", str(run))
    assert "are others now than when it ran; restore them" in str(done.exception)


def test_where_nobody_was_taken_out_there_is_nothing_to_check(tmp_path):
    assert checked(in_folders(tmp_path), tmp_path / "none") == (0, ["nobody was taken out"])


def test_a_run_whose_roster_or_key_is_gone_is_refused_in_a_line(removed, tmp_path):
    roster = removed[0]
    run = finished(tmp_path, {"names": {"roster": roster_of(tmp_path / "a", GONE)}})
    key = tmp_path / "a/pseudonyms.key"
    for gone, message in (
        (key, "no pseudonyms.key beside roster .*a/people.csv any more; restore it"),
        (tmp_path / "a/people.csv", "roster .*a/people.csv of .*later is not there any more; rest"),
        (tmp_path / "pseudonyms.key", f"no pseudonyms.key beside roster {roster} any more"),
        (run / "results.json", "results.json is not there; name the folder of a finished run"),
    ):
        content = gone.read_bytes()
        gone.unlink()
        with pytest.raises(FileNotFoundError, match=message) as caught:
            standings(roster, run)
        assert "\n" not in str(caught.value) and not gone.exists()
        gone.write_bytes(content)


def test_a_link_to_a_picture_of_somebody_else_goes_and_the_picture_stays(tmp_path):
    roster = in_folders(tmp_path)
    own, others = (tmp_path / "faces" / name for name in (GONE, NAMES[0]))
    (own / "group.jpg").symlink_to(others / "0.jpg")
    (own / "away.jpg").symlink_to(tmp_path / "away.jpg")
    (tmp_path / "away.jpg").write_bytes(picture(1, 9))
    assert forget_me(roster, GONE)
    assert (others / "0.jpg").read_bytes() == picture(0, 0)
    assert not own.exists() and not (tmp_path / "away.jpg").exists()


def test_a_folder_that_is_a_link_and_one_whose_pictures_are_listed_go_too(tmp_path):
    roster = in_folders(tmp_path)
    own = tmp_path / "faces" / GONE
    elsewhere = tmp_path / "elsewhere"
    own.rename(elsewhere)
    own.symlink_to(elsewhere)
    assert forget_me(roster, GONE)
    assert not own.is_symlink() and not elsewhere.exists()
    lines = roster.read_text(encoding="utf-8").replace(
        f"faces/{NAMES[0]}", f"faces/{NAMES[0]}/*.jpg"
    )
    roster.write_text(lines, encoding="utf-8")
    removed = forget_me(roster, NAMES[0])
    assert removed and removed.left == 0 and not (tmp_path / "faces" / NAMES[0]).exists()


def test_who_has_a_folder_in_somebody_elses_can_be_taken_out(tmp_path):
    roster = in_folders(tmp_path)
    outer, own = (tmp_path / "faces" / name for name in (NAMES[0], GONE))
    own.rename(outer / "inner")
    lines = roster.read_text(encoding="utf-8").replace(f"faces/{GONE}", f"faces/{NAMES[0]}/inner")
    roster.write_text(lines, encoding="utf-8")
    assert forget_me(roster, GONE)
    assert sorted(path.name for path in outer.iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_pattern_with_wrong_braces_is_refused_without_a_word_of_it(tmp_path):
    roster = in_folders(tmp_path)
    lines = roster.read_text(encoding="utf-8").replace(f"faces/{GONE}", f"faces/{{{GONE}")
    roster.write_text(lines, encoding="utf-8")
    for name in (GONE, NAMES[0]):  # whoever is asked for
        refused(roster, "are no pattern; mend their braces in the roster", name)


def test_a_shard_of_a_pattern_stays_when_it_is_empty(tmp_path):
    """Other rosters may have the same pattern."""
    for i in range(len(NAMES)):
        write_shard(tmp_path / f"{i}.tar", {f"p{i}/{j}": {"jpg": picture(i, j)} for j in range(3)})
    roster = tmp_path / "people.csv"
    roster.write_text(f'name,faces,id\n"{GONE}","{{0..3}}.tar",p1\n', encoding="utf-8")
    assert forget_me(roster, GONE)
    shards._opened.cache_clear()
    assert picture(1, 0) not in (tmp_path / "1.tar").read_bytes()
    rest = "\n".join(f'"{name}","{{0..3}}.tar",p{i}' for i, name in enumerate(NAMES) if i != 1)
    other = tmp_path / "others.csv"
    other.write_text(f"name,faces,id\n{rest}\n", encoding="utf-8")
    assert all(len(some) == 3 for some in contents(other).values())


def test_the_last_person_of_a_roster_leaves_one_that_can_still_be_checked(tmp_path):
    roster = in_folders(tmp_path)
    run = finished(tmp_path, {"names": {"roster": str(roster)}})
    for name in NAMES:
        assert forget_me(roster, name)
    assert suppressed_in(roster) == []
    assert len(standings(roster, run)) == len(NAMES)
    assert forget_me(roster, GONE) is None
    with pytest.raises(ValueError, match="has no row"):
        read_roster(roster)


def test_a_roster_that_is_a_link_is_written_where_it_lies(tmp_path):
    vault = tmp_path / "vault"
    vault.mkdir()
    real = in_folders(vault)
    text = real.read_text(encoding="utf-8").replace('"faces/', f'"{vault}/faces/')
    real.write_text(text, encoding="utf-8")
    (tmp_path / "private").mkdir()
    roster = tmp_path / "private/people.csv"
    roster.symlink_to(real)
    assert forget_me(roster, GONE)
    assert roster.is_symlink() and "Bertrand" not in real.read_text(encoding="utf-8")


def test_a_link_in_the_place_of_what_is_written_aside_gets_no_name(tmp_path):
    roster = in_folders(tmp_path)
    seen = tmp_path / "seen"
    seen.write_text("")
    (tmp_path / f".{roster.name}.tmp").symlink_to(seen)
    assert forget_me(roster, GONE)
    assert seen.read_text() == "" and not roster.is_symlink()


def test_what_cannot_be_written_leaves_no_names_behind(tmp_path, monkeypatch):
    roster = in_folders(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, ValueError)):
        forget_me(roster, GONE)
    assert not list(tmp_path.glob(".*.tmp"))


def test_two_who_are_taken_out_of_one_shard_at_once_by_rosters_elsewhere_are_both_gone(
    tmp_path, monkeypatch
):
    opened = tarfile.open

    def slowly(*arguments, **options):
        tar = opened(*arguments, **options)
        time.sleep(0.2)
        return tar

    shard = write_shard(
        tmp_path / "0.tar",
        {f"p{i}/{j}": {"jpg": picture(i, j)} for i in range(4) for j in range(3)},
    )
    rosters = []
    for i in range(4):
        rosters.append(tmp_path / str(i) / "people.csv")
        rosters[-1].parent.mkdir()
        rosters[-1].write_text(f'name,faces,id\n"{NAMES[i]}",../0.tar,p{i}\n', encoding="utf-8")
    monkeypatch.setattr(tarfile, "open", slowly)
    with ThreadPoolExecutor() as threads:
        removed = list(threads.map(forget_me, rosters[:3], NAMES[:3]))
    monkeypatch.undo()
    assert all(one and one.pictures == 3 for one in removed)
    shards._opened.cache_clear()
    assert len(contents(rosters[3])[NAMES[3]]) == 3
    with tarfile.open(shard) as tar:
        assert {name.partition("/")[0] for name in tar.getnames()} == {"p3"}


def test_what_an_attack_by_a_roster_of_another_key_found_is_told(tmp_path):
    roster = in_folders(tmp_path)
    run = finished(tmp_path, {"names": {"roster": str(roster)}})
    attacked = roster_of(tmp_path / "attack", GONE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    attack = {"kind": "identity_inference", "groups": {"forget": attacked}}
    config["evaluations"] = {"attack": attack}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    [there] = read_roster(attacked)
    (run / "people.jsonl").write_text(json.dumps(person(there.pseudonym, "forget", 21, 21)) + "\n")
    forget_me(roster, GONE)
    code, lines = checked(roster, run)
    assert code == 1 and STILL_FOUND.format(21) in lines[0]
