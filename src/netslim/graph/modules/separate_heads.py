"""Attention whose heads are as many and as wide as its weights say, however wide its input is.

``nn.MultiheadAttention(768, 12)`` takes the width of a head to be 768 // 12, wants all heads
together to be as wide as its input, and its function refuses weights of other shapes. So no head
could go by itself, nor a channel of its input: 11 heads of 64 are 704. What is here computes the
same from the same parameters, and reads how many heads there are and how wide they are from
attributes. A trace follows channels through this code (`traced_by_heads`); a module that a cut
leaves in a shape which its own class refuses becomes one of these by a change of its class
(surgery/module_sizes.py), as `torch.nn.utils.parametrize` does it: it stays the same object with
the same parameters, hooks and place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.graph.modules.computed_convolutions import NotScripted
from netslim.graph.modules.walk import named_modules


class SeparateHeads(NotScripted, nn.MultiheadAttention):
    """An `nn.MultiheadAttention` of ``num_heads`` heads of ``head_dim``, however wide its input.

    What it takes and gives is as of `nn.MultiheadAttention`; ``embed_dim`` is the width of its
    queries, which ``num_heads * head_dim`` need not be. Products of queries and keys are multiplied
    with ``head_scale``, one by the root of the width that heads had at first.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        >>> graph = netslim.trace(layer, torch.randn(2, 5, 8))
        >>> scores = {"self_attn": torch.tensor([3.0, 1.0, 2.0, 4.0])}
        >>> plan = netslim.select(graph, scores, per_group={"self_attn": 1})
        >>> small = netslim.prune(layer, plan).self_attn
        >>> isinstance(small, netslim.models.SeparateHeads), small.num_heads, small.head_dim
        (True, 3, 2)
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
    ) -> tuple[Tensor, Tensor | None]:
        """As of `nn.MultiheadAttention`."""
        # Functions below and no methods: while a trace runs, this is the forward of modules which
        # other threads may be in, and which have their own class.
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is, and there is none")
        batched = query.dim() == 3
        q, k, v = _projected(self, query, key, value, batched)
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None  # it says nothing else
        else:
            is_causal = False
        mask = _joint_mask(self, attn_mask, key_padding_mask, q.dtype, batched)
        k, v, mask = _with_more_keys(self, k, v, mask)
        out, shares = _attended(self, q, k, v, mask, is_causal, need_weights)
        out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if shares is not None and not batched:
            shares = shares.squeeze(0)
        if shares is not None and average_attn_weights:
            shares = shares.mean(-3)
        return _as_given(self, out, batched), shares


def _projected(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, batched: bool
) -> list[Tensor]:
    """Queries, keys and values, each (N, heads, L, head_dim)."""
    if query is key and key is value and module.in_proj_weight is not None:
        x = _batch_first(module, query, batched)
        parts = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    else:
        inputs = [_batch_first(module, x, batched) for x in (query, key, value)]
        parts = tuple(map(F.linear, inputs, _weights(module), _biases(module)))
    return [_by_heads(module, part) for part in parts]


def _weights(module: nn.MultiheadAttention) -> Sequence[Tensor]:
    """Of the three projections."""
    if module.in_proj_weight is not None:
        return module.in_proj_weight.chunk(3)
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight


def _biases(module: nn.MultiheadAttention) -> Sequence[Tensor | None]:
    """Of the three projections."""
    if module.in_proj_bias is None:
        return None, None, None
    return module.in_proj_bias.chunk(3)


def _batch_first(module: nn.MultiheadAttention, x: Tensor, batched: bool) -> Tensor:
    """(N, L, width), whatever the module is given."""
    if not batched:
        return x.unsqueeze(0)
    if module.batch_first:
        return x
    return x.transpose(0, 1)


def _as_given(module: nn.MultiheadAttention, x: Tensor, batched: bool) -> Tensor:
    """(N, L, width) in the layout of what the module is given."""
    if not batched:
        return x.squeeze(0)
    if module.batch_first:
        return x
    return x.transpose(0, 1)


