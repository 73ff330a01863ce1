"""What is set around a call, for its thread or for the process, and is no part of the model.

A network has one graph, whatever context manager its user happens to stand in. Inference mode takes
operators apart before a rule sees them, autocast puts casts between, a mode of someone else's takes
the operators first, a default device puts constants where the model is not. `undisturbed` takes all
of this off for the time of a call and puts it back; what a model's own ``forward`` sets stays.

Most of it belongs to the thread. Some settings belong to the process, and threads that want them
off must not put each other's back: a `Switch` stays off until the last of them is done.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from netslim.errors import ArgumentError
from netslim.graph.modules.walk import tensors_held

Of = TypeVar("Of", bound=Callable[..., Any])

_FUNCTION_MODES = torch._C._len_torch_function_stack
_DISPATCH_MODES = torch._C._len_torch_dispatch_stack


class Switch:
    """A change of a setting of the whole process, for as long as any thread needs it.

    Args:
        change: makes a context manager that changes the setting and puts it back; it may give the
            setting as it was.
    """

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._change, self._lock, self._holders = change, threading.Lock(), 0
        self._changed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._before: Any = None

    def before(self, now: Callable[[], Any]) -> Any:
        """The setting as it is without the change; ``now`` tells it as it is."""
        with self._lock:
            if self._holders:
                return self._before
            return now()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the setting is changed."""
        with self._lock:
            if not self._holders:
                self._changed = self._change()
                self._before = self._changed.__enter__()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._changed.__exit__(None, None, None)


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """The fused multi-head attention is one opaque operator; without it its parts run."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _undetermined() -> Iterator[None]:
    """Deterministic algorithms are other operators in some places, and refuse to run in others."""
    wanted = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted, warn_only=warn_only)


@contextlib.contextmanager
def _any_attention() -> Iterator[None]:
    """PyTorch chooses among all kernels of attention, whatever `sdpa_kernel` left of them."""
    setting = _attention_enabled()
    _enable_attention([True] * len(_KERNELS))
    try:
        yield
    finally:
        _enable_attention(setting)


def _attention_enabled() -> list[bool]:
    return [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _KERNELS]


def _enable_attention(setting: list[bool]) -> None:
    for name, enabled in zip(_KERNELS, setting, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)


@contextlib.contextmanager
def _default_dtype() -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield before
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _computing_shapes() -> Iterator[None]:
    """einops keeps the shapes that it once worked out for sizes; of those of a trace it would hand
    out what it made of numbers, or of an earlier trace, which remember nothing or something else.
    """
    module: Any = sys.modules.get("einops.einops")
    kept = getattr(module, "_reconstruct_from_shape", None)
    computed = getattr(kept, "__wrapped__", None)
    if computed is None:
        yield
        return
    module._reconstruct_from_shape = computed
    try:
        yield
    finally:
        module._reconstruct_from_shape = kept


_KERNELS = ("flash", "mem_efficient", "math", "cudnn")
FAST_PATH = Switch(_no_fast_path)
_DETERMINISTIC, _FUSED, _DTYPE = map(Switch, (_undetermined, _any_attention, _default_dtype))
_SHAPES = Switch(_computing_shapes)
_STANCE = Switch(lambda: torch.compiler.set_stance("force_eager"))


@contextlib.contextmanager
def usual_operators() -> Iterator[None]:
    """Inside, a layer runs as the operators it runs as by default, and attention as its parts."""
    with FAST_PATH.held(), _DETERMINISTIC.held(), _FUSED.held(), _SHAPES.held():
        yield


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Whatever a forward changes of the settings of the process, they are as they were afterwards.

    A forward puts them back itself; runs that wait for each other do so in another order.
    """
    attention, dtype = _attention_enabled(), torch.get_default_dtype()
    filters = warnings.filters[:]
    try:
        yield
    finally:
        _enable_attention(attention)
        torch.set_default_dtype(dtype)
        warnings.filters[:] = filters  # type: ignore[index]


@contextlib.contextmanager
def undisturbed(model: nn.Module | None) -> Iterator[None]:
    """Inside, ``model`` runs as it does by itself; gradients are on or off as they were.

    Off are inference mode, autocast, `torch.compile`, the transforms of `torch.func` and all modes
    that see operators or functions. A default device or data type stays where it is the model's;
    None is for what has no model, and computes on the CPU.
    """
    devices, dtypes = set(), set()
    if model is not None:
        tensors = tensors_held(model)
        devices = {device.type for device in {tensor.device for tensor in tensors}}
        dtypes = {tensor.dtype for tensor in tensors}
    gradients = torch.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        for each in (
            *(_transforms_off(), dispatch_modes_off()),
            *(_function_modes_off(devices), torch.inference_mode(False)),
            *(torch.set_grad_enabled(gradients), _autocast_off(devices)),
            *(_own_dtype(dtypes), eagerly()),
        ):
            stack.enter_context(each)
        yield


