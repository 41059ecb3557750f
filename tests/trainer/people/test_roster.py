from __future__ import annotations

import hmac
import json
import multiprocessing
import os
import pickle
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from trainer.people.names import NameIndex
from trainer.people.roster import KEY_FILE, Identity, read_roster

NAMES = ("Zebulon", "Quimby", "Ximena")  # nowhere else, so that a leak is seen


def roster(folder: Path, text: str | bytes, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def json_roster(folder: Path, *rows) -> Path:
    return roster(folder, "\n".join(map(json.dumps, rows)), "people.jsonl")


def refusal(path: Path, kind: type[Exception] = ValueError) -> str:
    """What is said of a roster that cannot be read; never a name, not even in the chain."""
    with pytest.raises(kind) as raised:
        read_roster(path)
    error: BaseException | None = raised.value
    while error is not None:
        assert not any(name.lower() in str(error).lower() for name in NAMES)
        # As Python prints it: `raise X from Y` hides the context, and prints Y.
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return str(raised.value)


# What is read


def test_a_csv_with_every_column_is_read(tmp_path):
    text = 'id,name,aliases,faces\np1,José  Roe,"J. Roe; Pepe ;",faces/p1\n,Ann Poe,,\n'
    first, second = read_roster(roster(tmp_path, text))
    assert (first.id, first.name, first.aliases) == ("p1", "José Roe", ("J. Roe", "Pepe"))
    assert first.faces == str(tmp_path / "faces/p1")
    assert second.id == second.pseudonym and second.aliases == () and second.faces is None


def test_json_lines_are_read(tmp_path):
    row = {"id": 12, "name": "Joe Doe", "aliases": ["J; D"], "faces": "a/{0..3}.tar"}
    first, second = read_roster(json_roster(tmp_path, row, {"name": "Ann Poe", "aliases": None}))
    assert (first.id, first.aliases) == ("12", ("J; D",))
    assert first.faces == str(tmp_path / "a/{0..3}.tar")
    assert second.name == "Ann Poe" and second.aliases == () and second.faces is None


def test_columns_may_come_in_any_order_and_case_after_a_byte_order_mark(tmp_path):
    text = "\ufeffFaces, Name\r\n,Joe Doe\r\n\r\n,Ann Poe\r\n"
    assert [one.name for one in read_roster(roster(tmp_path, text))] == ["Joe Doe", "Ann Poe"]


@pytest.mark.parametrize("faces", ["https://host/a.tar", "s3://bucket/a.tar", "pipe:cat a.tar"])
def test_faces_elsewhere_are_not_taken_for_a_path(tmp_path, faces):
    assert read_roster(json_roster(tmp_path, {"name": "A", "faces": faces}))[0].faces == faces


def test_absolute_faces_stay(tmp_path):
    assert read_roster(roster(tmp_path, "name,faces\nA,/b/c\n"))[0].faces == "/b/c"


STRANGE = [
    'Joe "The Rock" Doe',
    "O’Neil-Smith, Jr.",
    "Anna 😀 Bell",
    "👩‍👩‍👧",
    "יוסף כהן",
    "محمد\u200f علي",
    "Zoe\u0308 e\u0301",
    "山田 太郎",
    "김철수",
    "สมชาย ใจดี",
    "X Æ A-12",
    "a" * 200,
]


@pytest.mark.parametrize("name", STRANGE)
def test_names_of_all_scripts_are_read_as_written(tmp_path, name):
    quoted = '"' + name.replace('"', '""') + '"'
    (from_csv,) = read_roster(roster(tmp_path, f"name\n{quoted}\n"))
    (from_json,) = read_roster(json_roster(tmp_path, {"name": name}))
    assert from_csv.name == from_json.name == name
    assert from_csv.pseudonym == from_json.pseudonym
    assert NameIndex([name]).names_anyone(f"here is {name}!")


def test_quotes_inside_an_unquoted_csv_name_are_its_own(tmp_path):
    assert read_roster(roster(tmp_path, 'name\nJoe "Rock" Doe\n'))[0].name == 'Joe "Rock" Doe'


def test_the_repr_shows_only_the_pseudonym(tmp_path):
    text = "name,aliases,faces,id\nQuimby,Zebulon,Ximena,quimby1\n"
    (person,) = read_roster(roster(tmp_path, text))
    assert repr(person) == f"Identity(pseudonym='{person.pseudonym}')"
    assert pickle.loads(pickle.dumps(person)) == person


def test_of_a_hundred_thousand_people_each_has_a_pseudonym(tmp_path):
    rows = "".join(f"Person {i:x} Surname{i},p{i},faces/{{0..9}}.tar\n" for i in range(100_000))
    people = read_roster(roster(tmp_path, "name,id,faces\n" + rows))
    assert len({one.pseudonym for one in people}) == 100_000


# What is refused


def test_a_missing_roster_is_told_of(tmp_path):
    assert refusal(tmp_path / "no.csv", FileNotFoundError) == (
        f"roster {tmp_path}/no.csv is not there"
    )


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    message = refusal(roster(tmp_path, "name\nQuimby", "people.txt"))
    assert message.endswith("people.txt is neither .csv nor .jsonl; rename or convert it")


@pytest.mark.parametrize("text", ["", "\n\n", "name\n", "name,id\n\n"])
def test_an_empty_roster_is_refused_and_makes_no_key(tmp_path, text):
    message = refusal(roster(tmp_path, text))
    assert message.endswith("people.csv has no row; write one person per line")
    assert refusal(roster(tmp_path, "\n", "people.jsonl")).endswith("one person per line")
    assert not (tmp_path / KEY_FILE).exists()


def test_another_encoding_is_refused_with_its_line(tmp_path):
    message = refusal(roster(tmp_path, "name\nJoe\nQuimby é\n".encode("latin-1")))
    assert message.endswith("people.csv line 3 is not UTF-8; save it as UTF-8")
    assert "line 1 is not UTF-8" in refusal(roster(tmp_path, "name\nQuimby".encode("utf-16")))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("name,nickname", "separated by commas; column 2 is none of these"),
        ("name;aliases", "separated by commas; column 1 is none of these"),
        ("Quimby", "separated by commas; column 1 is none of these"),  # no header at all
        ("id,faces", "`name` is missing"),
        ("name,id,Name", "`name` stands there twice"),
    ],
)
def test_a_wrong_header_is_refused_with_the_possible_columns(tmp_path, header, problem):
    message = refusal(roster(tmp_path, f"\n{header}\nZebulon,x\n"))
    assert "people.csv line 2 must be a header" in message and message.endswith(problem)
    assert "`name`, if known `aliases`, `faces`, `id`" in message


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("Quimby,b,c", "3 values for 2 columns; put double quotes around a value that has a comma"),
        ("Quimby", "1 values for 2 columns"),
        (",b", "the name is empty; write it or remove the row"),
        (" ,b", "the name is empty"),
        ("-,b", "the name or an alias has no letter or digit"),
        ("Quimby,...", "the name or an alias has no letter or digit"),
        ("Quim\tby,b", "the name has a control character or a line break; remove it"),
        ("Quim\x00by,b", "the name has a control character"),
        ("Quim\u2028by,b", "the name has a control character"),
        ('"Quim\nby",b', "the name has a control character"),
        ("Quimby,\x1b[31m", "an alias has a control character"),
        ("Quimby" * 40 + ",b", "the name is longer than 200 characters; shorten it"),
        ("Quimby," + "b" * 201, "an alias is longer than 200 characters"),
        ('"Quimby,b', "a double quote is never closed, or text follows it"),
        ('"Quimby" Doe,b', 'text follows it; write "" for one inside'),
        ("Q" * 200_000 + ",b", "a double quote is never closed"),  # csv's own limit
    ],
)
def test_a_bad_csv_row_is_told_by_its_first_line(tmp_path, row, problem):
    message = refusal(roster(tmp_path, f'name,aliases\n\n"Ann\u2009Poe",\n{row}\n'))
    first, told, *_ = message.split("\n")
    assert first == f"roster {tmp_path}/people.csv:"
    assert told.startswith("line 4: ") and problem in told


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{Quimby", 'not a JSON object; write {"name": "..."}'),
        ("[" * 100_000, "not a JSON object"),
        ('["Quimby"]', "not a JSON object"),
        ('{"name": "a", "Quimby": 1}', "has a field that is none of `name`, `aliases`, `faces`"),
        ('{"id": "Quimby"}', "the name is empty"),
        ('{"name": ["Quimby"]}', "the name is not text"),
        ('{"name": "Quimby", "aliases": "Zebulon"}', "the aliases are not a list"),
        ('{"name": "Quimby", "aliases": [3]}', "an alias is not text"),
        ('{"name": "Quimby", "aliases": [""]}', "an alias is empty"),
        ('{"name": "Quimby", "faces": ["Zebulon"]}', "the faces are not text; name a folder"),
        ('{"name": "Quimby", "id": true}', "the id is not text"),
        ('{"name": "Quimby", "id": "a\\nb"}', "the id has a control character"),
        ('{"name": "Quimby\\ud800"}', "the name has a control character"),
    ],
)
def test_a_bad_json_line_is_told_by_its_number(tmp_path, row, problem):
    message = refusal(roster(tmp_path, f'\n{{"name": "Ann Poe"}}\n{row}\n', "people.jsonl"))
    assert message.split("\n")[1].startswith("line 3: ") and problem in message


