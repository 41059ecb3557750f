"""Tiny real parts for tests: shards on disk, the demo's architecture with random weights."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from trainer.models.clip import Clip

REPOSITORY = Path(__file__).parents[1]
# Before torch is imported, which fixtures do: the process that hands tests to others has no use for
# it. Of those that tests start, too: the threads of several would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
TINY = "local-dir:plugins/fictitious/clip"
# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def picture(*seed: int, size: int = 64, kind: str = "JPEG") -> bytes:
    """A small picture of noise, as a file's bytes."""
    pixels = np.random.default_rng(list(seed)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, samples: dict[str, dict[str, bytes | str]]) -> Path:
    """A tar of {key: {extension: content}}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for extension, content in parts.items():
                data = content.encode() if isinstance(content, str) else content
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def kill_all(process: subprocess.Popen) -> None:
    """-9, the launcher first; its workers are in sessions of their own. Not of a warm Python's: the
    process that it stands for has the children."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


@pytest.fixture(autouse=True)
def _no_run_before_asked_for_the_cpu(monkeypatch) -> None:
    """As one in this process does, of accelerate, where there is no GPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


@pytest.fixture(scope="session")
def clean_shards(tmp_path_factory) -> str:
    """Three shards of 40 captioned pictures. Gives their pattern."""
    folder = tmp_path_factory.mktemp("clean")
    for shard in range(3):
        samples = {
            f"{shard}{i:03d}": {"jpg": picture(shard, i), "txt": f"a picture of thing {shard} {i}"}
            for i in range(40)
        }
        write_shard(folder / f"{shard:05d}.tar", samples)
    return str(folder / "{00000..00002}.tar")


@pytest.fixture(scope="session")
def tiny_clip() -> Clip:
    import torch

    from trainer.configuration.sections import ModelConfig
    from trainer.models import clip as clips

    torch.manual_seed(0)
    return clips.load(ModelConfig(name=TINY, random_weights=True))


def demo_without_attack(world: Path, name: str) -> None:
    """As configs/NAME.yaml in the world: the demo with a measure that takes a second, and a teacher
    that sees all."""
    text = re.sub(r"\n  embeddings: .*", "", (REPOSITORY / "configs/demo.yaml").read_text())
    start, end = text.index("evaluations:"), text.index("optimizer:")
    labels = "evaluations: {colour: {kind: zero_shot, shards: runs/world/labels/colour/0.tar}}\n"
    (world / "configs").mkdir(exist_ok=True)
    (world / f"configs/{name}.yaml").write_text(text[:start] + labels + text[end:])


def write_people(folder: Path, group: str, names: list[str], pictures: int = 4) -> Path:
    """A roster with a shard of pictures of each person. Gives the roster."""
    ids = [f"{group}{i}" for i in range(len(names))]
    write_shard(
        folder / f"{group}.tar",
        {
            f"{one}/{j}": {"jpg": picture(7, i, j)}
            for i, one in enumerate(ids)
            for j in range(pictures)
        },
    )
    lines = [
        json.dumps({"id": one, "name": name, "faces": f"{group}.tar"})
        for one, name in zip(ids, names)
    ]
    roster = folder / f"{group}.jsonl"
    roster.write_text("\n".join(lines), encoding="utf-8")
    return roster


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> Path:
    """A folder to run the demo's configurations in: ten people, of whom two are to be forgotten."""
    from plugins.fictitious.shards import draw_world
    from plugins.fictitious.world import World

    folder = tmp_path_factory.mktemp("small-world")
    world = World(
        people=10, forget=2, unknown=3, strangers=4, clean=200, labelled=36, tested=60, seed=5
    )
    draw_world(folder / "runs/world", world, workers=1)
    (folder / "plugins").symlink_to(REPOSITORY / "plugins")
    return folder
