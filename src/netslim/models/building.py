"""One way to name a model, everywhere.

`zoo:vgg19`, `torchvision:resnet50`, `timm:resnet50d`, `package.module:factory`, or the path of a
checkpoint we wrote.

Names that the user types may import what they say. What a checkpoint names is looked at first, in
`netslim.models.file_constructors`.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

import netslim.models.zoo as zoo
from netslim._support import (
    brief,
    checks_calls,
    current_directory_importable,
    from_module,
    listed,
    nearest,
)
from netslim.errors import ArgumentError, CheckpointError, NetslimError, RecipeError
from netslim.graph.modules.ambient import holding_values
from netslim.models.batch_norms import add_bn as insert_bn
from netslim.models.channel_select import add_selection as insert_selection
from netslim.models.checkpoint import is_ours, load, noted, read, restored, uncut
from netslim.models.fetched import NOTHING, classes_of, takes_classes, without_weights
from netslim.models.file_constructors import INSERTIONS, Trust, check_constructor, within
from netslim.models.hub import is_folder
from netslim.models.other_files import no_checkpoint
from netslim.models.weights import fill, read_state

__all__ = ["build", "build_uncut", "constructor", "names"]

_FORMS = (
    "zoo:NAME, torchvision:NAME, timm:NAME, package.module:factory or a path to a "
    "*.safetensors checkpoint"
)


@checks_calls
def build(
    name: str | os.PathLike[str],
    *,
    add_bn: bool = False,
    add_selection: bool = False,
    weights_file: str | os.PathLike[str] | None = None,
    new_head: bool = False,
    trust: Trust = False,
    say: Callable[[str], object] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The model that `name` stands for.

    A default device is obeyed, the meta device, too, where a name is all that is given. What is
    filled, or run for an insertion, holds values, also there and within a `FakeTensorMode`.

    Args:
        name: `zoo:NAME`, `torchvision:NAME` (a classifier; weights only where `weights=` asks),
            `timm:NAME`, `package.module:factory` (the current directory is searched first) or a
            path to `*.safetensors` or to a folder that `netslim.save(format="hub")` wrote.
        add_bn: give it the batch normalisations it lacks, with `netslim.models.add_bn`.
        add_selection: then give it selections, with `netslim.models.add_selection`. Both run the
            model on a guessed example; a model that needs inputs of its own is built first and
            passed to them with `example_inputs`.
        weights_file: what the network is filled with: a state dict that `torch.save` or safetensors
            wrote, by itself or in a training checkpoint (averaged weights come first; prefixes such
            as ``module.`` do not count), or what `netslim.save` wrote of a network of this name,
            cut or not. It is read as tensors; no code in it runs.
        new_head: let a classifier that has other classes in ``weights_file`` start anew. Weights
            that torchvision and timm fetch get a new one wherever ``num_classes`` asks for it.
        trust: of a checkpoint: True calls whatever constructor it names, with all that it says. By
            default that may be a network of the zoo, torchvision or timm, with arguments that say
            how large it is, and as large as the file's own tensors; names of own factories, such as
            ``["package.module:factory"]``, allow these too, with numbers as arguments.
        say: told, in a sentence each, what is not as one may think: that a classifier starts anew,
            that averaged weights are taken, what of the file is left out.
        kwargs: passed to the factory; a checkpoint takes none.

    Raises:
        RecipeError: an unknown name, arguments the factory does not take, or a factory that fails.
        CheckpointError: the checkpoint is missing, damaged, does not say which model it belongs to,
            or names what takes `trust`; the file of weights is missing, damaged, holds code, or
            belongs to another network.
        ArgumentError: there is nothing to add, or no example could be guessed for the model.

    Example:
        >>> small = netslim.models.build("zoo:resnet20", width=0.5)
        >>> type(small).__name__
        'ResNet'
    """
    name = os.fspath(name)
    wanted = {"add_bn": add_bn, "add_selection": add_selection}
    added = {key: value for key, value in wanted.items() if _flag(key, value)}
    _flag("new_head", new_head)
    if _is_checkpoint(name):
        if given := added | kwargs | dict.fromkeys(["weights_file"] * (weights_file is not None)):
            raise RecipeError(
                f"the checkpoint {name} already says how its model is built: leave out "
                f"{', '.join(given)}."
            )
        return _of_checkpoint(name, trust)
    if weights_file is None and not added:
        return _made(name, kwargs)
    return _completed(name, kwargs, added, weights_file, new_head, say or _silent)


