from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import REPOSITORY, kill_all, picture, write_people, write_shard
from tests.trainer.doctor.test_examination import free_port
from tests.warm_python import warm_python
from trainer.cli import cli
from trainer.configuration.config import load_config
from trainer.data.loader import draw
from trainer.data.preview import KeysBuilder, joined, lines_of
from trainer.data.steps import Steps, StreamState

RUN = """
model: {name: ViT-B-32}
data: {shards: ["clean/{0..5}.tar", {shards: captions.txt, weight: 0.5}], workers: 0, lanes: 24,
       shuffle: 7}
objectives:
  keep: {kind: preserve, batch_size: 16, towers: [text]}
  names: {kind: name_to_person, batch_size: 24, roster: f.jsonl}
  faces: {kind: face_to_neutral, batch_size: 8, roster: f.jsonl, target: text,
          shards: "clean/{0..5}.tar"}
optimizer: {lr: 1}
steps: 5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six shards, of which one was cut and one has bad samples; captions; three people."""
    folder = tmp_path_factory.mktemp("preview")
    for shard in range(6):
        samples = {
            f"{shard}{i:03}": {"jpg": picture(shard, i), "json": "{}", "txt": f"thing {shard} {i}"}
            for i in range(25 + 3 * shard)
        }
        if shard == 3:
            samples["3003"]["txt"] = b"\xff"
            samples["3005"]["txt"] = "Joe Doe at a gala"
        write_shard(folder / f"clean/{shard}.tar", samples)
    with open(folder / "clean/5.tar", "r+b") as file:
        file.truncate(60_000)
    (folder / "captions.txt").write_text("".join(f"line {i}\n" for i in range(200)))
    write_people(folder, "f", ["Joe Doe", "Ann Onym", "Zoë Quist"])
    (folder / "run.yaml").write_text(RUN)
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def stream(*arguments: str) -> list[str]:
    found = CliRunner().invoke(cli, ["stream", "run.yaml", *arguments])
    assert found.exit_code == 0, found.output
    return found.stdout.splitlines()


def drawn(ranks: int, workers: int, steps: int, resume: StreamState | None = None):
    """The lines of the global batch as `ranks` processes draw it, and where they stand then."""
    config = load_config("run.yaml", [f"data.workers={workers}"])
    build = partial(KeysBuilder, list(config.objectives))
    all_ranks = [
        Steps(config.objectives, config.data, 0, rank, ranks, build, None, resume)
        for rank in range(ranks)
    ]
    streams = [draw(one, workers) for one in all_ranks]
    first = resume.step if resume else 0
    lines = []
    for step in range(first, steps):
        keys = joined([part for one in streams for part in next(one)])
        lines += lines_of(step + 1, keys)
    return lines, StreamState(steps, all_ranks[0].order, keys.positions)


def test_a_line_tells_the_samples_of_a_step_and_the_people_by_pseudonym(folder):
    first = [json.loads(line) for line in stream("--steps", "2")]
    assert [(one["step"], one["objective"], len(one["keys"])) for one in first] == [
        (step, name, size) for step in (1, 2) for name, size in
        (("keep", 16), ("names", 24), ("faces", 8))
    ]  # fmt: skip
    assert "identities" not in first[0] and len(first[1]["identities"]) == 24
    assert len({one for one in first[1]["identities"] if one}) == 3
    known = {f"{s}{i:03}" for s in range(6) for i in range(40)}
    assert all(key in known or key.startswith("captions.txt@") for key in first[0]["keys"])
    text = json.dumps(first).lower()
    assert not [name for name in ("joe", "doe", "onym", "quist") if name in text]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_lines_are_the_same_for_any_number_of_processes_and_workers(workers):
    steps = 20
    alone, state = drawn(1, 0, steps)
    for ranks in (1, 2, 4, 8):
        assert drawn(ranks, workers, steps) == (alone, state)


def test_going_on_from_any_step_on_any_number_of_processes_gives_the_rest():
    whole, _ = drawn(1, 0, 12)
    for stop, before, after in ((1, 1, 4), (5, 2, 1), (11, 8, 2)):
        start, state = drawn(before, 0, stop)
        assert start == whole[: 3 * stop]
        state = StreamState.from_json(state.to_json())
        assert drawn(after, 1, 12, state)[0] == whole[3 * stop :]


def test_each_sample_comes_once_a_lap_whoever_resumes():
    """With a stop after each step."""
    state, found = None, {}
    for step in range(1, 30):
        before = state.positions["faces"] if state else [[lane, 0, 0] for lane in range(24)]
        lines, state = drawn(1 if step % 2 else 4, 0, step, state)
        keys = json.loads(lines[2])["keys"]
        for turn, key in enumerate(keys, 8 * (step - 1)):
            lap = before[turn % 24][2]
            found.setdefault((turn % 24, lap), []).append(key)
    # A lane's first lap is whole where a second has begun; none of its samples came twice.
    laps = [keys for (lane, lap), keys in found.items() if lap == 0 and (lane, 1) in found]
    assert len(laps) > 12 and all(len(keys) == len(set(keys)) for keys in laps)


