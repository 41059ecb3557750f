"""Configurations for clusters: each is valid, plans without its weights, fits as it says."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from plugins.fictitious.world import World
from tests.benchmarks.thousands import COUNTS
from tests.conftest import REPOSITORY, picture, write_shard
from trainer.configuration.config import load_config
from trainer.planning.capacity import Capacity
from trainer.planning.dry_run import describe_run
from trainer.strategies.launching import Launch

FILES = sorted((REPOSITORY / "configs").glob("vit_*.yaml"))
MODELS, TAUGHT = ("b32", "b16", "l14", "h14", "bigg14"), ("names", "faces", "both")
PEOPLE = {"requests": "Jane Roe", "kept": "Mary Major", "others": "Richard Miles"}
PEOPLE |= {"requests_faces": "Jane Roe", "unknown": "Joan Stiles"}
PEOPLE |= {f"attack_{name}": PEOPLE[name] for name in ("requests", "kept")}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """With as many different captions and pictures as a rank draws."""
    folder = tmp_path_factory.mktemp("clusters")
    one = picture(1)
    for shard in range(8):
        write_shard(
            folder / f"{shard:05}.tar",
            {f"{i:05}": {"jpg": one, "txt": f"a red hat {shard} {i}"} for i in range(1000)},
        )
    (folder / "private").mkdir()
    faces = {f"{i}/{j}": {"jpg": one} for i in range(6) for j in range(20)}
    write_shard(folder / "private/strangers.tar", faces)
    for name, person in PEOPLE.items():
        write_shard(folder / f"private/{name}.tar", faces)
        rows = [f"{person}{letter},{name}.tar,{i}" for i, letter in enumerate("abcdef")]
        (folder / f"private/{name}.csv").write_text("\n".join(["name,faces,id", *rows]))
    labelled = {f"{i}": {"jpg": one, "cls": str(i)} for i in range(10)}
    write_shard(folder / "val.tar", labelled)
    (folder / "private/names.txt").write_text("\n".join(f"Joe Doe{i}" for i in range(2000)))
    return folder


def test_there_is_one_for_each_model_and_each_of_names_faces_and_both():
    assert {path.stem for path in FILES} == {f"vit_{m}_{t}" for m in MODELS for t in TAUGHT}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_plans_without_weights_and_fits_as_its_header_says(path, world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    header = path.read_text().partition("model:")[0]
    launch = Launch.of_file(REPOSITORY / re.search(r"--launch (\S+)", header)[1])
    shards = f"data.shards={world}/{{00000..00007}}.tar"
    labelled = f"evaluations.imagenet.shards={world}/val.tar"
    told = describe_run(load_config(path, [shards, labelled]), launch, Capacity(80e9, "cuda"))
    (planned_gb,) = re.findall(r" fits 80.00 GB.*: (\S+) GB with ", told)
    assert float(re.search(r"(\S+) GB a device", header)[1]) == pytest.approx(
        float(planned_gb), rel=0.02
    )
    assert launch.num_devices == 8 and len(path.read_text().splitlines()) < 50


def test_the_attacks_on_thousands_have_names_for_as_many_candidates_as_they_want():
    """Of the world of `make thousands`, however many of its people are to be forgotten."""
    made = re.search(r"fictitious runs/thousands (.+)", (REPOSITORY / "Makefile").read_text())[1]
    sizes = re.fullmatch(r"--people (\d+) --forget (\d+)", made)
    world = World(people=int(sizes[1]), forget=int(sizes[2]))
    groups = {name: len(own) for name, (_, own) in world.groups().items()}
    raw = yaml.safe_load((REPOSITORY / "configs/fictitious_thousands.yaml").read_text())
    wanted = raw["evaluations"]["neighbours"]["candidates"]
    for count in COUNTS:
        own = groups["unseen"] + count  # the kept under attack, and the forgotten's names
        free = 1000 + groups["forget"] - count  # distractors, as the benchmark writes them
        assert own <= wanted <= own + free, count
