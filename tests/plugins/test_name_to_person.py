from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import open_clip
import pytest
import torch
from pydantic import ValidationError

from plugins.name_to_person import MAX_TOKENS, MAX_WORDS, NameToPerson, loss_of
from plugins.name_to_person.names import Names
from trainer import BadSample, Embeddings, NameIndex, Pair, Sample, cosine_distances, fold
from trainer.testing import check_objective

CAPTION = "a red dog sleeps beside an old lamp"
SCALE = torch.tensor(1.0)
STRANGE = [
    'Joe "The Rock" Doe',
    "{} {0} {name}",
    "Curly } Brace {",
    "Percy %s Dollar $1 \\1",
    "Anna 😀 Bell",
    "👩‍👩‍👧 Family",
    "יוסף כהן",
    "محمد\u200f علي",
    "O’Neil-Smith, Jr.",
    "山田 太郎",
]
FORGET = ["Zebulon Quimby", "Ximena Vandervoort", "José María Roe"]
KEPT = ["Agatha Brown", "Bruno Green", "Clara White"]


def roster(folder: Path, name: str, people: list[str | dict]) -> str:
    rows = [one if isinstance(one, dict) else {"name": one} for one in people]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def names_file(folder: Path, names: list[str]) -> str:
    path = folder / "names.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    return str(path)


def made(folder: Path, forget=FORGET, seed: int = 0, replay=None, never=None, **options):
    options = {"batch_size": 40, "roster": roster(folder, "forget", forget)} | options
    if replay is not None:
        options["replay"] = roster(folder, "replay", replay)
    if never is not None:
        options["never"] = [roster(folder, f"never{i}", one) for i, one in enumerate(never)]
    return NameToPerson(NameToPerson.Options(**options), seed)


def pair_at(objective: NameToPerson, turn: int, caption: str = CAPTION) -> Pair:
    rng = Random(turn)
    for _ in range(100):
        try:
            return objective.pair(Sample("key", caption), turn, rng)
        except BadSample:
            pass
    raise AssertionError("no pair in 100 tries")


def pairs_of(objective: NameToPerson, steps: int = 1) -> list[tuple[str, Pair]]:
    """(sort, pair) of each row."""
    turns = range(steps * objective.options.batch_size)
    return [(objective._quotas.of(turn)[0], pair_at(objective, turn)) for turn in turns]


def only(**shares: float) -> dict:
    return {"forget": 1e-9, "replayed": 0.0, "other": 0.0, "recombined": 0.0} | shares


def named(pair: Pair) -> str:
    """The name in a pair whose only context is the name itself."""
    return pair.student_text


def test_it_keeps_the_contract(tmp_path):
    options = {"batch_size": 20, "roster": roster(tmp_path, "forget", FORGET)}
    check_objective(NameToPerson, options)
    check_objective(NameToPerson, options | {"target": "a person"})
    replay = roster(tmp_path, "replay", KEPT)
    check_objective(NameToPerson, options | {"replay": replay, "template_share": 0.0})
    paper = {"target": "a person", "shares": only(forget=1.0), "template_share": 0.0}
    check_objective(NameToPerson, options | paper)


# Contexts


@pytest.mark.parametrize("name", STRANGE)
def test_names_of_all_scripts_and_signs_pass_through_contexts_unharmed(tmp_path, name):
    objective = made(tmp_path, [name], target="{} a person {0}")
    captions = [CAPTION, "a {red} {} dog {0} %s", name[::-1] + " sings"]
    seen = 0
    for turn, caption in enumerate(captions * 40):
        sort, _ = objective._quotas.of(turn)
        pair = pair_at(objective, turn, caption)
        if sort == "forget":
            seen += 1
            assert name in pair.student_text
            before, after = pair.student_text.split(name, 1)
            assert pair.teacher_text == f"{before}{{}} a person {{0}}{after}"
        else:
            assert pair.student_text == pair.teacher_text
    assert seen > 40


