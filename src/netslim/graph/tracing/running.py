"""Run the model once and let labels flow."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.hooks import RemovableHandle

from netslim.errors import TraceError
from netslim.graph.modules.ambient import usual_operators
from netslim.graph.modules.calls import (
    as_call,
    check_entries,
    evaluating,
    in_mode,
    output_tensors,
    refusing,
)
from netslim.graph.modules.separate_heads import by_heads, traced_by_heads
from netslim.graph.modules.walk import named_modules
from netslim.graph.modules.watching import hung
from netslim.graph.tracing.atoms import ATOM, Atoms, Vector
from netslim.graph.tracing.attributes import (
    Make,
    make_attributes,
    plain_names,
    remembered_attributes,
    watched_sizes,
)
from netslim.graph.tracing.dataflow import Dataflow, watching_calls
from netslim.graph.tracing.facts import Facts
from netslim.graph.tracing.log import Log, tensors_among
from netslim.graph.tracing.modes import Dispatch, Function
from netslim.graph.tracing.norms import Norms
from netslim.graph.tracing.other_sizes import compare, resized, untouched
from netslim.graph.tracing.ports import Ports
from netslim.graph.tracing.read_by_others import leave_unscaled
from netslim.graph.tracing.recorder import Recorder, Rule
from netslim.graph.tracing.rerun import Rerun

_AS_INTEGERS = (
    "sizes are then a subclass of int; where the code asks type(size) is int, let it ask "
    "isinstance(size, int)"
)
_WHOLE = re.compile(r"HigherOrderOperator (\w+)")
_AS_MASK = (
    "F.scaled_dot_product_attention, which takes what they do as a mask, is followed in the place "
    "of flex_attention"
)
Watching = tuple[Function, Dispatch, Norms]
# A trace puts sizes into the attributes of a model, and models may share their parts.
ONE_AT_A_TIME = threading.RLock()


def record(
    model: nn.Module,
    example_inputs: Any,
    rules: Mapping[str, Rule],
    fallback: Rule,
    unused: bool = True,
    ports: Ports | None = None,
    heads: Recorder | None = None,
    blocks: bool = False,
    before: Recorder | None = None,
) -> Recorder:
    """Run ``model`` once in evaluation mode, without gradients, and follow its channels.

    Where parts were not used, such as auxiliary heads, it is run once more in training mode if it
    can be: what they read must go with the channels they read it from. Where places were laid out
    with channels it is run at another size, too (other_sizes.py). The model is left as it was:
    training flags, attributes and buffers are put back, whatever its forward pass writes.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        rules: operator -> rule.
        fallback: the rule of the others.
        unused: False leaves parts that were not used alone, and other sizes: nothing that the one
            call costs depends on them.
        ports: free inputs and outputs; it is told their channels.
        heads: a recording of the same call in which whole heads go: in this one they become
            narrower.
        blocks: note which operator reads what, too (dataflow.py).
        before: an earlier recording of the same call, which took numbers for those of heads that
            are none (`Recorder.spoiled`): in this one they are not.

    Raises:
        TraceError: the model does not run on these inputs, or they hold no example.
        ArgumentError: there is no free output of that name.
    """
    check_entries(example_inputs)
    if ports is None:
        ports = Ports()
    with ONE_AT_A_TIME:
        recorder = _begun(model, heads or before)
        recorder.narrows_heads = heads is not None
        if before is not None:
            recorder.no_heads = before.no_heads | before.spoiled
        if ports.free.inputs:
            first = Ports(ports.free)
            begun = _like(recorder)
            _fill(begun, example_inputs, rules, fallback, False, first)
            ports.dims = first.channels(begun)
        if blocks:
            recorder.flow = Dataflow(recorder.atoms.names)
        _fill(recorder, example_inputs, rules, fallback, unused, ports)
        if recorder.mixes and unused:
            _watch_other_sizes(recorder, example_inputs, rules, fallback, ports)
        return recorder


def _begun(model: nn.Module, before: Recorder | None) -> Recorder:
    """An empty recorder, which knows of the model what an earlier one of the same trace did."""
    if before is None:
        return Recorder(Atoms(model), model, Facts(model))
    return _like(before)


def _like(recorder: Recorder) -> Recorder:
    """An empty recorder for another run of the same kind."""
    model, no_heads = recorder.model, recorder.no_heads
    other = Recorder(Atoms(model), model, recorder.facts, no_heads=no_heads)
    other.narrows_heads, other.memo = recorder.narrows_heads, recorder.memo
    return other


def _fill(
    recorder: Recorder,
    example_inputs: Any,
    rules: Mapping[str, Rule],
    fallback: Rule,
    unused: bool,
    ports: Ports,
) -> None:
    """Record what a run of the recorder's model teaches."""
    model = recorder.model
    if unused:
        recorder.names_read = recorder.facts.names_read
    tensors = recorder.atoms.tensors.values()
    for tensor in tensors:
        recorder.label(tensor, recorder.atoms.axes_of[id(tensor)], weight=True)
    operators = Dispatch(recorder, rules, fallback)
    norms = Norms(recorder, operators)
    watching = (Function(recorder, operators, norms.called), operators, norms)
    with evaluating(model), refusing(example_inputs), _telling_of_sizes(model, example_inputs):
        answer = _watch(recorder, example_inputs, watching, ports)
    recorder.spoiled = recorder.without_heads()
    ports.hold_outputs(recorder, example_inputs, answer)
    recorder.hold_orders()
    parameters = (tensor for tensor in tensors if isinstance(tensor, nn.Parameter))
    idle = [p for p in parameters if id(p) not in recorder.touched]
    if unused and idle:
        _watch_training(recorder, example_inputs, watching, ports, idle)
    if unused:
        leave_unscaled(recorder, example_inputs)


