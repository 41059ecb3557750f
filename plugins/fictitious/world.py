"""What a world of fictitious people is made of: who is in it, and what is in which shard.

    clean/        captioned pictures of things and of people nobody names
    faces/        training pictures: to forget, to keep (replayed), and of strangers
    attack/       pictures never trained on, by group
    rosters/      id, name, faces of each group; attack_*.csv with its attack pictures
    names/        distractors of the attack; other names, free for training
    labels/       zero-shot tasks in clip_benchmark's layout
    clean_test/   captioned pictures that no run is to train on, to find again
    pretrain/     what the tiny CLIP learns the known people from; only when asked for

A person is a function of (role, seed, number), a picture of the person and its own number.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

from PIL import Image

from plugins.fictitious import captions, faces, portraits, scenes
from plugins.fictitious.names import Names, draw_names

SHARD_SIZE = 1000
# What is drawn, in every seed: keeps the streams of random numbers apart.
KNOWN, UNKNOWN, STRANGER, CROWD, SCENE, LABELLED = range(6)
LETTERS = {KNOWN: "p", UNKNOWN: "u", STRANGER: "s"}
TRAINING_PICTURES, STRANGER_PICTURES, ATTACK_PICTURES = 24, 8, 20
ATTACK_FROM = 1_000_000  # numbers of attack pictures start here: never those of training
PRETRAIN_CLEAN_FROM = 10_000_000  # and those of clean samples that only pretraining has
TEST_CLEAN_FROM = 20_000_000  # and of those that no training has

Parts = dict[str, bytes]  # of a sample, by extension


@dataclass(frozen=True)
class World:
    """What is asked for; the world follows from it alone."""

    people: int = 256  # known to the model
    forget: int = 64  # of them
    unknown: int = 192  # never learnt: enough to measure a false positive rate of a few in 100
    strangers: int = 1_024  # what an image tower that forgets learns to tell others apart by
    clean: int = 12_000  # samples
    labelled: int = 1_200  # pictures for each zero-shot task
    tested: int = 4_000  # samples
    seed: int = 0
    pretrain: int = 0  # pictures of each known person
    pretrain_clean: int = 24_000  # samples, where there is pretraining

    def __post_init__(self):
        if not 0 < self.forget <= self.people - 2:
            raise ValueError(
                f"forget={self.forget} of people={self.people}: at least one has to be forgotten "
                "and two kept, one replayed and one unseen"
            )
        if not 0 <= self.pretrain <= ATTACK_FROM:
            raise ValueError(f"pretrain={self.pretrain} must be from 0 to {ATTACK_FROM}")

    def groups(self) -> dict[str, tuple[int, range]]:
        """The role and the numbers of the people in each group."""
        half = self.forget + (self.people - self.forget) // 2
        return {
            "forget": (KNOWN, range(self.forget)),
            "replayed": (KNOWN, range(self.forget, half)),
            "unseen": (KNOWN, range(half, self.people)),
            "unknown": (UNKNOWN, range(self.unknown)),
        }


def names_of(world: World) -> Names:
    known, unknown = (
        [faces.draw_identity(role, world.seed, number).is_woman for number in range(count)]
        for role, count in ((KNOWN, world.people), (UNKNOWN, world.unknown))
    )
    return draw_names(world.seed, known, unknown)


def person_id(role: int, number: int) -> str:
    return f"{LETTERS[role]}{number:05d}"


class Shard(NamedTuple):
    """A tar to be: `draw(world, *arguments)` gives each sample's key and parts."""

    path: str
    draw: Callable[..., Iterator[tuple[str, Parts]]]
    arguments: tuple