@holding_values()
def _of_checkpoint(path: str, trust: Trust) -> nn.Module:
    header, tensors = read(path)
    return restored(_uncut(path, header, tensors, trust), header, tensors, path)


@holding_values()
def _completed(
    name: str,
    kwargs: dict[str, Any],
    added: Iterable[str],
    weights_file: str | os.PathLike[str] | None,
    new_head: bool,
    say: Callable[[str], object],
) -> nn.Module:
    """A model that is filled from a file, or given what it lacks; all as for `build`."""
    model = _made(name, kwargs)
    if weights_file is None:
        return _with(added, model)
    if is_ours(weights_file):  # of the network with all that was inserted
        return load(_with(added, model), weights_file)
    state, key = read_state(weights_file)
    for told in fill(model, state, weights_file, new_head=new_head, key=key).told(weights_file):
        say(told)
    return _with(added, model)


def _is_checkpoint(name: str) -> bool:
    return name.endswith(".safetensors") or is_folder(name)


def _silent(_: str) -> None:
    """Tells nobody."""


@checks_calls
@holding_values()
def build_uncut(path: str | os.PathLike[str], *, trust: Trust = False) -> nn.Module:
    """The network of a checkpoint as it was before any cut, with fresh weights; see `build`.

    Raises:
        CheckpointError: as `build`.

    Example:
        >>> network = netslim.models.build("zoo:vgg11", width=0.125)
        >>> pictures = torch.randn(1, 3, 32, 32)
        >>> small = netslim.slim(network, pictures, budget=netslim.Budget(cut_channels=0.5))
        >>> record = netslim.models.constructor("zoo:vgg11", {"width": 0.125})
        >>> path = netslim.save(small, "small.safetensors", constructor=record)
        >>> netslim.models.build_uncut(path).features[0].out_channels
        8
    """
    return _uncut(path, *read(path), trust)


def _uncut(
    path: Any, header: Mapping[str, Any], tensors: Mapping[str, Tensor], trust: Trust
) -> nn.Module:
    if not header["constructor"]:
        raise CheckpointError(
            f"{path} does not say how its network is built: name the network, with "
            f"weights_file={str(path)!r} beside it, or build it yourself and call "
            "netslim.load(fresh_model, path)"
        )
    name, kwargs = check_constructor(header["constructor"], path, trust)
    if trust is True:
        return unfilled(name, kwargs)
    added = _insertions(kwargs)
    held = sum(tensor.numel() for tensor in tensors.values())
    with within(uncut(header, tensors), held, path):
        model = _reading_nothing(name, kwargs)
    return _with(added, model)


