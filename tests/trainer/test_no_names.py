"""Of a roster as people write them no name, alias or folder is in anything that a run leaves."""

from __future__ import annotations

import json

import pytest

from tests.conftest import REPOSITORY, TINY, picture, write_shard
from tests.trainer.disguises import found_in
from trainer.configuration.config import load_config
from trainer.train import train

PEOPLE = {  # name: aliases, the folder of their pictures
    "José Núñez Àlvarez": (["Pepe Núñez", "Niño Àlvarez"], "faces/jose nunez private"),
    "نجيب محفوظ الباشا": (["Naguib Mahfouz Basha"], "faces/nagib mahfuz albasha"),
    'Zoë "Zed" O\'Neilsson 🦓': ([], "faces/zoe's pictures"),
}
RUN = f"""
model: {{name: "{TINY}", random_weights: true, freeze: [text.token_embedding.weight]}}
data: {{shards: clean.tar, workers: 0, lanes: 4}}
objectives:
  keep: {{kind: preserve, batch_size: 8}}
  names: {{kind: name_to_person, batch_size: 8, roster: forget.jsonl}}
  faces: {{kind: face_to_neutral, batch_size: 8, roster: forget.jsonl, target: text}}
evaluations:
  attack:
    kind: identity_inference
    groups: {{forget: forget.jsonl}}
    distractors: others.txt
    candidates: 10
    pictures: 2
    every: 1
  nearness: {{kind: similarity, roster: forget.jsonl, target: a person, shards: clean.tar}}
  words: {{kind: text_inference, groups: {{forget: forget.jsonl}}, gibberish: 40}}
optimizer: {{lr: 1.0e-3, warmup_steps: 1}}
trackers: [wandb]
steps: 3
log_every: 1
checkpoint: {{every: 1}}
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugins").symlink_to(REPOSITORY / "plugins")
    lines = []
    for i, (name, (aliases, folder)) in enumerate(PEOPLE.items()):
        (tmp_path / folder).mkdir(parents=True)
        for j in range(3):
            (tmp_path / folder / f"{j}.jpg").write_bytes(picture(i, j))
        lines.append(
            json.dumps({"id": f"request {i}", "name": name, "aliases": aliases, "faces": folder})
        )
    (tmp_path / "forget.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "others.txt").write_text("\n".join(f"Ann{chr(97 + i)} Other" for i in range(20)))
    named = [one for name, (aliases, _) in PEOPLE.items() for one in (name, *aliases)]
    captions = [f"a picture of {name} with a red hat" for name in named]
    captions += [f"a red hat on table {i}" for i in range(60)]
    samples = {f"{i:03}": {"jpg": picture(9, i), "txt": one} for i, one in enumerate(captions)}
    write_shard(tmp_path / "clean.tar", samples)
    return tmp_path


def test_no_name_alias_or_folder_of_a_person_is_in_what_a_run_writes_or_prints(world, capfd):
    (world / "forget.yaml").write_text(RUN)
    train(load_config(world / "forget.yaml", []))
    run, printed = world / "runs/forget", capfd.readouterr()
    (run / "printed").write_text(printed.out + printed.err)
    own = {name for name, (aliases, folder) in PEOPLE.items() for name in (name, *aliases, folder)}
    files = [path for path in run.rglob("*") if path.is_file()]
    names = [path.name for path in files]
    assert "people.jsonl" in names and any(name.endswith(".wandb") for name in names)
    assert set(found_in(world / "forget.jsonl", own)) == own  # where they do stand
    for path in files:
        assert not found_in(path, own), path