@contextlib.contextmanager
def _telling_of_sizes(model: nn.Module, example_inputs: Any) -> Iterator[None]:
    """Where a model runs, but not with sizes that remember, the error says what to ask instead.

    A size is an `int` to ``isinstance`` and to all arithmetic, but ``type(size) is int`` is False,
    and nothing can change what `type` says. Plain integers in a second try would be no way out:
    whatever the code computes of them would go unseen, and what is inexact be called exact.
    """
    try:
        yield
    except TraceError:  # what a rule says on purpose
        raise
    except Exception as error:
        if not _runs(model, example_inputs):
            raise
        what = f"({type(error).__name__}: {error}): {_AS_INTEGERS}"
        if (whole := _WHOLE.search(str(error))) is not None:
            what = f"as no trace sees what {whole[1]} does with the functions that it is given: "
            what += _AS_MASK
        raise TraceError(
            f"the model runs on these inputs, but not while it is traced {what}"
        ) from error


def _runs(model: nn.Module, example_inputs: Any) -> bool:
    """Whether the model runs when nobody watches."""
    args, kwargs = as_call(example_inputs)
    with contextlib.suppress(Exception), torch.no_grad(), untouched(model):
        model(*args, **kwargs)
        return True
    return False


def _evaluates(model: nn.Module, example_inputs: Any) -> bool:
    with in_mode(model, training=False):
        return _runs(model, example_inputs)


def _watch_other_sizes(
    recorder: Recorder,
    example_inputs: Any,
    rules: Mapping[str, Rule],
    fallback: Rule,
    ports: Ports,
) -> None:
    """Trace the model at the first other size that it runs at; what differs stays.

    Whether it takes a size is found out unwatched, for many break off late.
    """
    model, takes = recorder.model, recorder.facts.takes
    for number, inputs in enumerate(resized(example_inputs)):
        if number not in takes:
            takes[number] = _evaluates(model, inputs)
        if not takes[number]:
            continue
        other, ran = _like(recorder), False
        with contextlib.suppress(Exception), untouched(model):
            again = Ports(ports.free, ports.dims)
            _fill(other, inputs, rules, fallback, False, again)
            ran = True
        if ran:
            compare(recorder, other)
            return


