"""What one run of a model teaches: labels of tensors, sizes, costs, and what must stay.

A tensor carries labels: for each dimension that belongs to channels, the vector of its atoms (one
for each entry; see atoms.py). A dimension without labels is one that no cut changes, so forgetting
labels is safe as long as whoever forgets them freezes their atoms.

Rules are called with a `Recorder` and speak to it: `get` and `set` labels, `meet`, `freeze`,
`couple`, `mark`, `cost`; netslim/graph/rules/__init__.py describes these for people who write one.
The modes (modes.py) and hooks (running.py) tell it what runs: the operator, the module, and the
call in the user's code.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from netslim.graph.counts import Call
from netslim.graph.modules.known_norms import Memo
from netslim.graph.modules.operators import called_name
from netslim.graph.modules.spectral_norms import spectral_norms
from netslim.graph.modules.weight_norms import WeightNorm, weight_norms
from netslim.graph.tracing.atoms import (
    ATOM,
    CHANNEL,
    CONSUMER,
    PRODUCER,
    Atoms,
    Vector,
    among,
    distinct,
)
from netslim.graph.tracing.casts import Casts
from netslim.graph.tracing.checks import (
    check_dims,
    check_factor,
    check_lengths,
    check_role,
    check_vector,
)
from netslim.graph.tracing.computed import MOVING, Formula, Formulas, constant, silencing
from netslim.graph.tracing.dataflow import Dataflow
from netslim.graph.tracing.facts import Facts
from netslim.graph.tracing.labels import NOTHING, Labelled, Labels
from netslim.graph.tracing.log import Log
from netslim.graph.tracing.places import HERE, TORCH, asker, place, said
from netslim.graph.tracing.records import (
    Awaited,
    Constraint,
    OperatorCost,
    RecordedNorm,
    Use,
    ValueUse,
    Written,
)
from netslim.graph.tracing.sizes import (
    Expression,
    Size,
    Symbol,
    expressions_in,
    symbols,
)
from netslim.graph.tracing.storages import (
    IN_PLACE,
    RecordedOutput,
    Storages,
    storages_of,
)
from netslim.graph.tracing.zeros import zeros_made

BY_THE_ROOT = "attention divides by the root of their number"
FAILED = "the rule for"  # how the reason begins where a rule broke off
_TRACES = count()
# What to write in place of a number, so that it follows a cut.
AS_BOUNDARY = "a size that is read there (x.shape[1]) or that the module keeps (self.width)"
AS_SIZE = f"-1, {AS_BOUNDARY}"
_AS_ONLY_SIZE = f"{AS_BOUNDARY}, or -1 with a size that is read in the place of the -1 there"
_AS_PART = "a part of the size that is read there (x.shape[1] // 2), or call chunk"
_IN_TORCH = "; functions of PyTorch in its place would be followed"
_SAID = {"comparison": "a comparison", "mul": "arithmetic with other numbers"}
_REMEDIES = dict.fromkeys(
    ("int", "round", "floor", "ceil", "trunc"), "; // or a -1 in the view would be followed"
)
# Operators whose result is 0 wherever their first argument is.
_ZEROS_STAY = MOVING | {
    *("mul", "div", "pow", "square", "abs", "neg", "sqrt", "relu", "leaky_relu"),
    *("sum", "expand", "repeat", "mm"),
}
_ORDERS = ("eq", "ne", "lt", "le", "gt", "ge")  # what holds of two sizes

Rule = Callable[..., None]  # rule(recorder, func, out, *args, **kwargs)
UserCall = tuple[Any, tuple[Any, ...], dict[str, Any]]  # function, args, kwargs


@dataclass
class Recorder:
    """Everything learnt from one run.

    Example:
        >>> from netslim.graph.rules import Recorder
        >>> def opaque(recorder: Recorder, func, out, x):  # for what mixes channels
        ...     recorder.freeze(recorder.get(x).dims.get(1), "opaque mixes them")
        ...     recorder.set(out, {}, weight=False)
        >>> rule = netslim.register_rule("mylib::opaque", opaque)
    """

    atoms: Atoms
    model: nn.Module
    facts: Facts
    labels: Labelled = field(default_factory=Labelled)
    sizes: list[Vector] = field(default_factory=list)  # the dimensions that sizes were read from
    constraints: list[Constraint] = field(default_factory=list)
    values: list[ValueUse] = field(default_factory=list)
    casts: Casts = field(default_factory=Casts)  # sizes of which the code made plain integers
    attributes: dict[tuple[str, str], int] = field(default_factory=dict)
    # Where they are, the path of the module, and what is there when nobody traces.
    holders: dict[tuple[nn.Module, str], tuple[str, Any]] = field(default_factory=dict)
    consulted: set[tuple[str, str]] = field(
        default_factory=set
    )  # those that somebody computed with
    # Those that a cut sets anew in any case, and the dimension that they are the size of.
    owned: dict[tuple[str, str], Vector] = field(default_factory=dict)
    costs: list[OperatorCost] = field(default_factory=list)
    outputs: list[RecordedOutput] = field(default_factory=list)
    storages: Storages = field(default_factory=Storages)
    unsupported: dict[str, set[str]] = field(default_factory=dict)
    awaited: dict[int, Awaited] = field(default_factory=dict)  # by id of a tensor, till it is used
    formulas: Formulas = field(default_factory=Formulas)
    # Whether heads become narrower, in a second run, and whether they could exactly, as far as a
    # first one tells (head_widths.py).
    narrows_heads: bool = False
    may_narrow: bool = False
    # Attributes that were taken for a number of heads where another axis may be that of heads, with
    # their channels; of these, whose channels all stay, whatever is put out; and those that an
    # earlier recording found to be no such number.
    rows: dict[tuple[str, str], Vector] = field(default_factory=dict)
    spoiled: frozenset[tuple[str, str]] = frozenset()
    no_heads: frozenset[tuple[str, str]] = frozenset()
    heads: Vector = field(default_factory=partial(np.empty, 0, ATOM))  # what was taken for heads
    merged: set[int] = field(default_factory=set)  # atoms of channels that were merged with places
    mixes: list[str] = field(default_factory=list)  # where places are laid out with channels
    calls: list[UserCall] = field(default_factory=list)  # under way, the innermost last
    modules: list[str] = field(default_factory=list)  # likewise
    operators: Counter[str] = field(default_factory=Counter)
    operator: Call = ("", 0)
    in_rule: bool = False
    training: bool = False
    touched: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)  # ids of sizes that a rule has seen to
    trace: int = field(default_factory=lambda: next(_TRACES))
    # Of a tensor that no operator made: a constant, as long as no activations left PyTorch's sight.
    unseen: Labels = NOTHING
    memo: Memo = field(default_factory=dict)  # which normalisations modules are
    norms: list[RecordedNorm] = field(default_factory=list)  # that a cut lets keep their width
    literals: list[Written] = field(default_factory=list)  # where the code holds widths in digits
    unwatched: int = 0  # modules under way whose operators nobody looks at
    # To find out who reads sizes unseen: names in the code, and the calls that it makes.
    names_read: frozenset[str] = frozenset()
    log: Log | None = None
    flow: Dataflow | None = None  # where blocks are asked for
    # Buffers that pick channels by their numbers, and what from; who reads each list of numbers.
    orders: dict[str, Vector] = field(default_factory=dict)
    readers: dict[int, set[str]] = field(init=False)
    weight_norms: frozenset[WeightNorm] = field(init=False)
    spectral: list[frozenset[int]] = field(init=False)  # ids of the tensors of spectral norms

    def __post_init__(self) -> None:
        self.weight_norms = frozenset(weight_norms(self.model))
        lists = (t for t in self.atoms.tensors.values() if is_order(t))
        self.readers = {id(t): set() for t in lists}
        named = self.atoms.tensors
        norms = spectral_norms(self.model)
        self.spectral = [frozenset(id(named[name]) for name in norm.names) for norm in norms]

    def without_heads(self) -> frozenset[tuple[str, str]]:
        """Attributes that were taken for a number of heads, of which none can go after all.

        As the 3 of ``"b n (qkv h d) -> qkv b h n d"``, where the first thing that is done is to
        tell queries, keys and values apart.
        """
        return frozenset(key for key, rows in self.rows.items() if self.atoms.all_held(rows))

    @contextlib.contextmanager
    def unlogged(self) -> Iterator[None]:
        """What is called inside is no call of the model's code."""
        log, self.log = self.log, None
        try:
            yield
        finally:
            self.log = log

    # --- labels -----------------------------------------------------------------------------------

    def get(self, tensor: Any) -> Labels:
        """The labels of a tensor; a constant has none."""
        found = self.labels.get(tensor)
        if found is None:
            return self.unseen
        return found

    def hidden(self, tensor: Tensor, function: str) -> None:
        """The code takes the numbers of a tensor elsewhere, and may come back with others."""
        self.used([tensor])
        labels = self.get(tensor)
        for vector in labels.dims.values():
            self.freeze(vector, f"{function} takes its numbers out{_IN_TORCH}")
        if not labels.weight:
            self.unseen = Labels({}, weight=False)

    def set(self, tensor: Tensor, dims: Mapping[int, Vector], weight: bool) -> None:
        """Give a tensor its labels, for as long as it lives.

        Raises:
            TypeError, ValueError: these are no labels, or do not fit the tensor.
        """
        check_dims(tensor, dims, weight, self.atoms)
        self.label(tensor, dims, weight)

    def label(self, tensor: Tensor, dims: Mapping[int, Vector], weight: bool) -> None:
        """As `set`, of labels that need no look."""
        kept = {}
        for d, vector in dims.items():
            # Where a dimension of one entry stands for channels, they were taken apart, as by
            # ``x[:, :1]``: broadcasting would hide that it meets anything, so what it came from
            # stays.
            if len(vector) == 1:
                self.freeze(vector, "a single channel is taken apart from the others")
                continue
            vector.setflags(write=False)  # it is shared by all that carry these labels
            kept[d] = vector
        if not kept and weight:  # a constant, as `get` says of all that it does not know
            self.labels.drop(tensor)
            return
        self.labels.put(tensor, Labels(MappingProxyType(kept), bool(weight)))

    def meet(self, left: Vector | None, right: Vector | None, what: str) -> Vector | None:
        """Tie two dimensions that must keep equal sizes; one that meets an unlabelled one stays."""
        self._check(left, "recorder.meet")
        if left is right:
            return left
        self._check(right, "recorder.meet")
        if left is None:
            self.freeze(right, f"it meets a fixed size in {what}")
            return right
        if right is None:
            self.freeze(left, f"it meets a fixed size in {what}")
        else:
            check_lengths(left, right, what)
            self.atoms.tie(
                left, right, lambda: f"it meets constant channels in {what}{self.where()}"
            )
        return left

    def freeze(self, vector: Vector | None, reason: str) -> None:
        """These channels must stay; ``reason`` completes "they stay: ...", with the user's line."""
        self._check(vector, "recorder.freeze")
        if vector is not None:
            self.atoms.freeze(vector, f"{reason}{self.where()}")

    def written(self, vector: Vector, reason: str, numbers: Iterable[int], remedy: str) -> None:
        """These stay for numbers in the code; the line that may be changed is noted."""
        self.freeze(vector, reason)
        found = place(self.in_rule)
        if found is not None:
            self.literals.append(Written(vector, *found, tuple(numbers), remedy))

    def couple(self, vector: Vector | None, reason: str) -> None:
        """Removing some of these channels changes the values of the others: inexact."""
        self._check(vector, "recorder.couple")
        if vector is not None:
            self.atoms.couple(vector, f"{reason}{self.where()}")

    def mark(self, labels: Labels, dim: int, role: int) -> None:
        """Note a role for the atoms of a weight's dimension.

        What has one dimension alone, as the frequencies of a rotary embedding in an outer product,
        multiplies channels and makes none.
        """
        check_role(role)
        if not labels.weight or dim not in labels.dims:
            return
        vector = labels.dims[dim]
        if role == PRODUCER and self.atoms.of_one_axis(vector):
            role = CHANNEL
        if labels.formula is None:  # as nearly always
            self.atoms.mark(vector, role)
            return
        formula = self.formulas.current(labels.formula)
        computed = role & CONSUMER and formula is not None and not formula.moved
        if formula is not None and computed and not self.atoms.inexact(vector):
            self._read_by(formula, dim, vector)
        else:
            self.atoms.mark(vector, role)

    def _read_by(self, formula: Formula, dim: int, vector: Vector) -> None:
        """A computed weight reads channels: what it was computed from may silence them."""
        axes, reason = silencing(self.atoms, formula, dim, vector)
        if not axes:
            self.couple(vector, reason)
            axes = [vector]
        for axis in axes:
            # In a product of weights both sides make something; this one is read after all.
            self.atoms.roles[axis[axis > 0]] &= ~np.uint8(PRODUCER)
            self.atoms.mark(axis, CONSUMER)

    def computed(
        self, func: Any, args: Any, kwargs: Any, outs: list[Tensor], before: Mapping[int, Labels]
    ) -> None:
        """Note how an operator computed tensors from parameters, or from what these made before."""
        weights = [self.labels.get(t) for t in outs]
        if not [found for found in weights if found is not None and found.weight]:
            self.formulas.note_writes(func, args, kwargs)
            self._keep_factors(args, outs, before)
            return
        formulas = {key: labels.formula for key, labels in before.items() if labels.formula}
        known = {key: self.formulas.current(formula) for key, formula in formulas.items()}
        self.formulas.note_writes(func, args, kwargs)
        made = self.formulas.made(func, args, kwargs, known, outs)
        if self.operator[0] in ("dot", "vdot") and self.within_spectral_norm(*args):
            made = [constant(out) for out in outs]  # a cut sees to it
        for tensor, found, own in zip(outs, weights, made, strict=True):
            if found is not None and found.weight:
                self.labels.put(tensor, Labels(found.dims, weight=True, formula=own))

    def within_spectral_norm(self, *tensors: Tensor) -> bool:
        """Whether these are all computed from the tensors of one spectral norm, which a cut lets
        have the value it had.
        """
        if not self.spectral:
            return False
        used: set[int] = set()
        for tensor in tensors:
            formula = self.get(tensor).formula
            used |= {id(tensor)} if formula is None else formula.parameters().keys()
        return any(used <= norm for norm in self.spectral)

    def _keep_factors(self, args: Any, outs: list[Tensor], before: Mapping[int, Labels]) -> None:
        """Note the weights that an activation is a product with: they silence its channels, too.

        StyleGAN2 multiplies the weight of a convolution by a style for each picture, divides it by
        a norm, and convolves with what comes out. That is no parameter, nor computed from
        parameters alone; yet zeros in the parameter silence what it reads. So the factors of a
        product are kept as long as zeros stay zeros: through more products, powers, sums over
        something else, and whatever moves entries about. So are the weights of experts, of which
        every picture mixes a weight of its own, ``shares @ experts``.
        """
        name = self.operator[0].rstrip("_")
        if name not in _ZEROS_STAY:  # as of most layers
            return
        first = before.get(id(next(iter(args), None)), NOTHING)
        found, mixed = [*first.factors], [*first.mixed]
        if name == "mm":
            mixed = [labels for labels in before.values() if labels.weight and len(labels.dims) > 1]
        if name == "mul":
            given = before.values()
            found = [factor for labels in given for factor in (*labels.factors, labels)]
            # What lies along one dimension is a scale, which makes and reads nothing.
            found = [f for f in found if f.weight and len(f.dims) > 1]
        if not (found or mixed) or (name == "pow" and not _positive(args[1])):
            return
        for tensor in outs:
            own = self.labels.get(tensor)
            if own is not None:
                self.labels.put(tensor, own._replace(factors=tuple(found), mixed=tuple(mixed)))

    def mark_weight(self, labels: Labels, dim: int, role: int, mixed: bool = False) -> bool:
        """Note a role as `mark` does, or that of a weight which an activation is a product with.

        What a layer puts out is a mixture of its weights, too. So these count only where it is
        ``mixed`` to be a weight.

        Returns whether there is a weight with these channels.
        """
        if labels.weight:
            self.mark(labels, dim, role)
            return True
        if dim not in labels.dims:
            return False
        classes = distinct(self.atoms.find(labels.dims[dim]))
        factors = labels.factors
        if mixed:
            factors += labels.mixed
        for factor in factors:
            for own, vector in factor.dims.items():
                if np.array_equal(distinct(self.atoms.find(vector)), classes):
                    if role == CONSUMER:  # the mixing took it for what is made
                        self.atoms.roles[vector[vector > 0]] &= ~np.uint8(PRODUCER)
                    self.mark(factor, own, role)
                    return True
        return False

    def pass_zeros(
        self, operator: str, args: Sequence[Any], inputs: Sequence[Labels], outs: list[Tensor]
    ) -> None:
        """Note for which channels tensors that an operator made are zero (zeros.py)."""
        for tensor in outs:
            found = self.labels.get(tensor)
            if found is not None and not found.weight:
                zeros = zeros_made(self.atoms, operator, args, inputs, found)
                self.labels.put(tensor, found._replace(zeros=zeros))

    def silent(self, labels: Labels, vector: Vector) -> bool:
        """Whether a tensor is zero for these channels where the parameters that have them are."""
        find = self.atoms.find
        return labels.zeros is not None and bool(among(find(vector), find(labels.zeros)).all())

    def _check(self, vector: Vector | None, call: str) -> None:
        """Refuse what are neither labels nor None."""
        if vector is not None:
            check_vector(vector, self.atoms, call)

    # --- sizes ------------------------------------------------------------------------------------

    def shape(self, tensor: Tensor, sizes: torch.Size) -> torch.Size:
        """The sizes of a tensor as the user's code sees them while tracing."""
        dims = self.get(tensor).dims
        if not dims:
            return sizes
        return torch.Size([self._size(value, dims.get(d)) for d, value in enumerate(sizes)])

    def _size(self, value: int, vector: Vector | None) -> int:
        if vector is None:
            return value
        self.sizes.append(vector)
        return Size(value, ("size", self.trace, len(self.sizes) - 1))

    def mine(self, value: Any) -> Symbol | None:
        """The expression of a size that this trace can resolve; None for a number in the code.

        A size that an earlier trace left in some cache is such a number too. Whoever asks sees to
        what becomes of the size.
        """
        self.asked.add(id(value))
        return self._known(value)

    def _known(self, value: Any) -> Symbol | None:
        if not isinstance(value, Size) or not isinstance(value.expression, tuple):
            return None
        leaves = list(symbols(value.expression))
        known = all(s[0] == "attribute" or s[1] == self.trace for s in leaves)
        self.consulted.update((s[1], s[2]) for s in leaves if s[0] == "attribute")
        if not leaves or not known:
            return None
        return value.expression

    def constrain(self, value: Any, vector: Vector | None, size: int) -> None:
        """Ask that a size in the user's code follows ``vector``; None: a size of PyTorch's own."""
        if value is None:
            return
        expr = self.mine(value)
        if expr is None and vector is not None:
            expr = self._guessed(value, vector)
        if expr is not None:
            self.constraints.append(Constraint(expr, vector, size, self.where()))
        elif vector is not None:
            number = int(value)
            reason = f"the size {number} is written into the code"
            self.written(vector, reason, [number], self.remedy())

    def _guessed(self, number: int, vector: Vector) -> Symbol | None:
        """The expression of a size of these channels that the code made this number of, if any."""
        if not self.casts.made:  # as nearly always
            return None
        roots, where = self.atoms.find(vector), self.where()
        for size in self.casts.of(number, where, self.training):
            expr = self._known(size)
            if expr is None or not all(self._among(symbol, roots) for symbol in symbols(expr)):
                continue
            self.casts.lines.add(where)
            if self.log is not None and not self.training:
                self.log.guessed.append(size)
            return expr
        return None

    def _among(self, symbol: Symbol, roots: Vector) -> bool:
        """Whether a size was read from these channels; of an attribute nobody knows yet."""
        if symbol[0] != "size":
            return True
        return bool(among(self.atoms.find(self.sizes[symbol[2]]), roots).any())

    def remedy(self) -> str:
        """What to write in place of a size in digits that the user's call is given."""
        _, args, kwargs = self.call
        if "split" in self.calling:
            return _AS_PART
        numbers = [n for n in tree_leaves((args, kwargs)) if type(n) is int]
        if -1 in numbers:  # which stands for one size alone
            return _AS_ONLY_SIZE
        return AS_SIZE

    def follow(self, value: Any, size: int) -> Vector | None:
        """The labels of a dimension made as wide as ``value``; None for a number in the code."""
        expr = self.mine(value)
        if expr is None:
            return None
        if expr[0] == "size":
            return self.sizes[expr[2]]
        vector = self.atoms.fresh(size)
        self.constraints.append(Constraint(expr, vector, size, self.where()))
        return vector

    def noticed(self, what: str, left: Size, right: Any) -> None:
        """The code compared sizes, or made another number of one, and may depend on the outcome.

        PyTorch's own checks are no decisions of the model, equalities aside.
        """
        if self.in_rule:
            return
        if what == "float":
            self.value(left, "float", soft=True)
            return
        who = asker()
        if what not in _ORDERS:
            if not who.startswith((TORCH, HERE)):
                self._became(left, what)
            return
        a, b = self._known(left), self._operand(right)
        if a is not None and a[0] == "sub" and b == 0:  # ``if self.out - x.shape[1]:``
            a, b = _apart(a)
        if a is None or a == b:
            return
        if what == "eq":
            self._equal(a, b)
        elif not who.startswith(TORCH):
            self.constraints.append(Constraint((what, a, b), None, 1, self.where(), decision=True))

    def _became(self, size: Size, what: str) -> None:
        """The user's code made something of a size that no expression can follow."""
        before = len(self.values)
        self.value(size, _SAID.get(what, what), soft=False)
        if what == "int" and type(size) is Size:
            uses = self.values[before:]
            self.values[before:] = self.casts.untold(size, uses, self.training)

    def _operand(self, value: int) -> Expression:
        """An expression that this trace can resolve, or the number."""
        known = self._known(value)
        if known is None:
            return int(value)
        return known

    def _equal(self, a: Symbol, b: Expression) -> None:
        """What was equal must be equal after a cut: the one follows the other, or both stay."""
        for one, other in ((a, b), (b, a)):
            if isinstance(one, tuple) and one[0] == "size":
                vector = self.sizes[one[2]]
                if isinstance(other, tuple):
                    self.constraints.append(Constraint(other, vector, len(vector), self.where()))
                else:
                    self.freeze(vector, f"the code expects the size {other}")
                return
        self.constraints.append(Constraint(("sub", a, b), None, 0, self.where()))

    def value(self, number: Any, function: str, soft: bool) -> None:
        """The user's code passed a size where its value matters, not the width of some channels."""
        what = "the number of channels is used as a value"
        for expr in expressions_in(number):
            self.consulted.update((s[1], s[2]) for s in symbols(expr) if s[0] == "attribute")
            if any(s[0] == "attribute" or s[1] == self.trace for s in symbols(expr)):
                if not soft:
                    named = (".".join(filter(None, s[1:])) for s in symbols(expr) if s[0] != "size")
                    what = f"{function} takes {next(named, 'their number')}"
                    what += _REMEDIES.get(function, "")
                self.values.append(ValueUse(expr, soft, f"{what}{self.where()}"))

    def read(self, tensor: Tensor, number: Any) -> None:
        """The code took a number out of a tensor that depends on no input.

        Into ``torch.IntTensor([self.width])`` a size goes unseen, and comes out as a number in the
        code. So whatever the number may be the size of, here, is taken to be used as a value.
        """
        if id(tensor) in self.atoms.names or not self.get(tensor).weight:
            return
        if type(number) is not int or number <= 1:
            return
        # By value, since nothing else is left of the size: what equals it by accident stays for
        # nothing. So of attributes only those of the modules under way are asked.
        for (module, name), value in self.attributes.items():
            if value == number and module in self.modules:
                self.value(Size(value, ("attribute", module, name)), "a tensor of integers", False)
        for i, vector in enumerate(self.sizes):
            if len(vector) == number:
                self.value(Size(number, ("size", self.trace, i)), "a tensor of integers", False)

    # --- context ----------------------------------------------------------------------------------

    @property
    def call(self) -> UserCall:
        """The innermost function the user's code called: (function, args, kwargs)."""
        if not self.calls:
            return None, (), {}
        return self.calls[-1]

    @property
    def calling(self) -> str:
        """The name of that function, ``""`` where there is none."""
        return called_name(self.call[0])

    def passed(self, position: int, *names: str, default: Any = None) -> Any:
        """What the user's code passed to that function, at a position or by one of the names."""
        _, args, kwargs = self.call
        if len(args) > position:
            return args[position]
        return next((kwargs[name] for name in names if name in kwargs), default)

    @property
    def module(self) -> str:
        """Path of the module that is running."""
        if not self.modules:
            return ""
        return self.modules[-1]

    def where(self) -> str:
        """``" (file.py:12)"``: the line of the user's code that is running."""
        found = place(self.in_rule)
        if found is not None:
            return f" ({os.path.basename(found[0])}:{found[1]})"
        if not self.module:
            return ""
        return f" (module {self.module})"

    def unknown(
        self,
        operator: str,
        inputs: list[Labels],
        why: str = "netslim has no rule for",
        remedy: str = "",
    ) -> None:
        """Freeze everything an operator without a rule touches, and list it."""
        touched = list(chain.from_iterable(labels.dims.values() for labels in inputs))
        if touched:
            self.unsupported.setdefault(operator, set()).add(self.module)
        for vector in touched:
            self.freeze(vector, f"{why} {operator}{remedy}")

    def number(self, tensor: Tensor, vector: Vector, operator: str) -> None:
        """``tensor`` tells channels by their numbers: whoever uses it makes them stay."""
        reason = f"{operator} gives the numbers of channels{self.where()}"
        self._await(tensor, partial(self.atoms.freeze, vector, reason))

    def mixed(self, tensor: Tensor, vector: Vector, reason: str) -> None:
        """``tensor`` is made of all these channels: whoever uses it makes them inexact.

        Such as the mean of attention over its heads, which few of those look at to whom
        `nn.MultiheadAttention` returns it.
        """
        self._await(tensor, partial(self.atoms.couple, vector, f"{reason}{self.where()}"))

    def _await(self, tensor: Tensor, use: Use) -> None:
        """Have it done once the tensor is used, beside what else is, as of its other dimensions."""
        known = self.awaited.get(id(tensor))
        if known is None or known.tensor() is not tensor:
            known = self.awaited[id(tensor)] = Awaited(weakref.ref(tensor), [])
        known.uses.append(use)

    def hold_orders(self) -> None:
        """Hold the channels whose numbers are also read for something else, which would change."""
        for name, vector in self.orders.items():
            others = self.readers[id(self.atoms.tensors[name])] - {"index", "index_select"}
            if others:
                reason = f"{name} picks from them by their numbers, which {min(others)} reads, too"
                self.atoms.freeze(vector, reason)

    def used(self, tensors: list[Tensor]) -> None:
        """Freeze or couple the channels that somebody now uses the numbers, or a mixture, of."""
        for tensor in tensors:
            found = self.awaited.pop(id(tensor), None)
            if found is not None and found.tensor() is tensor:
                for use in found.uses:
                    use()

    def failed(self, error: Exception, inputs: list[Labels], out: list[Tensor]) -> None:
        """A rule broke off: its operator is listed, and what it touches stays as without a rule."""
        operator, where = self.operator[0], self.module or "the model itself"
        reason = f"{FAILED} {operator} failed in {where} with {said(error)}{self.where()}"
        self.unsupported.setdefault(operator, set()).add(self.module)
        for labels in [*inputs, *map(self.get, out)]:
            for vector in labels.dims.values():
                self.atoms.freeze(vector, reason)
        for tensor in out:
            self.set(tensor, {}, all(labels.weight for labels in inputs))

    def begin(self, operator: str) -> None:
        """An operator has run, and its rule is next."""
        self.operator = operator, self.operators[operator]
        self.operators[operator] += 1

    def cost(self, operator: str, *factors: int | Vector | None) -> None:
        """Count multiply-accumulates: what makes an operator a layer.

        Raises:
            TypeError, ValueError: a factor is neither a size nor labels.
        """
        given = tuple([f for f in factors if f is not None])
        for factor in given:
            if type(factor) is not int or factor < 0:
                check_factor(factor, self.atoms)
        self.costs.append(OperatorCost(self.module, operator, given, self.operator))

    def put_out(self, operator: str, inputs: list[Tensor], made: list[Tensor], layer: bool) -> None:
        """Note what an operator made of ``inputs``; a layer's first tensor is its activation."""
        read = storages_of(inputs)
        constant = not self.storages.depend_on_inputs(read)
        made, given = [t for t in made if t.numel()], set(map(id, inputs))
        for i, tensor in enumerate(made):
            dims = self.get(tensor).dims
            if i and not dims:
                dims = self._statistics(made[0], tensor)
            sizes: tuple[int | Vector, ...] = tuple(tensor.shape)
            if dims:
                sizes = tuple([dims.get(d, n) for d, n in enumerate(sizes)])
            kind = self.storages.note(tensor, sizes, read, step=not i)
            if id(tensor) in given:
                kind = IN_PLACE
            active = layer and not constant and not i
            self.outputs.append(
                RecordedOutput(
                    self.module, operator, sizes, tensor.itemsize, active, constant, kind
                )
            )

    def _statistics(self, first: Tensor, tensor: Tensor) -> Mapping[int, Vector]:
        """Labels for what an operator puts out beside its result: of the sizes that they share."""
        dims = self.get(first).dims
        shift = int(tensor.dim() == 1 and first.dim() > 1)  # of channels
        pairs = zip(tensor.shape, first.shape[shift:], strict=False)
        return {
            d: dims[d + shift] for d, (n, m) in enumerate(pairs) if n == m and d + shift in dims
        }


def _positive(exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and exponent > 0


def is_order(tensor: Tensor) -> bool:
    """Whether this may be a list of numbers that a model holds."""
    kinds = (torch.int64, torch.int32)
    return tensor.dim() == 1 and tensor.dtype in kinds and not isinstance(tensor, nn.Parameter)


def _apart(difference: Symbol) -> tuple[Symbol | None, Expression]:
    """The two sides of a difference that was compared with 0."""
    _, left, right = difference
    if isinstance(left, tuple):
        return left, right
    return right, left
