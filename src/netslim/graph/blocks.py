"""Blocks: residual branches that can go as a whole, so that what is added to them is left.

A block is a sum ``stream + branch`` of which the branch depends on the stream, is read by the sum
alone, and shares nothing of what it is made of: the operators that feed it and nothing else are its
*region*, and their weights are used nowhere else. Where the way past them is more than a sum (a
projection), there is no block: nothing would be left that says what the stream is.

A block goes by modules, since a model is made of modules. In ``relu(x + branch(x))`` the module
around it hands on its input without the branch, and a ReLU of what is a ReLU's already is nothing.
So a module that hands on what it is given is replaced as a whole (*passing*). In a larger
forward, ``x = x + self.attn(self.norm(x))``, the sum stays: modules all of whose operators are in
the region give a zero that broadcasts, or hand that on; what the forward itself does between them
it then does to one number. Where neither works for one branch, all branches of a module may still
go together, and are one block.

A layer of a DenseNet is a block, too. What it makes is put beside the stream, and concatenations
alone read it: without the layer they have fewer channels, which go wherever these are read. Its
modules then make none, or hand on the stream where nothing else is put beside it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from netslim.graph.modules.placeholders import STREAM, Replacement, within
from netslim.graph.tracing.dataflow import INPUT, Dataflow, Made, ModuleCall, Odd

# Operators that a forward may run on one number in place of a branch, and still adds nothing.
_LEAVE_ZERO = frozenset(
    """
    mul div neg permute transpose t unsqueeze relu gelu silu tanh dropout clone contiguous detach
    alias _to_copy
    """.split()  # noqa: SIM905
)
_BETWEEN = _LEAVE_ZERO | {"add", "sub", "sigmoid", "relu6", "hardtanh", "hardswish", "softplus"}
# What a ReLU leaves as it is, as long as it is made of a ReLU's result.
_STAYS_POSITIVE = frozenset(
    """
    max_pool2d max_pool2d_with_indices avg_pool2d clone contiguous detach alias view permute
    transpose dropout
    """.split()  # noqa: SIM905
)


# Operators whose result may share the memory of what they are given.
_VIEWS = frozenset(
    """
    view _unsafe_view reshape expand permute transpose t squeeze unsqueeze slice select narrow split
    split_with_sizes chunk unbind as_strided detach alias contiguous _to_copy
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Addition:
    """Where a branch is added: which sum of a module's own forward, and which of its operands.

    Attributes:
        module: path of the module whose forward adds.
        operator: ATen name.
        number: of the operators of this name that run in the module and in no part of it, from 0.
        operand: 0 or 1, the branch.
    """

    module: str
    operator: str
    number: int
    operand: int


@dataclass(frozen=True)
class _Sum:
    """A sum that a block ends in."""

    step: int
    stream: int
    branch: int
    made: int
    call: int  # whose forward it is
    joins: tuple[int, ...] = ()  # concatenations with the branch, in place of a sum


@dataclass(frozen=True, eq=False)
class Block:
    """Branches that go together.

    Attributes:
        name: of the module that hands on what it is given without them, or of the largest that
            goes.
        sums: where they are added.
        steps: operators that feed them alone, and the sums.
        tensors: the parameters and buffers that go.
        additions: the sums, for whoever runs the model.
        channels: numbers of the groups that go with a layer of a DenseNet.
    """

    name: str
    sums: tuple[_Sum, ...]
    steps: frozenset[int]
    tensors: frozenset[str]
    additions: tuple[Addition, ...]
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Joined:
    """A value that is read by concatenations alone: the groups that its channels are, all of them,
    and the weights that make these.
    """

    channels: tuple[int, ...]
    tensors: frozenset[str]


