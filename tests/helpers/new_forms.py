"""A network with every form that a cut puts in the place of modules and of calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import netslim
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

PICTURES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WIDE = 12


class Response(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(1, WIDE, 1, 1)) for _ in range(2))
        self.eps = 1e-6

    def forward(self, x):
        length = x.norm(dim=(2, 3), keepdim=True)
        return (
            x + self.bias + self.weight * x * (length / (length.mean(1, keepdim=True) + self.eps))
        )


class Over(nn.Module):
    """A function of an input, in a module of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pictures(nn.Module):
    """All kinds of statistics over channels along dimension 1."""

    def __init__(self):
        super().__init__()
        self.stem = spectral_norm(nn.Conv2d(3, WIDE, 3, padding=1))
        self.group, self.response = nn.GroupNorm(3, WIDE), Response()
        self.slide, self.tail = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(WIDE, WIDE, 1)
        self.mean, self.largest = Over(lambda x: x.mean(1, keepdim=True)), Over(lambda x: x.amax(1))
        self.both = Over(lambda x: torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1))

    def forward(self, x):
        x = self.response(self.group(self.stem(x)))
        x = x * self.slide(x.mean((2, 3))[:, None]).sigmoid().movedim(1, 2)[..., None]
        x = x * (self.mean(x) + self.largest(x)[:, None] + self.both(x).sum(1, keepdim=True)).tanh()
        x = (
            x
            * (x.mean(1, keepdim=True) + x.max(1, keepdim=True)[0] + x.amin(1, keepdim=True)).tanh()
        )
        x = x / (x.var(1, keepdim=True) + x.std(1, keepdim=True) + 1)
        variance, mean = torch.var_mean(x, 1, keepdim=True)
        x = F.group_norm((x - mean) / (variance + 1), 2) + F.normalize(x, dim=1)
        return self.tail(x)


class Tokens(nn.Module):
    """Norms along the last dimension, and heads."""

    def __init__(self):
        super().__init__()
        self.layer, self.root = (
            nn.LayerNorm(WIDE),
            nn.RMSNorm(WIDE, eps=1e-5, elementwise_affine=False),
        )
        self.heads = nn.MultiheadAttention(WIDE, 3, batch_first=True)
        self.qkv, self.out, self.count = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, 5), 3

    def forward(self, x):
        x = x.flatten(2).movedim(1, 2)
        x = x + self.heads(self.layer(x), self.layer(x), self.layer(x), need_weights=False)[0]
        x = F.rms_norm(F.layer_norm(self.root(x), (x.shape[-1],)), (x.shape[-1],), eps=1e-6)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.count, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


def cut_in_half() -> tuple[nn.Module, netslim.PruningPlan]:
    """The network after about half of each group has gone, and the plan of that."""
    torch.manual_seed(0)
    model = randomise(nn.Sequential(Pictures(), Tokens())).eval()
    graph = netslim.trace(model, PICTURES)
    rng = torch.Generator().manual_seed(0)
    masks = {}
    for number, group in enumerate(graph.groups):
        if group.prunable and group.size > 1:
            kept = torch.randperm(group.size, generator=rng) < (group.size + 1) // 2
            masks[number] = kept.numpy()
    plan = plan_keeping(graph, masks)
    small = netslim.prune(model, plan)
    netslim.verify(model, small, plan, PICTURES, graph=graph)
    return small, plan