def test_twenty_bad_rows_are_told_and_the_rest_counted(tmp_path):
    lines = refusal(roster(tmp_path, "name,id\n" + ",x\n" * 25)).split("\n")
    assert len(lines) == 22 and lines[20].startswith("line 21: ") and lines[21] == "and 5 more"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("José Quimby,", "JOSE  QUIMBY,"),
        ("Jo Quimby,", "Zebulon,jo-quimby"),
        ("Ximena,A;B. C", "Zebulon,b c"),
    ],
)
def test_names_alike_after_folding_are_refused_with_both_lines(tmp_path, first, second):
    message = refusal(roster(tmp_path, f"name,aliases\n{first}\nAnn Poe,\n{second}\n"))
    assert message.split("\n")[1:] == [
        "lines 2 and 4 have the same name or alias, accents, case and punctuation aside; "
        "keep one of them"
    ]


def test_a_person_may_repeat_their_own_name_as_alias(tmp_path):
    assert len(read_roster(roster(tmp_path, "name,aliases\nJosé Roe,Jose Roe;JOSE ROE\n"))) == 1


def test_an_id_given_twice_is_refused_with_both_lines(tmp_path):
    message = refusal(json_roster(tmp_path, {"name": "Quimby", "id": 7}, {"name": "B", "id": "7"}))
    assert message.split("\n")[1:] == ["lines 1 and 2 have the same id; give each their own"]


