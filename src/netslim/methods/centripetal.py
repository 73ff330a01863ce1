"""Centripetal SGD: train clusters of channels until they are equal (Ding et al. 2019, 1904.03837).

Equal channels are copies: all but one can go when the layers that read them add up what they read
(`netslim.selection.merge`), and the outputs stay as they are, so there is nothing to fine-tune.
Where it acts in a training step::

    for batch in loader:
        optimizer.zero_grad()
        loss = criterion(model(batch.x), batch.y)
        loss.backward()                  # once or, when accumulating, several times
        clip_grad_norm_(...)             # sees the gradient of the loss alone
        optimizer.step()                 # <- here, first of all: the gradient of every kernel F
                                         #    becomes mean gradient + strength * (F - mean F)

Why members come together whatever the loss: in one step of plain SGD with learning rate ``r`` and
weight decay ``d`` members j and k of a cluster get the same mean gradient, so it drops out of ``F_j
- F_k``; what is left of the step shrinks the difference to ``1 - r (d + strength)`` times itself. A
hundred thousand steps at r = 0.03 and strength 0.003 leave 1e-4 of it. (Momentum keeps this linear
in the difference, so the loss stays out of it.) Two things would let the loss in, hence only SGD,
and momentum that is averaged on attaching: an optimizer which scales each entry by its own history,
and momentum that members gathered apart.

What is made equal are entries of tensors. One axis of one tensor may carry several groups, as the
BN behind a concatenation does, and one tensor may be tied along two axes: so entries are put
together by (tensor, axis) in a `_Tie`, and the axes of a tensor take their turns, each acting on
what the one before has done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import netslim.ranks as ranks
from netslim._support import brief, checks_calls, is_number, is_whole
from netslim.errors import ArgumentError, StaleGraphError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.coupling import pacesetter, picked
from netslim.graph.groups import ChannelGroup, Slice
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import named_tensors
from netslim.methods.adjustable import Adjustable
from netslim.methods.clusters import (
    Labels,
    Target,
    canonical,
    checked,
    clustering,
    kernels_of,
    widths,
)
from netslim.methods.hooks import Attachments, before_step, loss_scale, parameters_of
from netslim.selection.budget.limits import staying
from netslim.selection.merging import merge, unmerged
from netslim.selection.options import Limits, Shortcuts
from netslim.surgery.plan import PruningPlan
from netslim.surgery.sharding import in_one_piece


def cluster_means(
    rows: Tensor, labels: Tensor, shares: Tensor, members: Tensor | None = None
) -> Tensor:
    """Every row replaced by the mean of its cluster, the same for all its rows bit for bit.

    The mean is made once and copied to the members. Members that took the mean each by itself could
    differ in the last bit, and would then never be quite equal.

    Args:
        rows: shape (rows, numbers).
        labels: cluster number of every row, int64, shape (rows,).
        shares: one over the members of every cluster, shape (clusters, 1).
        members: the rows of every cluster, filled up with the number behind the last row, int64,
            shape (clusters, most members): where they are to be added up in this order.
    """
    if members is None:
        sums = rows.new_zeros(len(shares), rows.shape[1]).index_add_(0, labels, rows)
    else:
        padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        sums = padded.index_select(0, members.flatten()).view(*members.shape, -1).sum(1)
    return sums.mul_(shares).index_select(0, labels)


def centripetal_gradient(
    gradient: Tensor,
    kernels: Tensor,
    labels: Tensor,
    shares: Tensor,
    strength: float | Tensor,
    members: Tensor | None = None,
) -> Tensor:
    """The gradient that makes plain SGD with weight decay take the paper's step.

    ``dF_j = -(1/|H|) sum_k dL/dF_k - eta F_j + eps (mean_k F_k - F_j)`` for member j of cluster H:
    the optimizer itself adds ``eta F_j``, its weight decay, and what comes out here is the rest.

    Args:
        gradient: dL/dF, one row a kernel; shape (kernels, numbers).
        kernels: F, of the same shape.
        labels: as for `cluster_means`.
        shares: as for `cluster_means`.
        strength: epsilon.
        members: as for `cluster_means`.
    """
    # Away from the mean, as a gradient is: the step goes down it, towards the mean.
    pull = kernels - cluster_means(kernels, labels, shares, members)
    return cluster_means(gradient, labels, shares, members).add_(pull.mul_(strength))


@dataclass(frozen=True)
class Deviation:
    """How far the members of clusters still are from equal; 0 when a merge changes nothing.

    Of one tensor it is the largest distance of a member from its cluster's mean, relative to the
    root mean square norm of the kernels of the group in that tensor: ``max_j ||F_j - mean_k F_k|| /
    rms_i ||F_i||``. (Not to the norm of the member's own mean, which is 0 for many a bias.)

    Attributes:
        groups: group name -> the largest over all its parameters.
        statistics: the largest over the running statistics of normalisations, which follow some
            steps behind the parameters.
    """

    groups: Mapping[str, float]
    statistics: float

    @property
    def largest(self) -> float:
        """The largest over all groups."""
        return max(self.groups.values())

    def __str__(self) -> str:
        worst = max(self.groups, key=self.groups.__getitem__)
        return f"{self.largest:.3g} at most ({worst}), running statistics {self.statistics:.3g}"


@checks_calls
class CentripetalSGD:
    """Make clusters of channels equal: ``CentripetalSGD(graph, model, 5 / 8).attach(optimizer)``.

    Then train as ever. The units of every group are put into as many clusters as shall stay. From
    then on, just before each step of the optimizer, the gradient of every entry that belongs to a
    unit becomes the mean over its cluster plus ``strength`` times its distance from the mean entry.
    So members get the same gradient, and under plain SGD their difference is ``(1 - lr *
    (weight_decay + strength)) ** steps`` times the first one, whatever the loss. The weight decay
    is the optimizer's own: SGD adds it itself, to each member alike.

    These entries are all that makes, scales or carries the channels in every tensor of the group:
    kernels, biases, BN scales and shifts, depthwise kernels, the layers whose outputs are added up
    in a residual stage, and later normalisations of a concatenation. What reads the channels trains
    freely. BN's running statistics of members become equal by themselves once their kernels are,
    after some steps in training mode; `collapse` does the rest.

    At the end: ``method.collapse(); small = netslim.prune(model, method.plan())``. After
    `netslim.prune_` the method is over; trace the smaller model and make a new one for the next
    width.

    Args:
        graph: of this model, from `netslim.trace`.
        model: the network; nothing about it changes until the optimizer steps.
        target: what stays: a share of every group (float, 0 < share <= 1), or a mapping from names
            of groups, layers or patterns to a width (int) or a share (float), of which later
            entries win. Groups that it does not name, or that keep their width, are left alone.
            None when ``clusters`` is a mapping.
        clusters: ``"kmeans"`` on the kernels of each group's pacesetter, ``"even"`` (neighbours,
            sizes that differ by at most 1), ``"imbalanced"`` (the first takes the excess), or the
            clusters themselves: the cluster number of every unit, by group name.
        strength: epsilon of the paper, 0 or more. Assign to ``.strength`` for a schedule.
        vector_strength: what the strength is multiplied by for 1-D parameters (biases, BN scales
            and shifts).
        seed: of k-means. In a distributed run the clusters of rank 0 are taken.
        protect: patterns of group names that are left alone.
        shortcuts: ``"avoid"`` leaves alone the groups that a shortcut joins.

    Raises:
        StaleGraphError: the model is not the traced one.
        ArgumentError: an option is out of range, or a name means nothing here (the nearest are
            given).
        PlanError: no group becomes narrower.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> drawn = netslim.CentripetalSGD(graph, model, target=0.5).attach(optimizer)
        >>> for inputs, labels in loader:
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(model(inputs), labels).backward()
        ...     optimizer.step()
        >>> small = netslim.prune(model, drawn.plan())
    """

    @ranks.in_step("CentripetalSGD")
    @by_itself
    def __init__(
        self,
        graph: ChannelGraph,
        model: nn.Module,
        target: Target | None = None,
        *,
        clusters: str | Mapping[str, Sequence[int]] = "kmeans",
        strength: float = 3e-3,
        vector_strength: float = 0.1,
        seed: int = 0,
        protect: Iterable[str] = (),
        shortcuts: Shortcuts = "include",
    ) -> None:
        if not (is_whole(seed) and seed >= 0):
            raise ArgumentError(
                f"the seed of the clusters must be a whole number of 0 or more, not {brief(seed)}"
            )
        self.graph, self.model = graph, model
        self._strength = Adjustable(0.0)
        self.strength = strength
        self._vector_strength = _not_negative("vector_strength", vector_strength)
        self._staying = staying(Limits(protect=protect, shortcuts=shortcuts), graph)
        for group in graph.groups:
            if picked(graph, group):
                self._staying.setdefault(
                    group.name, "an index picks its channels, which differ whatever the weights"
                )
            if reason := unmerged(graph, group):
                self._staying.setdefault(group.name, reason)
        self._attached = Attachments(
            "CentripetalSGD", "twice would double its pull: change .strength"
        )
        self._resumed = False
        with in_one_piece(model):
            inner = bare(model, ArgumentError, call="CentripetalSGD(graph, model)")
            graph.check(inner)
            found = partial(_clusters, graph, inner, target, clusters, seed, self._staying)
            if not isinstance(clusters, Mapping):
                self._constrain(ranks.shared("the clusters of CentripetalSGD", found))
            else:
                self._constrain(found())

    @property
    def strength(self) -> float:
        """Epsilon of the paper."""
        return self._strength.value

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength.value = _not_negative("strength", value)

    @property
    def clusters(self) -> dict[str, list[int]]:
        """Group name -> the cluster number of every unit, numbered as they first appear."""
        return {name: labels.tolist() for name, labels in self._clusters.items()}

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every step of ``optimizer`` from now on; several may hold the model between them.

        Momentum that members have gathered apart would drive them apart again, so it is averaged
        over each cluster (not after `load_state_dict`: then it is part of the run that goes on).

        Raises:
            ArgumentError: it is not SGD, it holds none of the constrained parameters, one of these
                does not train, or this method is attached to it already.
        """
        optimizer = self._attached.new(optimizer)
        if not isinstance(optimizer, SGD):
            raise ArgumentError(
                f"CentripetalSGD needs torch.optim.SGD: {type(optimizer).__name__} scales or "
                "changes each entry's step by itself, so the members of a cluster would not "
                "come together; train with SGD, with momentum or not"
            )
        with in_one_piece(self.model, optimizer):
            self._check_trains(optimizer)
            if not self._resumed:
                self._average_momentum(optimizer)
        self._attached.add(optimizer, before_step(optimizer, self._act))
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Act on ``optimizer`` (by default: on any) no longer.

        Raises:
            ArgumentError: it is not attached to ``optimizer``.
        """
        for one in self._attached.remove(optimizer):
            self._stacks.pop(one, None)

    @torch.no_grad()
    def deviation(self) -> Deviation:
        """How far the members of each cluster are from equal; log it every epoch.

        Raises:
            StaleGraphError: the model was cut since.
        """
        with in_one_piece(self.model):
            return self._deviation()

    def _deviation(self) -> Deviation:
        tensors = self._tensors()
        groups, statistics = dict.fromkeys(self._clusters, 0.0), 0.0
        for name, labels in self._clusters.items():
            for part in _made(self.graph[name]):
                if (tensor := tensors[part.tensor]).is_floating_point():
                    found = _spread(tensor, part, labels)
                    if isinstance(tensor, nn.Parameter):
                        groups[name] = max(groups[name], found)
                    else:
                        statistics = max(statistics, found)
        return Deviation(groups, statistics)

    @torch.no_grad()
    def collapse(self) -> None:
        """Set every member to the mean of its cluster, in place; then a merge changes nothing.

        Parameters, running statistics and the momentum of the attached optimizers alike. The safer
        choice where members still differ a little: a merge by itself keeps the first member of each
        cluster as it is.

        Raises:
            StaleGraphError: the model was cut since.
        """
        with in_one_piece(self.model, list(self._attached)):
            tensors = self._tensors()
            for tie in self._ties:
                if tensors[tie.tensor].is_floating_point():
                    _average(tensors[tie.tensor], tie)
            for optimizer in self._attached:
                self._average_momentum(optimizer)

    def plan(self) -> PruningPlan:
        """The plan that merges every cluster into its first member; what reads them is added up.

        Raises:
            StaleGraphError: the model was cut since.
        """
        with in_one_piece(self.model):
            self._tensors()
        return merge(self.graph, self.clusters)

    def state_dict(self) -> dict[str, Any]:
        """Clusters and strengths as plain data, for a run that goes on later."""
        return {
            "fingerprint": self.graph.fingerprint,
            "clusters": self.clusters,
            "strength": self.strength,
            "vector_strength": self._vector_strength,
        }

    @ranks.in_step("a state of CentripetalSGD")
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the clusters and strengths that `state_dict` gave; do it before `attach`.

        Raises:
            ArgumentError: it is no such state, or of another architecture.
        """
        missing = {"fingerprint", "clusters", "strength", "vector_strength"} - set(state)
        if missing:
            raise ArgumentError(
                f"this is no state of a CentripetalSGD: it lacks {', '.join(sorted(missing))}"
            )
        if state["fingerprint"] != self.graph.fingerprint:
            raise ArgumentError(
                "this state is of a CentripetalSGD on the architecture "
                f"{state['fingerprint']}, this one is on {self.graph.fingerprint}: load it "
                "into one of the same width"
            )
        found = checked(self.graph, state["clusters"], self._staying)
        self.strength = state["strength"]
        self._vector_strength = _not_negative("vector_strength", state["vector_strength"])
        self._constrain(found)
        self._resumed = True

    def __repr__(self) -> str:
        counts = f"groups={len(self._clusters)}, optimizers={len(self._attached)}"
        return f"CentripetalSGD(strength={self.strength:g}, {counts})"

    def _constrain(self, clusters: dict[str, Labels]) -> None:
        """Take these clusters from now on."""
        # What cannot be merged fails now, and not after training.
        plain = {name: labels.tolist() for name, labels in clusters.items()}
        merge(self.graph, plain)
        ranks.agree("the clusters of CentripetalSGD", str(plain), "give all of them the same")
        self._clusters = clusters
        self._ties = list(_ties(self.graph, clusters))
        self._stacks: dict[Optimizer, tuple[Any, list[_Stack]]] = {}

    def _tensors(self) -> dict[str, Any]:
        """The model's tensors by name, all of the shapes that were traced."""
        tensors = dict(named_tensors(bare(self.model, ArgumentError)))
        for tie in self._ties:
            wanted = self.graph.inventory.shapes[tie.tensor]
            if tie.tensor not in tensors or tuple(tensors[tie.tensor].shape) != tuple(wanted):
                raise StaleGraphError(
                    f"{tie.tensor!r} is no longer of shape {tuple(wanted)}: the model was cut "
                    "since this CentripetalSGD was made, which is over with that; detach it, "
                    "trace the model and make a new one for the next width"
                )
        return tensors

    def _check_trains(self, optimizer: Optimizer) -> None:
        tensors, held = self._tensors(), {id(p) for p in parameters_of(optimizer)}
        constrained = {tie.tensor: tensors[tie.tensor] for tie in self._ties}
        constrained = {name: t for name, t in constrained.items() if isinstance(t, nn.Parameter)}
        if not any(id(parameter) in held for parameter in constrained.values()):
            raise ArgumentError(
                f"this {type(optimizer).__name__} holds none of the parameters that shall "
                f"become equal: attach to an optimizer of this very {type(self.model).__name__}"
            )
        still = next(
            (name for name, parameter in constrained.items() if not parameter.requires_grad), None
        )
        if still is not None:
            raise ArgumentError(
                f"{still!r} does not train (requires_grad is False), so its channels can never "
                "become equal: let it train, or protect its group"
            )

    @torch.no_grad()
    def _average_momentum(self, optimizer: Optimizer) -> None:
        tensors = self._tensors()
        # Else members that were made equal would be driven apart again by what each has gathered.
        for tie in self._ties:
            buffer = optimizer.state.get(tensors[tie.tensor], {}).get("momentum_buffer")
            if buffer is not None:
                _average(buffer, tie)

    def _act(self, optimizer: Optimizer) -> None:
        """Change the gradients, before the optimizer uses them."""
        with in_one_piece(self.model, optimizer):
            self._pull(optimizer)

    def _pull(self, optimizer: Optimizer) -> None:
        # What can be stacked changes rarely: when parameters are added, replaced, or get no
        # gradient this time. To compare these few facts costs less than to sort the parameters in
        # each step.
        held = parameters_of(optimizer)
        seen = [(id(p), p.shape, p.dtype, p.device, p.grad is None) for p in held]
        known, stacks = self._stacks.get(optimizer, (None, []))
        if known != seen:
            stacks = self._stacked(optimizer)
            self._stacks[optimizer] = seen, stacks
        scale = loss_scale(optimizer)
        for stack in stacks:
            strength = self._strength.beside(stack.shares)
            if stack.vectors:
                strength = strength * self._vector_strength
            if stack.maximise:  # it goes up the gradient: the pull has to turn round
                strength = -strength
            stack.act(strength, scale)

    def _stacked(self, optimizer: Optimizer) -> list[_Stack]:
        """The constrained parameters with gradients, together where one call can serve them."""
        tensors = self._tensors()
        maximise: dict[int, bool] = {}
        for group in optimizer.param_groups:
            maximise |= dict.fromkeys(map(id, group["params"]), bool(group.get("maximize")))
        alike: dict[Any, list[tuple[Tensor, _Tie]]] = {}
        for tie in self._ties:
            p = tensors[tie.tensor]
            if id(p) in maximise and p.grad is not None:
                numbers = p.numel() // p.shape[tie.axis]
                key = (tie.turn, numbers, p.dim() == 1, maximise[id(p)], p.dtype, p.device)
                alike.setdefault(key, []).append((p, tie))
        # A tensor may be constrained on two axes, and stacks write gradients in place: the second
        # axis has to find what the first has done.
        in_turn = sorted(alike.items(), key=lambda item: item[0][0])
        return [_Stack.of(members, key[2], key[3]) for key, members in in_turn]