def test_the_name_takes_the_place_of_one_word_even_the_last(tmp_path):
    objective = made(tmp_path, shares=only(forget=1.0), template_share=0.0, target="a person")
    words = CAPTION.split()
    places = Counter()
    for turn in range(400):
        text = pair_at(objective, turn).teacher_text
        matching = [
            i for i in range(len(words))
            if text == " ".join([*words[:i], "a person", *words[i + 1 :]])
        ]  # fmt: skip
        assert len(matching) == 1
        places.update(matching)
    assert set(places) == set(range(len(words))) and min(places.values()) > 20


def test_all_sorts_stand_in_the_same_contexts(tmp_path):
    objective = made(tmp_path, replay=KEPT, templates=["<{}>", "one {} two"])
    contexts: dict[str, set[str]] = {}
    for turn in range(4000):
        # Captions of one word: in them the whole text is the name.
        pair = pair_at(objective, turn, "word")
        kind = next((c for c in "<o" if pair.teacher_text.startswith(c)), "caption")
        contexts.setdefault(objective._quotas.of(turn)[0], set()).add(kind)
    assert contexts.keys() == {"forget", "replayed", "other", "recombined"}
    assert all(found == {"<", "o", "caption"} for found in contexts.values())


def test_the_share_of_templates_is_kept(tmp_path):
    objective = made(tmp_path, templates=["<{}>"], template_share=0.25)
    count = sum(pair_at(objective, turn).teacher_text.startswith("<") for turn in range(4000))
    assert 900 < count < 1100


def test_a_template_may_name_twice(tmp_path):
    objective = made(
        tmp_path, ["Joe Doe"], templates=["{} is {}"], template_share=1.0, target="nobody",
        shares=only(forget=1.0),
    )  # fmt: skip
    pair = pair_at(objective, 0)
    assert (pair.student_text, pair.teacher_text) == ("Joe Doe is Joe Doe", "nobody is nobody")


def test_a_name_is_never_put_beyond_what_a_tower_reads(tmp_path):
    caption = " ".join(f"w{i}" for i in range(500))
    objective = made(tmp_path, shares=only(forget=1.0), template_share=0.0, target="X")
    for turn in range(100):
        words = pair_at(objective, turn, caption).teacher_text.split()
        assert len(words) == MAX_WORDS and words.index("X") < MAX_WORDS


def test_in_a_script_without_spaces_a_name_stands_in_the_caption_and_where_a_tower_reads(tmp_path):
    caption = "一张在海滩上拍的照片，" * 20
    objective = made(tmp_path, shares=only(forget=1.0), template_share=0.0, target="X")
    texts = {pair_at(objective, turn, caption).teacher_text for turn in range(200)}
    assert {text.index("X") for text in texts} > {0, 9, 24} and max(map(len, texts)) == MAX_WORDS
    assert max(text.index("X") for text in texts) == MAX_TOKENS // 2
    for text in texts:
        place = text.index("X")
        assert text.replace("X", caption[place : place + 1]) in caption
    russian = "фотография человека на пляже у моря летом"
    found = {pair_at(objective, turn, russian).teacher_text for turn in range(50)}
    assert f"X {russian[11:]}" in found and any(
        text.endswith("пляже X моря летом") for text in found
    )
    assert not any(text.endswith("X") for text in found)


@pytest.mark.parametrize(
    "caption",
    [
        "SKU 4719331803421 EAN 0889842651423 MPN 90YV0F80-M0NA00 a grey keyboard 2019 on a desk",
        "https://www.example.com/images/2013/05/16/IMG_20130516_142233.jpg by user 12345678@N02",
        "一张在海滩上拍的照片，" * 20,
        "(2) [1] {3} !!! ??? ... 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25",
    ],
)
def test_where_a_caption_has_many_tokens_the_name_is_read_all_the_same(tmp_path, caption):
    objective = made(tmp_path, shares=only(forget=1.0), template_share=0.0, target="X")
    tokens = open_clip.get_tokenizer("ViT-B-32")
    for turn in range(200):
        pair = pair_at(objective, turn, caption)
        student, teacher = tokens([pair.student_text, pair.teacher_text])
        assert not student.equal(teacher)


