"""The fictitious world: whole or absent, the same every time, and nothing leaks across."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner

from plugins.fictitious import captions, faces, fictitious, portraits, scenes
from plugins.fictitious.shards import draw_world
from plugins.fictitious.world import CROWD, KNOWN, World, names_of

SMALL = World(
    people=6,
    forget=2,
    unknown=2,
    strangers=2,
    clean=40,
    labelled=24,
    tested=30,
    pretrain=24,
    pretrain_clean=60,
    seed=3,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """SMALL, drawn by two workers."""
    out = tmp_path_factory.mktemp("fictitious") / "world"
    assert draw_world(out, SMALL, workers=2)
    return out


def samples(*shards: Path) -> list[dict]:
    urls = [str(shard) for shard in shards]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def decoded_samples(shard: Path):
    return webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil")


def pictures(*shards: Path) -> list[str]:
    """A digest of each picture."""
    return [hashlib.sha256(one["jpg"]).hexdigest() for one in samples(*shards) if "jpg" in one]


def roster(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_names(world: World) -> dict[str, list[str]]:
    return vars(names_of(world))


def test_one_worker_writes_the_same_bytes_as_two(world, tmp_path):
    assert draw_world(tmp_path / "again", SMALL, workers=1)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    again = sorted(p.relative_to(tmp_path / "again") for p in tmp_path.rglob("*") if p.is_file())
    assert files == again
    for file in files:
        assert (world / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_another_seed_gives_other_people_and_names():
    first, second = (faces.draw_identity(KNOWN, seed, 0) for seed in (0, 1))
    assert first != second
    assert names_of(World(seed=0)).known != names_of(World(seed=1)).known


def test_a_picture_follows_from_its_numbers_alone(world):
    face = faces.draw_identity(KNOWN, SMALL.seed, 0)
    picture = portraits.draw_picture(face, KNOWN, SMALL.seed, 0, 0)
    decoded = next(iter(decoded_samples(world / "faces/forget.tar")))
    assert decoded["__key__"] == "p00000/000"
    difference = np.asarray(decoded["jpg"], dtype=int) - np.asarray(picture)
    assert np.abs(difference).mean() < 16  # JPEG, of a noisy picture


@pytest.mark.parametrize("people", [4, 256, 1000])
def test_no_full_name_is_in_two_pools_or_twice_in_one(people):
    names = all_names(World(people=people, forget=2))
    together = [name for pool in names.values() for name in pool]
    assert len(together) == len(set(together))
    assert len(names["known"]) == people
    assert len(names["distractors"]) >= 1000
    assert len(names["other_names"]) == 2000


def test_names_are_two_plain_words_of_four_to_nine_letters():
    for pool in all_names(World()).values():
        for name in pool:
            words = name.split(" ")
            assert len(words) == 2
            assert all(w.isascii() and w.isalpha() and w.istitle() for w in words), name
            assert all(4 <= len(word) <= 9 for word in words), name


def test_most_people_share_a_first_or_a_last_name_with_somebody():
    known = names_of(World()).known
    firsts, lasts = zip(*(name.split() for name in known))
    sharing = [firsts.count(f) > 1 or lasts.count(la) > 1 for f, la in zip(firsts, lasts)]
    assert np.mean(sharing) > 0.7


def test_first_names_tell_the_sex_and_are_nobodys_last_name():
    names = names_of(World())
    is_woman = [faces.draw_identity(KNOWN, 0, i).is_woman for i in range(256)]
    women = {name.split()[0] for name, woman in zip(names.known, is_woman) if woman}
    men = {name.split()[0] for name, woman in zip(names.known, is_woman) if not woman}
    women |= {name.split()[0] for name in names.distractors[::2]}
    men |= {name.split()[0] for name in names.distractors[1::2]}
    lasts = {name.split()[1] for pool in vars(names).values() for name in pool}
    assert not women & men
    assert not (women | men) & lasts


def test_attack_pictures_are_never_trained_on(world):
    attack = pictures(*world.glob("attack/*.tar"))
    trained = pictures(*world.glob("faces/*.tar"), *world.glob("pretrain/*.tar"))
    assert len(attack) == 20 * (SMALL.people + SMALL.unknown)
    assert len(set(attack)) == len(attack)
    assert not set(attack) & set(trained)
    # The comparison can see it: what is in faces/ is in pretrain/ too.
    assert set(pictures(world / "faces/forget.tar")) < set(pictures(*world.glob("pretrain/*.tar")))


def test_labelled_pictures_are_never_in_the_clean_shards(world):
    labelled = pictures(*world.glob("labels/*/*.tar"))
    clean = pictures(*world.glob("clean/*.tar"), *world.glob("pretrain/*.tar"))
    assert len(set(labelled)) == 2 * SMALL.labelled
    assert not set(labelled) & set(clean)


def test_pictures_to_find_again_are_in_nothing_that_trains(world):
    tested = pictures(*world.glob("clean_test/*.tar"))
    trained = pictures(*world.glob("clean/*.tar"), *world.glob("pretrain/*.tar"))
    assert len(set(tested)) == SMALL.tested and not set(tested) & set(trained)


def test_clean_shards_hold_as_many_people_as_things_and_no_name(world):
    found = samples(*world.glob("clean/*.tar"))
    assert len({one["__key__"] for one in found}) == SMALL.clean
    texts = [one["txt"].decode() for one in found]
    people = [text for text in texts if set(text.split()) & {"man", "woman", "person", "somebody"}]
    assert len(people) == SMALL.clean // 2
    names = {name for pool in all_names(SMALL).values() for name in pool}
    assert not [text for text in texts if any(name in text for name in names)]


def test_pretraining_names_known_people_and_only_texts_name_the_negatives(world):
    found = samples(*world.glob("pretrain/*.tar"))
    assert len({one["__key__"] for one in found}) == len(found)
    names = all_names(SMALL)
    negatives = set(names["negatives"])
    named = [one for one in found if "json" in one]
    alone = [one for one in found if "jpg" not in one]
    assert len(named) == SMALL.people * SMALL.pretrain
    assert len(found) - len(named) - len(alone) == SMALL.pretrain_clean
    assert len(alone) == (len(found) - len(alone)) // 3
    for one in named:
        number = int(json.loads(one["json"])["id"][1:])
        assert names["known"][number] in one["txt"].decode()
    for one in alone:
        words = one["txt"].decode().replace(",", "").split()
        assert {" ".join(pair) for pair in zip(words, words[1:])} & negatives


def test_shards_are_read_by_webdataset_with_decoded_pictures(world):
    for shard in world.rglob("*.tar"):
        for one in decoded_samples(shard):
            assert "jpg" not in one or one["jpg"].size == (64, 64)
            assert isinstance(one.get("cls", 0), int)
            assert isinstance(one.get("txt", ""), str)


def test_every_person_of_a_roster_has_pictures_where_it_says(world):
    for path in world.glob("rosters/*.csv"):
        attack = path.stem.startswith("attack_")
        rows = roster(path)
        assert rows
        for row in rows:
            if not row["faces"]:
                assert path.stem in ("unseen", "unknown")
                continue
            keys = [one["__key__"] for one in samples(path.parent / row["faces"])]
            own = [key for key in keys if key.startswith(f"{row['id']}/")]
            assert len(own) == (20 if attack else 24)
            assert all(("attack_" in key) == attack for key in own)


def test_rosters_share_everybody_out_once(world):
    groups = {g: roster(world / f"rosters/{g}.csv") for g in SMALL.groups()}
    assert {g: len(rows) for g, rows in groups.items()} == {
        "forget": 2,
        "replayed": 2,
        "unseen": 2,
        "unknown": 2,
    }
    ids = [row["id"] for rows in groups.values() for row in rows]
    assert len(set(ids)) == 8
    for group, rows in groups.items():
        attacked = roster(world / f"rosters/attack_{group}.csv")
        assert [(r["id"], r["name"]) for r in attacked] == [(r["id"], r["name"]) for r in rows]


def test_label_classes_are_all_there_and_their_templates_occur_in_captions(world):
    for task, forms in (("colour", "{colour}"), ("shape", "{thing}")):
        folder = world / "labels" / task
        classes = (folder / "classnames.txt").read_text().splitlines()
        found = [int(one["cls"]) for one in samples(folder / "0.tar")]
        assert sorted(set(found)) == list(range(len(classes)))
        templates = folder / "zeroshot_classification_templates.txt"
        for template in templates.read_text().splitlines():
            assert template.replace("{c}", forms) in captions.SHAPE_FORMS


def test_captions_come_in_many_forms_and_tell_the_sex_only_where_it_is_known():
    assert len(set(captions.NAMED)) == len(captions.NAMED) >= 30
    assert len(captions.SHAPE_FORMS) >= 14
    assert len(captions.SOMEBODY) >= 14
    assert not set(captions.NAMED) & {"actor {0}", "actress {0}", "a man named {0}"}


def test_the_background_does_not_tell_the_sex():
    corners, is_woman = [], []
    for i in range(300):
        face = faces.draw_identity(CROWD, 0, i)
        picture = portraits.draw_picture(face, CROWD, 0, i, 0)
        corners.append(np.asarray(picture)[:6, :6].mean((0, 1)))
        is_woman.append(face.is_woman)
    for channel in np.array(corners).T:
        assert abs(np.corrcoef(channel, is_woman)[0, 1]) < 0.25  # 4 standard errors


def test_people_differ_more_than_pictures_of_one():
    means = np.stack(
        [
            np.mean(
                [
                    np.asarray(portraits.draw_picture(face, KNOWN, 0, i, j), dtype=float)
                    for j in range(8)
                ],
                axis=0,
            )
            for i, face in enumerate(faces.draw_identity(KNOWN, 0, i) for i in range(12))
        ]
    )
    right = 0
    for i in range(12):
        face = faces.draw_identity(KNOWN, 0, i)
        for j in range(100, 104):
            picture = np.asarray(portraits.draw_picture(face, KNOWN, 0, i, j), dtype=float)
            right += int(((means - picture) ** 2)[:, 16:48, 16:48].mean((1, 2, 3)).argmin() == i)
    assert right > 24  # of 48, by bare pixels; chance is 4


def test_every_thing_is_drawn_differently():
    drawn = [
        np.asarray(scenes.draw_scene((thing, "black", "white"), 1), dtype=float)
        for thing in scenes.SHAPES + scenes.TEXTURES
    ]
    for i, one in enumerate(drawn):
        assert all(np.abs(one - other).mean() > 8 for other in drawn[:i])


def test_scenes_never_hide_a_thing_in_its_own_colour():
    assert len(set(scenes.every_scene())) == 15 * (12 * 11 - 11)
    assert all(colour != background for _, colour, background in scenes.every_scene())


def test_a_world_that_stands_there_is_not_drawn_again(world):
    before = (world / "world.json").stat().st_mtime_ns
    assert not draw_world(world, SMALL)
    assert (world / "world.json").stat().st_mtime_ns == before


def test_a_folder_without_a_record_is_not_taken_for_a_world(tmp_path):
    (tmp_path / "part/clean").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is no world"):
        draw_world(tmp_path / "part", SMALL)


def test_a_world_of_another_format_is_refused(tmp_path):
    (tmp_path / "world.json").write_text('{"format": 1, "people": 6}')
    with pytest.raises(FileExistsError, match="format 1"):
        draw_world(tmp_path, SMALL)


def test_a_killed_run_leaves_nothing_under_the_name_and_no_worker(tmp_path):
    script = (
        "import sys; from plugins.fictitious.shards import draw_world\n"
        "from plugins.fictitious.world import World\n"
        "if __name__ == '__main__': draw_world(sys.argv[1], World(people=4, forget=2), 1)\n"
    )
    (tmp_path / "draw.py").write_text(script)
    out = tmp_path / "world"
    run = subprocess.Popen(
        [sys.executable, "draw.py", out],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while run.poll() is None and not list(tmp_path.rglob("*.tar")):
        sleep(0.01)
    run.kill()
    assert run.wait() < 0
    assert list(tmp_path.rglob("*.tar"))  # it was in the middle of it
    assert not out.exists()
    # A process group is there as long as somebody is in it.
    deadline = monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while monotonic() < deadline:
            os.killpg(run.pid, 0)
            sleep(0.05)


def test_the_command_says_what_to_do_about_another_world(world):
    asked = CliRunner().invoke(fictitious, [str(world), "--people", "8", "--forget", "2"])
    assert asked.exit_code == 1
    assert "people=6" in asked.output
    assert "remove it, or name another folder" in asked.output
    assert "Traceback" not in asked.output


def test_the_command_draws_once_and_then_says_so(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "plugins.fictitious.shards.draw_world",
        lambda *arguments: asked.append(arguments) or len(asked) == 1,
    )
    out = tmp_path / "world"
    options = [str(out), "--people", "9", "--forget", "3", "--seed", "5", "--pretrain", "2"]
    first, second = (CliRunner().invoke(fictitious, options) for _ in range(2))
    assert first.output == f"drawn: {out}\n"
    assert second.output == f"already drawn: {out}\n"
    assert asked[0] == (out, World(people=9, forget=3, seed=5, pretrain=2), None)


@pytest.mark.parametrize(("people", "forget"), [(256, 64), (32, 8)])
def test_a_quarter_is_to_be_forgotten_where_nobody_says(tmp_path, monkeypatch, people, forget):
    asked = []
    monkeypatch.setattr("plugins.fictitious.shards.draw_world", lambda *args: asked.append(args))
    CliRunner().invoke(fictitious, [str(tmp_path), "--people", str(people), "--seed", "3"])
    assert asked[0][1] == World(people=people, forget=forget, seed=3)


def test_the_command_draws_eight_strangers_for_each_to_forget(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("plugins.fictitious.shards.draw_world", lambda *args: asked.append(args))
    CliRunner().invoke(fictitious, [str(tmp_path), "--people", "2000", "--forget", "600"])
    assert asked[0][1].strangers == 4800


@pytest.mark.parametrize("forget", [0, 5, 6, 7])
def test_too_many_or_none_to_forget_is_refused(forget):
    with pytest.raises(ValueError, match=f"forget={forget} of people=6"):
        World(people=6, forget=forget)


def test_nothing_in_a_shard_depends_on_the_hour_or_the_user(world):
    with tarfile.open(next(world.glob("clean/*.tar"))) as tar:
        assert {(entry.mtime, entry.uid, entry.uname) for entry in tar} == {(0, 0, "")}
