"""What a teacher makes of clean samples, kept beside their shards: the same, and its own alone."""

from __future__ import annotations

import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from plugins.name_to_person import NameToPerson
from plugins.preserve import Preserve
from tests.conftest import TINY, picture, write_people, write_shard
from tests.ranks import on_ranks
from trainer import Tower, read_shard
from trainer.configuration.config import load_config
from trainer.configuration.sections import DataConfig
from trainer.data import known_embeddings as known_embeddings_room
from trainer.data.batches import (
    ABSENT,
    KNOWN_IMAGE,
    KNOWN_TEXT,
    TEACHER_IMAGE,
    TEACHER_TEXT,
    Batches,
)
from trainer.data.embed_shards import embedded, known_embeddings
from trainer.data.index import open_shard
from trainer.embedding import TEACHER, Showing, embed
from trainer.models import clip as clips
from trainer.models.clip import Towers
from trainer.models.encoder import ClipEncoder
from trainer.models.original import Original
from trainer.models.preprocess import Tokenizer
from trainer.train import train

BOTH = frozenset(Tower)
CPU = torch.device("cpu")
CONFIG = f"""
model: {{name: "{TINY}", random_weights: true}}
data: {{shards: "shards/*.tar", workers: 0, lanes: 4, embeddings: make}}
objectives:
  keep: {{kind: preserve, batch_size: 8}}
  away: {{kind: contrastive, batch_size: 8}}
optimizer: {{lr: 1.0e-3}}
steps: 3
log_every: 1
"""


