from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plugins.identity_inference import EncoderSwap, IdentityInference, nearest
from plugins.identity_inference.attack import TEMPLATES, picture_accuracy, prompts_won
from plugins.identity_inference.nearest import ABSENT, nearest_names
from plugins.identity_inference.people import draw_candidates
from trainer import Estimate, Pictures, Rows, read_roster

PROMPTS = ["{0}", "a photo of {0}", "{0} at a gala", "actor {0}"]
NUM_PICTURES = 4
GROUPS = {"unknown": 2, "forget": 3, "unseen": 4}  # people of each
SIGNS = np.array(list(product((-1, 1), repeat=4)))  # all of length 2: unit length is exact


# --- the published protocol, told slowly ---------------------------------------------------------


def literal_prediction(picture, names) -> int:
    """The first of the names with the highest cosine, in exact arithmetic on integers."""
    best, best_cosine = None, None
    for index, name in enumerate(names):
        dot = sum(int(a) * int(b) for a, b in zip(picture, name, strict=True))
        # Sign and square keep the order of dot / |name|, and stay rational.
        cosine = Fraction(dot * abs(dot), sum(int(b) ** 2 for b in name))
        if best is None or cosine > best_cosine:
            best, best_cosine = index, cosine
    return best


def literal_prompts_won(pictures, names_by_prompt, truth) -> int:
    """How many prompts name the person: by a plurality of pictures, a tie for first being wrong."""
    won = 0
    for names in names_by_prompt:
        votes = Counter()
        for picture in pictures:
            votes[literal_prediction(picture, names)] += 1
        ranking = votes.most_common()
        tied = len(ranking) > 1 and ranking[0][1] == ranking[1][1]
        if ranking[0][0] == truth and not tied:
            won += 1
    return won


# --- a world on disk and a model that is a table -------------------------------------------------


class Table:
    """An `Encoder` whose embeddings were written down."""

    def __init__(self, texts: dict[str, np.ndarray], pictures: dict[bytes, np.ndarray]):
        self.texts, self.pictures = texts, pictures

    def encode_text(self, texts):
        return torch.tensor(np.array([self.texts[text] for text in texts]), dtype=torch.float32)

    def encode_image(self, pictures):
        nothing = np.full_like(next(iter(self.texts.values())), np.nan, dtype=float)
        rows = [self.pictures.get(pictures[i], nothing) for i in range(len(pictures))]
        return torch.tensor(np.array(rows), dtype=torch.float32)


def name_of(group: str, i: int) -> str:
    return f"{group.title()} Person{'abcdefgh'[i]}"