def test_templates_without_a_place_for_the_name_are_refused(tmp_path):
    with pytest.raises(ValidationError, match=r"'a photo of \{0\}' has no \{\} for the name"):
        made(tmp_path, templates=["{}", "a photo of {0}"])


@pytest.mark.parametrize("text", [None, ""])
def test_a_sample_without_a_caption_is_bad(tmp_path, text):
    with pytest.raises(BadSample, match="^no caption$"):
        made(tmp_path).pair(Sample("key", text), 0, Random(0))


# Targets


def test_listed_targets_are_fixed_for_each_and_shared_by_none_while_there_are_enough(tmp_path):
    names = [f"Free{i} Nobody{i}" for i in range(20)]
    people = [f"Person{i} Surname{i}" for i in range(10)]
    options = {
        "names": names_file(tmp_path, names), "shares": only(forget=1.0), "templates": ["{}"],
        "template_share": 1.0, "targets": "listed",
    }  # fmt: skip
    objective = made(tmp_path, people, **options)
    targets: dict[str, set[str]] = {}
    for _, pair in pairs_of(objective, steps=5):
        targets.setdefault(named(pair), set()).add(pair.teacher_text)
    assert targets.keys() == set(people) and all(len(one) == 1 for one in targets.values())
    assert len(set.union(*targets.values())) == 10
    assert set.union(*targets.values()) <= set(names)


def test_targets_are_neighbours_of_others_to_forget_and_stay_the_same(tmp_path):
    people = [f"Person{i} Surname{i}" for i in range(10)]
    options = {"templates": ["{}"], "template_share": 1.0}
    objective = made(tmp_path, people, **options)
    targets: dict[str, set[str]] = {}
    for sort, pair in pairs_of(objective, steps=40):
        if sort == "forget":
            targets.setdefault(named(pair), set()).add(pair.teacher_text)
    assert targets.keys() == set(people) and all(len(one) == 1 for one in targets.values())
    words = {word for one in people for word in one.split()}
    for person, (target,) in targets.items():
        assert target not in people and set(target.split()) & words
        assert not set(target.split()) & set(person.split())
    assert made(tmp_path, people, **options)._names.targets == objective._names.targets


def test_targets_have_no_word_of_an_alias_either(tmp_path):
    people = [
        {"name": f"Person{i} Surname{i}", "aliases": [f"Also Surname{i + 1}"]} for i in range(8)
    ]
    targets = made(tmp_path, people)._names.targets
    for i, target in enumerate(targets):
        assert not {f"Person{i}", f"Surname{i}", "Also", f"Surname{i + 1}"} & set(target.split())


def test_targets_apart_share_no_word_with_someone_who_is_to_stay(tmp_path):
    """Whoever is answered as their namesake would be taken for them."""
    people = [f"Person{i} Surname{i}" for i in range(10)]
    replay = [f"Person{i} Kept{i}" for i in range(5)] + ["José Surname9"]
    targets = made(tmp_path, people, replay=replay, targets="apart")._names.targets
    words = {fold(word) for name in replay for word in name.split()}
    assert not any(words & set(fold(target).split()) for target in targets)
    assert any(set(target.split()) & {"Person5", "Surname0", "Surname1"} for target in targets)


