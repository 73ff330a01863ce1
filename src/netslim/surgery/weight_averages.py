"""Weight averages and other copies that are kept beside a model and must be cut with it.

They come in many wrappings: `AveragedModel` holds a whole model as ``.module``, timm's ``ModelEma``
as ``.ema`` or ``.module``, others keep a mapping of shadow tensors. What decides is not the class
but what lies within: a module whose tensors have the names and shapes of the model's, or tensors
under those names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from netslim._support import listed
from netslim.errors import SurgeryError
from netslim.graph.modules.unwrapping import bare, inside
from netslim.graph.modules.walk import named_tensors

Named = list[tuple[str, Tensor]]


def cut_alike(model: nn.Module, companions: Any) -> tuple[list[nn.Module], list[Named]]:
    """What has to be cut alike: modules, ``model`` first, and shadow tensors under its names.

    Args:
        model: bare.
        companions: one or several of: a copy of the model, wrapped or not; an object that holds one
            as ``.module`` or ``.ema``; a mapping from names of the model's parameters and buffers
            to tensors.

    Raises:
        SurgeryError: a companion is none of these or has another architecture; names the tensors
            that differ.
    """
    modules, shadows = [model], []
    for number, one in enumerate(_listed(companions), 1):
        what = f"companion {number} ({type(one).__name__})"
        if isinstance(one, Mapping):
            shadows.append(_shadow(model, one, what))
        else:
            modules.append(_copy_of_model(model, one, what))
    return list({id(m): m for m in modules}.values()), shadows


def shadows_of(companions: Any) -> list[MutableMapping[str, Any]]:
    """The mappings among companions from which names can be taken."""
    return [one for one in _listed(companions) if isinstance(one, MutableMapping)]


def without_names(
    shadows: MutableMapping[str, Any], gone: Callable[[str], bool]
) -> Callable[[], None]:
    """Take the tensors of these names out of a mapping; what is given puts them back."""
    before = dict(shadows)
    for name in before:
        if gone(name):
            del shadows[name]

    def put_back() -> None:
        shadows.clear()
        shadows.update(before)

    return put_back


def _listed(companions: Any) -> list[Any]:
    single = isinstance(companions, (nn.Module, Mapping)) or not isinstance(companions, Iterable)
    if single:
        return [companions]
    return list(companions)


def _copy_of_model(model: nn.Module, one: Any, what: str) -> nn.Module:
    """The module within a companion that has the architecture of the model, however deep."""
    found = inside(one)
    # Inwards, wrapping by wrapping, to the first module with the tensors of the model.
    while True:
        attributes = (getattr(found, name, None) for name in ("module", "ema"))
        held = next((a for a in attributes if isinstance(a, nn.Module)), None)
        if isinstance(found, nn.Module):
            bare(found, lambda text: SurgeryError(f"{what}: {text}"), allow=("meta",))
            differences = _differences(dict(named_tensors(model)), dict(named_tensors(found)))
            if not differences:
                return found
            if held is None:
                raise SurgeryError(f"{what} has another architecture than the model: {differences}")
        elif held is None:
            raise SurgeryError(
                f"{what} is no companion: pass a copy of the model, a weight average that "
                "holds one as .module or .ema, or a mapping from the model's parameter names "
                "to tensors, such as dict(zip((n for n, _ in model.named_parameters()), shadows))"
            )
        found = inside(held)


def _shadow(model: nn.Module, mapping: Mapping[str, Any], what: str) -> Named:
    """The tensors of a mapping under the names they have in plans; other values are left alone.

    Plans know a tied tensor by its first name alone; a mapping may hold it under each of them.
    """
    first = {id(tensor): name for name, tensor in reversed(list(named_tensors(model)))}
    everything = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    wanted = {name: (first[id(tensor)], tensor.shape) for name, tensor in everything}
    found = {n: t for n, t in mapping.items() if isinstance(t, Tensor) and (t.dim() or n in wanted)}
    shapes = {name: shape for name, (_, shape) in wanted.items() if name in found}
    differences = _differences(shapes, found)
    if differences or not found:
        raise SurgeryError(
            f"{what} does not hold tensors of the model under their names: "
            f"{differences or 'it is empty'}; strip a prefix with "
            "torch.nn.modules.utils.consume_prefix_in_state_dict_if_present"
        )
    return [(wanted[name][0], tensor) for name, tensor in found.items()]


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Tensor]) -> str:
    """In words, the first few names that are missing, unknown, or of another shape."""
    shape = {name: tuple(getattr(w, "shape", w)) for name, w in wanted.items()}
    parts = [f"it lacks {name!r}" for name in shape if name not in found]
    parts += [f"it has {name!r}" for name in found if name not in shape]
    parts += [
        f"{name!r} has shape {tuple(tensor.shape)} instead of {shape[name]}"
        for name, tensor in found.items()
        if name in shape and tuple(tensor.shape) != shape[name]
    ]
    return listed(parts, most=4)
