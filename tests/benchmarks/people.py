"""5,000 people to forget: to read them and make the objective, and what each caption costs then.

Captions of 6 to 14 words go by the filter, which leaves out those that name someone, and become
triggers, kept names and neighbours; last all that a loader worker does for a pair, from the shard
to tokens. One process; the median of rounds.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from plugins.name_to_person import NameToPerson
from plugins.preserve import Preserve
from tests.benchmarks.captions import WORDS
from trainer import Sample, read_roster
from trainer.configuration.sections import DataConfig, ModelConfig
from trainer.data.batches import Batches
from trainer.models import clip as clips

PEOPLE, FIRSTS, LASTS = 5_000, 400, 3_000
CAPTIONS, ROUNDS = 20_000, 5
SYLLABLES = ["an", "bel", "co", "dra", "el", "fin", "gor", "hal", "is", "jo", "kar", "lem", "mo"]


def measure() -> dict[str, float]:
    rng = Random(0)
    words = [f"{a}{b}{c}".title() for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES * 2]
    firsts, lasts = words[:FIRSTS], words[FIRSTS : FIRSTS + LASTS]
    names: dict[str, None] = {}
    while len(names) < PEOPLE:
        names[f"{rng.choice(firsts)} {rng.choice(lasts)}"] = None
    samples = [
        Sample(str(i), " ".join(rng.choices(WORDS, k=rng.randint(6, 14)))) for i in range(CAPTIONS)
    ]
    with TemporaryDirectory() as folder:
        roster = Path(folder, "roster.csv")
        roster.write_text("\n".join(["name", *names]))
        read_roster(roster)  # makes the key
        options = NameToPerson.Options(batch_size=512, roster=str(roster))
        objective = NameToPerson(options, seed=0)

        def compose() -> None:
            for turn, sample in enumerate(samples):
                objective.pair(sample, turn, rng)

        def filtered() -> None:
            for sample in samples:
                objective.accepts(sample)

        (Path(folder) / "0.tar").write_bytes(shard(samples))
        data = DataConfig(shards=[str(Path(folder) / "0.tar")], workers=0, lanes=8)
        clip = clips.load(ModelConfig(name="ViT-B-32", random_weights=True), weightless=True)
        preserve = Preserve(Preserve.Options(batch_size=512, towers=["text"]), seed=0)
        batches = Batches({"keep": preserve, "names": objective}, data, clip, 0, 0, 1)

        def draw() -> None:
            for _ in range(10):
                next(batches)

        return {
            "seconds to read the roster": seconds(lambda: read_roster(roster)),
            "seconds to make the objective": seconds(lambda: NameToPerson(options, seed=0)),
            "us a caption, filter": seconds(filtered) / CAPTIONS * 1e6,
            "us a caption, composition": seconds(compose) / CAPTIONS * 1e6,
            "us a pair, all that a loader worker does": seconds(draw) / 10 / 1024 * 1e6,
        }


def shard(samples: list[Sample]) -> bytes:
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for sample in samples:
            caption = (sample.text or "").encode()
            entry = tarfile.TarInfo(f"{sample.key:0>5}.txt")
            entry.size = len(caption)
            tar.addfile(entry, BytesIO(caption))
    return data.getvalue()


def seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        started_at = perf_counter()
        work()
        return perf_counter() - started_at

    return median(once() for _ in range(ROUNDS))
