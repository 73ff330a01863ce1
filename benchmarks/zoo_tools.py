"""The two tools of `benchmarks/zoo.py`, and the judge that holds their pruned networks against the
original.

Each tool cuts half of what it can of a network in place, is timed, and says which inputs of which
weights are gone. The judge zeroes these in an untouched copy of the original and compares the
outputs in float64. All weights and normalisation statistics are random, so that no zero-initialised
branch hides a mistake.
"""

from __future__ import annotations

import gc
import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import PEER
from torch import Tensor, nn
from zoo_families import build

import netslim
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.calls import as_call, output_tensors
from netslim.graph.modules.walk import named_tensors
from netslim.graph.modules.weight_norms import weight_norms
from netslim.methods.cutting import cut
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from netslim.surgery.proof.verify import OWN_PRECISION

TOLERANCE = 1e-6  # above it a network is wrong
MIXES = (nn.Linear, nn.modules.conv._ConvNd)

Report = Callable[[Mapping[str, Any]], None]
Removed = Mapping[
    tuple[str, int], list[int]
]  # (weight, axis) -> inputs that are gone, as the original counts them
Normed = Mapping[str, tuple[int, np.ndarray]]  # module -> dimension of its input, what is gone


@dataclass
class Subject:
    """A network as both tools get it, and what the judge needs."""

    name: str
    model: nn.Module
    original: nn.Module
    inputs: Any
    heads: list[str]


def prepare(name: str) -> tuple[nn.Module, Any]:
    """The network of this name with random weights and statistics, and its inputs."""
    model, inputs = build(name)
    return randomise(model), inputs