@dataclass(eq=False)
class Blocks:
    """The blocks of a model, and what takes their place.

    Args:
        flow: of the run.
        kinds: path of a module -> name of its class.
        writing: paths of the modules that are told to write into what they are given.
        training_aware: paths of the modules whose code does something else in training.
        shapes: of the model's parameters and lasting buffers, in order.
        joined: by value.

    Attributes:
        found: in order of execution.
    """

    flow: Dataflow
    kinds: Mapping[str, str]
    writing: Collection[str]
    training_aware: Collection[str]
    shapes: Mapping[str, tuple[int, ...]]
    joined: Mapping[int, Joined]
    found: tuple[Block, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.found = tuple(_found(self))

    @cached_property
    def readers(self) -> list[list[int]]:
        """Of each value the steps that read it."""
        found: list[list[int]] = [[] for _ in self.flow.maker]
        for number, step in enumerate(self.flow.steps):
            for value in step.reads:
                found[value].append(number)
        return found

    @cached_property
    def users(self) -> dict[str, set[int]]:
        """Of each parameter and buffer the steps that are given it."""
        found: dict[str, set[int]] = {}
        for number, step in enumerate(self.flow.steps):
            for name in step.tensors:
                found.setdefault(name, set()).add(number)
        return found

    @cached_property
    def idle(self) -> frozenset[int]:
        """Steps that make room which nobody reads, as batch normalisation does."""
        steps = enumerate(self.flow.steps)
        return frozenset(
            number
            for number, step in steps
            if not (step.reads or step.tensors or any(self.readers[made] for made in step.makes))
        )

    @cached_property
    def innermost(self) -> list[int]:
        """Of each step the call whose own forward ran it."""
        found = [-1] * len(self.flow.steps)
        for number, call in enumerate(self.flow.calls):  # inner ones begin later
            found[call.start : call.stop] = [number] * (call.stop - call.start)
        return found

    @cached_property
    def calls_of(self) -> dict[str, list[int]]:
        """Of each module its calls."""
        found: dict[str, list[int]] = {}
        for number, call in enumerate(self.flow.calls):
            found.setdefault(call.path, []).append(number)
        return found

    @cached_property
    def parts_of(self) -> dict[int, list[int]]:
        """Of each call those right within it."""
        found: dict[int, list[int]] = {}
        for number, call in enumerate(self.flow.calls):
            found.setdefault(call.parent, []).append(number)
        return found

    @cached_property
    def written(self) -> frozenset[int]:
        """The values that someone writes into, by themselves or by what shares their memory."""
        # Dropout writes in training alone, so what is told to write counts as if it did.
        found = {v for c in self.flow.calls if c.path in self.writing for v in c.takes.values()}
        for step in reversed(self.flow.steps):
            if step.operator.endswith("_"):
                found.update(step.reads[:1])
            if step.operator in _VIEWS and not found.isdisjoint(step.makes):
                found.update(step.reads)
        return frozenset(found)

    @cached_property
    def of_inputs(self) -> frozenset[int]:
        """The values that are inputs of the model, or made of some."""
        found = {value for value, step in enumerate(self.flow.maker) if step == INPUT}
        for step in self.flow.steps:
            if not found.isdisjoint(step.reads):
                found.update(step.makes)
        return frozenset(found)

    def region(self, sums: Iterable[_Sum]) -> frozenset[int]:
        """The steps that feed nothing but the branches of these sums."""
        flow = self.flow
        ends = {(step, one.branch) for one in sums for step in one.joins or (one.step,)}
        region: set[int] = set()
        waiting = [-flow.maker[branch] for _, branch in ends if flow.maker[branch] != INPUT]
        heapq.heapify(waiting)
        # From the last to the first: who reads what a step makes ran after it, and is settled.
        last = None
        while waiting:
            number = -heapq.heappop(waiting)
            if number == last or not self._feeds_only(number, region, ends):
                continue
            last = number
            region.add(number)
            for value in flow.steps[number].reads:
                if flow.maker[value] != INPUT:
                    heapq.heappush(waiting, -flow.maker[value])
        return frozenset(region)

    def _feeds_only(
        self, number: int, region: Collection[int], ends: Collection[tuple[int, int]]
    ) -> bool:
        used = False
        for value in self.flow.steps[number].makes:
            if value in self.flow.results:
                return False
            for reader in self.readers[value]:
                used = True
                if reader not in region and (reader, value) not in ends:
                    return False
        return used

    def replaced(self, blocks: Iterable[Block]) -> tuple[Replacement, ...] | None:
        """What takes the place of modules where these blocks go; None where they cannot."""
        sums = [one for block in blocks for one in block.sums]
        return self.replacing(sums)

    def replacing(self, sums: Sequence[_Sum]) -> tuple[Replacement, ...] | None:
        """The same, of sums."""
        return _Removal(self, sums).replacements()

    def layers_behind(self, sums: Collection[Addition]) -> set[str]:
        """Names of the weights of layers that read these sums, with no layer between."""
        waiting: list[int] = []
        for block in self.found:
            added = [one for one in block.sums if not one.joins]
            pairs = zip(block.additions, added, strict=True)
            waiting += [one.made for addition, one in pairs if addition in sums]
        found: set[str] = set()
        seen = set(waiting)
        while waiting:
            for number in self.readers[waiting.pop()]:
                step = self.flow.steps[number]
                if len(step.costs):
                    found.update(self._weights(number))
                    continue
                new = [value for value in step.makes if value not in seen]
                seen.update(new)
                waiting += new
        return found

    def _weights(self, number: int) -> Iterator[str]:
        """Of a layer's operator, those that reach it as they are or transposed."""
        step = self.flow.steps[number]
        yield from step.tensors
        for value in step.reads:
            if self.flow.maker[value] != INPUT:
                maker = self.flow.steps[self.flow.maker[value]]
                if not maker.reads:
                    yield from maker.tensors

    def tensors_replaced(self, rows: Iterable[Replacement]) -> frozenset[str]:
        """The parameters and buffers of the modules that are replaced."""
        paths = [row.module for row in rows]
        return frozenset(
            name for name in self.flow.names.values() if any(within(name, path) for path in paths)
        )


# ---------------------------------------------------------------- finding them


def _found(blocks: Blocks) -> Iterator[Block]:
    """Those that can go by themselves, and those of one module that can go together."""
    sums = list(_sums(blocks))
    alone = {one: blocks.replacing([one]) for one in sums}
    taken: set[_Sum] = set()
    units: list[tuple[tuple[_Sum, ...], tuple[Replacement, ...]]] = []
    for one in sums:
        if alone[one] is None and one not in taken:
            for together in _around(blocks, one, sums):
                rows = blocks.replacing(together)
                if rows is not None and len(rows) == 1 and rows[0].passes:
                    taken.update(together)
                    units.append((together, rows))
                    break
    for one in _joins(blocks):
        alone[one] = blocks.replacing([one])
    units += [((one,), rows) for one, rows in alone.items() if rows and one not in taken]
    units.sort(key=lambda unit: unit[0][0].step)
    for members, rows in units:
        added = [one for one in members if not one.joins]
        steps = blocks.region(members) | {one.step for one in added}
        additions = tuple(_addition(blocks, one) for one in added)
        channels = [n for one in members if one.joins for n in blocks.joined[one.branch].channels]
        held = blocks.tensors_replaced(rows)
        yield Block(_name(blocks, rows), members, steps, held, additions, tuple(channels))


def _around(blocks: Blocks, one: _Sum, sums: Sequence[_Sum]) -> Iterator[tuple[_Sum, ...]]:
    """All sums within each call around a sum, from the innermost outwards."""
    number = one.call
    while number > 0:
        call = blocks.flow.calls[number]
        yield tuple(each for each in sums if call.start <= each.step < call.stop)
        number = call.parent


def _sums(blocks: Blocks) -> Iterator[_Sum]:
    """The sums of a stream and a branch."""
    flow = blocks.flow
    known: dict[int, _Sum] = {}  # by the value that they make
    for number, step in enumerate(flow.steps):
        if step.added is None or len(blocks.calls_of[_path(blocks, number)]) > 1:
            continue
        for operand in (0, 1):
            stream, branch = step.added.operands[1 - operand], step.added.operands[operand]
            if not step.added.alike[1 - operand] or stream == branch:
                continue
            # A learnt query has no batch: in an example of one it only looks as the sum does.
            if stream not in blocks.of_inputs:
                continue
            one = _Sum(number, stream, branch, step.makes[0], blocks.innermost[number])
            if _is_block(blocks, one, known):
                known[one.made] = one
                yield one
                break


def _joins(blocks: Blocks) -> Iterator[_Sum]:
    """What layers of a DenseNet put beside the stream that they read."""
    flow = blocks.flow
    for value, joined in blocks.joined.items():
        joins = tuple(blocks.readers[value])
        others = {one for step in joins for one in flow.steps[step].joined} - {value}
        one = _Sum(joins[0], -1, value, -1, blocks.innermost[joins[0]], joins)
        region = blocks.region([one])
        reads = {read for number in region for read in flow.steps[number].reads}
        used = {name for number in region for name in flow.steps[number].tensors}
        alone = all(blocks.users[name] <= region for name in used)
        if alone and not others.isdisjoint(reads) and joined.tensors <= used:
            yield one


def _path(blocks: Blocks, step: int) -> str:
    return blocks.flow.calls[blocks.innermost[step]].path


def _is_block(blocks: Blocks, one: _Sum, known: Mapping[int, _Sum]) -> bool:
    """Whether the branch depends on the stream, and shares no weights with others."""
    region = blocks.region([one])
    steps = blocks.flow.steps
    reads = {value for number in region for value in steps[number].reads}
    # Of two branches in parallel, ``x + a(x) + b(x)``, the second is added to a sum of what it
    # depends on.
    streams = {one.stream}
    stream = one.stream
    while stream in known:
        stream = known[stream].stream
        streams.add(stream)
    if not region or streams.isdisjoint(reads):
        return False
    used = {name for number in region for name in steps[number].tensors}
    return all(blocks.users[name] <= region for name in used)


def _addition(blocks: Blocks, one: _Sum) -> Addition:
    steps = blocks.flow.steps
    step = steps[one.step]
    assert step.added is not None
    start = blocks.flow.calls[one.call].start
    before = [
        number
        for number in range(start, one.step)
        if blocks.innermost[number] == one.call and steps[number].operator == step.operator
    ]
    operand = step.added.operands.index(one.branch)
    return Addition(_path(blocks, one.step), step.operator, len(before), operand)


def _name(blocks: Blocks, rows: Sequence[Replacement]) -> str:
    """The module that passes, or the one that does most of the work."""

    def work(row: Replacement) -> int:
        calls = (blocks.flow.calls[number] for number in blocks.calls_of[row.module])
        return sum(call.stop - call.start for call in calls)

    passing = [row for row in rows if row.passes and row.source == "0"]
    if len(rows) == 1 and passing:
        return rows[0].module
    return max(rows, key=work).module


# ---------------------------------------------------------------- what takes their place


class _Removal:
    """The modules that are replaced where some branches go."""

    def __init__(self, blocks: Blocks, sums: Sequence[_Sum]) -> None:
        self.blocks, self.flow, self.sums = blocks, blocks.flow, sums
        self.possible = True
        self.region = blocks.region(sums)
        self.nothing = self.region | blocks.idle
        # What is left of each sum, and of a concatenation with one other value.
        self.streams = {one.made: one.stream for one in sums if not one.joins}
        self.ends = {one.step for one in sums if not one.joins}
        self.joined = [one for one in sums if one.joins]
        self._join()
        self.gone = self.nothing | self.ends
        # What makes channels of which there are none.
        self.empty = blocks.region(self.joined) | blocks.idle
        self.rows: dict[str, Replacement] = {}
        self.covered: set[int] = set()  # steps of modules that are replaced
        self.zeros: set[int] = set()  # values that are zero by then

    def _join(self) -> None:
        """Note the concatenations of which one value is left."""
        branches = {one.branch for one in self.joined}
        for step in {step for one in self.joined for step in one.joins}:
            joined = self.flow.steps[step]
            left = [value for value in joined.joined if value not in branches]
            if not left:
                self.possible = False
            elif len(left) == 1:
                self.streams[joined.makes[0]] = left[0]
                self.ends.add(step)

    def replacements(self) -> tuple[Replacement, ...] | None:
        """None where operators or weights of the branches would stay."""
        for number in self.blocks.parts_of.get(0, ()):
            self._visit(number)
        rows = tuple(self.rows.values())
        goes = self.possible and rows and self._rest_is_nothing() and self._weights_go(rows)
        if goes and not any(map(self._written_into_zeros, self.sums)):
            return rows
        return None

    def _written_into_zeros(self, one: _Sum) -> bool:
        """Whether a sum that is run still writes its result into the branch, ``y += x``: zeros that
        broadcast have no room for it.
        """
        step = self.flow.steps[one.step]
        if one.step in self.covered or step.operator != "add_" or step.added is None:
            return False
        return step.added.operands[0] == one.branch

    def _left(self, value: int) -> int:
        """What is in the place of a value without the branches."""
        while value in self.streams:
            value = self.streams[value]
        return value

    def _visit(self, number: int) -> None:
        call = self.flow.calls[number]
        if call.start == call.stop:
            self._hand_on(call)
            return
        steps = range(call.start, call.stop)
        if (self.gone - self.blocks.idle).isdisjoint(steps):
            return
        row = self._passing(number)
        if row is not None and self._parts_pass(number):
            row = None
        elif row is None and self.nothing.issuperset(steps):
            row = self._zero(call)
        if row is not None:
            self.rows[call.path] = row
            self.covered.update(steps)
            return
        for part in self.blocks.parts_of.get(number, ()):
            self._visit(part)

    def _calls(self, call: ModuleCall) -> list[ModuleCall]:
        return [self.flow.calls[number] for number in self.blocks.calls_of[call.path]]

    def _hand_on(self, call: ModuleCall) -> None:
        """A module that does nothing in evaluation, as dropout, within a branch: nothing is left
        for it to do in training.
        """
        if self.blocks.kinds.get(call.path) == "Identity":
            return
        for one in self._calls(call):
            makers = {self.flow.maker[value] for value in one.takes.values()}
            same = isinstance(one.answer, Made) and one.answer.value == one.takes.get("0")
            if not (one.alone and same and makers <= self.region) or one.start != one.stop:
                return
        self.rows[call.path] = Replacement(call.path)

    def _parts_pass(self, number: int) -> bool:
        """Whether all that goes of a call is in parts of it that hand on what they are given.

        What else is in it, dropout between blocks for one, may do something in training.
        """
        call = self.flow.calls[number]
        left = self.region.intersection(range(call.start, call.stop))
        for part in self.blocks.parts_of.get(number, ()):
            inner = self.flow.calls[part]
            if self._passing(part) is not None:
                left -= set(range(inner.start, inner.stop))
        return not left

    def _passing(self, number: int) -> Replacement | None:
        """What takes the place of a module that then hands on what it is given."""
        call = self.flow.calls[number]
        own = [step for step in range(call.start, call.stop) if step not in self.gone]
        holds = any(call.start <= step < call.stop for step in self.ends)
        # The encoder around such a layer asks the layer for its attention.
        asked = self.blocks.kinds.get(call.path) == "TransformerEncoderLayer"
        if not holds or asked or len(own) > 1 or len(self._calls(call)) > 1:
            return None
        if call.path in self.blocks.training_aware or self._draws_on_stream(number):
            return None
        # Of a module that hands on what it is given that would be the very tensor others hold.
        if not self.blocks.written.isdisjoint(_values(call.answer)):
            return None
        if own:
            return self._activation(number, own[0])
        sources = {self._left(value): key for key, value in reversed(call.takes.items())}
        left = map(self._left, _values(call.answer))
        source = next((sources[value] for value in left if value in sources), None)
        if source is None or not self._all_left(call.answer, self._left(call.takes[source])):
            return None
        if call.alone and isinstance(call.answer, Made):
            return Replacement(call.path)
        return Replacement(call.path, json.dumps(_shown(call.answer, STREAM)), source)

    def _draws_on_stream(self, number: int) -> bool:
        """Whether a part of a call does something to the stream in training alone, before a branch
        or after it: dropout, which in evaluation hands on what it is given.
        """
        stream = {*self.streams, *self.streams.values()}
        return any(self._draws(part, stream) for part in self.blocks.parts_of.get(number, ()))

    def _draws(self, number: int, stream: set[int]) -> bool:
        call = self.flow.calls[number]
        if call.start == call.stop:
            idle = self.blocks.kinds.get(call.path) != "Identity"
            return idle and not stream.isdisjoint(call.takes.values())
        if self.nothing.issuperset(range(call.start, call.stop)):  # of the branch alone
            return False
        return call.path in self.blocks.training_aware or self._draws_on_stream(number)

    def _all_left(self, answer: Any, value: int) -> bool:
        """Whether every tensor in an answer is this one."""
        return not _odd(answer) and {self._left(one) for one in _values(answer)} == {value}

    def _activation(self, number: int, step: int) -> Replacement | None:
        """As `_passing`, of a module that ends with one operator on the stream."""
        call, last = self.flow.calls[number], self.flow.steps[step]
        if not call.alone or len(last.reads) != 1 or last.tensors:
            return None
        ends = isinstance(call.answer, Made) and call.answer.value in last.makes
        if not ends or self._left(last.reads[0]) != self._left(call.takes["0"]):
            return None
        if last.operator.rstrip("_") == "relu" and self._positive(call.takes["0"]):
            return Replacement(call.path)
        for part in self.blocks.parts_of.get(number, ()):
            inner = self.flow.calls[part]
            alone = (inner.start, inner.stop) == (step, step + 1) and inner.alone
            if alone and within(inner.path, call.path) and not self._held(inner.path):
                child = inner.path.removeprefix(f"{call.path}.")
                return Replacement(call.path, child=child)
        return None

    def _held(self, path: str) -> bool:
        return any(within(name, path) for name in self.flow.names.values())

    def _positive(self, value: int) -> bool:
        """Whether a value is a ReLU's result, so that another ReLU leaves it as it is."""
        while self.flow.maker[value] != INPUT:
            step = self.flow.steps[self.flow.maker[value]]
            name = step.operator.rstrip("_")
            if name == "relu":
                return True
            if name not in _STAYS_POSITIVE or not step.reads:
                return False
            value = step.reads[0]
        return False

    def _zero(self, call: ModuleCall) -> Replacement | None:
        """What takes the place of a module that makes a part of a branch."""
        calls = self._calls(call)
        answers = {json.dumps(_shown(one.answer, None)) for one in calls}
        inside = all(self.nothing.issuperset(range(one.start, one.stop)) for one in calls)
        real = all(made.real for one in calls for made in _mades(one.answer))
        sources = set.intersection(*(set(one.takes) for one in calls))
        if not inside or len(answers) > 1 or any(_odd(one.answer) for one in calls):
            return None
        if not sources or not real:
            return None
        handed = all(one.alone and one.takes["0"] in self.zeros for one in calls)
        self.zeros.update(value for one in calls for value in _values(one.answer))
        if handed and isinstance(call.answer, Made):
            return Replacement(call.path)
        if self.empty.issuperset(range(call.start, call.stop)):
            return self._nothing_of(call)
        source = next(key for key in call.takes if key in sources)
        return Replacement(call.path, answers.pop(), source)

    def _nothing_of(self, call: ModuleCall) -> Replacement | None:
        """What makes no channels in place of a module that is called once: what it is given, as far
        as that has the size of what it made.
        """
        if not isinstance(call.answer, Made) or len(self._calls(call)) > 1:
            return None
        made = self.flow.shapes[call.answer.value]
        for key, value in call.takes.items():
            shape = self.flow.shapes[value]
            if len(shape) == len(made) > 1 and (shape[:1], shape[2:]) == (made[:1], made[2:]):
                return Replacement(call.path, json.dumps({"none": 1}), key)
        return None

    def _rest_is_nothing(self) -> bool:
        """Whether what is left of the branches is done to single numbers, and adds nothing."""
        rest = self.region - self.covered
        for number in rest:
            step = self.flow.steps[number]
            makers = {self.flow.maker[value] for value in step.reads}
            known = step.operator.rstrip("_") in _BETWEEN and not step.tensors
            if not known or not makers <= self.region or not makers:
                return False
        ends = [one.branch for one in self.sums if one.step not in self.covered or one.joins]
        return all(self._is_zero(value, rest) for value in ends)

    def _is_zero(self, value: int, rest: Collection[int]) -> bool:
        if value in self.zeros:
            return True
        maker = self.flow.maker[value]
        if maker in self.covered:  # in a module that hands on what it is given
            return True
        step = self.flow.steps[maker]
        name = step.operator.rstrip("_")
        if maker not in rest or name not in _LEAVE_ZERO | {"add", "sub"}:
            return False
        zeros = [self._is_zero(one, rest) for one in step.reads]
        if name == "mul":
            return any(zeros)
        if name in ("add", "sub"):
            return all(zeros)
        return zeros[0]

    def _weights_go(self, rows: Sequence[Replacement]) -> bool:
        """Whether the weights of the branches all go, and no others that something needs."""
        held = self.blocks.tensors_replaced(rows)
        done = self.gone | self.covered
        if any(not self.blocks.users.get(name, set()) <= done for name in held):
            return False
        return all(held.issuperset(self.flow.steps[number].tensors) for number in self.region)


def _mades(answer: Any) -> Iterator[Made]:
    if isinstance(answer, Made):
        yield answer
    elif isinstance(answer, (tuple, list)):
        for entry in answer:
            yield from _mades(entry)


def _values(answer: Any) -> list[int]:
    return [made.value for made in _mades(answer)]


def _odd(answer: Any) -> bool:
    """Whether an answer holds what nothing can stand in for."""
    if isinstance(answer, (tuple, list)):
        return any(map(_odd, answer))
    return isinstance(answer, Odd)


def _shown(answer: Any, made: str | None) -> Any:
    """An answer as `Replacement` has it; ``made`` stands for its tensors, else their dimensions."""
    if isinstance(answer, Made):
        if made is None:
            return answer.dims
        return made
    if isinstance(answer, (tuple, list)):
        return {type(answer).__name__: [_shown(entry, made) for entry in answer]}
    return None


__all__ = ["Addition", "Block", "Blocks", "Joined"]