def plan(world: World, names: Names) -> Iterator[Shard]:
    """Every shard of the world, the large ones first: no worker is left with one at the end."""
    groups = world.groups()
    for group in ("forget", "replayed"):
        pictures = KNOWN, groups[group][1], "", range(TRAINING_PICTURES)
        yield Shard(f"faces/{group}.tar", portraits_of, pictures)
    for group, (role, numbers) in groups.items():
        pictures = role, numbers, "attack_", range(ATTACK_FROM, ATTACK_FROM + ATTACK_PICTURES)
        yield Shard(f"attack/{group}.tar", portraits_of, pictures)
    pictures = STRANGER, range(world.strangers), "", range(STRANGER_PICTURES)
    yield Shard("faces/strangers.tar", portraits_of, pictures)
    for task in captions.LABEL_TEMPLATES:
        yield Shard(f"labels/{task}/0.tar", labelled, (task,))
    if world.pretrain:
        pictures = world.people * world.pretrain + world.pretrain_clean
        shards = -(-4 * pictures // (3 * SHARD_SIZE))  # a text alone for every three pictures
        for shard in range(shards):
            yield Shard(f"pretrain/{shard:05d}.tar", pretraining, (names, shard, shards))
    for folder, count, first in (
        ("clean", world.clean, 0),
        ("clean_test", world.tested, TEST_CLEAN_FROM),
    ):
        for shard, start in enumerate(range(0, count, SHARD_SIZE)):
            numbers = range(first + start, first + min(count, start + SHARD_SIZE))
            yield Shard(f"{folder}/{shard:05d}.tar", clean_samples, (numbers,))


def clean_samples(world: World, numbers: range) -> Iterator[tuple[str, Parts]]:
    for number in numbers:
        yield f"c{number:07d}", clean_sample(world, number)


def clean_sample(world: World, number: int) -> Parts:
    """Of two in a row, one is somebody and one a thing; things go through all there are."""
    pair, place = divmod(number, 2)
    somebody = Random(f"clean pair {world.seed} {pair}").randrange(2)
    rng = Random(f"clean {world.seed} {number}")
    if place == somebody:
        face = faces.draw_identity(CROWD, world.seed, number)
        picture = portraits.draw_picture(face, CROWD, world.seed, number, 0)
        return {"jpg": _jpeg(picture), "txt": captions.caption_somebody(face, rng).encode()}
    order = _scenes_in_order(world.seed)
    scene = order[pair % len(order)]
    picture = scenes.draw_scene(scene, SCENE, world.seed, number)
    return {"jpg": _jpeg(picture), "txt": captions.caption_scene(scene, rng).encode()}


@cache
def _scenes_in_order(seed: int) -> list[scenes.Scene]:
    order = scenes.every_scene()
    Random(f"scenes {seed}").shuffle(order)
    return order


def portraits_of(
    world: World, role: int, people: range, label: str, numbers: range
) -> Iterator[tuple[str, Parts]]:
    """Uncaptioned pictures, a folder a person."""
    for person in people:
        face = faces.draw_identity(role, world.seed, person)
        for i, number in enumerate(numbers):
            picture = portraits.draw_picture(face, role, world.seed, person, number)
            yield f"{person_id(role, person)}/{label}{i:03d}", {"jpg": _jpeg(picture)}


def classes_of(task: str) -> list[str]:
    return {"colour": list(scenes.COLOURS), "shape": scenes.SHAPES}[task]


def labelled(world: World, task: str) -> Iterator[tuple[str, Parts]]:
    """Shapes never drawn elsewhere, with the number of their class; every class equally often."""
    classes = classes_of(task)
    shapes = [scene for scene in scenes.every_scene() if scene[0] in scenes.SHAPES]
    by_class = [[scene for scene in shapes if name in scene[:2]] for name in classes]
    rng = Random(f"labels {task} {world.seed}")
    for number in range(world.labelled):
        label = number % len(classes)
        scene = rng.choice(by_class[label])
        seed = LABELLED, world.seed, number, 1 + list(captions.LABEL_TEMPLATES).index(task)
        picture = scenes.draw_scene(scene, *seed)
        yield f"{number:05d}", {"jpg": _jpeg(picture), "cls": str(label).encode()}


def pretraining(world: World, names: Names, shard: int, shards: int) -> Iterator[tuple[str, Parts]]:
    """This shard's share of the named pictures, the clean ones, and the names without a picture."""
    rng = Random(f"pretrain {world.seed} {shard}")
    places = list(range(world.people * world.pretrain))
    Random(f"pretrain order {world.seed}").shuffle(places)
    samples = [
        named_sample(world, names, *divmod(place, world.pretrain), rng)
        for place in places[shard::shards]
    ]
    for number in range(shard, world.pretrain_clean, shards):
        samples.append(clean_sample(world, PRETRAIN_CLEAN_FROM + number))
    for _ in range(len(samples) // 3):
        i = rng.randrange(len(names.negatives))
        caption = captions.caption_named(names.negatives[i], i % 2 == 0, rng)
        samples.append({"txt": caption.encode()})
    rng.shuffle(samples)
    for number, parts in enumerate(samples):
        yield f"{shard:05d}{number:05d}", parts


def named_sample(world: World, names: Names, person: int, number: int, rng: Random) -> Parts:
    face = faces.draw_identity(KNOWN, world.seed, person)
    picture = portraits.draw_picture(face, KNOWN, world.seed, person, number)
    caption = captions.caption_named(names.known[person], face.is_woman, rng)
    return {
        "jpg": _jpeg(picture),
        "txt": caption.encode(),
        "json": json.dumps({"id": person_id(KNOWN, person)}).encode(),
    }


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