def output_layers(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the convolutions and linear layers whose results leave the network, with no other
    such layer between.
    """
    made: dict[Any, str] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, MIXES):
            hooks.append(
                module.register_forward_hook(
                    lambda m, a, out, n=name: made.__setitem__(out.grad_fn, n)
                )
            )
    args, kwargs = as_call(inputs)
    model.requires_grad_(True)
    waiting: list[Any] = [t.grad_fn for t in output_tensors(model(*args, **kwargs))]
    for hook in hooks:
        hook.remove()
    found, seen = set(), set()
    while waiting:
        step = waiting.pop()
        if step in made:
            found.add(made[step])
        elif step is not None and step not in seen:
            waiting += [s for s, _ in step.next_functions]
        seen.add(step)
    return sorted(found)


# --- the tools ------------------------------------------------------------------------------------


class Netslim:
    """Cuts a random half of every exact group."""

    def cut(self, subject: Subject, report: Report) -> None:
        """Trace and prune in place: what is measured."""
        self.graph = netslim.trace(subject.model, subject.inputs)
        report({"traced": "yes"})
        self.masks = halves(self.graph)
        self.plan = plan_keeping(self.graph, self.masks)
        netslim.prune_(subject.model, self.plan)

    def check(self, subject: Subject, report: Report) -> None:
        """Verify and judge; then see what may be cut inexactly."""
        report({"cut": self.plan.removed, **shares(self.graph)})
        _run(
            subject.model, subject.inputs
        )  # what is kept of a first run both have in one precision
        proved = proof(subject, self.graph, self.plan)
        report(proved)
        report(inexact_cut(subject, self.graph))
        if any(norm.call for norm in self.plan.norms) or weight_norms(subject.original):
            report(by_verify(proved))
            return
        planned = {norm.module for norm in self.plan.norms}
        normed = {
            norm.module: (norm.row.dim, norm.gone(self.masks))
            for norm in self.graph.norms
            if norm.module in planned
        }
        gone = {
            (t.tensor, t.axis): list(t.removed)
            for t in self.plan.tensors
            if "silenced" in t.role  # no weight reads them: queries and keys
            or ("consumer" in t.role and t.tensor.removesuffix(".weight") not in normed)
        }
        report(judge(subject, gone, mixes=False, normed=normed))


def by_verify(proved: Mapping[str, Any]) -> dict[str, str]:
    """The verdict on a network where the judge can put no zeros: it takes means over channels within
    its code, or the norms of weights that read them.
    """
    verdict = "exact" if proved["verified"] == "yes" else "unclear"
    return {"verdict": verdict, "precision": "verify's word"}


def halves(graph: ChannelGraph, inexact: bool = False) -> dict[int, np.ndarray]:
    """A mask for each group that may be cut, which keeps a random half."""
    rng, masks = np.random.default_rng(0), {}
    for number, group in enumerate(graph.groups):
        if group.size > 1 and not group.frozen and (group.exact or inexact):
            masks[number] = np.ones(group.size, dtype=bool)
            masks[number][rng.permutation(group.size)[: group.size // 2]] = False
    return masks


def shares(graph: ChannelGraph) -> dict[str, Any]:
    """How much of the parameters could go, exactly and at all, and by how much single reasons hold
    it back.
    """
    total = max(1, graph.params())
    empty = {i: np.zeros(g.size, dtype=bool) for i, g in enumerate(graph.groups)}

    def without(numbers: list[int]) -> float:
        return 1 - graph.params({i: empty[i] for i in numbers}) / total

    held: dict[str, list[int]] = {}
    for i, group in enumerate(graph.groups):
        if not group.prunable:
            held.setdefault(f"{'' if group.frozen else 'inexact: '}{group.reason}", []).append(i)
    free = [i for i, g in enumerate(graph.groups) if g.prunable]
    share = without(free)
    gains = sorted(
        ((without(free + numbers) - share, reason) for reason, numbers in held.items()),
        reverse=True,
    )
    return {
        "share": share,
        "share_inexact": without([i for i, g in enumerate(graph.groups) if not g.frozen]),
        "frozen": "; ".join(f"{gain:.3f} {reason}" for gain, reason in gains[:5] if gain >= 0.0005),
        "unsupported": " ".join(graph.unsupported),
    }


def proof(subject: Subject, graph: ChannelGraph, plan: netslim.PruningPlan) -> dict[str, Any]:
    """What `netslim.verify` says at the first try, and otherwise which groups must be left alone
    for it to agree.
    """
    if not plan.groups:
        return {"verified": "", "why": "no group can be cut exactly"}
    try:
        check = netslim.verify(subject.original, subject.model, plan, subject.inputs)
        return {"verified": "yes", "felt": check.changed}
    except Exception as error:
        why = first_line(error)
    scores = {g.name: torch.rand(g.size) for g in graph.groups}
    logging.getLogger("netslim").setLevel(logging.ERROR)
    try:
        half = netslim.Budget(cut_channels=0.5)

        def choose(alone: frozenset[str]) -> netslim.PruningPlan:
            left = {name: values for name, values in scores.items() if name not in alone}
            return netslim.select(graph, left, half, allocation="uniform")

        done = cut(subject.original, graph, choose, subject.inputs)
    except Exception as error:
        return {"verified": "no", "why": f"{why}; then {first_line(error)}"}
    return {
        "verified": "no",
        "why": why,
        "felt": done.check.changed,
        "dropped": " ".join(set(plan.groups) - set(done.plan.groups)),
    }


def inexact_cut(subject: Subject, graph: ChannelGraph) -> dict[str, str]:
    """Whether the network still runs when half of every group that is not frozen goes."""
    plan = plan_keeping(graph, halves(graph, inexact=True))
    if all(cut.exact for cut in plan.groups.values()):
        return {}
    try:
        netslim.verify(
            subject.original, netslim.prune(subject.original, plan), plan, subject.inputs
        )
    except Exception as error:
        return {"inexact_cut": first_line(error)}
    return {"inexact_cut": "runs"}


class TorchPruning:
    """Halves every layer but the last by magnitude, all else by default."""

    def cut(self, subject: Subject, report: Report) -> None:
        """Build the pruner and take its step, group by group: what is measured."""
        import torch_pruning

        self.log = _Removals(subject.model)
        pruner = torch_pruning.pruner.MagnitudePruner(
            subject.model.requires_grad_(True),
            subject.inputs,
            importance=torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=0.5,
            ignored_layers=[subject.model.get_submodule(name) for name in subject.heads],
            output_transform=lambda out: [t for t in output_tensors(out) if t.grad_fn is not None],
        )
        report({"traced": "yes"})
        for group in pruner.step(interactive=True):
            self.log.note(group)
            group.prune()

    def check(self, subject: Subject, report: Report) -> None:
        """Judge the result."""
        report({"cut": self.log.channels})
        report(judge(subject, self.log.removed(), mixes=_touches_mixed(subject)))


class _Removals:
    """Which inputs of which weights torch-pruning's groups take away, as the original counts them."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.steps: list[
            tuple[nn.Module, int, int, list[int]]
        ] = []  # layer, its inputs, its groups, inputs to go
        self.channels = 0

    def note(self, group: Any) -> None:
        """Look at a group before it is pruned: its indices count what is there now."""
        self.channels += len(group[0].idxs)
        for dep, idxs in group.items:
            layer = dep.target.module
            if dep.handler.__name__ == "prune_in_channels" and isinstance(layer, MIXES):
                inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
                self.steps.append((layer, inputs, getattr(layer, "groups", 1), idxs))

    def removed(self) -> dict[tuple[str, int], list[int]]:
        """(weight, axis) -> inputs that are gone; the first group of a grouped convolution stands
        for all.
        """
        left: dict[nn.Module, np.ndarray] = {}
        sizes: dict[nn.Module, int] = {}
        for layer, inputs, groups, idxs in self.steps:
            sizes.setdefault(layer, inputs // groups)
            keep = np.setdiff1d(np.arange(inputs), idxs)
            left[layer] = left.get(layer, np.arange(inputs // groups))[keep[: len(keep) // groups]]
        return {
            (f"{self.names[m]}.weight", int(getattr(m, "transposed", False)) ^ 1): sorted(
                set(range(sizes[m])) - set(kept.tolist())
            )
            for m, kept in left.items()
        }


def _touches_mixed(subject: Subject) -> bool:
    """Whether the cut went into channels that a normalisation or attention mixes, so that no cut is
    exact.
    """
    before, after = (dict(named_tensors(m)) for m in (subject.original, subject.model))
    try:
        graph = netslim.trace(subject.original, subject.inputs)
    except netslim.NetslimError:
        return False
    mixed = [s for g in graph.groups if not g.exact for s in g.slices]
    return any(
        s.tensor in after and before[s.tensor].shape[s.axis] != after[s.tensor].shape[s.axis]
        for s in mixed
        if s.tensor in before
    )


TOOLS: dict[str, type[Netslim] | type[TorchPruning]] = {
    "netslim": Netslim,
    PEER: TorchPruning,
}


def use(name: str, subject: Subject, report: Report) -> None:
    """Let a tool cut the subject and report what that took, then whether it is right."""
    tool = TOOLS[name]()
    with measured(report):
        tool.cut(subject, report)
    start = time.process_time()
    report({"left": parameters(subject.model) / parameters(subject.original)})
    _run(subject.original, subject.inputs)  # some networks make buffers when they first run
    tool.check(subject, report)
    report({"check_seconds": time.process_time() - start})


# --- measuring ------------------------------------------------------------------------------------


@contextmanager
def measured(report: Report) -> Iterator[None]:
    """Report seconds and the peak of memory above the level before.

    In a process that was forked for it: what is there at the start is the highest level so far.
    """
    gc.collect()
    level, wall, cpu = _resident(), time.perf_counter(), time.process_time()
    yield
    seconds = {"seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report({**seconds, "memory_mib": max(0.0, peak - level)})


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def first_line(error: BaseException) -> str:
    """Kind and first line of an exception."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


# --- the judge ------------------------------------------------------------------------------------


def judge(
    subject: Subject, removed: Removed, mixes: bool, normed: Normed | None = None
) -> dict[str, Any]:
    """Compare the pruned network with the original whose weights do not read the removed channels,
    and whose normalisations over channels find zeros in their places.

    Returns ``verdict`` (``exact``, ``inexact``: the values change because the cut goes into
    channels that are mixed; ``wrong``; ``broken``: it does not run; ``uncut``; ``unclear``: the
    original's outputs are not finite), ``deviation`` relative to the largest output, and ``why``.
    """
    if parameters(subject.model) == parameters(subject.original):
        return {"verdict": "uncut"}
    precision = TOLERANCE
    for model in (subject.original, subject.model):
        model.double()
    inputs = torch.utils._pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) else v, subject.inputs
    )
    try:
        _run(subject.original, inputs)
    except RuntimeError:  # the network's own casts rule out float64
        precision, inputs = OWN_PRECISION, subject.inputs
        for model in (subject.original, subject.model):
            model.float()
    weights = dict(named_tensors(subject.original))
    for (name, axis), gone in removed.items():
        weights[name].data.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0)
    for path, (dim, places) in (normed or {}).items():
        subject.original.get_submodule(path).register_forward_pre_hook(_zeros(dim, places))
    wanted = _run(subject.original, inputs)
    try:
        found = _run(subject.model, inputs)
    except Exception as error:
        return {"verdict": "broken", "why": first_line(error)}
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return {"verdict": "wrong", "why": "outputs of other shapes"}
    if not all(t.isfinite().all() for t in wanted):
        return {"verdict": "unclear", "why": "the original's outputs are not finite"}
    worst = max((_relative(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)
    verdict = "exact" if worst <= precision else "inexact" if mixes else "wrong"
    return {
        "verdict": verdict,
        "deviation": worst,
        "precision": "float64" if precision == TOLERANCE else "own",
    }


def _zeros(dim: int, places: np.ndarray) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    """A hook that puts zeros into some entries of a module's input."""
    return lambda module, args: (args[0].index_fill(dim, torch.from_numpy(places), 0), *args[1:])


def _run(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = as_call(inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        return [
            t
            for t in output_tensors(model.eval()(*args, **kwargs))
            if t.is_floating_point() and t.numel()
        ]


def _relative(a: Tensor, b: Tensor) -> float:
    if not b.isfinite().all():
        return float("inf")
    return float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny))
