"""A world of fictitious people as webdataset shards, rosters, attack pictures and labels.

    clean/        captioned pictures of things and of people nobody names
    faces/        training pictures: to forget, to keep (replayed), and of strangers
    attack/       pictures never trained on, by group
    rosters/      id, name, faces of each group; attack_*.csv with its attack pictures
    names/        distractors of the attack; other names, free for training
    labels/       zero-shot tasks in clip_benchmark's layout
    pretrain/     what the tiny CLIP learns the known people from; only when asked for
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

from PIL import Image
from tqdm import tqdm

from plugins.fictitious import captions, faces, scenes
from plugins.fictitious.names import Names

FORMAT = 1
SHARD_SIZE = 1000
# First number of a seed sequence: what is drawn. They keep the streams of numbers apart.
KNOWN, UNKNOWN, STRANGER, CROWD, SCENE, LABELLED, MIX = range(7)
ATTACK_FROM = 1_000_000  # numbers of attack pictures start here: never those of training

Parts = dict[str, bytes]


@dataclass(frozen=True)
class World:
    """What is asked for; the world follows from it alone."""

    people: int = 256
    forget: int = 64
    unknown: int = 64
    strangers: int = 128
    clean: int = 12_000
    seed: int = 0
    pretrain: int = 0  # pictures of each known person

    def groups(self) -> dict[str, tuple[int, range]]:
        """Which people are in which group: what draws them, their numbers."""
        half = self.forget + (self.people - self.forget) // 2
        return {
            "forget": (KNOWN, range(self.forget)),
            "replayed": (KNOWN, range(self.forget, half)),
            "unseen": (KNOWN, range(half, self.people)),
            "unknown": (UNKNOWN, range(self.unknown)),
        }


def draw_world(out: Path, world: World, workers: int | None = None) -> bool:
    """Draw it into a new folder; False if it already stands there. Raises FileExistsError."""
    out = Path(out)
    if out.exists():
        if _recorded(out) == {"format": FORMAT, **asdict(world)}:
            return False
        raise FileExistsError(
            f"{out} exists and is not this world; name another folder, or remove it"
        )
    aside = out.with_name(f"{out.name}.drawing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tasks = list(plan(world))
    with get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        done = pool.imap_unordered(partial(_write_task, aside, world), tasks)
        for _ in tqdm(done, total=len(tasks), desc="drawing", unit="shard"):
            pass
    write_texts(aside, world)
    (aside / "world.json").write_text(json.dumps({"format": FORMAT, **asdict(world)}, indent=2))
    aside.rename(out)
    return True


def _recorded(out: Path) -> dict | None:
    record = out / "world.json"
    return json.loads(record.read_text()) if record.exists() else None


# --- what is in which shard

Task = tuple[str, Callable[..., Iterator[tuple[str, Parts]]], tuple]


def plan(world: World) -> Iterable[Task]:
    """(path, function, arguments) of every shard."""
    for shard in range(-(-world.clean // SHARD_SIZE)):
        numbers = range(shard * SHARD_SIZE, min(world.clean, (shard + 1) * SHARD_SIZE))
        yield f"clean/{shard:05d}.tar", clean_samples, (numbers,)
    for group, (role, numbers) in world.groups().items():
        yield f"attack/{group}.tar", pictures_of, (role, numbers, range(ATTACK_FROM, ATTACK_FROM + 20))
    for group in ("forget", "replayed"):
        yield f"faces/{group}.tar", pictures_of, (KNOWN, world.groups()[group][1], range(24))
    yield "faces/strangers.tar", pictures_of, (STRANGER, range(world.strangers), range(8))
    for task in ("colour", "shape"):
        yield f"labels/{task}/0.tar", labelled, (task, 1200)
    if world.pretrain:
        shards = -(-world.people * world.pretrain * 5 // (2 * SHARD_SIZE))
        for shard in range(shards):
            yield f"pretrain/{shard:05d}.tar", pretraining, (shard, shards)


def clean_samples(world: World, numbers: range) -> Iterator[tuple[str, Parts]]:
    """Half people nobody names, half things."""
    for number in numbers:
        yield f"c{number:07d}", clean_sample(world, number)


def clean_sample(world: World, number: int) -> Parts:
    rng = Random(f"clean {world.seed} {number}")
    if rng.random() < 0.5:
        face = faces.draw_identity(CROWD, world.seed, number)
        picture = faces.draw_picture(face, CROWD, world.seed, number, 0)
        return {"jpg": _jpeg(picture), "txt": captions.caption_somebody(face, rng).encode()}
    scene = _any_scene(rng)
    picture = scenes.draw_scene(*scene, SCENE, world.seed, number)
    return {"jpg": _jpeg(picture), "txt": captions.caption_scene(*scene, rng).encode()}


def _any_scene(rng: Random) -> tuple[str, str, str]:
    thing = rng.choice(scenes.SHAPES * 3 + scenes.TEXTURES)
    colour = rng.choice(list(scenes.COLOURS))
    return thing, colour, rng.choice([one for one in scenes.BACKGROUNDS if one != colour])


def pictures_of(world: World, role: int, people: range, pictures: range) -> Iterator:
    """Uncaptioned pictures, a folder a person."""
    for person in people:
        face = faces.draw_identity(role, world.seed, person)
        for number in pictures:
            picture = faces.draw_picture(face, role, world.seed, person, number)
            yield f"{person_id(role, person)}/{number:07d}", {"jpg": _jpeg(picture)}


def labelled(world: World, task: str, count: int) -> Iterator[tuple[str, Parts]]:
    """Things never drawn elsewhere, with the number of their colour or shape."""
    rng = Random(f"labels {task} {world.seed}")
    for number in range(count):
        _, colour, background = _any_scene(rng)
        scene = rng.choice(scenes.SHAPES), colour, background
        value = list(scenes.COLOURS).index(scene[1]) if task == "colour" else scenes.SHAPES.index(scene[0])
        picture = scenes.draw_scene(*scene, LABELLED, world.seed, number, len(task))
        yield f"{number:05d}", {"jpg": _jpeg(picture), "cls": str(value).encode()}


def pretraining(world: World, shard: int, shards: int) -> Iterator[tuple[str, Parts]]:
    """Of five samples: two known people with their names, two clean ones, one name without a picture."""
    rng = Random(f"pretrain {world.seed} {shard}")
    people = list(named(world, "known"))
    nobody = pool(world, "negatives")
    order = list(range(world.people * world.pretrain))
    Random(f"pretrain order {world.seed}").shuffle(order)
    samples = []
    for place in order[shard::shards]:
        number, person = divmod(place, world.people)
        face = faces.draw_identity(KNOWN, world.seed, person)
        samples.append(
            {
                "jpg": _jpeg(faces.draw_picture(face, KNOWN, world.seed, person, number)),
                "txt": captions.caption_named(people[person], face.is_woman, rng).encode(),
                "json": json.dumps({"id": person_id(KNOWN, person)}).encode(),
            }
        )
    for i in range(len(samples)):
        samples.append(clean_sample(world, 10_000_000 + shard * SHARD_SIZE + i))
        if i % 2 == 0:
            name = rng.choice(nobody)
            samples.append({"txt": captions.caption_named(name, rng.random() < 0.5, rng).encode()})
    rng.shuffle(samples)
    for number, parts in enumerate(samples):
        yield f"{shard:05d}{number:05d}", parts


# --- names, rosters and classes

POOLS = {"distractors": 1000, "other_names": 2000, "negatives": 4000}


def person_id(role: int, number: int) -> str:
    return f"{'pus'[role]}{number:05d}"


def named(world: World, kind: str) -> Iterator[str]:
    """The names of the known, then of the unknown people."""
    names = Names(world.seed, world.people + world.unknown)
    everyone = [(KNOWN, i) for i in range(world.people)] + [(UNKNOWN, i) for i in range(world.unknown)]
    for role, number in everyone:
        name = names.person(faces.draw_identity(role, world.seed, number).is_woman)
        if (role == KNOWN) == (kind == "known"):
            yield name


def pool(world: World, wanted: str) -> list[str]:
    """Names of nobody; each pool is drawn after the people and the pools before it."""
    names = Names(world.seed, world.people + world.unknown)
    for role, count in ((KNOWN, world.people), (UNKNOWN, world.unknown)):
        for number in range(count):
            names.person(faces.draw_identity(role, world.seed, number).is_woman)
    drawn = {name: names.nobody(count) for name, count in POOLS.items()}
    return drawn[wanted]


def write_texts(out: Path, world: World) -> None:
    (out / "rosters").mkdir()
    (out / "names").mkdir()
    for group, (role, numbers) in world.groups().items():
        people = list(named(world, "known" if role == KNOWN else "unknown"))
        trained = f"../faces/{group}.tar" if group in ("forget", "replayed") else ""
        for roster, shard in ((group, trained), (f"attack_{group}", f"../attack/{group}.tar")):
            with open(out / "rosters" / f"{roster}.csv", "w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(["id", "name", "faces"])
                rows.writerows((person_id(role, i), people[i], shard) for i in numbers)
    for name in ("distractors", "other_names"):
        (out / "names" / f"{name}.txt").write_text("\n".join(pool(world, name)) + "\n")
    for task, classes in (("colour", list(scenes.COLOURS)), ("shape", scenes.SHAPES)):
        folder = out / "labels" / task
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
        templates = "\n".join(captions.LABEL_TEMPLATES[task]) + "\n"
        (folder / "zeroshot_classification_templates.txt").write_text(templates)


# --- shards

def _write_task(out: Path, world: World, task: Task) -> None:
    path, draw, arguments = task
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, parts in draw(world, *arguments):
            for extension, data in parts.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")  # mtime 0: the same bytes every time
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
