"""Checkpoints: one safetensors file with the weights and all it takes to rebuild their shapes.

The header, a JSON text, holds the plan from the original architecture (composed over all passes),
the fingerprint, the constructor when the network is one that `netslim.models.build` makes, and
metadata. Nothing is unpickled, and everything is validated before anything is built.

Beside the header lies a digest of it and of the tensors, which tells damage and changes by hand. It
is taken of the header's text as it was written, so what is compared does not depend on how a later
version, or another JSON writer, would put the same content. Names, data types and shapes enter with
the bytes, for the bytes of two tensors that changed places, or of one (2, 8) tensor and of another
(4, 4) one, may be the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode
from safetensors.torch import save as encode
from torch import Tensor, nn

import netslim.models.hub as hub
from netslim._support import (
    checks_calls,
    is_format,
    listed,
    named_file,
    opened,
    parse_json,
    read_bytes,
    reason,
    typed,
    write_atomic,
)
from netslim.errors import ArgumentError, CheckpointError, PlanError, SurgeryError
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.padded_norms import SCALED, PaddedNorm, add_eps
from netslim.graph.modules.scaled_norms import eps_held, scale_eps
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import (
    digest_of,
    fingerprint,
    lasting_tensors,
    layer_of,
    named_modules,
    named_tensors,
)
from netslim.models.other_files import WEIGHTS, no_checkpoint
from netslim.models.stored_weights import storing
from netslim.surgery.dropped import Dropped, gone_tensors
from netslim.surgery.history import history, unexplained
from netslim.surgery.module_sizes import patched, put, submodule
from netslim.surgery.norm_inputs import Zeros, give_zeros, zeros_given
from netslim.surgery.plan import PruningPlan, counted
from netslim.surgery.prune import prune
from netslim.surgery.rows import SizePatch, TensorCut, bias_of

FORMAT = 1
_ENTRY = "netslim"  # under which everything stands that is not a tensor
logger = logging.getLogger("netslim")
_LONGEST = 10**8  # bytes of a header, as safetensors allows them
_NOTHING = PruningPlan("", {}, ())
_BUFFERS = 2**16  # numbers that a plan may list besides, of buffers which are not saved
Model = TypeVar("Model", bound=nn.Module)


@checks_calls
@by_itself
def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    constructor: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    format: Literal["file", "hub"] = "file",
    card: str | None = None,
) -> Path:
    """Write the weights of ``model`` and how netslim cut it; the file is complete or not there.

    With ``format="hub"`` it is a folder as the Hugging Face hub keeps them, with the weights, the
    plan, `config.json` and a model card: `hf upload NAME FOLDER` takes it there, and `load` and
    `netslim.models.build` open it. `from_pretrained` and timm's `local-dir:` open it where they can
    build the network as it is, and find nothing to build where they cannot.

    Args:
        model: any module, cut or not.
        path: of the ``.safetensors`` file, or of a folder that does not exist yet or is empty.
        constructor: ``{"name": "zoo:vgg16", "kwargs": {...}}``, so that the file can be loaded
            without a model.
        metadata: anything JSON can hold.
        format: a file, or a folder for the hub.
        card: the text of the folder's README.md, as `netslim.report.card.model_card` makes it of a
            run; how the folder is opened is added.

    Raises:
        ArgumentError: ``path`` is empty or a folder, or there is a card and no folder.
        CheckpointError: the state holds something that is not a tensor, the model was changed by
            other means after a cut so that no fresh one could be cut to it, or the file cannot be
            written.

    Example:
        >>> small = netslim.slim(model, images, budget=netslim.Budget(cut_macs=0.5))
        >>> netslim.save(small, "small.safetensors")
        PosixPath('small.safetensors')
    """
    if format == "file":
        path = named_file(path, "path")
        if card is not None:
            raise ArgumentError("card is written into a folder: say format='hub', or leave it out")
    model = bare(model, CheckpointError, call="save(model, path)")
    for cut in unexplained(model):
        raise CheckpointError(
            f"{cut.tensor!r} was cut to {len(cut.kept)} of {cut.size} entries on axis {cut.axis}, "
            "and was given another size since, which no fresh model could be cut to: cut with "
            "netslim.prune, or save model.state_dict() and build the network as it is now"
        )
    tensors, shared = _distinct(model)
    plan = history(model)
    if plan is not None:
        _check_eps(model, plan)
        _check_replay(model, plan, path)
    header = {
        "format": FORMAT,
        "fingerprint": fingerprint(model),
        "unordered": _unordered(model),
        "plan": plan and plan.to_json(),
        "constructor": constructor and dict(constructor),
        "shared": shared,
        "metadata": dict(metadata or {}),
    }
    zeros = zeros_given(model)
    if zeros:
        header["zeros"] = [vars(row) for row in zeros]
    if plan is not None and (eps := _own_eps(model, plan)):
        header["eps"] = eps
    try:
        text = json.dumps(header, sort_keys=True)
        parse_json(text, nan=True)  # what is too deep or too large could not be read again
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata or constructor of a checkpoint must be plain JSON: {error}"
        ) from None
    # One metadata entry: safetensors writes several in no fixed order, and equal networks should
    # give equal files.
    entry = json.dumps({"header": text, "digest": _digest(text, tensors)})
    payload = encode(tensors, {_ENTRY: entry})
    if format == "hub":
        return hub.write(Path(path), payload, header, model, card)
    return _write(Path(path), payload)


@checks_calls
@by_itself
def load(model: Model, path: str | os.PathLike[str]) -> Model:
    """Rebuild the saved network: cut a copy of a fresh ``model`` as the file says, and fill it.

    Args:
        model: a fresh network of the original architecture; it is not changed. Parametrisations
            that were removed before the file was written are removed from the copy, too. Where the
            file says how its network is built, `netslim.models.build` makes and fills it without
            one.
        path: of a file or folder that `save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, changed since it was written, not ours, or
            for another model.

    Example:
        >>> path = netslim.save(model, "net.safetensors")
        >>> fresh = netslim.zoo.vgg(layers=[8, "M", 16], in_channels=1, num_classes=3).eval()
        >>> torch.equal(netslim.load(fresh, path)(images), model(images))
        True
    """
    model = bare(model, CheckpointError, call="load(model, path)")
    return restored(model, *read(path), path)


@by_itself
def restored(
    model: Model, header: Mapping[str, Any], tensors: dict[str, Tensor], path: Any
) -> Model:
    """`load` with what `read` has read; a model that is bare.

    Raises:
        CheckpointError: the file is of another architecture, or of other kinds of numbers.
    """
    for alias, name in header["shared"].items():
        tensors[alias] = tensors[name]
    model = storing(model, tensors.keys())
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        plan = _fitting(header["plan"], model, shapes, path)
        result = prune(model, plan)
        _as_saved(result, plan, header.get("eps", {}))
        give_zeros(result, header.get("zeros", ()))
    except (PlanError, SurgeryError) as error:
        raise CheckpointError(f"{path} was not saved from this architecture: {error}") from None
    _check_kinds(result, tensors, path)
    result.load_state_dict(tensors)
    same = fingerprint(result) == header["fingerprint"]
    if not same and _unordered(result) != header.get("unordered"):
        raise CheckpointError(
            f"{path} was saved from another architecture than this one{_tied(header, result)}"
        )
    return result


def _check_eps(model: nn.Module, plan: PruningPlan) -> None:
    """Refuse a normalisation whose eps was taken away after a cut: a plan has a number for it."""
    for norm in plan.norms:
        if norm.kind == SCALED and eps_held(model.get_submodule(norm.module)) is None:
            raise CheckpointError(
                f"the eps of {norm.module}, which was cut, is no number any more, and a file could "
                "not say so: set it to the number that is meant, or to None before the cut"
            )


def _own_eps(model: nn.Module, plan: PruningPlan) -> dict[str, float | None]:
    """What the padded normalisations add whose rows leave it to the network that is cut."""
    left = {norm.module for norm in plan.norms if norm.eps is None and not norm.call}
    found = ((path, model.get_submodule(path)) for path in sorted(left))
    return {
        path: module.padded_eps
        for path, module in found
        if isinstance(module, PaddedNorm) and module.has_eps
    }


def _as_saved(model: nn.Module, plan: PruningPlan, eps: Mapping[str, float | None]) -> None:
    """Set what normalisations added when they were saved, which a fresh network need not do.

    Args:
        model: cut by the plan.
        plan: of the file.
        eps: of what the plan leaves it to (`_own_eps`).
    """
    for norm in plan.norms:
        if norm.kind == SCALED:
            scale_eps(model.get_submodule(norm.module), norm)
    for path, value in eps.items():
        add_eps(submodule(model, path), value)


def _tied(header: Mapping[str, Any], model: nn.Module) -> str:
    """How a refusal goes on: by tensors that are one in the file alone, or in the model alone."""
    ours = _distinct(model)[1]
    for there, here, where in (
        (header["shared"], ours, "in it, and two in the model: tie them in the model"),
        (ours, header["shared"], "in the model, and two in it: give each its own"),
    ):
        for name, first in there.items():
            if name not in here:
                return f": {name!r} and {first!r} are one tensor {where}"
    return "; pass a fresh model of it"


def _check_kinds(model: nn.Module, tensors: Mapping[str, Tensor], path: Any) -> None:
    """Refuse numbers that would be other ones in the model; tell of those that are none.

    Of other precision they may be: half the bits are a way to store a network.
    """
    for name, own in model.state_dict().items():
        if name not in tensors or not isinstance(own, Tensor):
            continue
        stored = tensors[name]
        if _kind(stored) != _kind(own):
            raise CheckpointError(
                f"{path} has {stored.dtype} numbers as {name!r}, and the network {own.dtype}: they "
                "are not what was saved from it; save the network again with netslim.save"
            )
    hollow = [name for name, one in tensors.items() if _kind(one) != "whole" and one.isnan().any()]
    if hollow:
        logger.warning(
            "%s has values in %s that are no numbers (NaN): did its training diverge?",
            path, listed(sorted(hollow), most=3),
        )  # fmt: skip


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "real"
    return "whole"


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a checkpoint, validated; ``plan`` of the header is a plan, or None.

    Raises:
        CheckpointError: as `load`, apart from what concerns a model.
    """
    try:
        payload = read_bytes(hub.weights_in(path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return understood(payload, path)


def understood(payload: bytes, path: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`read`, of the content of a file; ``path`` is where it is from, for messages.

    Raises:
        CheckpointError: as `read`.
    """
    with _refusing_damage(path):
        tensors = _decoded(payload)
        text, header, digest = _entry(payload, path)
    if _digest(text, tensors) != digest:
        raise CheckpointError(
            f"{path} was changed after it was saved (its digest does not match); take another copy"
        )
    return _whole(header, tensors, path), tensors


def noted(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint notes, as its first bytes tell.

    For who builds the network of it, too: whether it is damaged or was changed is seen then.

    Raises:
        CheckpointError: as `read`.
    """
    with _refusing_damage(path):
        return dict(_entry(_start(path), path)[1].metadata)


@dataclass(frozen=True)
class _Sealed:
    """What a file says besides its tensors."""

    header: str
    digest: str


@dataclass(frozen=True)
class _Header:
    format: int
    fingerprint: str
    shared: Mapping[str, str]
    metadata: Mapping[str, Any]
    plan: str | None = None
    constructor: Mapping[str, Any] | None = None
    unordered: str | None = None
    zeros: tuple[Zeros, ...] = ()
    eps: Mapping[str, float | None] = field(default_factory=dict)


def _entry(payload: bytes, path: Any) -> tuple[str, _Header, str]:
    """The header's text, the header, and the digest of it and the tensors."""
    texts = _texts(payload)
    if _ENTRY not in texts:
        raise CheckpointError(
            f"{path} was not written by netslim: name its network, with "
            f"weights_file={str(path)!r} beside it"
        )
    sealed: _Sealed = typed(_Sealed, parse_json(texts[_ENTRY]))
    found = parse_json(sealed.header, nan=True)  # of metadata
    if not isinstance(found, dict) or not is_format(found.get("format"), FORMAT):
        raise CheckpointError(
            f"{path} has a format this version does not know; load it with the netslim that "
            "saved it"
        )
    return sealed.header, typed(_Header, found), sealed.digest


@contextmanager
def _refusing_damage(path: Any) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if told := _otherwise(path):
            raise CheckpointError(told) from None
        raise CheckpointError(
            f"{path} is not a whole netslim checkpoint ({reason(error)}); it may be truncated: "
            "take another copy, or save it again"
        ) from None


def _decoded(payload: bytes) -> dict[str, Tensor]:
    try:
        return decode(payload)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:  # as it words damage
        raise ValueError(f"{type(error).__name__}: {error}") from None


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether `save` wrote the file, as far as its first bytes tell; it may be damaged behind.

    Raises:
        CheckpointError: the file cannot be read.
    """
    start = _start(path)
    try:
        return _ENTRY in _texts(start)
    except ValueError:
        return False


def _start(path: str | os.PathLike[str]) -> bytes:
    """All of a safetensors file but its tensors."""
    try:
        with opened(hub.weights_in(path)) as (file, size):
            head = file.read(8)
            return head + file.read(min(int.from_bytes(head, "little"), size, _LONGEST))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Any, error: OSError | ValueError) -> CheckpointError:
    if isinstance(error, IsADirectoryError) and (told := no_checkpoint(os.fspath(path))):
        return CheckpointError(told)
    return CheckpointError(f"cannot read {path or repr(path)}: {reason(error)}")


def _otherwise(path: Any) -> str | None:
    """What is in the file, and how a network gets it, where its name tells that `save` did not
    write it.
    """
    said = no_checkpoint(os.fspath(path))
    if said and os.fspath(path).endswith(WEIGHTS):
        said += f"; or fill one of yours by model.load_state_dict(torch.load({os.fspath(path)!r}))"
    return said


def _texts(payload: bytes) -> dict[str, str]:
    """What a safetensors file says besides its tensors."""
    size = int.from_bytes(payload[:8], "little")
    header = typed(Mapping[str, Any], parse_json(payload[8 : 8 + size]))
    found: dict[str, str] = typed(Mapping[str, str], header.get("__metadata__") or {})
    return found


def uncut(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor of a file had before the cut, by the plan in its header."""
    sizes = {name: [*tensor.shape] for name, tensor in tensors.items()}
    plan = header["plan"] or _NOTHING
    for cut in plan.tensors:
        if cut.tensor in sizes:
            sizes[cut.tensor][cut.axis] = cut.size
    gone = {one.tensor: one.shape for one in plan.dropped.tensors}
    return {name: tuple(shape) for name, shape in sizes.items()} | gone


def _whole(header: _Header, tensors: Mapping[str, Tensor], path: Any) -> dict[str, Any]:
    """The header with its plan read; nobody but the file has said anything about it yet."""
    for alias, name in header.shared.items():
        if name not in tensors or alias in tensors:
            raise CheckpointError(
                f"{path} is damaged: {alias!r} shares {name!r}, which is not there"
            )
    return vars(header) | {"plan": _plan(header.plan, tensors, path)}


def _plan(text: str | None, tensors: Mapping[str, Tensor], path: Any) -> PruningPlan | None:
    """The plan, if it fits the tensors; it lists no more numbers than they can bear out."""
    if text is None:
        return None
    most = sum(tensor.numel() * max(1, tensor.dim()) for tensor in tensors.values())
    try:
        plan = PruningPlan.from_json(text, most=2 * most + _BUFFERS)
    except PlanError as error:
        raise CheckpointError(f"{path} holds a plan that cannot be: {error}") from None
    for cut in plan.tensors:
        tensor = tensors.get(cut.tensor)
        if tensor is None:  # a buffer that is made anew, and not saved
            continue
        if not 0 <= cut.axis < tensor.dim() or tensor.shape[cut.axis] != len(cut.kept):
            raise CheckpointError(
                f"{path} is damaged: its plan keeps {len(cut.kept)} entries of axis {cut.axis} of "
                f"{cut.tensor!r}, whose shape is {tuple(tensor.shape)}"
            )
    return plan


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state as contiguous CPU tensors, each memory once; shared names point to the first.

    Tied weights are the same view of the same memory. Tensors without elements are not shared,
    though all of them may lie at address 0.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the state of the model holds {name!r}, a {type(value).__name__}; only "
                "tensors can be saved"
            )
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and key in first:
            shared[name] = first[key]
        else:
            first[key] = name
            tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, shared


def _unordered(model: nn.Module) -> str:
    """As `fingerprint`, whatever the order: a weight that is stored again moves to the end."""
    return digest_of(sorted((name, tuple(t.shape)) for name, t in lasting_tensors(model)))


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header's text and of every tensor, in the order of their names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        # As bytes, for NumPy has no bfloat16; what has no elements cannot be viewed so.
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, payload: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, payload)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: {reason(error)}") from None
    return path


def _check_replay(model: nn.Module, plan: PruningPlan, path: Any) -> None:
    """Refuse to write what no fresh network could be cut to: try it with one, without its values.

    A model that cannot be copied is not tried, nor are blocks that it does not have any more.
    """
    if plan.dropped:
        groups = {name: cut for name, cut in plan.groups.items() if cut.kept}
        plan = counted(replace(plan, groups=groups, dropped=Dropped()))
    try:
        fresh = duplicate(model, _larger(model, plan))
    except SurgeryError:
        return
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    try:
        _undo(fresh, plan)
        fitting = _fitting(plan, fresh, shapes, path)
        fitting.check(fresh)
        patched(fresh, fitting.patches)
    except (CheckpointError, PlanError, SurgeryError) as error:
        raise CheckpointError(
            "the model was changed since it was cut, so that no fresh one can be cut to it: "
            f"{error}; or save model.state_dict() and build the network as it is now"
        ) from None


def _larger(model: nn.Module, plan: PruningPlan) -> dict[int, Any]:
    """Id of a tensor -> one as large as before the cut, on the meta device."""
    shapes = {name: [*tensor.shape] for name, tensor in named_tensors(model)}
    for cut in plan.tensors:
        shapes[cut.tensor][cut.axis] = cut.size
    found: dict[int, Any] = {}
    for name, tensor in named_tensors(model):
        larger = torch.empty(shapes[name], dtype=tensor.dtype, device="meta")
        if isinstance(tensor, nn.Parameter):
            larger = nn.Parameter(larger, tensor.requires_grad)
        found[id(tensor)] = larger
    return found


def _undo(model: nn.Module, plan: PruningPlan) -> None:
    """Take back what a cut did besides slicing tensors."""
    for bias in plan.biases:
        model.get_submodule(bias).register_parameter("bias", None)
    undone = [replace(patch, old=patch.new, new=patch.old) for patch in plan.patches]
    for module, name, value in patched(model, undone):
        put(module, name, value)


def _fitting(
    plan: PruningPlan | None, model: nn.Module, shapes: Mapping[str, torch.Size], path: Any
) -> PruningPlan:
    """The plan that brings the tensors of ``model`` to the shapes in the file.

    Mostly that in the file. But parts may have changed places since the cut, or been replaced: a
    new head reads what is left of the channels, and in a fresh model it reads all. No row tells
    which; none needs to, as the values come from the file. So any axis may shrink as one did that
    was cut, and one that is as in the file already stays.
    """
    plan = plan or _NOTHING
    cuts = {(cut.tensor, cut.axis): cut for cut in plan.tensors}
    biases = tuple(bias for bias in plan.biases if _lacks_bias(model, bias))
    gone = {*gone_tensors(model, plan.dropped)}
    _check_names(model, shapes, {bias_of(bias) for bias in biases}, gone, path)
    rows: list[TensorCut] = []
    for name, tensor in named_tensors(model):
        if name in gone:
            continue
        wanted = shapes.get(name, tensor.shape)  # what is not saved is cut as the plan says
        found = _rows(name, tensor.shape, wanted, cuts)
        if found is None:
            raise CheckpointError(
                f"{path} was not saved from this architecture: {name!r} has shape {tuple(wanted)} "
                f"in it and {tuple(tensor.shape)} in the model, and no cut explains that; pass a "
                "fresh model of it"
            )
        rows += found
    rows += [cuts[bias_of(bias), 0] for bias in biases if (bias_of(bias), 0) in cuts]
    patches = tuple(patch for patch in plan.patches if not _patched(model, patch))
    modules = set(named_modules(model).values())
    norms = tuple(norm for norm in plan.norms if norm.module in modules)
    plan = replace(plan, fingerprint=fingerprint(model), norms=norms)
    if {*rows} == {*plan.tensors} and patches == plan.patches and biases == plan.biases:
        return plan
    plan = replace(plan, groups={}, tensors=tuple(rows), patches=patches, biases=biases)
    return counted(plan)


def _check_names(
    model: nn.Module,
    names: Collection[str],
    added: Collection[str],
    gone: Collection[str],
    path: Any,
) -> None:
    expected = {*model.state_dict(), *added}.difference(gone)
    for name in sorted(expected ^ {*names}):
        side = "has an unexpected"
        if name in expected:
            side = "lacks"
        raise CheckpointError(
            f"{path} was not saved from this architecture: it {side} {name!r}; pass a fresh model "
            "of it"
        )


def _rows(
    name: str, now: torch.Size, then: torch.Size, cuts: Mapping[tuple[str, int], TensorCut]
) -> list[TensorCut] | None:
    """What brings a tensor from one shape to another; None if nothing that was cut does."""
    if len(now) != len(then):
        return None
    rows = []
    for axis, lengths in enumerate(zip(now, then, strict=True)):
        cut = cuts.get((name, axis))
        if cut is None or cut.size != now[axis]:
            if now[axis] == then[axis]:
                continue
            # Of the same layer if there is one, whose tensors must lose the same.
            like = [one for one in cuts.values() if (one.size, len(one.kept)) == lengths]
            like.sort(key=lambda one: layer_of(one.tensor) != layer_of(name))
            if not like:
                return None
            cut = TensorCut(name, axis, like[0].size, like[0].kept, "channel")
        rows.append(cut)
    return rows


def _lacks_bias(model: nn.Module, path: str) -> bool:
    module = dict(model.named_modules()).get(path)
    return module is not None and getattr(module, "bias", None) is None


def _patched(model: nn.Module, patch: SizePatch) -> bool:
    """Whether the attribute is already what the patch makes it."""
    with suppress(SurgeryError):
        return bool(patched(model, [replace(patch, old=patch.new)]))
    return False
