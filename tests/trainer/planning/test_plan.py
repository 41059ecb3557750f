"""A plan is what a run takes: the quick case; tests/slow/test_peaks.py has all strategies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import REPOSITORY
from tests.trainer.peaks import measured, planned, write_world
from tests.warm_python import warm_python
from trainer.configuration.config import load_config
from trainer.data.batches import Batches
from trainer.models import clip as clips
from trainer.planning.plan import FULL, Sizes, kind_of, plan_of
from trainer.planning.rehearsal import rehearse
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


def test_a_gpu_must_hold_the_student_whole_before_it_is_shared_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_clip = [f"model.name=local-dir:{REPOSITORY}/plugins/fictitious/clip"]
    config = load_config(write_world(tmp_path) / "text.yaml", own_clip)
    clip = clips.load(config.model, weightless=True)
    student = clips.student_of(clip, config.trained, config.model, config.trains_temperature)
    batch = next(Batches(config.objectives, config.data, clip, 0, 0, 1))
    huge = replace(Sizes.of(student, clip), student=10**10, trained=10**10)

    def peak(devices: int) -> int:
        launch = Launch("zero3", devices, "bf16", offloads_weights=True, offloads_moments=True)
        rehearsal = rehearse(student, batch, kind_of(launch, "cuda"))
        return plan_of(config, launch, "cuda", huge, rehearsal, batch).peak

    in_bf16 = 2 * huge.student  # the teacher
    assert peak(64) == peak(1024) == FULL * huge.student + in_bf16
    assert peak(1) > peak(64)
