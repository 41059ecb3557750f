"""The page on scaling says what the dry run counts."""

from __future__ import annotations

from tests.benchmarks.scaling import PAGE, rows, table


def test_the_pages_table_is_what_is_computed():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_what_each_gpu_sends_grows_towards_three_times_the_weights_and_no_further():
    """All-reduced gradients twice, gathered weights once; two bytes each."""
    sent = [row["sent"] for row in rows()]
    assert sent == sorted(sent)
    assert 3 * 2 * 85e6 < sent[-1] / (1023 / 1024) < 3 * 2 * 87e6
