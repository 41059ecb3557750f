"""Text towers at the length of their captions: where padding cannot matter, it is not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.models.blocks import LeanTransformer

GROUPS, MIN_GROUP = 4, 32  # captions: fewer are not worth a call of their own


def first_output(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]  # some towers give tokens too


def text_forward_of(tower: Any, pad_id: int) -> Callable[..., Tensor]:
    """The shortest forward whose result is the full length's."""
    if isinstance(tower, HFTextEncoder):
        config: Any = tower.config
        # Padding is masked in attention and pooling, wherever it is padding to the tower too.
        pooled = isinstance(tower.pooler, (MeanPooler, ClsPooler, ClsLastHiddenStatePooler))
        return as_it_is if pooled and config.pad_token_id == pad_id else full_length_text
    return short_text if takes_short_text(tower, pad_id) else full_length_text


def takes_short_text(tower: nn.Module, pad_id: int) -> bool:
    """Whether cutting the padding off changes nothing: causal attention, the end token read."""
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None
        and not tower.use_pad_mask
        and (
            tower.pool_type == "first"
            or (tower.pool_type == "argmax" and pad_id == 0)  # else padding may be the largest
            or (tower.pool_type == "eos" and pad_id != tower.eos_id)  # else it is cut off as well
        )
    )


def short_text(tower: TextTransformer, tokens: Tensor, pad_id: int, full_length: int) -> Tensor:
    """`tower.forward` at the length of the tokens, which open_clip's refuses. Returns (n, d)."""
    if tokens.device.type == "cpu" and not is_shared_out(tower):
        return by_length(tower, tokens, pad_id)
    return cut_text(tower, tokens)


def is_shared_out(tower: nn.Module) -> bool:
    """Whether each process has a part of the weights (FSDP2, ZeRO-3): to run a tower is then a
    collective, so that all have to run it equally often, however many captions they have.
    """
    return any(isinstance(p, DTensor) or hasattr(p, "ds_tensor") for p in tower.parameters())


def by_length(tower: TextTransformer, tokens: Tensor, pad_id: int) -> Tensor:
    """Captions of like length together, in at most `GROUPS` calls: less padding is computed.

    A CPU's way: on a GPU small calls cost more than padding, and lengths a synchronisation.
    """
    groups = groups_of(tokens, pad_id)
    embedded = [cut_text(tower, tokens[rows, :length]) for rows, length in groups]
    return torch.cat(embedded)[torch.cat([rows for rows, _ in groups]).argsort()]


def groups_of(tokens: Tensor, pad_id: int) -> list[tuple[Tensor, int]]:
    """Rows of like length, and the longest's length."""
    lengths = lengths_of(tokens, pad_id)
    order = lengths.argsort(stable=True)
    num_groups = max(1, min(GROUPS, len(tokens) // MIN_GROUP))
    return [(rows, int(lengths[rows[-1]])) for rows in order.chunk(num_groups)]


def lengths_of(tokens: Tensor, pad_id: int) -> Tensor:
    """Of each caption up to its last token that is no padding. (n, l) to (n,)."""
    if not len(tokens):
        return torch.empty(0, dtype=torch.int64)
    places = torch.arange(1, tokens.shape[1] + 1)
    return (places * (tokens != pad_id)).amax(1).clamp(min=1)


def cut_text(tower: TextTransformer, tokens: Tensor) -> Tensor:
    """All captions at the length of the tokens: the very sums that open_clip does at its own."""
    length = tokens.shape[1]
    x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    mask: Any = tower.attn_mask
    starts = torch.arange(0, tokens.numel(), length, device=tokens.device)
    return read_out(tower, x, mask[:length, :length], starts + place_of_end(tokens, tower))


def place_of_end(tokens: Tensor, tower: TextTransformer) -> Tensor:
    """Of the token that open_clip's `text_global_pool` takes. (n, l) to (n,)."""
    if tower.pool_type == "argmax":
        return tokens.argmax(-1)
    if tower.pool_type == "eos":
        return (tokens == tower.eos_id).int().argmax(-1)
    return torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)  # "first"


def read_out(tower: TextTransformer, x: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
    """Tokens through the blocks. x: (r, l, w); ends: (n,), which of them all are read. Returns
    (n, d)."""
    if isinstance(tower.transformer, LeanTransformer):
        pooled = tower.transformer(x, attn_mask=mask, read=ends)
    else:
        pooled = tower.transformer(x, attn_mask=mask).flatten(0, 1)[ends]
    pooled = tower.ln_final(pooled)
    if tower.text_projection is None:
        return pooled
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(pooled)
    return pooled @ tower.text_projection


def as_it_is(tower: nn.Module, tokens: Tensor, pad_id: int, full_length: int) -> Tensor:
    """A Hugging Face tower, which takes any length and masks padding. Returns (n, d)."""
    return first_output(tower(tokens))


def full_length_text(tower: nn.Module, tokens: Tensor, pad_id: int, full_length: int) -> Tensor:
    """Any other text tower, at the full length that the tokenizer gives. Returns (n, d)."""
    return first_output(tower(F.pad(tokens, (0, full_length - tokens.shape[1]), value=pad_id)))
