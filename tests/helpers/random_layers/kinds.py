"""From one kind of tensor to another, and what is done to sequences and vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from random_layers.layer import WIDTH, YES, Step, divisors, even, one, one_of, op, parameter, words


@op("map -> last", kind=words("permute movedim transpose"))
def channels_last(x, kind):
    def forward(s, v):
        if kind == "permute":
            return v.permute(0, 2, 3, 1)
        return v.movedim(1, -1) if kind == "movedim" else v.transpose(1, 2).transpose(2, 3)

    return Step(forward)


@op("last -> map", weight=12, contiguous=YES)
def channels_first(x, contiguous):
    return Step(lambda s, v: v.permute(0, 3, 1, 2).contiguous() if contiguous else v.movedim(3, 1))


@op("last -> last", weight=14, when=lambda x: all(n % 2 == 0 for n in x.space), out=WIDTH)
def windows(x, out):
    def forward(s, v):
        n, h, w, c = v.shape
        v = v.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        v = s.layer(v)
        v = v.view(n, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return v.reshape(n, h, w, -1)

    return Step(forward, layer=nn.Linear(x.c, out))


@op("map -> tokens", weight=4, kind=words("flatten permute view literal"))
def to_tokens(x, kind):
    def forward(s, v):
        n, c = v.shape[:2]
        if kind == "flatten":
            return v.flatten(2).transpose(1, 2)
        if kind == "permute":
            return v.permute(0, 2, 3, 1).reshape(n, -1, c)
        return (
            v.contiguous().view(n, c, -1).permute(0, 2, 1)
            if kind == "view"
            else v.reshape(-1, x.c, x.cells).mT
        )

    return Step(forward)


@op(
    "tokens -> map",
    weight=8,
    height=lambda x: divisors(x.cells),
    kind=words("rest shape unflatten attribute permute"),
)
def from_tokens(x, height, kind):
    width = x.cells // height

    def forward(s, v):
        if kind == "permute":
            return v.view(v.shape[0], height, width, -1).permute(0, 3, 1, 2)
        v = v.transpose(1, 2)
        if kind == "rest":
            return v.reshape(v.shape[0], -1, height, width)
        if kind == "shape":
            return v.reshape(*v.shape[:2], height, width)
        return (
            v.unflatten(2, (height, width))
            if kind == "unflatten"
            else v.reshape(-1, s.width, height, width)
        )

    return Step(forward, width=x.c)


@op("map -> tokens", weight=1, out=WIDTH)
def embedded(x, out):
    """Indices made from the features, looked up in a table."""
    return Step(
        lambda s, v: s.table((v.mean(1) > 0.1).long().flatten(1)), table=nn.Embedding(2, out)
    )


@op("tokens -> tokens", weight=4)
def positions(x):
    return Step(lambda s, v: v + s.table, table=parameter(1, x.cells, x.c))


@op("tokens -> tokens", weight=10, when=lambda x: x.cells <= 20)
def class_token(x):
    return Step(
        lambda s, v: torch.cat([s.token.expand(v.shape[0], -1, -1), v], 1),
        token=parameter(1, 1, x.c),
    )


@op(
    "any -> same",
    weight=3,
    when=lambda x: x.kind in ("tokens", "last"),
    hidden=WIDTH,
    kind=words("mlp gated swiglu"),
)
def mlp(x, hidden, kind):
    def forward(s, v):
        if kind == "mlp":
            return s.down(F.gelu(s.up(v)))
        a, b = s.up(v).chunk(2, -1)
        return s.down(F.silu(a) * b if kind == "swiglu" else a * b.sigmoid())

    return Step(
        forward,
        up=nn.Linear(x.c, hidden * (1 if kind == "mlp" else 2)),
        down=nn.Linear(hidden, x.c),
    )


@op("tokens -> tokens", weight=4)
def token_mixing(x):
    return Step(
        lambda s, v: v + s.layer(v.transpose(1, 2)).transpose(1, 2),
        layer=nn.Linear(x.cells, x.cells),
    )


@op("any -> same", weight=3, when=lambda x: x.kind in ("tokens", "last"), out=WIDTH)
def linear(x, out):
    return one(nn.Linear(x.c, out))


@op(
    "tokens -> tokens",
    weight=8,
    when=lambda x: x.cells <= 20,
    out=st.integers(2, 6),
    kind=words("LSTM GRU RNN"),
    both=YES,
    layers=one_of(1, 2),
)
def recurrent(x, out, kind, both, layers):
    layer = getattr(nn, kind)(x.c, out, layers, batch_first=True, bidirectional=both)
    return Step(lambda s, v: s.layer(v)[0], layer=layer)


@op("tokens -> vector", weight=3, out=st.integers(2, 6), cell=YES)
def recurrent_state(x, out, cell):
    def forward(s, v):
        if not cell:
            return s.layer(v)[1][-1]
        state = torch.zeros(v.shape[0], out, dtype=v.dtype)
        for step in v[:, :3].unbind(1):
            state = s.layer(step, state)
        return state

    return Step(forward, layer=nn.GRUCell(x.c, out) if cell else nn.GRU(x.c, out, batch_first=True))


@op(
    "map -> series",
    kind=words("flatten mean merge merge_shape"),
    when=lambda x: x.c * x.sizes[1] <= 48,
)
def to_series(x, kind):
    def forward(s, v):
        if kind == "flatten":
            return v.flatten(2)
        if kind == "mean":
            return v.mean(2)
        return (
            v.flatten(1, 2)
            if kind == "merge"
            else v.contiguous().view(v.shape[0], v.shape[1] * v.shape[2], -1)
        )

    return Step(forward)


@op("series -> map", weight=5, height=lambda x: divisors(x.cells))
def from_series(x, height):
    return Step(lambda s, v: v.reshape(*v.shape[:2], height, -1))


@op("series -> tokens", weight=4)
def series_to_tokens(x):
    return Step(lambda s, v: v.transpose(1, 2))


@op("map -> vector", weight=4, kind=words("mean amax module view attribute squeeze statistics"))
def to_vector(x, kind):
    def forward(s, v):
        if kind == "module":
            return F.adaptive_avg_pool2d(v, 1).flatten(1)
        if kind == "view":
            return F.adaptive_avg_pool2d(v, 1).view(v.shape[0], -1)
        if kind == "attribute":
            return v.mean((2, 3)).view(-1, s.width)
        if kind == "squeeze":
            return v.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)
        if kind == "statistics":
            return torch.cat([v.mean((2, 3)), v.std((2, 3), unbiased=False)], 1)
        return getattr(v, kind)((2, 3))

    return Step(forward, width=x.c)


@op(
    "map -> vector",
    weight=3,
    when=lambda x: x.c * x.cells <= 200,
    kind=words("flatten view last shape literal attribute columns"),
    out=WIDTH,
)
def flattened(x, kind, out):
    def forward(s, v):
        n, c, h, w = v.shape
        if kind == "last":
            v = v.permute(0, 2, 3, 1).reshape(n, -1)
        elif kind == "columns":
            v = v.transpose(1, 3).flatten(1)
        elif kind == "flatten":
            v = torch.flatten(v, 1)
        else:
            v = v.reshape(
                -1 if kind == "literal" else n,
                {"view": -1, "shape": c * h * w, "literal": total, "attribute": s.width * h * w}[
                    kind
                ],
            )
        return s.layer(v)

    total = x.c * x.cells
    return Step(forward, layer=nn.Linear(total, out), width=x.c)


@op("vector -> map", kind=words("none view attribute expand literal"))
def from_vector(x, kind):
    def forward(s, v):
        if kind == "none":
            return v[:, :, None, None]
        if kind == "view":
            return v.view(*v.shape, 1, 1)
        if kind == "expand":
            return v.unsqueeze(-1).unsqueeze(-1).expand(-1, -1, 4, 5)
        return v.view(-1, s.width if kind == "attribute" else x.c, 1, 1)

    return Step(forward, width=x.c)


@op("vector -> map", weight=4, out=WIDTH, mode=words("rest attribute literal"), order=YES)
def projected_to_map(x, out, mode, order):
    def forward(s, v):
        width = {"rest": -1, "attribute": s.width, "literal": out}[mode]
        v = s.layer(v)
        return (
            v.view(v.shape[0], width, 2, 3)
            if order
            else v.view(v.shape[0], 2, 3, width).permute(0, 3, 1, 2)
        )

    return Step(forward, layer=nn.Linear(x.c, out * 6), width=out)


@op("vector -> vector", weight=4, out=WIDTH, normed=YES)
def linear_of_vectors(x, out, normed):
    if normed:
        return Step(
            lambda s, v: F.linear(v, s.weight / s.weight.norm(dim=1, keepdim=True)),
            weight=parameter(out, x.c),
        )
    return one(nn.Linear(x.c, out))


@op(
    "tokens -> vector",
    weight=4,
    kind=words("mean first max flatten"),
    when=lambda x: x.c * x.cells <= 200,
)
def tokens_to_vector(x, kind):
    def forward(s, v):
        if kind == "first":
            return v[:, 0]
        if kind == "max":
            return v.max(1)[0]
        return v.mean(1) if kind == "mean" else v.flatten(1)

    return Step(forward)


@op("vector -> vector", weight=4, kind=words("softmax normalize layer_norm halves"), when=even)
def vectors_mixed(x, kind):
    def forward(s, v):
        if kind == "halves":
            half = v.shape[1] // 2
            return v[:, :half] * v[:, half:].sigmoid()
        return F.layer_norm(v, v.shape[1:]) if kind == "layer_norm" else getattr(F, kind)(v, dim=1)

    return Step(forward)