@dataclass(frozen=True, eq=False)
class _Tie:
    """The clusters of the entries on one axis of one tensor; all others are clusters of one.

    ``turn`` counts the axes of one tensor: each acts on what the one before has done.
    """

    tensor: str
    axis: int
    labels: Labels
    turn: int


@dataclass(frozen=True, eq=False)
class _Stack:
    """Parameters whose entries on an axis hold as many numbers each, as rows of one matrix.

    One product a stack in place of one a parameter: a ResNet has hundreds of BN shifts, and calls
    for tensors so small cost more than the numbers.
    """

    members: list[tuple[Tensor, int]]  # parameter, axis
    labels: Tensor
    shares: Tensor
    rows: Tensor | None
    vectors: bool
    maximise: bool

    @staticmethod
    def of(members: Sequence[tuple[Tensor, _Tie]], vectors: bool, maximise: bool) -> _Stack:
        parts, total = [], 0
        for _, tie in members:
            # Clusters of different parameters stay apart: 0 0 1 and 0 1 1 become 0 0 1 2 3 3.
            parts.append(tie.labels + total)
            total += int(tie.labels.max()) + 1
        parameter = members[0][0]
        joined = np.concatenate(parts)
        labels, shares = _on_device(joined, parameter)
        rows = None
        # A GPU adds up in any order, or, where that is forbidden, asks the host at each step.
        if parameter.is_cuda and torch.are_deterministic_algorithms_enabled():
            rows = torch.from_numpy(members_of(joined)).to(parameter.device)
        ties = [(p, tie.axis) for p, tie in members]
        return _Stack(ties, labels, shares, rows, vectors, maximise)

    def act(self, strength: float | Tensor, scale: Tensor | None) -> None:
        """Replace the gradients; ``scale`` is the loss scale they still carry."""
        gradients = [
            p.grad.movedim(axis, 0)  # type: ignore[union-attr]
            for p, axis in self.members
        ]
        kernels = torch.cat(
            [p.detach().movedim(axis, 0).reshape(p.shape[axis], -1) for p, axis in self.members]
        )
        rows = torch.cat([g.reshape(len(g), -1) for g in gradients])
        # The mean gradient carries the loss scale already, so the pull has to as well.
        pull: float | Tensor = strength
        if scale is not None:
            pull = scale.to(kernels) * strength
        new = centripetal_gradient(rows, kernels, self.labels, self.shares, pull, self.rows)
        parts = torch.split(new, [len(g) for g in gradients])
        shaped = [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)  # views of the gradients, so in place


