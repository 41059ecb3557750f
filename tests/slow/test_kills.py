"""Killed at random moments, a stream goes on as if nothing had happened."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.test_preview import check_kill, folder, in_folder  # noqa: F401

pytestmark = pytest.mark.slow


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.integers(1, 300), ranks=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
def test_whatever_moment_it_is_killed_at(tmp_path_factory, lines, ranks):
    check_kill(tmp_path_factory.mktemp("killed"), lines, ranks)
