"""A name written otherwise: the variants themselves, and the attack by them."""

from __future__ import annotations

import csv
import json
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from plugins.identity_inference import IdentityInference
from plugins.identity_inference.variants import (
    LONG,
    VARIANTS,
    WRITERS,
    askings,
    initials,
    last_first,
    one_typo,
    two_typos,
    unaccented,
)
from tests.plugins.lookup import direction, stacked
from trainer import Identity, read_roster

PROMPTS = ["{0}", "a photo of {0}", "{0} at a gala"]
NAMES = st.text("abcdeéABC -'", min_size=1, max_size=12)


def edits(one: str, other: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        last = row
        row = [i]
        for j, b in enumerate(other):
            row.append(min(last[j] + (a != b), last[j + 1] + 1, row[j] + 1))
    return row[-1]


def person(name: str, *aliases: str) -> Identity:
    return Identity(id=name, name=name, aliases=aliases, faces=None, pseudonym="00")


# --- the variants --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "name", "written"),
    [
        (initials, "Joe Dean Doe", "J. D. Doe"),
        (initials, "Madonna", "Madonna"),
        (last_first, "Joe Dean Doe", "Doe, Joe Dean"),
        (last_first, "Madonna", "Madonna"),
        (unaccented, "José-María Ñúñez", "Jose-Maria Nunez"),
        (WRITERS["lower"], "Joe McDoe", "joe mcdoe"),
        (WRITERS["upper"], "Joe McDoe", "JOE MCDOE"),
        (one_typo, "J", None),
        (two_typos, "Aaa B", None),
    ],
)
def test_names_are_written_otherwise(write, name, written):
    assert write(name, Random(0)) == written


@given(NAMES, st.integers(0, 99))
def test_one_typing_error_is_at_distance_one(name, seed):
    written = one_typo(name, Random(seed))
    assume(written is not None)
    assert edits(name, written) == 1 and written[0] == name[0]


@given(NAMES, st.integers(0, 99))
def test_two_typing_errors_are_at_distance_two(name, seed):
    written = two_typos(name, Random(seed))
    assume(written is not None)
    assert edits(name, written) == 2 and written[0] == name[0]


def test_all_candidates_are_written_alike():
    people, candidates = [person("Joe Doe"), person("Jane Roe")], ["Joe Doe", "Jane Roe", "Al Poe"]
    (one,) = askings("last_first", people, candidates, "", seed=0)
    assert one.names == ["Doe, Joe", "Roe, Jane", "Poe, Al"] and one.people == [0, 1]
    (one,) = askings("beside_another", people, candidates, "Bo Coe", seed=0)
    assert one.names == [f"{name} and Bo Coe" for name in candidates]
    (one,) = askings("long_caption", people, candidates, "", seed=0)
    captions = one.captions("a photo of {0}")
    assert captions[1] == LONG.replace("{0}", "a photo of Jane Roe") and len(captions) == 3


def test_who_has_no_variant_or_shares_it_is_not_attacked_by_it():
    people = [person("Joe Doe"), person("Jane Doe"), person("Cher"), person("Al Poe")]
    candidates = [*(one.name for one in people), "Bo Coe"]
    (one,) = askings("initials", people, candidates, "", seed=0)
    assert one.names == ["J. Doe", "J. Doe", "Cher", "A. Poe", "B. Coe"]
    assert one.people == [3]


def test_each_alias_is_an_attack_of_its_own_and_others_keep_their_names():
    people = [person("Joe Doe", "Joey", "J. D."), person("Jane Roe"), person("Al Poe", "Ally")]
    one, two = askings("alias", people, ["Joe Doe", "Jane Roe", "Al Poe", "Bo Coe"], "", seed=0)
    assert (one.names, one.people) == (["Joey", "Jane Roe", "Ally", "Bo Coe"], [0, 2])
    assert (two.names, two.people) == (["J. D.", "Jane Roe", "Al Poe", "Bo Coe"], [0])
    assert not list(askings("alias", [person("Joe Doe")], ["Joe Doe"], "", seed=0))


