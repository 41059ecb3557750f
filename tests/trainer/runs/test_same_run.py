from __future__ import annotations

import locale
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.conftest import REPOSITORY
from trainer.configuration.config import load_config
from trainer.runs.run import Run
from trainer.runs.same_run import changes


def test_what_a_result_follows_from_is_told_by_its_path():
    asked = {
        "data": {"shards": ["https://h/0.tar?sig=aa", "b/*.tar"], "workers": 2},
        "optimizer": {"lr": 0.1, "betas": [0.9, 0.98]},
        "checkpoint": {"every": 5},
        "steps": 10,
    }
    assert changes(asked, asked) == []
    signed_again = ["https://h/0.tar?sig=bb", "b/*.tar"]
    other = asked | {"checkpoint": {}, "data": {"shards": signed_again, "workers": 0}}
    assert changes(other, asked) == []
    other = asked | {"optimizer": {"lr": 0.2, "betas": [0.9, 0.98]}, "seed": 1}
    assert changes(other, asked) == ["optimizer.lr", "seed"]
    assert changes(asked | {"data": {"shards": ["c/*.tar"]}}, asked) == ["data.shards"]
    made, used = (asked | {"data": asked["data"] | {"embeddings": how}} for how in ("make", "use"))
    assert changes(made, used) == []
    assert changes(made, asked) == ["data.embeddings"]


def test_a_configuration_is_known_again_in_any_locale(small_world, monkeypatch, capsys):
    monkeypatch.chdir(small_world)
    options = ["output=runs/é", "trackers=[]", "evaluations={}", "model.random_weights=true"]
    config = load_config(REPOSITORY / "configs/demo.yaml", options)
    Run(config, Accelerator(cpu=True)).end()
    own = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        Run(config, Accelerator(cpu=True)).end()
    finally:
        locale.setlocale(locale.LC_CTYPE, own)
    assert "an earlier run is kept as runs/é.1" in capsys.readouterr().out


def test_a_folder_that_is_no_runs_is_left_as_it_is(small_world, monkeypatch):
    monkeypatch.chdir(small_world)
    Path("private").mkdir()
    Path("private/requests.csv").write_text("name\n")
    options = ["output=private", "trackers=[]", "evaluations={}", "model.random_weights=true"]
    config = load_config(REPOSITORY / "configs/demo.yaml", options)
    with pytest.raises(FileExistsError, match="private is not empty and no run's; name another"):
        Run(config, Accelerator(cpu=True))
    assert [path.name for path in Path("private").iterdir()] == ["requests.csv"]