def test_what_was_passed_over_is_told_at_the_end(folder):
    found = CliRunner().invoke(cli, ["stream", "run.yaml", "--steps", "12"])
    assert "skipped in clean/5.tar:" in found.stderr and "shard cut off or damaged" in found.stderr
    assert "skipped in clean/3.tar:" in found.stderr and "undecodable text" in found.stderr


def test_a_position_of_another_order_is_refused(folder, tmp_path):
    position = str(tmp_path / "position.json")
    stream("--steps", "2", "--position", position)
    for change in ("data.shuffle=9", "objectives.names.batch_size=48", "seed=1"):
        found = CliRunner().invoke(
            cli, ["stream", "run.yaml", change, "--steps", "3", "--position", position]
        )
        assert "its order of samples is not the one that the saved run had" in str(found.exception)


def test_more_bad_samples_than_allowed_stop_the_run_with_the_worst_shard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = {f"b{i}": {"txt": b"\xff"} for i in range(12)}
    write_shard(tmp_path / "0.tar", {f"g{i}": {"txt": "good"} for i in range(88)} | bad)
    (tmp_path / "run.yaml").write_text(
        "model: {name: ViT-B-32}\ndata: {shards: 0.tar, workers: 0, lanes: 1}\n"
        "objectives: {keep: {kind: preserve, batch_size: 100, towers: [text]}}\n"
        "optimizer: {lr: 1}\nsteps: 50\n"
    )
    found = CliRunner().invoke(cli, ["stream", "run.yaml", "--steps", "50"])
    assert re.fullmatch(
        r"(\d+) of 1\d\d\d samples cannot be used, more than data.max_bad_share \(0.1\) allows; "
        r"most often undecodable text in 0.tar \(\1\); mend the shards, leave them out, or raise "
        "data.max_bad_share",
        str(found.exception),
    )
    assert found.stdout.count("\n") in (8, 9)
    enough = ["stream", "run.yaml", "--steps", "50", "data.max_bad_share=0.2"]
    assert CliRunner().invoke(cli, enough).exit_code == 0


# Real processes


def launched(ranks: int, *arguments: str, python: str = sys.executable) -> subprocess.Popen:
    command = [python, "-m", "trainer", "stream", "run.yaml", *arguments]
    if ranks > 1:
        launcher = [python, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={ranks}", *command[1:]]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment["PYTHON_EXEC"] = python
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def test_two_real_processes_print_what_one_prints():
    process = launched(2, "--steps", "10", "data.workers=1", python=warm_python())
    found = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and found.splitlines() == stream("--steps", "10")


def test_a_file_that_is_no_position_is_refused(folder, tmp_path):
    (tmp_path / "results.json").write_text('{"before": 1}')
    position = str(tmp_path / "results.json")
    found = CliRunner().invoke(cli, ["stream", "run.yaml", "--position", position])
    assert isinstance(found.exception, ValueError)
    assert "results.json: it is no position in a stream" in str(found.exception)


def test_hosts_with_disks_of_their_own_go_on_from_the_first_ones_position(tmp_path):
    stream("--steps", "2", "--position", str(tmp_path / "0.json"))
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [warm_python(), "-m", "trainer", "stream", "run.yaml", "--steps", "4", "--position"]
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / f"{rank}.json")],
            env=os.environ | group | {"PYTHONPATH": str(REPOSITORY), "RANK": str(rank)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    found = [process.communicate(timeout=200)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert found == [stream("--steps", "4")[6:], []]
    assert not (tmp_path / "1.json").exists()


@pytest.mark.parametrize("kill_after_lines", [4, 31])
def test_killed_and_resumed_it_prints_what_it_would_have_printed(tmp_path, kill_after_lines):
    check_kill(tmp_path, kill_after_lines, (1, 1))


def check_kill(folder: Path, kill_after_lines: int, ranks: tuple[int, int], steps: int = 20):
    """Killed -9 after so many lines, then gone on; a step may be printed again, never otherwise."""
    position = folder / "position.json"
    endless = ["--steps", "1000000", "--position", str(position)]
    python = warm_python() if ranks[0] == 1 else sys.executable  # it is killed with its stand-in
    process = launched(ranks[0], *endless, python=python)
    lines = [process.stdout.readline() for _ in range(kill_after_lines)]
    kill_all(process)
    lines += process.communicate()[0].splitlines(keepends=True)
    printed = {}
    for line in lines:
        if line.endswith("\n"):
            one = json.loads(line)
            printed[one["step"], one["objective"]] = line.rstrip("\n")
    noted = StreamState.from_json(position.read_text()).step if position.exists() else 0
    assert {step for step, _ in printed} >= set(range(1, noted + 1))
    last = noted + steps
    again = launched(
        ranks[1], "--steps", str(last), "--position", str(position), python=warm_python()
    )
    for line in again.communicate(timeout=300)[0].splitlines():
        one = json.loads(line)
        place = one["step"], one["objective"]
        assert one["step"] > noted and printed.setdefault(place, line) == line
    whole = stream("--steps", str(last))
    by_place = [printed[json.loads(line)["step"], json.loads(line)["objective"]] for line in whole]
    assert by_place == whole