def by_itself(function: Of) -> Of:
    """Decorator of what takes a model, or none: it runs as with `undisturbed`.

    What is made under inference mode could not be trained, and under autocast or modes of others a
    network would get other weights than without.
    """

    @functools.wraps(function)
    def alone(*args: Any, **kwargs: Any) -> Any:
        models = (one for one in (*args, *kwargs.values()) if isinstance(one, nn.Module))
        with undisturbed(next(models, None)):
            return function(*args, **kwargs)

    return cast(Of, alone)


@contextlib.contextmanager
def holding_values() -> Iterator[None]:
    """Inside, what is made holds values and can be trained: no fake tensors, no meta device.

    Any other default device, and the default data type, are the user's choice and stay.
    """
    around = _function_modes()
    devices = {mode.device.type for mode in around if isinstance(mode, DeviceContext)}
    gradients = torch.is_grad_enabled()
    with (
        dispatch_modes_off(),
        _function_modes_off(devices - {"meta"}),
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
    ):
        yield


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Inside, compiled modules and functions run as the Python code they were made from."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and it is slow to import
        yield
        return
    if torch.compiler.is_dynamo_compiling() or _called_by_compiled_code():
        raise ArgumentError(
            "netslim was called in code that torch.compile compiles: make the call outside of it"
        )
    with _STANCE.held():
        yield


def _called_by_compiled_code() -> bool:
    """Whether whatever Python function is called next would be compiled."""
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    return get_eval_frame_callback() not in (None, False)


def _transforms_off() -> contextlib.AbstractContextManager[Any]:
    """No `torch.vmap` or `torch.func.grad` around: they see operators before anyone else."""
    # PyTorch 2.6 warns of this call where it compiles; that is refused soon (see `eagerly`).
    compiling = torch.compiler.is_dynamo_compiling()
    if compiling or torch._C._functorch.peek_interpreter_stack() is None:
        return contextlib.nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def dispatch_modes_off() -> contextlib.AbstractContextManager[Any]:
    """No `TorchDispatchMode` around: it would run before ours, on what ours computes, too."""
    if not _DISPATCH_MODES():
        return contextlib.nullcontext()  # else it imports much
    return _disable_current_modes()


@contextlib.contextmanager
def _function_modes_off(devices: set[str]) -> Iterator[None]:
    """No `TorchFunctionMode` around but a default device that is one of the model's."""
    around = _function_modes()
    own = [m for m in around if isinstance(m, DeviceContext) and m.device.type in devices]
    _replace_function_modes(own)
    try:
        with torch._C._EnableTorchFunction():
            yield
    finally:
        _replace_function_modes(around)


def as_here(function: Callable[[], None]) -> Callable[[], None]:
    """The function for another thread, where it runs as in this one: with its default device, its
    context variables, and on its stream of a GPU.
    """
    around, context = _function_modes(), contextvars.copy_context()
    stream: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        stream = torch.cuda.stream(torch.cuda.current_stream())

    def there() -> None:
        _replace_function_modes(around)
        with stream:
            context.run(function)

    return there


def _function_modes() -> list[TorchFunctionMode]:
    return [torch._C._get_function_stack_at(i) for i in range(_FUNCTION_MODES())]


def _replace_function_modes(modes: Sequence[TorchFunctionMode]) -> None:
    """Put these on the stack, the innermost last, in place of what is there."""
    for _ in range(_FUNCTION_MODES()):
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


@contextlib.contextmanager
def _autocast_off(devices: set[str]) -> Iterator[None]:
    possible = filter(torch.amp.is_autocast_available, devices | {"cpu", "cuda"})
    casting = [device for device in possible if torch.is_autocast_enabled(device)]
    for device in casting:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in casting:
            torch.set_autocast_enabled(device, True)


def _own_dtype(dtypes: set[torch.dtype]) -> contextlib.AbstractContextManager[Any]:
    """A default data type that none of the model's tensors has is not what it was written for."""
    if _DTYPE.before(torch.get_default_dtype) in dtypes | {torch.float32}:
        return contextlib.nullcontext()
    return _DTYPE.held()
