"""All-reduces among processes that really meet, and what they leave behind."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.trainer.doctor.test_examination import free_port
from trainer.doctor.peers import Peers, Process
from trainer.doctor.reachability import NUMBERS, all_reduce, backends


@pytest.fixture(autouse=True)
def _own_port(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())


def leaves_after_one() -> None:
    """The second of two processes: it goes when all have met."""
    peers = Peers(Process(1, 2), 30.0)
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore("gloo", peers.store),
        rank=1,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    dist.all_reduce(torch.full((NUMBERS,), 2.0))


def test_where_the_others_go_it_is_told_and_the_next_backend_is_not_in_the_way():
    child = os.fork()
    if child == 0:
        try:
            leaves_after_one()
        finally:
            os._exit(0)
    found = all_reduce(Peers(Process(0, 2), 30.0), "gloo")
    os.waitpid(child, 0)
    assert found.level == "fail" and "process 0 cannot all-reduce by gloo" in found.what
    assert not dist.is_initialized()


def test_gpus_that_a_run_leaves_alone_are_not_added_up_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends() == ("gloo", "nccl")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert backends() == ("gloo",)
