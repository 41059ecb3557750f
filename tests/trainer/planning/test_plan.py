"""A plan is what a run takes: the quick case; tests/slow/test_peaks.py has all strategies."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY
from tests.trainer.peaks import measured, planned, write_world
from tests.warm_python import warm_python
from trainer.strategies.launching import Launch


def test_one_process_takes_what_is_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_world(tmp_path)
    own_clip = [f"model.name=local-dir:{REPOSITORY}/plugins/fictitious/clip"]
    own_clip += ["objectives.keep.batch_size=128", "objectives.names.batch_size=128"]
    (own,) = measured(folder, "text", "cpu.yaml", [], *own_clip, python=warm_python())
    (peak,), sent = planned(folder, "text", Launch(), *own_clip)
    print(f"\nplanned {peak / 1e6:.0f} MB, measured {own['peak'] / 1e6:.0f} MB")
    assert peak == pytest.approx(own["peak"], rel=0.1)
    assert sent == own["sent_values"] == 0