def test_variants_are_told_apart_as_a_model_reads_them():
    composed, apart = "Jos\u00e9 Roe", "Jose\u0301 Roe"
    people = [
        person("Joe Doe", "joey", "JOE DOE"),
        person("Jane Roe", apart),
        person("Al Poe", "A"),
    ]
    candidates = ["Joe Doe", "Jane Roe", "Al Poe", "JOEY", composed]
    first, second = askings("alias", people, candidates, "", seed=0)
    assert (first.people, second.people) == ([2], [])  # the others' tie, or are the name itself
    (one,) = askings("unaccented", [person("\u1112\u1161\u11ab")], ["\u1112\u1161\u11ab"], "", 0)
    assert one.people == []  # it is composed, no more
    for variant in ("lower", "upper"):
        (one,) = askings(variant, people, candidates[:3], "", seed=0)
        assert one.people == [0, 1, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_follow_from_the_seed_and_the_name_alone(variant):
    people = [person("Jane Roe", "Jenny"), person("Joe Doe", "Joey")]
    names = ["Jane Roe", "Joe Doe"]
    (first,) = askings(variant, people, names, "Bo Coe", seed=1)
    (second,) = askings(variant, people[::-1], names[::-1], "Bo Coe", seed=1)
    assert first.names == second.names[::-1]
    (again,) = askings(variant, people, names, "Bo Coe", seed=1)
    assert again == first


def test_typing_errors_are_others_for_another_seed():
    people = [person("Bartholomew Featherstone")]
    names = {next(askings("typo_1", people, [one.name for one in people], "", seed)).names[0]
             for seed in range(20) for one in people}  # fmt: skip
    assert len(names) > 5


# --- the attack by them --------------------------------------------------------------------------


class Reader:
    """An `Encoder` that knows a picture's person by exactly the spellings listed for them."""

    def __init__(self, spellings: dict[str, list[str]]):
        self.spellings = {text: name for name, texts in spellings.items() for text in texts}

    def encode_text(self, texts):
        return stacked([self._read(text) for text in texts])

    def _read(self, caption):
        for text in sorted(self.spellings, key=len, reverse=True):
            if text in caption:
                return np.append(direction(self.spellings[text]), 0)
        return np.append(direction("nobody", caption), -9)  # away from every picture

    def encode_image(self, pictures):
        names = [pictures[i].decode().split("/")[0] for i in range(len(pictures))]
        return stacked([np.append(direction(name), 1) for name in names])


PEOPLE = {
    "forget": ["Joe Doe", "Jane Roe", "Albert Poe", "Bo Coe"],
    "unknown": ["Max Moe", "Tom Low"],
}
ALIASES = {"Joe Doe": "Joey;Big Joe", "Bo Coe": "Bobby"}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("variants")
    groups = {}
    for group, names in PEOPLE.items():
        groups[group] = str(folder / f"{group}.csv")
        with open(groups[group], "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["name", "aliases", "faces"])
            for i, name in enumerate(names):
                faces = folder / group / str(i)
                faces.mkdir(parents=True)
                for j in range(2):
                    (faces / f"{j}.jpg").write_bytes(f"{name}/{j}".encode())
                rows.writerow([name, ALIASES.get(name, ""), faces])
    others = folder / "others.txt"
    others.write_text("".join(f"Other{letter} Stranger\n" for letter in "abcdefgh"))
    return {
        "groups": groups,
        "distractors": str(others),
        "candidates": 10,
        "pictures": 2,
        "templates": PROMPTS,
    }


def measured(options: dict, model: Reader, *variants: str) -> dict:
    attack = IdentityInference(IdentityInference.Options(**options, variants=variants), seed=0)
    return dict(attack.run(model, model))


def test_people_who_are_found_by_a_variant_alone_are_counted(options):
    model = Reader(
        {
            "Joe Doe": ["Big Joe"],  # forgotten by name, found by the second of two aliases
            "Bo Coe": ["Bo Coe"],  # still known by name, not by the alias
            "Albert Poe": ["Poe, Albert", "ALBERT POE"],
        }
    )
    found = measured(options, model, "alias", "last_first", "upper", "lower")
    assert found["forget/tpr"] == 1 / 4
    assert found["forget/found_by/alias"] == found["forget/found_only_by/alias"] == 1 / 2
    assert found["forget/found_by/last_first"] == found["forget/found_only_by/last_first"] == 1 / 4
    assert found["forget/found_by/upper"] == 1 / 4 and found["forget/found_by/lower"] == 0
    assert found["forget/found_by/any_variant"] == 2 / 4
    assert found["forget/found_only_by/any_variant"] == 2 / 4
    assert found["unknown/found_by/any_variant"] == 0
    assert "unknown/found_by/alias" not in found  # nobody there has any
    assert found["forget/found_by/alias"].low < 1 / 2 < found["forget/found_by/alias"].high
    whose = {one.pseudonym: one.name for one in read_roster(options["groups"]["forget"])}
    rows = {whose.get(row["identity"]): row for row in found["people"]}
    assert rows["Joe Doe"]["prompts_won_by"] == {
        "alias": 3, "last_first": 0, "upper": 0, "lower": 0,
    }  # fmt: skip
    assert rows["Jane Roe"]["prompts_won_by"] == {"last_first": 0, "upper": 0, "lower": 0}


def test_who_is_known_by_name_is_not_found_by_a_variant_alone(options):
    model = Reader({name: [name] for names in PEOPLE.values() for name in names})
    found = measured(options, model, "long_caption", "beside_another")
    for group in PEOPLE:
        assert found[f"{group}/tpr"] == 1
        for variant in ("long_caption", "beside_another", "any_variant"):
            assert found[f"{group}/found_by/{variant}"] == 1
            assert found[f"{group}/found_only_by/{variant}"] == 0


def test_without_variants_none_is_measured(options):
    model = Reader({name: [name] for names in PEOPLE.values() for name in names})
    found = measured(options, model)
    assert not [name for name in found if "found_" in name]
    assert all("prompts_won_by" not in row for row in found["people"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_nothing_of_the_attack_by_name(options, variant):
    model = Reader({"Joe Doe": ["Joe Doe"], "Tom Low": ["Low"]})
    with_it, without = measured(options, model, variant), measured(options, model)
    plain = {name: value for name, value in without.items() if name != "people"}
    assert plain == {name: with_it[name] for name in plain}


def test_no_variant_of_a_name_is_told(options):
    model = Reader({})
    told = json.dumps(measured(options, model, *VARIANTS)).lower()
    for name in (*PEOPLE["forget"], *PEOPLE["unknown"], "joey", "big joe", "bobby"):
        assert name.lower() not in told


def test_an_unknown_variant_is_refused(options):
    with pytest.raises(ValidationError, match="Input should be 'alias', 'initials'"):
        measured(options, Reader({}), "nickname")


def test_a_name_to_stand_beside_others_must_be_left(options):
    with pytest.raises(ValueError, match="beside_another needs a name of .* that is no candidate"):
        measured(options | {"candidates": 14}, Reader({}), "beside_another")