def _watch(recorder: Recorder, example_inputs: Any, watching: Watching, ports: Ports) -> Any:
    args, kwargs = tree_map_only(Tensor, _own, as_call(example_inputs))
    ports.open_inputs(recorder, kwargs or args)
    flow = recorder.flow
    if recorder.training:
        flow = None
    if flow is not None:
        flow.begin(tensors_among(args, kwargs))
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, Tensor):
            dims = recorder.get(value).dims
            recorder.set(value, dims, weight=False)
            # The run in training mode is there for what it ties; what fills the memory is asked of
            # evaluation.
            if not recorder.training:
                sizes = tuple([dims.get(d, n) for d, n in enumerate(value.shape)])
                recorder.storages.begin(value, sizes)
    with (
        torch.no_grad(),
        traced_by_heads(recorder.model),
        remembered_attributes(recorder),
        watched_sizes(recorder),
        _module_paths(recorder, watching[2]),
        watching_calls(flow, recorder.model),
        usual_operators(),
        watching[0],
        watching[1],
    ):
        if not recorder.training:
            recorder.log = _log(recorder, args, kwargs)
        answer = recorder.model(*args, **kwargs)
    if recorder.log is not None and not recorder.training:
        recorder.log.end = recorder.log.told(answer)
    if flow is not None:
        flow.finish(answer)
    recorder.used(output_tensors(answer))
    return answer


_SIZES = frozenset({"shape", "size", "numel", "nelement"})  # what gives numbers of channels


def _log(recorder: Recorder, args: Any, kwargs: Any) -> Log | None:
    """A log, where the code may read numbers of channels; most networks' code reads none."""
    read = recorder.names_read
    if read.isdisjoint(_SIZES) and read.isdisjoint(plain_names(recorder.attributes)):
        return None
    log = Log(recorder.atoms.names, read)
    for tensor in tensors_among(args, kwargs):
        log.add(tensor)
    return log


@contextlib.contextmanager
def run_again(recorder: Recorder, example_inputs: Any) -> Iterator[Callable[[Rerun, Make], None]]:
    """Inside, runs of the model's code without its computations (rerun.py), one after the other.

    What it gives runs the code with attributes that are ``make``'s, and raises `Parted` where it
    makes other calls than before.
    """

    def run(rerun: Rerun, make: Make) -> None:
        args, kwargs = tree_map_only(Tensor, _own, as_call(example_inputs))
        rerun.begin(args, kwargs)
        try:
            make_attributes(recorder, make)
            with rerun:
                answer = recorder.model(*args, **kwargs)
            rerun.finish(answer)
        finally:
            put_back()

    with (
        ONE_AT_A_TIME,
        traced_by_heads(recorder.model),  # as it was before each run
        in_mode(recorder.model, training=False),
        untouched(recorder.model, training=False) as put_back,
        torch.no_grad(),
        usual_operators(),
    ):
        yield run


