from __future__ import annotations

import pytest
import torch

from tests.ranks import on_ranks
from trainer import share_rows


def doubled(rows):
    return torch.stack([rows.sum(-1), 2 * rows[:, 0]], dim=1)


def test_work_is_done_on_blocks_of_rows():
    rows, sizes = torch.arange(14.0).view(7, 2), []

    def work(block):
        sizes.append(len(block))
        return doubled(block)

    assert share_rows(rows, work, block=3).equal(doubled(rows))
    assert sizes == [3, 3, 1]


def share_and_check(rank: int) -> None:
    for count in (1, 2, 3, 5, 6, 7, 40):
        rows = torch.arange(2.0 * count).view(count, 2)
        done = 0

        def work(block):
            nonlocal done
            done += len(block)
            assert len(block) <= 3
            return doubled(block)

        found = share_rows(rows, work, block=3)
        assert found.equal(doubled(rows)), (rank, count)
        assert done < count or count <= 3, "one rank does all the work"
        places = share_rows(rows, lambda block: block.argmax(-1).int(), block=3)
        assert places.equal(torch.ones(count, dtype=torch.int32))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_blocks_and_each_gets_all_results_in_order(ranks):
    on_ranks(ranks, share_and_check)
