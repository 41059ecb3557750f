"""Which name each picture is nearest to: the exact answer, where it pays by way of a coarse one.

Cores that multiply matrices in bfloat16 do so four times as fast as in float32. How far such a
product can be from the exact one is known, so all names but a few are ruled out by it, and only
those few are compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer import share_rows

ABSENT = -1  # stands for the name chosen by a picture that does not decode, or of no candidates
MAX_LEFT = 64  # names a picture, on average; where more are left all are compared exactly
Nearest = Callable[[Tensor], Tensor]  # (n, d) pictures -> (n, 2) places of their names


def nearest_names(images: Tensor, names: Tensor, num_known: int, block: int = 1024) -> Tensor:
    """The name with the highest cosine for each image, the first where several are equal.

    images: (n, d), any length; names: (k, d), unit length; block: images at a time, to bound the
    (block, k) cosines. Returns (n, 2) indices into k: among all names, and among the first
    `num_known`; of an image that is not finite, any. The ranks share the images out.
    """
    nearest = exact(names, num_known)
    if multiplies_in_bfloat16(images.device):
        nearest = by_ruling_out(names, num_known, otherwise=nearest)
    return share_rows(images, nearest, block)


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether in tiles: by AVX-512's dot products of two it takes longer than in float32."""
    # torch < 2.9 does not tell. A GPU is fast enough not to be asked twice.
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(told.get("amx_bf16", told.get("amx_tile")))


def exact(names: Tensor, num_known: int) -> Nearest:
    def nearest(rows: Tensor) -> Tensor:
        cosines = rows @ names.mT
        best = cosines.new_full((len(rows),), -torch.inf)
        place = torch.full((len(rows),), ABSENT, device=rows.device)
        places = []
        for start, stop in ((0, num_known), (num_known, len(names))):
            if start < stop:
                # `max` with its place is twice as fast as `argmax`; both take the first of equals.
                highest, nearer = cosines[:, start:stop].max(-1)
                is_nearer = highest > best
                best = torch.where(is_nearer, highest, best)
                place = torch.where(is_nearer, nearer + start, place)
            places.append(place)
        return torch.stack(places[::-1], dim=1).int()

    return nearest


def by_ruling_out(names: Tensor, num_known: int, otherwise: Nearest) -> Nearest:
    """otherwise: of a block where bfloat16 rules too few names out."""
    coarse_names = names.bfloat16()
    longest = _lengths(names).max()
    # |xy - x'y'| <= |x - x'||y| + |x'||y - y'|, and the sum of d products in float32 adds to it.
    off_names = _lengths(names - coarse_names).max() + names.shape[1] * 2**-22 * longest

    def nearest(rows: Tensor) -> Tensor:
        coarse_rows = rows.bfloat16()
        off = _lengths(rows - coarse_rows) * longest + _lengths(coarse_rows) * off_names
        cosines = coarse_rows @ coarse_names.mT
        left = torch.empty(cosines.shape, dtype=torch.bool)
        for start, stop in ((0, num_known), (num_known, len(names))):
            if start < stop:
                # The known among themselves, the others against all.
                best = cosines[:, :stop].amax(1).float()
                # Each of the two may be off, and is rounded itself to bfloat16.
                lowest = best - 2 * off - best.abs() * 2**-8
                left[:, start:stop] = cosines[:, start:stop] >= lowest.bfloat16()[:, None]
        row, place = left.nonzero(as_tuple=True)
        if len(row) > MAX_LEFT * len(rows):
            return otherwise(rows)
        cosine = (rows[row] * names[place]).sum(-1)
        known = place < num_known
        both = [
            _first_of_the_highest(row, place, cosine, len(rows)),
            _first_of_the_highest(row[known], place[known], cosine[known], len(rows)),
        ]
        return torch.stack(both, dim=1).int()

    return nearest


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.float(), dim=-1)


def _first_of_the_highest(row: Tensor, place: Tensor, cosine: Tensor, num_rows: int) -> Tensor:
    """(n,) the place of each row's highest cosine, ABSENT of a row without any."""
    best = cosine.new_full((num_rows,), -torch.inf).scatter_reduce(0, row, cosine, "amax")
    is_best = cosine == best[row]
    found = torch.full((num_rows,), ABSENT)
    return found.scatter_reduce(0, row[is_best], place[is_best], "amin", include_self=False)