def write_roster(folder, group: str, num_pictures: list[int]):
    path = folder / f"{group}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "aliases", "faces"])
        for i, count in enumerate(num_pictures):
            faces = folder / group / str(i)
            faces.mkdir(parents=True)
            for j in range(count):
                (faces / f"{j:02}.jpg").write_bytes(f"{group}/{i}/{j}".encode())
            rows.writerow([name_of(group, i), "", faces if count else ""])
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Options of an attack on `GROUPS`: 9 people and 3 distractors."""
    folder = tmp_path_factory.mktemp("world")
    rosters = {
        group: write_roster(folder, group, [NUM_PICTURES] * count)
        for group, count in GROUPS.items()
    }
    others = folder / "others.txt"
    others.write_text("".join(f"Other Name{letter}\n" for letter in "abcdefgh"))
    return {
        "groups": rosters,
        "distractors": str(others),
        "candidates": 12,
        "pictures": NUM_PICTURES,
        "templates": PROMPTS,
    }


def attack_on(options: dict, seed: int = 0, **changes) -> IdentityInference:
    return IdentityInference(IdentityInference.Options(**{**options, **changes}), seed)


def all_names(world) -> list[str]:
    people = [name_of(group, i) for group, count in GROUPS.items() for i in range(count)]
    return people + Path(world["distractors"]).read_text().splitlines()


def random_model(world, rng) -> Table:
    """A model that knows some people under some prompts, with ties among names and among votes."""
    texts = {
        prompt.replace("{0}", name): SIGNS[rng.integers(16)] * 2 ** rng.integers(3)
        for prompt in PROMPTS
        for name in all_names(world)
    }
    pictures = {
        f"{group}/{i}/{j}".encode(): rng.integers(-1, 2, 4) + texts[name_of(group, i)]
        for group, count in GROUPS.items()
        for i in range(count)
        for j in range(NUM_PICTURES)
    }
    return Table(texts, pictures)


def knowing_model(world, known: dict[str, list[str]]) -> Table:
    """A model in which a person's name finds their pictures under the prompts listed for them.

    All other names point away from every picture: each prompt must be listed for somebody, or
    they would tie.
    """
    people = [name_of(group, i) for group, count in GROUPS.items() for i in range(count)]
    axes = dict(zip(people, np.eye(len(people)), strict=True))
    away = -np.ones(len(people))
    texts = {prompt.replace("{0}", name): away for prompt in PROMPTS for name in all_names(world)}
    for name, prompts in known.items():
        for prompt in prompts:
            texts[prompt.replace("{0}", name)] = axes[name]
    pictures = {
        f"{group}/{i}/{j}".encode(): axes[name_of(group, i)]
        for group, count in GROUPS.items()
        for i in range(count)
        for j in range(NUM_PICTURES)
    }
    return Table(texts, pictures)


# --- the rule ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    num_prompts=st.integers(1, 4),
    num_people=st.integers(1, 4),
    num_pictures=st.integers(1, 6),
    num_others=st.integers(0, 3),
    num_known=st.integers(0, 4),
    block=st.integers(1, 30),
    coarse_first=st.booleans(),
    draw=st.integers(0, 2**32),
)
def test_known_people_are_the_same_as_in_a_literal_reading_of_the_protocol(
    num_prompts, num_people, num_pictures, num_others, num_known, block, coarse_first, draw
):
    rng = np.random.default_rng(draw)
    num_names = num_people + num_others
    lengths = 2 ** rng.integers(3, size=(num_prompts, num_names, 1))
    names = SIGNS[rng.integers(16, size=(num_prompts, num_names))] * lengths
    images = rng.integers(-2, 3, (num_people, num_pictures, 4))
    absent = rng.random((num_people, num_pictures)) < 0.2
    absent[:, 0] = False

    rows = torch.tensor(images, dtype=torch.float32).flatten(0, 1)
    units = F.normalize(torch.tensor(names, dtype=torch.float32), dim=-1)
    num_known = min(num_known, num_people)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "multiplies_in_bfloat16", lambda device: coarse_first)
        named = torch.stack([nearest_names(rows, unit, num_known, block) for unit in units])
    named = named.view(num_prompts, num_people, num_pictures, 2)
    named[:, torch.tensor(absent)] = ABSENT

    expected = [
        literal_prompts_won(images[i][~absent[i]], names, truth=i) for i in range(num_people)
    ]
    truth = torch.arange(num_people)
    assert prompts_won(named[..., 0], truth).tolist() == expected
    expected = [
        literal_prompts_won(images[i][~absent[i]], names[:, :num_known], truth=i)
        for i in range(num_known)
    ]
    assert prompts_won(named[:, :num_known, :, 1], truth[:num_known]).tolist() == expected


def test_a_tie_for_first_place_counts_as_wrong():
    truth = torch.tensor([7])
    for pictures, won in [
        ([7, 7, 3], 1),
        ([7, 3], 0),
        ([7, 7, 3, 3], 0),
        ([7, 7, 3, 4], 1),  # fewer than half of the pictures are a plurality too
        ([7, 7, 3, 3, 3], 0),
        ([7, ABSENT, ABSENT], 1),  # an absent picture votes for nobody
        ([3, 3, 3], 0),
    ]:
        assert prompts_won(torch.tensor([[pictures]]), truth).item() == won, pictures


@pytest.fixture(params=[False, True], ids=["exactly", "coarsely first"])
def coarse_first(request, monkeypatch) -> bool:
    monkeypatch.setattr(nearest, "multiplies_in_bfloat16", lambda device: request.param)
    return request.param


def test_the_block_does_not_change_whom_a_picture_names(coarse_first):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(100, 16, generator=generator)
    names = F.normalize(torch.randn(40, 16, generator=generator), dim=-1)
    whole = nearest_names(images, names, num_known=30, block=100)
    assert whole[:, 0].equal((images @ names.mT).argmax(-1).int())
    assert whole[:, 1].equal((images @ names[:30].mT).argmax(-1).int())
    for block in (1, 7, 99, 1000):
        assert nearest_names(images, names, 30, block).equal(whole)


def test_of_names_that_are_equal_the_first_is_named_be_it_known_or_not(coarse_first):
    names = F.normalize(torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 1], [1, 0]]), dim=-1)
    for num_known, among_known in [(0, ABSENT), (1, 0), (2, 1), (3, 1), (5, 1)]:
        assert nearest_names(torch.tensor([[2.0, 0]]), names, num_known).tolist() == [
            [1, among_known]
        ]


def test_names_closer_than_bfloat16_can_tell_are_told_apart(coarse_first):
    """Each picture has twenty names nearly as near as its own, and others that are far."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 64, generator=generator, dtype=torch.float64)
    noise = 1e-2 * torch.randn(50, 20, 64, generator=generator, dtype=torch.float64)
    names = F.normalize(F.normalize(images, dim=-1)[:, None] + noise, dim=-1).flatten(0, 1)
    images *= torch.logspace(-3, 3, 50, dtype=torch.float64)[:, None]  # of any length
    names = names[torch.randperm(1000, generator=generator)].float()
    images = images.float()
    cosines = images.double() @ names.double().mT
    expected = torch.stack([cosines.argmax(-1), cosines[:, :600].argmax(-1)], dim=1)
    assert nearest_names(images, names, num_known=600).equal(expected.int())
    rounded = images.bfloat16() @ names.bfloat16().mT
    assert (rounded.argmax(-1) != expected[:, 0]).float().mean() > 0.5


