"""open_clip's transformers without what they compute in vain: the same weights, the same sums.

torch's attention turns the rows round twice and copies queries, keys and values; kernels take them
where the projection wrote them, and masks of each row's own. And of the last block one token of a
picture or a caption is read: its MLP, two thirds of a block, is computed for no other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class AttentionOnCPU(torch.autograd.Function):
    """Softmax of products, in one copy each way: of as few tokens as a picture or a caption has,
    torch's kernels spend more time on what is around the products than on these."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
        """projected: (n, l, 3 * w), queries, keys, values; mask: additive, (l, l) or (n, 1, l, l)
        or (n, heads, l, l). Returns (n, l, w)."""
        n, length, width = projected.shape
        shape = (n, num_heads, length, width // 3 // num_heads)
        heads = projected.view(n, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv = heads.reshape(3, n * num_heads, length, -1)
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(shape[-1] ** -0.5)
        if mask is not None:
            scores.view(n, num_heads, length, length).add_(mask)
        weights = scores.softmax(-1).to(projected.dtype)  # which autocast would have in float32
        ctx.save_for_backward(qkv, weights)
        ctx.shape = shape
        return torch.bmm(weights, v).view(shape).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (q, k, v), weights = qkv, _ = ctx.saved_tensors
        n, num_heads, length, head_dim = ctx.shape
        grad = grad.unflatten(-1, (num_heads, head_dim)).transpose(1, 2).reshape_as(v)
        grads = torch.empty_like(qkv)
        torch.bmm(weights.transpose(1, 2), grad, out=grads[2])
        of_weights = torch.bmm(grad, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_scores.mul_(head_dim**-0.5)
        torch.bmm(of_scores, k, out=grads[0])
        torch.bmm(of_scores.transpose(1, 2), q, out=grads[1])
        return grads.view(3, *ctx.shape).permute(1, 3, 0, 2, 4).reshape(n, length, -1), None, None


class SelfAttention(nn.MultiheadAttention):
    """Made of one that is there, by `lean`: what it is called stays, and its weights."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query: (n, l, w), which key and value are as well; attn_mask: additive, (l, l), or
        (n * heads, l, l) as torch has it, or (n, 1, l, l). Returns (n, l, w) and no weights."""
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        # What is compiled makes its own of the sums that it is shown.
        if projected.device.type == "cpu" and not torch.compiler.is_compiling():
            attended = AttentionOnCPU.apply(projected, self.num_heads, attn_mask)
        else:
            heads = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).transpose(1, 3)
            q, k, v = heads.unbind(2)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
            attended = attended.transpose(1, 2).flatten(2)
        # Not by a call of `out_proj`, as torch's own: ZeRO-3 would gather further ahead for it,
        # and take up to 300 MB more for ViT-B/32's text tower.
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias), None


class LeanBlock(ResidualAttentionBlock):
    """Made of one that is there, by `lean`."""

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, read: Tensor | None = None
    ) -> Tensor:
        """x: (n, l, w). read: None, or (m,) int64, which of its n * l tokens go on. Returns
        (n, l, w), or (m, w)."""
        x = x + self.ls_1(self.attention(self.ln_1(x), attn_mask=attn_mask))
        if read is not None:
            x = x.flatten(0, 1).index_select(0, read)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class LeanTransformer(Transformer):
    """Made of one that is there, by `lean`. reads_first: the image tower's, by its class token."""

    reads_first = False

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, read: Tensor | None = None
    ) -> Tensor:
        """x: (n, l, w). read: as its last block takes it. Returns (n, l, w), or (m, w), or of
        pictures (n, 1, w)."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, attn_mask=attn_mask)
        if self.reads_first:
            n, length, _ = x.shape
            return last(x, read=torch.arange(0, n * length, length, device=x.device))[:, None]
        return last(x, attn_mask=attn_mask, read=read)


def lean(model: nn.Module) -> None:
    """In place, wherever the blocks are open_clip's plain ones."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if attends_to_itself(module):
            module.__class__, module.attn.__class__ = LeanBlock, SelfAttention
    for module in modules:
        if type(module) is Transformer and all(map(attends_to_itself, module.resblocks)):
            module.__class__ = LeanTransformer
    for module in modules:
        if isinstance(module, VisionTransformer) and type(module.transformer) is LeanTransformer:
            module.transformer.reads_first = (
                module.pool_type == "tok" and module.attn_pool is None and not module.output_tokens
            )


def attends_to_itself(block: Any) -> bool:
    """Whether it is open_clip's plain block, with the attention of torch."""
    return (
        type(block) in (ResidualAttentionBlock, LeanBlock)
        and not hasattr(block, "ln_1_kv")
        and type(block.attn) in (nn.MultiheadAttention, SelfAttention)
        and block.attn.batch_first
    )