def _clusters(
    graph: ChannelGraph,
    model: nn.Module,
    target: Target | None,
    clusters: str | Mapping[str, Sequence[int]],
    seed: int,
    staying: Mapping[str, str],
) -> dict[str, Labels]:
    """The clusters of every group that becomes narrower."""
    if isinstance(clusters, Mapping):
        if target is not None:
            raise ArgumentError(
                "the clusters that were given say the widths: leave target out (None)"
            )
        return checked(graph, clusters, staying)
    if target is None:
        raise ArgumentError(
            "target says what stays: a share of every group, or a mapping from names to widths "
            "or shares"
        )
    function = clustering(clusters)
    tensors = dict(named_tensors(model))
    result = {}
    for name, width in widths(graph, target, staying).items():
        producer = pacesetter(graph, graph[name])
        result[name] = function(kernels_of(tensors[producer], graph[name], producer), width, seed)
    return result


def _made(group: ChannelGroup) -> list[Slice]:
    """Where members must become equal: all that a group has in tensors, except what reads it."""
    return [part for part in group.slices if part.role != "consumer"]


def _entries(part: Slice, labels: Labels) -> tuple[np.ndarray, Labels]:
    """The entries of a slice, and the cluster of each.

    A unit may have several entries, such as the places of a flattened map: its k-th becomes equal
    to the k-th entries of the other members, never to another one of its own. With two entries a
    unit and the clusters 0 0 1 of three units, entries get 0 1, 0 1, 2 3.
    """
    order = np.lexsort((part.positions, part.units))
    each = len(order) // len(labels)
    return part.positions[order], (labels[:, None] * each + np.arange(each)).ravel()