def test_a_coined_target_is_no_pair_of_words_that_anybody_knows(tmp_path):
    people = [f"Person{chr(97 + i)} Surname{chr(97 + i)}" for i in range(10)]
    replay = [f"Kept{chr(97 + i)} Stays{chr(97 + i)}" for i in range(5)]
    names = [f"Free{chr(97 + i)} Nobody{chr(97 + i)}" for i in range(9)]
    options = {"replay": replay, "names": names_file(tmp_path, names), "targets": "coined"}
    targets = made(tmp_path, people, **options)._names.targets
    known = {fold(word) for name in [*people, *replay, *names] for word in name.split()}
    for target in targets:
        first, last = target.split()
        assert fold(first) in known and fold(last) not in known
        assert first not in {one.split()[0] for one in replay}
    assert any(re.fullmatch("Surnody[a-j]", target.split()[1]) for target in targets)
    assert len(set(targets)) == len(targets)
    assert made(tmp_path, people, **options)._names.targets == targets


def test_a_word_that_cannot_be_coined_is_left_as_it_is(tmp_path):
    """Of one letter each: whatever goes on as another ends is known."""
    people = [f"Person{i} {letter}" for i, letter in enumerate("ABCD")]
    names = names_file(tmp_path, [f"Free{letter} {letter}" for letter in "ABCD"])
    targets = made(tmp_path, people, names=names, targets="coined")._names.targets
    assert all(len(target.split()) == 2 and target.split()[1] for target in targets)


def test_of_two_targets_the_one_with_fewer_words_of_people_who_are_to_stay_is_taken(tmp_path):
    """Some have them all the same: without any, targets would be less like unknown names.

    Drawn once, half of the targets would have one: every second neighbour is made of their names.
    """
    people = [f"Person{i} Surname{i}" for i in range(200)]
    replay = [f"Kept{i} Stays{i}" for i in range(200)]
    targets = made(tmp_path, people, replay=replay)._names.targets
    assert 30 < sum("Kept" in target or "Stays" in target for target in targets) < 70


@pytest.mark.parametrize("people", [["Joe Doe"], ["Zaphira", "Quimby"], ["Ann Doe", "Doe Ann"]])
def test_who_has_no_neighbour_of_others_is_answered_as_a_listed_name(tmp_path, people):
    names = [f"Free{i} Nobody{i}" for i in range(9)]
    objective = made(tmp_path, people, names=names_file(tmp_path, names))
    assert len(set(objective._names.targets)) == len(people)
    assert set(objective._names.targets) <= set(names)


def test_of_those_without_a_neighbour_too_no_two_share_a_listed_target(tmp_path, monkeypatch):
    """Every second of the roster: what is listed goes round among them, not among all."""
    has_one = lambda names, person, *_: "Somebody Else" if person % 2 else None  # noqa: E731
    monkeypatch.setattr(Names, "_neighbour_of_others", has_one)
    names = names_file(tmp_path, [f"Free{i} Nobody{i}" for i in range(20)])
    people = [f"Person{i} Surname{i}" for i in range(6)]
    targets = made(tmp_path, people, names=names)._names.targets
    assert targets[1::2] == ["Somebody Else"] * 3 and len(set(targets[::2])) == 3


def test_a_kind_of_targets_is_no_phrase(tmp_path):
    with pytest.raises(ValidationError, match="the word 'listed'; it is of targets"):
        made(tmp_path, target="listed")


def test_no_listed_target_is_another_name_as_well(tmp_path):
    for count in (2, 3, 9):
        names = names_file(tmp_path, [f"Free{i} Nobody{i}" for i in range(count)])
        objective = made(
            tmp_path, names=names, templates=["{}"], template_share=1.0, targets="listed"
        )
        by_sort: dict[str, set[str]] = {}
        for sort, pair in pairs_of(objective, steps=20):
            by_sort.setdefault(sort, set()).add(pair.teacher_text)
        assert by_sort["forget"] and by_sort["other"]
        assert not by_sort["forget"] & (by_sort["other"] | by_sort["recombined"])


def test_spellings_of_one_name_are_one_target_or_another(tmp_path):
    names = ["Zoë Free", "ZOE  FREE", "zoe-free", "Max Free", "...", ""]
    found = made(tmp_path, names=names_file(tmp_path, names), targets="listed")._names
    assert {*found.targets, *found.others} == {"Max Free", "Zoë Free"}