def _by_heads(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(N, L, width) to (N, heads, L, head_dim)."""
    return torch.unflatten(x, -1, (module.num_heads, module.head_dim)).transpose(1, 2)


def _joint_mask(
    module: nn.MultiheadAttention,
    mask: Tensor | None,
    padding: Tensor | None,
    dtype: torch.dtype,
    batched: bool,
) -> Tensor | None:
    """What is added to the scores, which broadcasts to (N, heads, L, S)."""
    mask, padding = _added(mask, dtype), _added(padding, dtype)
    if mask is not None and mask.dim() == 3:
        mask = torch.unflatten(mask, 0, (-1, module.num_heads))
    if padding is None:
        return mask
    if not batched:
        padding = padding.unsqueeze(0)
    padding = padding[:, None, None]
    if mask is None:
        return padding
    return mask + padding


def _with_more_keys(
    module: nn.MultiheadAttention, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """With keys and values behind them that no input makes: a learnt one, and zeros."""
    more = 0
    if module.bias_k is not None and module.bias_v is not None:
        size = (len(k), -1, -1, -1)
        k = torch.cat([k, _by_heads(module, module.bias_k).expand(size)], 2)
        v = torch.cat([v, _by_heads(module, module.bias_v).expand(size)], 2)
        more += 1
    if module.add_zero_attn:
        k, v = (torch.cat([t, torch.zeros_like(t[:, :, :1])], 2) for t in (k, v))
        more += 1
    if mask is not None and more:
        mask = F.pad(mask, (0, more))
    return k, v, mask


def _attended(
    module: nn.MultiheadAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    asked: bool,
) -> tuple[Tensor, Tensor | None]:
    """(N, heads, L, head_dim), and where asked for which share of each value it took."""
    p = 0.0
    if module.training:
        p = module.dropout
    scale = head_scale(module)
    if not asked:
        return F.scaled_dot_product_attention(q, k, v, mask, p, causal, scale=scale), None
    shares = F.dropout(_shares(q * scale, k, mask), p)
    return shares @ v, shares


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers that are added: minus infinity where a mask of truths says True."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _shares(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """(N, heads, L, S): which part of each value each query takes."""
    scores = torch.matmul(q, k.transpose(-2, -1))
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


def become_pytorchs(module: nn.MultiheadAttention) -> bool:
    """Let attention become an `nn.MultiheadAttention` that gives the same, if there is one.

    PyTorch's takes heads of ``embed_dim / num_heads`` channels. Where these are as many or more,
    the heads get channels of zeros, which add nothing to any product; its scale goes into what
    makes the queries. More heads would do, too, but shares averaged over heads would change.
    """
    heads, width = module.num_heads, module.embed_dim // module.num_heads
    if module.embed_dim % heads or width < module.head_dim:
        return False
    for holder, name, value in list(_widened(module, head_scale(module) * width**0.5)):
        trained = holder._parameters[name].requires_grad  # type: ignore[union-attr]
        holder._parameters[name] = nn.Parameter(value.contiguous(), trained)
    module.out_proj.in_features, module.head_dim = module.embed_dim, width
    vars(module).pop("head_scale", None)
    module._qkv_same_embed_dim = module.in_proj_weight is not None
    module.__class__ = nn.MultiheadAttention
    return True


def _widened(
    module: nn.MultiheadAttention, factor: float
) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(module, name, value) of its parameters for wider heads, queries times a factor."""
    held = {name: p.detach() for name, p in module._parameters.items() if p is not None}
    for name in {"in_proj_weight", "in_proj_bias"} & held.keys():
        q, k, v = held[name].chunk(3)
        yield module, name, torch.cat([_wider(module, part) for part in (q * factor, k, v)])
    if "q_proj_weight" in held:
        yield module, "q_proj_weight", _wider(module, held["q_proj_weight"] * factor)
    for name in {"k_proj_weight", "v_proj_weight"} & held.keys():
        yield module, name, _wider(module, held[name])
    for name in {"bias_k", "bias_v"} & held.keys():
        yield module, name, _wider(module, held[name].flatten()).view(1, 1, -1)
    yield module.out_proj, "weight", _wider(module, module.out_proj.weight.detach().T).T


def _wider(module: nn.MultiheadAttention, rows: Tensor) -> Tensor:
    """(heads * head_dim, ...) with rows of zeros for each head, up to ``embed_dim`` in all."""
    by_head = torch.unflatten(rows, 0, (module.num_heads, module.head_dim))
    more = module.embed_dim // module.num_heads - module.head_dim
    zeros = by_head.new_zeros(module.num_heads, more, *rows.shape[1:])
    return torch.cat([by_head, zeros], 1).flatten(0, 1)


def head_scale(module: nn.MultiheadAttention) -> float:
    """What products of queries and keys are multiplied with."""
    kept: float | None = vars(module).get("head_scale")
    if kept is None:
        kept = usual_scale(module)
    return kept


def usual_scale(module: nn.MultiheadAttention) -> float:
    """What PyTorch multiplies them with."""
    return float(int(module.head_dim) ** -0.5)


@contextmanager
def traced_by_heads(model: nn.Module) -> Iterator[None]:
    """Inside, attention of PyTorch's own class runs as what it can become."""
    own = [m for m in named_modules(model) if type(m) is nn.MultiheadAttention]
    changed = [module for module in own if "forward" not in vars(module)]
    try:
        for module in changed:
            vars(module)["head_scale"] = usual_scale(module)  # which no cut changes
            vars(module)["forward"] = MethodType(SeparateHeads.forward, module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)
            vars(module).pop("head_scale", None)


def by_heads(module: nn.MultiheadAttention) -> bool:
    """Whether a module runs as `SeparateHeads`."""
    return getattr(module.forward, "__func__", None) is SeparateHeads.forward


__all__ = [
    "SeparateHeads",
    "become_pytorchs",
    "by_heads",
    "head_scale",
    "traced_by_heads",
    "usual_scale",
]