def _ties(graph: ChannelGraph, clusters: Mapping[str, Labels]) -> Iterator[_Tie]:
    """One for each (tensor, axis), over all the groups that have entries there."""
    found: dict[tuple[str, int], np.ndarray] = {}
    turns: dict[str, int] = {}
    for name, labels in clusters.items():
        for part in _made(graph[name]):
            size = graph.inventory.shapes[part.tensor][part.axis]
            entries = found.setdefault((part.tensor, part.axis), np.arange(size))
            positions, numbers = _entries(part, labels)
            entries[positions] = numbers + entries.max() + 1  # apart from those of other groups
    for (tensor, axis), entries in found.items():
        turns[tensor] = turns.get(tensor, -1) + 1
        yield _Tie(tensor, axis, canonical(entries), turns[tensor])


def _on_device(labels: Labels, like: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and shares for `cluster_means`, where and as precise as ``like``."""
    shares = 1 / torch.from_numpy(np.bincount(labels)).double()[:, None]
    return torch.from_numpy(labels).to(like.device), shares.to(like)


def members_of(labels: Labels) -> np.ndarray:
    """The entries of every cluster, in order, filled up with the number behind the last entry.

    Of the clusters 0 0 1 0: 0 1 3 and 2 4 4.
    """
    counts = np.bincount(labels)
    found = np.full((len(counts), counts.max()), len(labels))
    order = np.argsort(labels, kind="stable")
    places = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    found[labels[order], places] = order
    return found


def _average(tensor: Tensor, tie: _Tie) -> None:
    """Set every entry to the mean of its cluster, in place."""
    view = tensor.detach().movedim(tie.axis, 0)
    means = cluster_means(view.reshape(len(view), -1), *_on_device(tie.labels, tensor))
    view.copy_(means.view(view.shape))


def _spread(tensor: Tensor, part: Slice, labels: Labels) -> float:
    """`Deviation` of one slice of one tensor."""
    positions, numbers = _entries(part, labels)
    rows = tensor.detach().movedim(part.axis, 0).reshape(tensor.shape[part.axis], -1)
    rows = rows[torch.from_numpy(positions).to(rows.device)].double()
    distance = (rows - cluster_means(rows, *_on_device(numbers, rows))).norm(dim=1).max()
    size = rows.square().sum(1).mean().sqrt()
    return float(distance / size) if distance > 0 else 0.0


def _not_negative(name: str, value: float) -> float:
    if not (is_number(value) and math.isfinite(value) and value >= 0):
        raise ArgumentError(
            f"the {name} of CentripetalSGD must be a number of at least 0, not {brief(value)}"
        )
    return float(value)


__all__ = ["CentripetalSGD", "Deviation", "centripetal_gradient", "cluster_means"]