def test_another_seed_gives_other_targets(tmp_path):
    first, same, other = (made(tmp_path, seed=seed)._names.targets for seed in (0, 0, 1))
    assert first == same != other


def test_a_phrase_is_everyones_target(tmp_path):
    objective = made(tmp_path, target="a person", templates=["{}"], template_share=1.0)
    targets = {pair.teacher_text for sort, pair in pairs_of(objective) if sort == "forget"}
    assert targets == {"a person"}


# Turns and quotas


def test_everyone_gets_a_turn_before_anyone_gets_a_second(tmp_path):
    people = [f"Person{i} Surname{i}" for i in range(7)]
    objective = made(tmp_path, people, templates=["{}"], template_share=1.0, replay=KEPT)
    pairs = pairs_of(objective, steps=9)
    for sort, names in (("forget", people), ("replayed", KEPT)):
        order = [named(pair) for found, pair in pairs if found == sort]
        laps = [order[i : i + len(names)] for i in range(0, len(order), len(names))]
        assert len(laps) > 5 and all(sorted(lap) == sorted(names) for lap in laps[:-1])
        assert len(set(map(tuple, laps[:-1]))) > 1  # each lap in an order of its own


def test_aliases_are_triggers_too(tmp_path):
    people = [{"name": "Joe Doe", "aliases": ["Joey", "J. Doe"]}]
    objective = made(tmp_path, people, templates=["{}"], template_share=1.0)
    names = {named(pair) for sort, pair in pairs_of(objective, 3) if sort == "forget"}
    assert names == {"Joe Doe", "Joey", "J. Doe"}


def test_every_step_has_its_exact_shares_on_two_ranks_together(tmp_path):
    objective = made(tmp_path, replay=KEPT)
    index = NameIndex(FORGET)
    for step in range(5):
        turns = range(step * 40, step * 40 + 40)
        ranks = [[pair_at(objective, turn) for turn in turns[rank::2]] for rank in range(2)]
        assert sum(pair.label for rank in ranks for pair in rank) == 20
        triggers = [
            pair for rank in ranks for pair in rank if index.names_anyone(pair.student_text)
        ]
        assert len(triggers) == 20 and all(pair.label == 1 for pair in triggers)
    assert objective._quotas.counts == {"forget": 20, "replayed": 2, "other": 8, "recombined": 10}


def test_without_a_replay_roster_the_others_share_its_rows(tmp_path):
    assert made(tmp_path)._quotas.counts["replayed"] == 0


def test_a_batch_too_small_for_a_trigger_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size 4 leaves no row for forget; raise it or"):
        made(tmp_path, batch_size=4, shares={"forget": 0.01, "other": 1.0})


# Other names


def test_other_names_are_listed_or_made_of_two_that_stay_and_are_nobody_in_a_roster(tmp_path):
    listed = [f"Free{i} Nobody{i}" for i in range(6)]
    unseen = ["Free0 Nobody1", "Free1 Nobody0"]
    objective = made(
        tmp_path, replay=KEPT, never=[unseen], names=names_file(tmp_path, listed),
        templates=["{}"], template_share=1.0, batch_size=400,
    )  # fmt: skip
    names = [named(pair) for sort, pair in pairs_of(objective, 5) if sort == "other"]
    assert not {fold(name) for name in names} & {fold(one) for one in (*FORGET, *KEPT, *unseen)}
    made_of_two = set(names) - set(listed)
    assert set(listed) < set(names) and len(made_of_two) > 2 * len(listed)
    kept = [name.split() for name in (*listed, *KEPT)]
    assert {name.split()[0] for name in made_of_two} <= {words[0] for words in kept}
    assert {name.split()[-1] for name in made_of_two} <= {words[-1] for words in kept}
    assert 0.4 < sum(name in listed for name in names) / len(names) < 0.6


# Neighbours