def unfilled(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The network of a constructor, whose weights come from a checkpoint: it need not read any.

    A factory of one's own that takes ``pretrained`` or ``weights`` is asked for none, also where it
    reads some by default; one that cannot do without is called as it was.

    Raises:
        RecipeError: as `build`.
    """
    left = dict(kwargs)
    added = _insertions(left)
    return _with(added, _reading_nothing(name, left))


def _insertions(kwargs: dict[str, Any]) -> list[str]:
    """What is to be put into the network, taken out of the arguments."""
    return [key for key in _INSERTIONS if _flag(key, kwargs.pop(key, False))]


def _reading_nothing(name: str, kwargs: dict[str, Any]) -> nn.Module:
    bare = kwargs
    if not takes_classes(name):
        with current_directory_importable():
            bare = {**_accepted(_imported(name), NOTHING), **kwargs}
    if bare != kwargs:
        with suppress(RecipeError):
            return _made(name, bare)
    try:
        return _made(name, kwargs)
    except RecipeError as error:
        if isinstance(error.__cause__, OSError):
            raise RecipeError(
                f"{name} could not be built, for it reads a file or an address: {error.__cause__}; "
                "all weights are in the checkpoint: let the factory take an argument pretrained, "
                "and read nothing where it is False (netslim says so), or build the network "
                "yourself and call netslim.load(network, path)"
            ) from error
        raise


def _accepted(factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the factory names."""
    named = {parameter.name for parameter in _parameters(factory) or ()}
    return {key: value for key, value in kwargs.items() if key in named}


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """What it takes; None of built-in callables, which have no signature."""
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return None


def _made(name: str, kwargs: dict[str, Any]) -> nn.Module:
    factory = _factory(name)
    if takes_classes(name):
        return _known(name, factory, kwargs)
    # Only here, for the name is the user's: a file timm.py that lies around is not timm.
    with current_directory_importable():
        return _call(name, factory, kwargs)


def check_name(name: str) -> None:
    """Refuse what names no network, before any work is done for it; nothing is built.

    Raises:
        RecipeError, CheckpointError: as `build`, as far as a file's first bytes tell.
    """
    if _is_checkpoint(name):
        noted(name)
    else:
        _factory(name)


def arguments_of(name: str) -> list[str]:
    """The options of the network of this name that its factory lists; a checkpoint has none.

    Raises:
        RecipeError: as `build`.
    """
    if _is_checkpoint(name):
        return []
    listed = [one.name for one in _parameters(_factory(name)) or () if one.kind in _NAMED]
    return [*listed, *_INSERTIONS, *["num_classes"] * takes_classes(name)]


def _factory(name: str) -> Callable[..., Any]:
    """What is called for a name that is no checkpoint.

    Raises:
        RecipeError: there is no such model; what is there instead is told.
    """
    source, _, rest = name.partition(":")
    if told := no_checkpoint(name):
        raise RecipeError(told)
    if not source or not rest:
        raise RecipeError(f"{name!r} names no model{_meant(name)} A model is {_FORMS}.")
    if source in _SOURCES:
        return _SOURCES[source](rest)
    return _imported(name)


def _known(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> nn.Module:
    """A network of the zoo, torchvision or timm.

    torchvision refuses another number of classes than its weights have, where timm puts a new
    classifier in; so that is done here, by filling a network of that number with all the rest.
    """
    wanted, learnt_for = kwargs.get("num_classes"), classes_of(name, kwargs)
    if not name.startswith("torchvision:") or None in (wanted, learnt_for):
        return _call(name, factory, kwargs)
    as_learnt = {key: value for key, value in kwargs.items() if key != "num_classes"}
    learnt = _call(name, factory, as_learnt)
    if wanted == learnt_for:
        return learnt
    model = _call(name, factory, without_weights(name, kwargs))
    fill(model, learnt.state_dict(), f"{name} with weights {kwargs['weights']}", new_head=True)
    return model


def _with(added: Iterable[str], model: nn.Module) -> nn.Module:
    for key in added:
        _INSERTIONS[key](model)
    return model


@checks_calls
def names(prefix: str = "") -> list[str]:
    """Every `zoo:`, `torchvision:` and `timm:` name that starts with `prefix`, sorted.

    timm's are listed where it is installed.

    Example:
        >>> netslim.models.names("zoo:resnet2")
        ['zoo:resnet20']
    """
    found: list[str] = []
    for source, listing in _LISTS.items():
        # The others are not asked, as torchvision and timm are slow to import.
        if f"{source}:".startswith(prefix) or prefix.startswith(f"{source}:"):
            found += [f"{source}:{name}" for name in listing()]
    return sorted(name for name in found if name.startswith(prefix))


@checks_calls
def constructor(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its model: it is `build(record["name"], **record["kwargs"])`.

    Its weights are in the checkpoint, so what fetches or reads any is left out: of torchvision and
    timm ``weights``, ``pretrained``, ``checkpoint_path`` and the like, of an own factory
    ``pretrained`` becomes False and ``weights`` None, of all ``weights_file``. Where a factory of
    your own has other arguments that read weights, give `netslim.save` a constructor without them:
    ``{"name": "mine:net", "kwargs": {...}}``.

    Example:
        >>> netslim.models.constructor("torchvision:resnet18", {"weights": "DEFAULT"})
        {'name': 'torchvision:resnet18', 'kwargs': {}}
    """
    return {"name": name, "kwargs": without_weights(name, kwargs)}


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecipeError(f"{key} is true or false, not {brief(value)}")
    return value


def _known_weights(name: str, kwargs: Mapping[str, Any]) -> str:
    """Which weights torchvision has for a network, where some of another name were asked for."""
    library, _, short = name.partition(":")
    asked = kwargs.get("weights")
    if library != "torchvision" or not isinstance(asked, str):
        return ""
    from torchvision.models import get_model_weights

    known = [weights.name for weights in get_model_weights(short)]
    return "" if asked in known else f"; its weights are called {', '.join(known)}"


def _options_given(kwargs: Mapping[str, Any]) -> str:
    """Which options a factory was given, for it may not say which of them it cannot take."""
    if not kwargs:
        return ""
    given = [f"{option}={brief(value)}" for option, value in kwargs.items()]
    return f" (it was given {listed(given)})"


def _call(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> nn.Module:
    _check_arguments(name, factory, kwargs)
    try:
        model = factory(**kwargs)
    except ArgumentError as error:
        raise RecipeError(f"{name} could not be built: {error}") from error
    except NetslimError:
        raise
    except Exception as error:
        hint = _known_weights(name, kwargs) if isinstance(error, KeyError) else ""
        if isinstance(error, OSError):
            hint = "; weights that were fetched elsewhere can be given as a file: weights_file=FILE"
            if not takes_classes(name):
                hint = (
                    "; a factory that builds the network and reads nothing, with weights_file=FILE "
                    "beside it, needs its weights once, and its checkpoints open without them"
                )
        raise RecipeError(
            f"{name} could not be built: {type(error).__name__}: {error}"
            f"{_options_given(kwargs)}{hint}"
        ) from error
    if not isinstance(model, nn.Module):
        found = type(model).__name__
        raise RecipeError(
            f"{name} returned {found}, not a torch.nn.Module: let it return the model."
        )
    return model


def _check_arguments(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    parameters = _parameters(factory)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    accepted = [p.name for p in parameters if p.kind in _NAMED]
    takes = f"it takes {', '.join(accepted) or 'no arguments'}"
    for key in kwargs:
        if key not in accepted:
            raise RecipeError(
                f"{name} has no argument {key!r}: {takes}"
                f"{nearest(key, [*accepted, *_INSERTIONS], otherwise='')}"
            )
    needed = [p.name for p in parameters if p.default is p.empty and p.name in accepted]
    missing = [parameter for parameter in needed if parameter not in kwargs]
    if missing:
        raise RecipeError(f"{name} needs {', '.join(missing)}: {takes}.")


def _meant(name: str) -> str:
    """How a message goes on after a name without a source, which may be that of a file."""
    if os.path.isfile(f"{name}.safetensors"):
        return f"; did you mean '{name}.safetensors'?"
    module, _, function = name.removesuffix(".py").rpartition(".")
    if name.endswith(".py"):
        module, function = function, "FACTORY"
    if os.path.isfile(f"{module.replace('.', os.sep)}.py"):
        return f"; did you mean '{module}:{function}'?"
    if os.sep in name or os.path.isfile(name):
        return ", and is no .safetensors file."
    return _nearest(name)


def _nearest(name: str) -> str:
    """How a message goes on after a name that means no model."""
    source, colon, _ = name.partition(":")
    prefix = ""
    if colon:
        prefix = f"{source}:"
    # Reversed, because the zoo comes first among models of the same name.
    return nearest(name, reversed(names(prefix)), otherwise=".")


def _unknown(name: str) -> RecipeError:
    source = name.partition(":")[0]
    listing = f"netslim.models.names({source + ':'!r}) lists the {source} models."
    return RecipeError(f"there is no model {name!r}{_nearest(name)} {listing}")


def _zoo_names() -> list[str]:
    return list(zoo.__all__)


def _from_zoo(name: str) -> Callable[..., Any]:
    if name not in _zoo_names():
        raise _unknown(f"zoo:{name}")
    factory: Callable[..., Any] = getattr(zoo, name)
    return factory


def _torchvision_names() -> list[str]:
    from torchvision import models

    found: list[str] = models.list_models(module=models)  # classifiers alone
    return found


def _from_torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    if name not in _torchvision_names():
        raise _unknown(f"torchvision:{name}")
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder


def _timm_names() -> list[str]:
    try:
        import timm
    except ModuleNotFoundError:
        return []
    found: list[str] = timm.list_models()
    return found


def _from_timm(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise RecipeError(f"timm:{name} needs the timm package: pip install timm") from error
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}")
    return lambda **kwargs: timm.create_model(name, **kwargs)


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SOURCES: dict[str, Callable[[str], Callable[..., Any]]] = {
    "zoo": _from_zoo,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}
_INSERTIONS: dict[str, Callable[[nn.Module], nn.Module]] = dict(
    zip(INSERTIONS, (insert_bn, insert_selection), strict=True)
)
_LISTS: dict[str, Callable[[], list[str]]] = {
    "zoo": _zoo_names,
    "torchvision": _torchvision_names,
    "timm": _timm_names,
}


def _imported(name: str) -> Callable[..., Any]:
    near = nearest(name.partition(":")[0], _SOURCES, otherwise=".")
    return from_module(name, RecipeError, f"{near} A model is {_FORMS}.")