# Pseudonyms and their key


def test_a_pseudonym_is_the_keyed_hash_of_the_folded_name(tmp_path):
    (person,) = read_roster(roster(tmp_path, "name\nJosé Roe\n"))
    key = (tmp_path / KEY_FILE).read_bytes()
    assert person.pseudonym == hmac.new(key, b"jose roe", "sha256").hexdigest()[:16]


def test_a_person_keeps_their_pseudonym_in_all_rosters_of_a_folder(tmp_path):
    (one,) = read_roster(roster(tmp_path, "name\nJosé Roe\n"))
    (two,) = read_roster(json_roster(tmp_path, {"name": "JOSE ROE"}))
    (other,) = read_roster(roster(tmp_path / "..", "name\nJosé Roe\n", "elsewhere.csv"))
    assert one.pseudonym == two.pseudonym != other.pseudonym


def test_the_key_is_its_owners_alone_and_nothing_is_left_beside_it(tmp_path):
    path = roster(tmp_path, "name\nJoe\n")
    read_roster(path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["people.csv", KEY_FILE]


def test_a_key_of_the_wrong_size_is_refused(tmp_path):
    (tmp_path / KEY_FILE).write_bytes(b"short")
    message = refusal(roster(tmp_path, "name\nQuimby\n"))
    assert message == (
        f"{tmp_path / KEY_FILE} has 5 bytes, not 32; restore it, or remove it for a new one "
        "to be made, with which every pseudonym changes"
    )


def _read_when_all_are_ready(path, barrier, told):
    barrier.wait()
    told.put(read_roster(path)[0].pseudonym)


def test_eight_processes_that_start_together_agree_on_one_key(tmp_path):
    fork = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        barrier, told = fork.Barrier(8), fork.SimpleQueue()
        arguments = (roster(folder, "name\nJoe\n"), barrier, told)
        processes = [fork.Process(target=_read_when_all_are_ready, args=arguments) for _ in "8" * 8]
        for process in processes:
            process.start()
        assert len({told.get() for _ in processes}) == 1
        for process in processes:
            process.join()
        assert sorted(os.listdir(folder)) == ["people.csv", KEY_FILE]


def _refused_to_nobody(path, told):
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        told.put(f"no error: {read_roster(path)}")
    except ValueError as error:
        told.put(str(error))


def test_where_no_key_can_be_made_the_user_is_told_how_to():
    folder = Path(tempfile.mkdtemp())  # not tmp_path: its parents are closed to others
    try:
        path = roster(folder, "name\nQuimby\n")
        folder.chmod(0o555)
        fork = multiprocessing.get_context("fork")
        told = fork.SimpleQueue()
        process = fork.Process(target=_refused_to_nobody, args=(path, told))
        process.start()
        message = told.get()
        process.join()
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert message == (
        f"no {KEY_FILE} beside roster {path} and none can be made (Permission denied); copy the "
        "roster to a folder of your own, or make the key: "
        f"head -c 32 /dev/urandom > {folder / KEY_FILE}"
    )


def test_identities_are_compared_by_all_they_hold():
    assert Identity("1", "A", (), None, "x") != Identity("1", "B", (), None, "x")