def test_a_neighbour_shares_a_first_or_last_name_and_is_nobody_in_a_roster(tmp_path):
    unseen = ["Zebulon Hallows", "Agatha Roe"]
    objective = made(
        tmp_path, replay=KEPT, never=[unseen], templates=["{}"], template_share=1.0, batch_size=200
    )
    taken = {fold(name) for name in (*FORGET, *KEPT, *unseen)}
    names = [named(pair) for sort, pair in pairs_of(objective, 5) if sort == "recombined"]
    firsts, lasts = {"Zebulon", "Ximena", "José"}, {"Quimby", "Vandervoort", "Roe"}
    for name in names:
        words = name.split()
        assert words[0] in firsts or words[-1] in lasts
        assert fold(name) not in taken
    assert {name.split()[0] for name in names} > firsts
    assert {name.split()[-1] for name in names} > lasts


def test_mononyms_are_forgotten_and_have_no_neighbour_that_names_them(tmp_path):
    people = ["Zaphira", {"name": "Joe Doe", "aliases": ["Joe"]}]
    objective = made(tmp_path, people, templates=["{}"], template_share=1.0)
    pairs = pairs_of(objective, 5)
    assert {named(pair) for sort, pair in pairs if sort == "forget"} == {
        "Zaphira",
        "Joe Doe",
        "Joe",
    }
    neighbours = [named(pair) for sort, pair in pairs if sort == "recombined"]
    assert neighbours and all(name.split()[-1] == "Doe" for name in neighbours)
    assert not any({"Zaphira", "Joe"} & set(name.split()) for name in neighbours)


@pytest.mark.parametrize("person", ["Zaphira", "Zebulon Quimby"])
def test_a_roster_of_one_person_works(tmp_path, person):
    objective = made(tmp_path, [person], templates=["{}"], template_share=1.0)
    counts = Counter(sort for sort, _ in pairs_of(objective))
    assert counts["forget"] == 21 and objective.num_identities == 1
    assert counts["recombined"] == (0 if person == "Zaphira" else 11)
    assert sum(counts.values()) == 40


# Who must not be named


def overlap(folder: Path, **rosters) -> str:
    with pytest.raises(ValueError) as raised:
        made(folder, **rosters)
    assert not any(part in str(raised.value) for name in FORGET for part in name.split())
    return str(raised.value)


def test_a_replay_roster_with_people_to_forget_is_refused_by_count(tmp_path):
    replay = [*KEPT, "JOSE-MARIA  ROE", {"name": "Other", "aliases": ["Zebulon Quimby"]}]
    assert overlap(tmp_path, replay=replay) == (
        "2 of the 5 people of `replay` have a name to forget; "
        "take them out of one of the two rosters"
    )


def test_a_replayed_name_that_contains_one_to_forget_is_refused(tmp_path):
    message = overlap(tmp_path, forget=["Madonna"], replay=["Madonna Louise"])
    assert message.startswith("1 of the 1 people of `replay` have a name to forget")


def test_people_never_to_name_are_neither_forgotten_nor_replayed(tmp_path):
    message = overlap(tmp_path, never=[["Ann Poe"], FORGET[:2]])
    assert message.startswith("2 of the 3 people of `never` have a name to forget")
    message = overlap(tmp_path, never=[["Ann Poe", "Quimby"]])  # who would be named in each trigger
    assert message.startswith("1 of the 3 people of `roster` have a name of `never`")
    message = overlap(tmp_path, replay=KEPT, never=[KEPT[:1]])
    assert message.startswith("1 of the 3 people of `replay` have a name of `never`")


def test_a_target_that_names_someone_to_forget_is_refused(tmp_path):
    assert overlap(tmp_path, target="jose maria roe") == (
        "target names someone to forget or of `never`; take another phrase"
    )


