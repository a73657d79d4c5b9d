"""Attention in a traced graph: torch's multi-head module as the operations it consists of, and dropout of attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class SpelledOutAttention(nn.MultiheadAttention):
    """Takes the place of ``nn.MultiheadAttention`` on a copy of a network: the same weights and result.

    Known is self-attention without masks, as vision transformers use it; the attention weights are not returned.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Inputs (B, N, E), or (N, B, E) unless ``batch_first``; the result is of the same shape.

        Raises:
            NotImplementedError: Cross-attention, a mask, or another unusual form.
        """
        unusual: tuple[Any, ...] = (key_padding_mask, attn_mask, self.bias_k, self.in_proj_weight is None or None)
        if query is not key or query is not value or any(part is not None for part in unusual) or self.add_zero_attn:
            raise NotImplementedError("attention other than plain self-attention")
        x = query if self.batch_first else query.transpose(0, 1)
        heads = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        heads = heads.unflatten(-1, (3, self.num_heads, -1))  # type: ignore[no-untyped-call]
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal).transpose(1, 2).flatten(2)
        out = self.out_proj(y)
        return (out if self.batch_first else out.transpose(0, 1)), None


class DroppedAttention(nn.Module):
    """``F.scaled_dot_product_attention`` with a dropout that is at work in train mode, and only there.

    Args:
        p: Probability with which an attention weight is dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As the function: (..., N, E), (..., M, E), (..., M, V), mask (..., N, M) to (..., N, V)."""
        dropout = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"