def _own(tensor: Tensor) -> Tensor:
    """An input as the run may use it: what inference mode made cannot be written to outside it."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise TraceError(
            "an example input is within torch.func (vmap, grad): it has other sizes there; make "
            "the call outside"
        )
    if tensor.is_inference():
        return tensor.clone()
    return tensor


def _watch_training(
    recorder: Recorder,
    example_inputs: Any,
    watching: Watching,
    ports: Ports,
    unused: list[nn.Parameter],
) -> None:
    """Learn what parts read that only training uses; their own channels stay.

    No evaluation could prove a cut of those. What such a part reads is used in evaluation too, and
    may go; the part must then lose the same.
    """
    model = recorder.model
    costs, touched = list(recorder.costs), set(recorder.touched)
    recorder.training = True
    with contextlib.suppress(Exception), untouched(model), in_mode(model, training=True):
        answer = _watch(recorder, example_inputs, watching, ports)
        ports.hold_outputs(recorder, example_inputs, answer)
    # Whatever ran, even up to an error, has tied what it ties; it costs an evaluation nothing.
    recorder.costs, recorder.touched = costs, touched
    atoms = recorder.atoms
    kept: list[Vector] = [np.empty(0, dtype=ATOM)]
    for parameter in model.parameters():
        if id(parameter) in touched:
            kept += atoms.axes_of[id(parameter)].values()
    used = atoms.find(np.concatenate(kept))
    for parameter in unused:
        for vector in atoms.axes_of[id(parameter)].values():
            atoms.freeze(vector[~np.isin(atoms.find(vector), used)], "evaluation does not use it")


@contextlib.contextmanager
def _module_paths(recorder: Recorder, norms: Norms) -> Iterator[None]:
    """The recorder knows the path of the module that is running, by hooks of the model's own.

    Hooks for all modules of the process would be told of other models, and be seen by compiled
    ones; and another thread may run this very model meanwhile.
    """
    paths = {m: p for m, p in named_modules(recorder.model).items() if _takes_hooks(m)}
    thread = threading.get_ident()
    norms.hooked = set(filter(_hooked, paths))

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread:
            return
        recorder.modules.append(paths[module])
        norms.enter(module)
        if isinstance(module, (nn.MultiheadAttention, nn.LSTM)):
            with recorder.unlogged():
                _hold_widths(recorder, module, args)

    def leave(module: nn.Module, args: Any, *named_and_output: Any) -> None:
        # Another thread that runs the model while hooks are removed calls it with the output alone.
        if threading.get_ident() == thread:
            norms.leave(module, recorder.modules.pop(), args, *named_and_output)

    def within() -> Iterator[RemovableHandle]:
        last = {"prepend": True, "with_kwargs": True, "always_call": True}
        for module in paths:
            yield nn.Module.register_forward_pre_hook(module, enter, prepend=True)
            yield nn.Module.register_forward_hook(module, leave, **last)

    with hung(within()):
        yield


def _hooked(module: nn.Module) -> bool:
    """Whether somebody may do anything to what goes in or comes out; ours only gives zeros."""
    hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
    return any(not getattr(hook, "gives_zeros", False) for hook in hooks)


def _takes_hooks(module: nn.Module) -> bool:
    """Scripted code, of which only what holds no tensors is let in, takes none."""
    return not isinstance(module, torch.jit.ScriptModule)


def _hold_widths(recorder: Recorder, module: nn.Module, args: tuple[Any, ...]) -> None:
    """What layers of PyTorch's ask of widths beside what their operators do."""
    if isinstance(module, nn.MultiheadAttention) and not by_heads(module):
        _hold_width(recorder, module, args)
    elif isinstance(module, nn.LSTM) and module.proj_size:
        _hold_projection(recorder, module)


def _hold_width(recorder: Recorder, module: nn.MultiheadAttention, args: tuple[Any, ...]) -> None:
    """`nn.MultiheadAttention` makes what is as wide as its query; inside, see attention.py."""
    width = None
    if args:
        width = recorder.get(args[0]).dims.get(args[0].dim() - 1)
    made = recorder.get(module.out_proj.weight).dims.get(0)
    recorder.meet(made, width, "multi-head attention, which is as wide as its query")


def _hold_projection(recorder: Recorder, module: nn.LSTM) -> None:
    """PyTorch sees that there is a projection by the hidden units being more than the projected."""
    for name, parameter in module.named_parameters():
        if name.startswith("weight_hr"):
            vector = recorder.get(parameter).dims.get(1)
            if vector is not None:  # said of the layer, whatever line of code runs it
                recorder.atoms.freeze(vector, "an LSTM with a projection keeps its hidden units")