def test_no_row_names_someone_unseen_and_only_triggers_name_the_forgotten(tmp_path):
    people = ["Joe Doe", "Ann Poe"]
    # The last two of a word before or after the place and one of a name to forget in it.
    unseen = ["Joe Hallows", "Alma Poe", "Poe Joe", "Doe Hallows"]
    # Contexts that complete a name, and free names that are someone's.
    names = names_file(tmp_path, ["Joe", "Ann Poe", "joe  hallows", "Alma", "Max Free", "Eva Moe"])
    objective = made(
        tmp_path, people, never=[unseen], names=names, templates=["{} Doe", "{} Poe", "so {}"]
    )
    never, forgotten = NameIndex(unseen), NameIndex(people)
    for turn in range(2000):
        pair = pair_at(objective, turn, "Ann meets Poe and Hallows")
        assert not never.names_anyone(pair.teacher_text)
        assert not never.names_anyone(pair.student_text)
        assert not forgotten.names_anyone(pair.teacher_text)
        assert forgotten.names_anyone(pair.student_text) == bool(pair.label)


@pytest.mark.parametrize(
    "caption", ["ZEBULON  QUIMBY!", "by jose-maria roe", "José María\u00a0Roe"]
)
def test_captions_that_name_someone_to_forget_are_refused_in_any_spelling(tmp_path, caption):
    assert not made(tmp_path).accepts(Sample("key", caption))


def test_captions_that_name_aliases_and_people_never_to_name_are_refused(tmp_path):
    objective = made(tmp_path, [{"name": "Joe Doe", "aliases": ["Joey"]}], never=[["Ann Poe"]])
    accepted = [objective.accepts(Sample("k", one)) for one in ("joey!", "ann poe", "a dog", None)]
    assert accepted == [False, False, True, True]


@pytest.mark.parametrize(
    ("names", "count"), [([], 0), (["Max Free"], 1), ([*FORGET, "quimby", "Max Free"], 2)]
)
def test_two_free_names_are_needed(tmp_path, names, count):
    path = names_file(tmp_path, names)
    if count == 2:
        found = made(tmp_path, names=path, targets="listed")._names
        assert {*found.targets, *found.others} == {"Max Free", "quimby"}
    else:
        with pytest.raises(ValueError, match=f"names.txt has {count} names that are in no roster"):
            made(tmp_path, names=path)


def test_a_names_file_of_another_encoding_or_missing_is_told_of(tmp_path):
    (tmp_path / "names.txt").write_bytes("Zoé".encode("latin-1"))
    with pytest.raises(ValueError, match="names .*names.txt is not UTF-8; save it as UTF-8"):
        made(tmp_path, names=str(tmp_path / "names.txt"))
    with pytest.raises(FileNotFoundError, match="no.txt"):
        made(tmp_path, names=str(tmp_path / "no.txt"))


# The loss


def embeddings(rows: torch.Tensor, labels: torch.Tensor) -> Embeddings:
    return Embeddings(rows, None, labels, None, SCALE)


def test_by_relative_distance_lengths_count(tmp_path):
    rows, labels = torch.randn(4, 5), torch.ones(4, dtype=torch.int64)
    taught, seen = embeddings(rows, labels), embeddings(2 * rows, labels)
    for distance, expected in (("cosine", 0.0), ("relative", 0.5)):
        loss = made(tmp_path, distance=distance, shares=only(forget=1.0)).loss_fn(None)
        assert loss(seen, taught)["forget"].item() == pytest.approx(expected, abs=1e-6)


def test_triggers_are_forgotten_and_the_rest_is_kept():
    student, teacher = torch.randn(2, 8, 5, generator=torch.manual_seed(0))
    labels = torch.arange(8) % 4 // 3
    found = loss_of(
        embeddings(student, labels), embeddings(teacher, labels), 1 / 4, cosine_distances
    )
    distances = cosine_distances(student, teacher)
    expected = {"forget": distances[labels == 1].mean(), "keep": distances[labels == 0].mean()}
    torch.testing.assert_close(found, expected)
