"""The identity inference attack on 4,096 people after embedding: seconds, memory, two ranks.

20 pictures of each, 21 prompts, 5,000 candidates, embeddings as wide as ViT-L/14's (768). The
encoder's part is left out of the seconds: its rows are made up, so that about half of the pictures
name their person. Each process is a new one; memory is the most that it ever held, torch included.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from zlib import crc32

import torch
import torch.distributed as dist
import torch.nn.functional as F

from plugins.identity_inference import IdentityInference
from plugins.identity_inference.attack import TEMPLATES

GROUPS = {"forget": 2048, "unseen": 1024, "unknown": 1024}
PEOPLE, PICTURES, CANDIDATES, WIDTH = sum(GROUPS.values()), 20, 5000, 768
NOISE = 2.6  # beside a person's own direction of length 1, in pictures and names
FLOPS = 2 * PEOPLE * PICTURES * CANDIDATES * len(TEMPLATES) * WIDTH
REPOSITORY = Path(__file__).parents[2]


class MadeUp:
    """An `Encoder` of as many rows as are asked for; it counts its seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._people = F.normalize(self._noise(0, CANDIDATES), dim=-1)

    def encode_text(self, texts):
        started_at = perf_counter()
        noise = self._noise(crc32(texts[0].encode()), CANDIDATES)  # of the template
        rows = self._people + NOISE * WIDTH**-0.5 * noise
        self.seconds += perf_counter() - started_at
        return rows

    def encode_image(self, pictures):
        started_at = perf_counter()
        rows = self._noise(1, len(pictures)).mul_(NOISE * WIDTH**-0.5).view(PEOPLE, PICTURES, WIDTH)
        rows += self._people[:PEOPLE, None]
        self.seconds += perf_counter() - started_at
        return rows.flatten(0, 1)

    def _noise(self, seed: int, count: int):
        return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def write_world(folder: Path) -> dict:
    """Rosters, a picture of a few bytes for each, and names. Gives the options of the attack."""
    options: dict = {"groups": {}, "candidates": CANDIDATES, "pictures": PICTURES}
    for group, count in GROUPS.items():
        with tarfile.open(folder / f"{group}.tar", "w") as tar:
            for i in range(count * PICTURES):
                entry = tarfile.TarInfo(f"p{i // PICTURES}/{i % PICTURES}.jpg")
                entry.size = 4
                tar.addfile(entry, BytesIO(b"jpeg"))
        lines = [
            json.dumps({"id": f"p{i}", "name": f"{group} person{i}", "faces": f"{group}.tar"})
            for i in range(count)
        ]
        options["groups"][group] = str(folder / f"{group}.jsonl")
        Path(options["groups"][group]).write_text("\n".join(lines))
    others = folder / "others.txt"
    others.write_text("\n".join(f"other person{i}" for i in range(CANDIDATES)))
    return options | {"distractors": str(others)}


def attack(folder: Path, rank: int, ranks: int) -> None:
    """In a process of its own."""
    torch.set_num_threads(2 // ranks)
    if ranks > 1:
        store = dist.FileStore(str(folder / "store"), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    options = json.loads((folder / "options.json").read_text())
    evaluation, model = IdentityInference(IdentityInference.Options(**options), seed=0), MadeUp()
    started_at = perf_counter()
    measures = dict(evaluation.run(model, model))
    seconds = perf_counter() - started_at - model.seconds
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    found = {"seconds": seconds, "gigabytes": memory, "measures": measures}
    (folder / f"{ranks}.{rank}.json").write_text(json.dumps(found))


def bare_seconds() -> float:
    """Of the products alone, on two threads, from a fiftieth of them."""
    torch.set_num_threads(2)
    rows, names = torch.randn(1024, WIDTH), torch.randn(CANDIDATES, WIDTH)
    rounds = PEOPLE * PICTURES * len(TEMPLATES) // 1024 // 50
    torch.mm(rows, names.mT)
    started_at = perf_counter()
    for _ in range(rounds):
        torch.mm(rows, names.mT)
    return (perf_counter() - started_at) * 50


def measure() -> dict:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "options.json").write_text(json.dumps(write_world(folder)))
        bare = bare_seconds()
        for ranks in (1, 2):
            processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.benchmarks.attack", name, f"{rank}", f"{ranks}"],
                    cwd=REPOSITORY,
                    env=os.environ | {"OMP_NUM_THREADS": f"{2 // ranks}"},
                )
                for rank in range(ranks)
            ]
            assert not any([process.wait() for process in processes])
        one, *two = (
            json.loads((folder / f"{place}.json").read_text()) for place in ("1.0", "2.0", "2.1")
        )
    assert two[0]["measures"] == two[1]["measures"], "the ranks disagree"
    return {
        "one_process_seconds": one["seconds"],
        "one_process_gigabytes": one["gigabytes"],
        "two_ranks_seconds": max(rank["seconds"] for rank in two),
        "two_ranks_gigabytes_each": max(rank["gigabytes"] for rank in two),
        "bare_products_seconds": bare,
        "same_measures": float(one["measures"] == two[0]["measures"]),
        "forget_tpr": one["measures"]["forget/tpr"],
        "forget_picture_accuracy": one["measures"]["forget/picture_accuracy"],
    }


if __name__ == "__main__":
    attack(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