def test_pictures_that_are_not_finite_or_nearly_so_change_nothing_for_others(coarse_first):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 16, generator=generator)
    names = F.normalize(torch.randn(500, 16, generator=generator), dim=-1)
    expected = nearest_names(images, names, 300)
    assert nearest_names(images * 5e37, names, 300).equal(expected)
    images[2] = torch.nan
    others = [0, 1, 3, 4, 5]
    assert nearest_names(images, names, 300)[others].equal(expected[others])


def test_where_few_names_can_be_ruled_out_all_are_compared():
    """A model that answers all names alike would else fill the memory with pairs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 16, generator=generator)
    names = F.normalize(torch.randn(1, 16, generator=generator), dim=-1).repeat(500, 1)
    compared = []
    nearest.by_ruling_out(names, 300, otherwise=compared.append)(images)
    assert compared == [images]


def test_picture_accuracy_is_of_the_pictures_that_are_there():
    predicted = torch.tensor([[[0, 0, ABSENT], [1, 0, 2]], [[0, 1, ABSENT], [1, 1, 1]]])
    assert picture_accuracy(predicted, torch.arange(2)) == pytest.approx(7 / 10)


@pytest.mark.parametrize("name", ["forget/vip", "held_out", "people", "accuracy", ""])
def test_a_group_is_called_as_no_measure_is(world, name):
    groups = {name: world["groups"]["forget"]}
    with pytest.raises(ValidationError, match="must be of letters, digits, _ and -, and none of"):
        IdentityInference.Options(groups=groups, distractors=world["distractors"])


@pytest.mark.parametrize(("attacked", "count"), [(3, 1000), (500, 1000), (501, 1002)])
def test_people_are_half_of_the_candidates_at_most(tmp_path, attacked, count):
    roster, names = tmp_path / "people.csv", tmp_path / "names.txt"
    roster.write_text("name\n" + "\n".join(f"Person {i}" for i in range(attacked)))
    names.write_text("\n".join(f"Nobody {i}" for i in range(1000)))
    people = read_roster(str(roster))
    candidates = draw_candidates(people, str(names), None, seed=0)
    assert len(set(candidates)) == count
    assert candidates[:attacked] == [person.name for person in people]


# --- the whole attack ----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.integers(0, 2**32))
def test_a_whole_run_gives_what_the_literal_protocol_gives(world, draw):
    attack = attack_on(world)
    candidates = draw_candidates(
        [
            person
            for group in ("forget", "unseen", "unknown")
            for person in read_roster(world["groups"][group])
        ],
        world["distractors"],
        world["candidates"],
        seed=0,
    )
    known_names = [name for name in candidates if name.startswith(("Forget", "Unseen"))]
    model = random_model(world, np.random.default_rng(draw))
    measures = dict(attack.run(model, model))
    people = {row["identity"]: row for row in measures["people"]}
    judged = []
    for group, count in GROUPS.items():
        won, right, right_closed = [], 0, 0
        for person in read_roster(world["groups"][group]):
            i = len(won)
            pictures = [model.pictures[f"{group}/{i}/{j}".encode()] for j in range(4)]
            table = [[model.texts[t.replace("{0}", n)] for n in candidates] for t in PROMPTS]
            won.append(literal_prompts_won(pictures, table, candidates.index(person.name)))
            assert people[person.pseudonym]["prompts_won"] == won[-1]
            for names, picture in product(table, pictures):
                right += candidates[literal_prediction(picture, names)] == person.name
                closed = literal_prediction(picture, names[: len(known_names)])
                right_closed += known_names[closed] == person.name
        cases = count * len(PROMPTS) * NUM_PICTURES
        event(f"{group}: {sum(won)} prompts won")
        assert measures[f"{group}/tpr"] == np.mean([w >= 1 for w in won])
        assert measures[f"{group}/tpr_3"] == np.mean([w >= 3 for w in won])
        assert measures[f"{group}/prompts_won"] == [won.count(n) for n in range(5)]
        assert measures[f"{group}/picture_accuracy"] == right / cases
        if group != "unknown":
            assert measures[f"{group}/closed_set"] == right_closed / cases
        judged += [(w >= 1) == (group != "unknown") for w in won]
    assert measures["accuracy"] == np.mean(judged)


def test_the_random_models_know_some_and_not_others(world):
    """Or the comparison above would show nothing."""
    tprs = []
    for draw in range(30):
        model = random_model(world, np.random.default_rng(draw))
        tprs.append(dict(attack_on(world).run(model, model))["unseen/tpr"])
    assert len(set(tprs)) >= 3 and 0.2 < np.mean(tprs) < 0.9


def test_each_group_gets_its_own_measures(world):
    known = {
        name_of("forget", 0): PROMPTS[:1],
        name_of("unseen", 0): PROMPTS,
        name_of("unseen", 1): PROMPTS[:3],
        name_of("unseen", 2): PROMPTS[2:],
    }
    model = knowing_model(world, known)
    attack = attack_on(world, held_out=PROMPTS[:1])
    measures = dict(attack.run(model, model))
    assert measures["forget/tpr"] == pytest.approx(1 / 3)
    assert measures["forget/tpr_3"] == 0
    assert measures["forget/prompts_won"] == [2, 1, 0, 0, 0]
    assert measures["forget/picture_accuracy"] == pytest.approx(1 / 12)
    assert measures["forget/held_out/tpr"] == pytest.approx(1 / 3)
    assert measures["forget/held_out/prompts_won"] == [2, 1]
    for measure in ("picture_accuracy", "closed_set"):
        assert measures[f"forget/held_out/{measure}"] == pytest.approx(1 / 3)
    assert measures["unseen/tpr"] == 3 / 4
    assert measures["unseen/tpr_3"] == 2 / 4
    assert measures["unseen/prompts_won"] == [1, 0, 1, 1, 1]
    assert measures["unseen/held_out/tpr"] == measures["unseen/held_out/tpr_1"] == 2 / 4
    assert measures["unknown/tpr"] == 0
    assert measures["accuracy"] == (1 + 3 + 2) / (3 + 4 + 2)
    assert measures["unknown/people"] == 2 and measures["unseen/people"] == 4
    assert "unknown/closed_set" not in measures  # their names are not among the closed set


def test_eleven_of_the_twenty_one_prompts_are_asked_for_by_default(world):
    options = {key: value for key, value in world.items() if key != "templates"}
    attack = attack_on(options)
    assert attack.options.templates == TEMPLATES and len(set(TEMPLATES)) == 21
    texts = {t.replace("{0}", n): SIGNS[0] for t in TEMPLATES for n in all_names(world)}
    model = Table(texts, random_model(world, np.random.default_rng(0)).pictures)
    measures = dict(attack.run(model, model))
    assert {f"{group}/tpr_11" for group in GROUPS} <= measures.keys()
    assert len(measures["forget/prompts_won"]) == 22


def test_people_with_too_few_pictures_are_dropped_and_counted(world, tmp_path):
    roster = write_roster(tmp_path, "forget", [4, 3, 5, 0])
    attack = attack_on(world, groups={"forget": roster}, candidates=8)
    pictures = {f"forget/{i}/{j}".encode(): SIGNS[i] for i in range(4) for j in range(5)}
    texts = {
        prompt.replace("{0}", name): -np.ones(4)
        for prompt in PROMPTS
        for name in [*all_names(world), name_of("forget", 3)]
    }
    for i in range(4):
        texts |= {prompt.replace("{0}", name_of("forget", i)): SIGNS[i] for prompt in PROMPTS}
    measures = dict(attack.run(Table(texts, pictures), Table(texts, pictures)))
    assert measures["forget/people"] == 2 and measures["forget/dropped"] == 2


def test_undecodable_pictures_are_absent_and_too_many_of_them_drop_the_person(world):
    model = random_model(world, np.random.default_rng(0))
    for lost in ("forget/0/0", "forget/0/3", "forget/1/0", "forget/1/1", "forget/1/2"):
        del model.pictures[lost.encode()]
    measures = dict(attack_on(world).run(model, model))
    assert measures["forget/people"] == 2 and measures["forget/dropped"] == 1
    assert measures["unseen/people"] == 4 and measures["unseen/dropped"] == 0


def test_an_undecodable_picture_votes_for_nobody(world):
    known = {name_of("unseen", i): PROMPTS for i in range(4)}
    model = knowing_model(world, known)
    for group, i, j in product(("forget", "unseen"), range(1, 3), range(2)):
        del model.pictures[f"{group}/{i}/{j}".encode()]
    measures = dict(attack_on(world).run(model, model))
    assert measures["unseen/people"] == 4
    assert measures["unseen/prompts_won"] == [0, 0, 0, 0, 4]
    assert measures["unseen/picture_accuracy"] == measures["unseen/closed_set"] == 1


def test_pictures_are_read_when_asked_for(world, monkeypatch):
    read, own = [], Pictures.read

    def noting(pictures, person, picture):
        read.append(own(pictures, person, picture))
        return read[-1]

    monkeypatch.setattr(Pictures, "read", noting)
    attack = attack_on(world)
    asked = []

    class Half(Table):
        def encode_image(self, pictures):
            assert read == []
            asked.extend(pictures[i] for i in range(0, len(pictures), 2))
            assert read == asked
            return super().encode_image(pictures)

    model = random_model(world, np.random.default_rng(0))
    dict(attack.run(Half(model.texts, model.pictures), model))
    assert len(asked) == 9 * NUM_PICTURES // 2 and asked[0] == b"forget/0/0"


def test_distractors_are_drawn_by_seed(world):
    people = read_roster(world["groups"]["forget"])
    first = draw_candidates(people, world["distractors"], 8, seed=1)
    assert first == draw_candidates(people, world["distractors"], 8, seed=1)
    assert len({tuple(draw_candidates(people, world["distractors"], 8, s)) for s in range(9)}) > 1
    assert first[:3] == [person.name for person in people] and len(set(first)) == 8


def test_a_name_that_an_attacked_person_bears_is_no_distractor(world, tmp_path):
    others = tmp_path / "others.txt"
    true_name, alias = name_of("forget", 0).upper(), "Nick Name"
    others.write_text(f"{true_name}\n\nnick name\nOne Other\none  other\nTwo Other\n")
    people = read_roster(world["groups"]["forget"])
    people[1] = replace(people[1], aliases=(alias,))
    candidates = draw_candidates(people, str(others), 5, seed=0)
    assert sorted(name.split()[0].lower() for name in candidates[3:]) == ["one", "two"]
    with pytest.raises(ValueError, match="has 2 names that no attacked person bears; 3 are needed"):
        draw_candidates(people, str(others), 6, seed=0)


def test_no_measure_is_named_after_a_person(world):
    model = random_model(world, np.random.default_rng(0))
    for name, value in attack_on(world).run(model, model):
        assert "Person" not in f"{name} {value}"
        assert isinstance(value, (float, list))


def test_rates_have_intervals(world):
    model = random_model(world, np.random.default_rng(0))
    for name, value in attack_on(world, held_out=PROMPTS[:1]).run(model, model):
        plain = name.endswith(("prompts_won", "people", "dropped", "candidates"))
        assert isinstance(value, Estimate) != plain, name
        if not plain:
            assert 0 <= value.low <= value <= value.high <= 1 and value.low < value.high


def test_each_attacked_person_has_a_row_under_a_pseudonym(world):
    known = {name_of("forget", 0): PROMPTS[:1], name_of("unseen", 2): PROMPTS}
    model = knowing_model(world, known)
    del model.pictures[b"unseen/2/0"]
    for j in range(3):
        del model.pictures[f"unknown/0/{j}".encode()]
    rows = dict(attack_on(world).run(model, model))["people"]
    assert isinstance(rows, Rows) and len(rows) == 8  # one of the nine has too few pictures
    whose = {
        person.pseudonym: person.name
        for group in GROUPS
        for person in read_roster(world["groups"][group])
    }
    found = {whose[row["identity"]]: row for row in rows}
    assert found[name_of("unseen", 2)]["prompts_won"] == 4
    assert found[name_of("unseen", 2)]["picture_accuracy"] == 1
    assert found[name_of("forget", 0)]["prompts_won"] == 1
    assert found[name_of("forget", 0)]["picture_accuracy"] == 1 / 4
    assert found[name_of("forget", 1)]["prompts_won"] == 0
    assert {row["group"] for row in rows} == set(GROUPS)
    assert json.loads(json.dumps(rows)) == rows


# --- mistakes ------------------------------------------------------------------------------------


def test_too_few_distractors_are_refused(world):
    with pytest.raises(ValueError, match="has 8 names that no attacked person bears; 91 are need"):
        attack_on(world, candidates=100)


def test_fewer_candidates_than_attacked_people_are_refused(world):
    with pytest.raises(ValueError, match="candidates is 5, but 9 people are attacked"):
        attack_on(world, candidates=5)


def test_a_group_without_enough_pictures_is_refused(world):
    with pytest.raises(ValueError, match="none of the 3 people of .* has 50 pictures") as error:
        attack_on(world, pictures=50, groups={"forget": world["groups"]["forget"]})
    assert "Person" not in str(error.value)


def test_a_group_without_faces_is_refused(world, tmp_path):
    roster = write_roster(tmp_path, "forget", [0, 0])
    with pytest.raises(ValueError, match="none of the 2 people of .* the most are 0"):
        attack_on(world, groups={"forget": roster})


def test_a_person_in_two_groups_is_refused_without_saying_who(world):
    roster = world["groups"]["forget"]
    with pytest.raises(ValueError, match="3 people of group unseen .* in forget") as error:
        attack_on(world, groups={"forget": roster, "unseen": roster})
    assert "Person" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ["a photo"]}, "'a photo' has no {0} for the name"),
        ({"templates": ["{0}", "{0}"]}, "a template is listed twice"),
        ({"held_out": ["{0} in a suit"]}, "held_out: '{0} in a suit' is not one of the templates"),
        ({"groups": {}}, "at least 1 item"),
        ({"pictures": 0}, "greater than 0"),
    ],
)
def test_wrong_options_are_refused(world, change, message):
    with pytest.raises(ValidationError) as error:
        attack_on(world, **change)
    assert message in str(error.value)


def test_a_model_that_diverged_is_not_taken_for_one_that_forgot(world):
    model = random_model(world, np.random.default_rng(0))
    lost = dict.fromkeys(model.texts, np.full(4, np.nan))
    with pytest.raises(FloatingPointError, match="text embeddings are not finite"):
        dict(attack_on(world).run(Table(lost, model.pictures), model))
    with pytest.raises(ValueError, match="group forget: no person has enough pictures"):
        dict(attack_on(world).run(Table(model.texts, {}), model))


@pytest.mark.parametrize("kind", [IdentityInference, EncoderSwap])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_student_that_lost_pictures_which_the_teacher_sees_is_an_error(world, kind, value):
    """Else whose pictures overflow would be dropped as if their files were broken."""
    model = random_model(world, np.random.default_rng(0))
    del model.pictures[b"unseen/1/0"]  # broken, for both
    evaluation = kind(kind.Options(**world), 0)
    dict(evaluation.run(Table(model.texts, model.pictures), model))
    lost = model.pictures | {b"forget/0/0": np.array([value, 1, 1, 1])}
    with pytest.raises(FloatingPointError, match="image embeddings of people are not finite"):
        dict(evaluation.run(Table(model.texts, lost), model))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"avx512_bf16": True, "amx_tile": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_tile": True, "amx_bf16": True}, True),
        ({"avx512_bf16": True, "amx_tile": True}, True),
        ({}, False),
    ],
)
def test_names_are_ruled_out_in_bfloat16_where_cores_multiply_tiles(monkeypatch, told, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert nearest.multiplies_in_bfloat16(torch.device("cpu")) == expected
    assert not nearest.multiplies_in_bfloat16(torch.device("cuda"))
