"""One tiny model of each kind that open_clip makes."""

from __future__ import annotations

import pytest

from tests.trainer.architectures import KINDS, Original, make


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Original]:
    folder = tmp_path_factory.mktemp("originals")
    return {kind: make(kind, folder) for kind in KINDS}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Original:
    return make("plain", tmp_path_factory.mktemp("plain"))