@pytest.fixture
def shards(clean_shards, tmp_path) -> Path:
    """A folder of one's own with two shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("00000.tar", "00001.tar"):
        shutil.copy2(Path(clean_shards).parent / name, folder)
    return folder


@pytest.fixture
def config(shards, tmp_path, monkeypatch) -> Path:
    repository = Path.cwd()
    (tmp_path / "plugins").symlink_to(repository / "plugins")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path / "run.yaml"


def teacher_of(clip) -> ClipEncoder:
    towers = Towers(clip, BOTH)
    return ClipEncoder(towers, towers, clip, CPU)


def original_of(clip) -> Original:
    return Original(clip, BOTH, CPU, torch.float32, autocasts=False, placed="whole")


def known_of(clip, config: Path, *overrides: str):
    """As a process that starts finds them."""
    known_embeddings_room._opened.cache_clear()
    open_shard.cache_clear()
    return known_embeddings(
        load_config(config, overrides),
        clip, original_of(clip), teacher_of(clip), Accelerator(cpu=True),
    )  # fmt: skip


def files(shards: Path) -> list[Path]:
    return sorted(shards.glob("*.safetensors"))


def losses(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith("keep/")} for row in rows]


def negated(path: Path) -> None:
    with safe_open(path, "pt") as file:
        said = file.metadata()
    save_file({"embeddings": -load_file(path)["embeddings"]}, path, said)


def test_a_run_with_them_learns_what_one_without_does(config, shards):
    def run(how: str) -> list[dict]:
        known_embeddings_room._opened.cache_clear()
        loaded = load_config(config, [f"data.embeddings={how}", f"output=runs/{how}"])
        train(loaded)
        return losses(loaded.output)

    own, made, used = run("null"), run("make"), run("use")
    assert len(files(shards)) == 4
    assert made == used
    for one, known in zip(own, made, strict=True):
        assert known == pytest.approx(one, rel=1e-5, abs=1e-7)
    # What is kept is what is learnt from: of other embeddings, something else.
    for path in files(shards):
        negated(path)
    shutil.rmtree("runs/use")
    assert run("use")[0]["keep/text"] > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_has_its_own_sample_s_embeddings(tiny_clip, config, shards, workers):
    known = known_of(tiny_clip, config)
    options = Preserve.Options(batch_size=16)
    data = DataConfig(shards=[str(shards / "*.tar")], workers=workers, lanes=4, shuffle=10)

    def seen(known) -> list:
        batches = Batches({"keep": Preserve(options, 0)}, data, tiny_clip, 0, 0, 1, None, known)
        towers = Towers(tiny_clip, BOTH)
        found = []
        for _ in range(3):
            batch = next(batches)
            rows = batch.rows["keep"]
            is_known = rows[:, [KNOWN_TEXT, KNOWN_IMAGE]] != ABSENT
            is_seen = rows[:, [TEACHER_TEXT, TEACHER_IMAGE]] != ABSENT
            assert (is_known != is_seen).all() and is_known.all() == (known is not None)
            for part in batch.split(2):
                shown = Showing(towers, CPU)(part, part.pixels, TEACHER)
                with torch.no_grad():
                    found.append(embed(None if known else towers, shown)["keep"])
        batches.close()
        return found

    for one, other in zip(seen(None), seen(known), strict=True):
        torch.testing.assert_close(one.text, other.text)
        torch.testing.assert_close(one.image, other.image)


def test_nothing_is_made_twice(tiny_clip, config, shards):
    known_of(tiny_clip, config)
    made = [path.stat().st_mtime_ns for path in files(shards)]
    known_of(tiny_clip, config)
    assert [path.stat().st_mtime_ns for path in files(shards)] == made
    files(shards)[0].unlink()
    known_of(tiny_clip, config)
    assert [path.stat().st_mtime_ns for path in files(shards)][1:] == made[1:]


def test_of_what_cannot_be_used_or_names_somebody_to_forget_nothing_is_kept(tiny_clip, tmp_path):
    samples = {
        "good": {"jpg": picture(1), "txt": "a hat"},
        "named": {"jpg": picture(2), "txt": "Zoë Quillfeather at a gala"},
        "noise": {"jpg": b"not a picture", "txt": "a coat"},
        "silent": {"jpg": picture(3), "txt": " "},
        "blind": {"txt": "a shoe"},
    }
    read = list(read_shard(str(write_shard(tmp_path / "0.tar", samples))))
    roster = str(write_people(tmp_path, "forget", ["Zoe Quillfeather"]))
    names = NameToPerson(NameToPerson.Options(batch_size=8, roster=roster, target="a person"), 0)
    teacher, width = teacher_of(tiny_clip), tiny_clip.architecture["embed_dim"]
    has = {
        tower: [
            sample.key
            for sample, row in zip(read, embedded(read, tower, [names], teacher, width))
            if not row.isnan().any()
        ]
        for tower in Tower
    }
    assert has == {Tower.TEXT: ["good", "noise", "blind"], Tower.IMAGE: ["good", "silent"]}


def test_what_tells_who_is_to_be_forgotten_is_for_its_owner_alone(tiny_clip, config, shards):
    known_of(tiny_clip, config)
    assert files(shards) and {path.stat().st_mode & 0o777 for path in files(shards)} == {0o600}


def test_what_has_none_is_shown_to_the_teacher(tiny_clip, config, shards):
    known = known_of(tiny_clip, config)
    path = next(path for path in files(shards) if "00000.tar.text" in path.name)
    kept = load_file(path)["embeddings"].clone()
    kept[::2] = torch.nan
    known.save(kept, str(shards / "00000.tar"), Tower.TEXT)
    data = DataConfig(shards=[str(shards / "00000.tar")], workers=0, lanes=1, shuffle=100)
    keep = {"keep": Preserve(Preserve.Options(batch_size=40), 0)}
    again = known_of(tiny_clip, config)
    (rows,) = next(Batches(keep, data, tiny_clip, 0, 0, 1, None, again)).rows.values()
    assert (rows[:, TEACHER_TEXT] != ABSENT).sum() == (rows[:, KNOWN_TEXT] != ABSENT).sum() == 20
    assert (rows[:, TEACHER_IMAGE] == ABSENT).all()


def of_another_teacher(path: Path, shards: Path) -> None:
    with safe_open(path, "pt") as file:
        said = file.metadata() | {"teacher": "0" * 64}
    save_file(load_file(path), path, said)


def cut(path: Path, shards: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def narrower(path: Path, shards: Path) -> None:
    with safe_open(path, "pt") as file:
        said = file.metadata()
    save_file({"embeddings": load_file(path)["embeddings"][:, :-1].contiguous()}, path, said)


def not_ours(path: Path, shards: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path)


def rewritten(path: Path, shards: Path) -> None:
    """Another shard under the name of the one that it was made of."""
    write_shard(shards / "00000.tar", {f"{i}": {"jpg": picture(i), "txt": "a"} for i in range(40)})


@pytest.mark.parametrize(
    "spoil, told",
    [
        (of_another_teacher, "is of another teacher"),
        (cut, "is damaged"),
        (narrower, "is damaged"),
        (not_ours, "is damaged"),
        (rewritten, "as it was before it changed"),
    ],
)
def test_a_file_that_is_not_of_this_shard_and_teacher_is_refused_or_made_again(
    tiny_clip, config, shards, spoil, told
):
    known_of(tiny_clip, config)
    path = files(shards)[0]
    assert "00000.tar" in path.name
    spoil(path, shards)
    with pytest.raises(ValueError, match=rf"data\.embeddings: .*{told}.*\(. of 4 files\).*make"):
        known_of(tiny_clip, config, "data.embeddings=use")
    known_of(tiny_clip, config)
    known_of(tiny_clip, config, "data.embeddings=use")


def test_where_there_are_none_it_says_so_and_of_whom_there_are(tiny_clip, config, shards):
    with pytest.raises(ValueError, match=r"00000.tar has none, .*is not there \(4 of 4 files\)"):
        known_of(tiny_clip, config, "data.embeddings=use")
    known_of(tiny_clip, config)
    torch.manual_seed(1)
    other = clips.load(load_config(config).model)
    with pytest.raises(ValueError, match="has them of another teacher alone"):
        known_of(other, config, "data.embeddings=use")
    assert known_of(other, config) is not None and len(files(shards)) == 8


def test_another_tokenizer_is_another_teacher(tiny_clip, config):
    class Other(Tokenizer):
        def __call__(self, texts):
            return super().__call__([f"{text} x" for text in texts])

    other = replace(tiny_clip, tokenize=Other(tiny_clip.tokenize._tokenizer))
    assert known_of(tiny_clip, config).teachers != known_of(other, config).teachers


def test_they_may_be_in_a_folder_of_their_own(tiny_clip, config, shards, tmp_path):
    known_of(tiny_clip, config, f"data.index={tmp_path / 'kept'}")
    assert files(shards) == [] and len(files(tmp_path / "kept")) == 4


def made_by(rank: int, config: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    loaded = load_config(config)
    clip = clips.load(loaded.model)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # not used: they are joined
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    known_embeddings(loaded, clip, original_of(clip), teacher_of(clip), accelerator)
    return {path.name: load_file(path)["embeddings"] for path in files(Path("shards"))}


def test_two_processes_make_what_one_does(tiny_clip, config, shards):
    ours = on_ranks(2, made_by, str(config))
    assert ours[0].keys() == ours[1].keys() and len(ours[0]) == 4
    for path in files(shards):
        path.unlink()
    torch.manual_seed(0)
    clip = clips.load(load_config(config).model)
    known_of(clip, config)
    for path in files(shards):
        torch.testing.assert_close(load_file(path)["embeddings"], ours[0][path.name])


@pytest.mark.parametrize(
    "override, told",
    [
        ("memory.teacher=sharded", "does not go with data.embeddings"),
        ("data.shards=captions.txt", "data.embeddings reads tars; captions.txt is none"),
        ("data.shards=https://example.org/0.tar", "data.embeddings reads local shards"),
    ],
)
def test_what_it_does_not_go_with_is_told(tiny_clip, config, override, told):
    Path("captions.txt").write_text("a hat\n")
    with pytest.raises(ValueError, match=told):
        known_of(tiny_clip, config, override)


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tiny_clip, config, shards):
    known = known_of(tiny_clip, config)
    before = sorted(shards.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            known.save(torch.zeros(40, known.width), str(shards / "00000.tar"), Tower.TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(shards.iterdir()) == before


def test_an_empty_shard_has_an_empty_file(tiny_clip, config, shards):
    write_shard(shards / "00002.tar", {})
    known_of(tiny_clip, config)
    known_of(tiny_clip, config, "data.embeddings=use")
    assert len(files(shards)) == 6
