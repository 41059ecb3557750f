"""Self-attention for GPUs: nn.MultiheadAttention's weights and sums without its copies.

torch's own turns the rows round twice and copies queries, keys and values; the kernels that GPUs
have take them where the projection wrote them, and masks of each row's own.
"""

from __future__ import annotations

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


class SelfAttention(nn.MultiheadAttention):
    """Made of one that is there, by `without_copies`: what it is called stays, and its weights."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query: (n, l, d), which key and value are as well; attn_mask: additive, (l, l), or
        (n * heads, l, l) as torch has it, or (n, 1, l, l). Returns (n, l, d) and no weights."""
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).transpose(1, 3)
        q, k, v = heads.unbind(2)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def without_copies(model: nn.Module) -> None:
    """In place, wherever a block attends to itself."""
    for module in model.modules():
        if attends_to_itself(module) and type(module.attn) is nn.MultiheadAttention:
            module.attn.__class__ = SelfAttention


def attends_to_itself(block: nn.Module) -> bool:
    """Whether it is open_clip's plain block, with the attention of torch."""
    return (
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and isinstance(block.attn, nn.MultiheadAttention)
        and block.attn.batch_first
    )
