"""What lies in parts on many ranks and is sent a few values at a time is whole again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.strategies.pieces import Parts, Piece, put_together

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_parts_of_any_size_sent_so_many_at_a_time_give_the_tensors(sizes, ranks, few, is_each_cut):
    """Cut as ZeRO-3 does, each tensor among all ranks, or as ZeRO-1 and -2, all one after the
    other."""
    tensors = {str(i): torch.randn(size) for i, size in enumerate(sizes)}
    places = [(name, i) for name, tensor in tensors.items() for i in range(len(tensor))]
    if is_each_cut:
        cuts = {name: -(-len(tensor) // ranks) for name, tensor in tensors.items()}
        owners = [i // cuts[name] for name, i in places]
    else:
        owners = [i * ranks // len(places) for i in range(len(places))]
    pieces = []
    for rank in range(ranks):
        own = [place for place, owner in zip(places, owners, strict=True) if owner == rank]
        names = list(dict.fromkeys(name for name, _ in own))
        starts = [min(i for whose, i in own if whose == name) for name in names]
        counts = [sum(whose == name for whose, _ in own) for name in names]
        ends = torch.tensor(counts).cumsum(0).tolist()
        parts, flat = Parts(names, starts, ends), torch.tensor([tensors[n][i] for n, i in own])
        for begin in range(0, len(flat), few):
            sent = flat[begin : begin + few]
            for name, start, low, high in parts.within(begin, begin + few):
                pieces.append(Piece(name, tensors[name].shape, start, sent[low:high]))
    found = put_together(pieces, {})
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) for name, tensor in tensors.items())


def test_nothing_lies_beyond_the_parts_or_where_there_are_none():
    assert list(Parts(["a"], [3], [2]).within(2, 9)) == []
    assert list(Parts(["a"], [3], [2]).within(1, 9)) == [("a", 4, 0, 1)]
    assert list(Parts([], [], []).within(0, 9)) == []


def test_a_tensor_keeps_its_shape_and_kind_and_its_room_is_used_again():
    room = {}
    first = torch.arange(6, dtype=torch.int16).view(2, 3)
    number = torch.tensor(2.5)
    found = put_together([Piece.whole("a", first.T), Piece.whole("b", number)], room)
    assert found["a"].equal(first.T) and found["a"].dtype == torch.int16
    assert found["b"].equal(number)
    again = put_together([Piece.whole("a", first.T + 1)], room)
    assert again.keys() == {"a"} and again["a"] is found["a"] and again["a"].equal(first.T + 1)
