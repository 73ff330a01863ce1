"""A network as a folder, as the Hugging Face hub and the libraries around it keep theirs.

::

    model.safetensors   the checkpoint of `netslim.models.checkpoint`, which others read as weights
    config.json         how it is built; the section "netslim" vouches for the other files
    plan.json           what was cut, where something was
    README.md           the model card

What `config.json` says to others it says only where it is true. Hugging Face's `from_pretrained`
finds a configuration that builds the network as it is, or none; timm's `local-dir:` finds the name
of a network that was not cut, or none: neither could build the cut one, and both would be read as
if they could.

The folder appears whole, by one renaming; nothing of it is unpickled or called when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from torch import nn

from netslim._support import is_format, parse_json, read_bytes, read_text, reason, typed
from netslim._support.front_matter import front_matter
from netslim.errors import CheckpointError
from netslim.surgery.pretrained import config_builds, writes_itself

FORMAT = 1
WEIGHTS, CONFIG, PLAN, CARD = "model.safetensors", "config.json", "plan.json", "README.md"
_FOR_OTHERS = {"format": "pt"}  # which transformers looks for in the metadata of safetensors
_TIMM = "timm:"


@dataclass(frozen=True)
class _Own:
    """What the section of netslim in config.json holds."""

    and_more: ClassVar[bool] = True
    format: int
    sha256: Mapping[str, str]


# ---------------------------------------------------------------- writing


def write(
    folder: Path, payload: bytes, header: Mapping[str, Any], model: nn.Module, card: str | None
) -> Path:
    """Write the folder of a network.

    Args:
        folder: one that does not exist yet, or is empty.
        payload: the checkpoint.
        header: that of the checkpoint.
        model: of which it is.
        card: the text of README.md, to which is added how the folder is opened; None has one made
            of the header.

    Raises:
        CheckpointError: there is something in the folder, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists already, and finished work is not overwritten; choose another name"
        )
    files: dict[str, bytes] = {WEIGHTS: _for_others(payload)}
    if header["plan"]:
        files[PLAN] = header["plan"].encode()
    config = _config(model, header, {name: _digest(content) for name, content in files.items()})
    files[CONFIG] = (json.dumps(config, indent=1) + "\n").encode()
    text = f"{card or _card(model, header)}\n{_opened(header['constructor'], config)}"
    files[CARD] = text.encode()
    try:
        _put(folder, files)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {reason(error)}") from None
    return folder


def _put(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:12]}.tmp")
    temporary.mkdir()
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _for_others(payload: bytes) -> bytes:
    """The safetensors file with one more entry among its metadata, always in the same order."""
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    header["__metadata__"] = {**_FOR_OTHERS, **header["__metadata__"]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _config(
    model: nn.Module, header: Mapping[str, Any], digests: Mapping[str, str]
) -> dict[str, Any]:
    own: dict[str, Any] = {"format": FORMAT, "sha256": dict(digests)}
    own["constructor"] = header["constructor"]
    for_others: dict[str, Any] = {}
    if writes_itself(model):
        said = _of_transformers(model)
        if config_builds(model):
            for_others = said
        else:
            own["uncut"] = said
    elif not header["plan"]:
        for_others = _of_timm(model, header["constructor"] or {})
    return {**for_others, "netslim": own}


def _of_transformers(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    if hasattr(config, "to_json_string"):
        said = json.loads(config.to_json_string())
    else:
        said = json.loads(json.dumps(config.to_dict(), default=str))
    return {**said, "architectures": [type(model).__name__]}


def _of_timm(model: Any, constructor: Mapping[str, Any]) -> dict[str, Any]:
    """As timm's own `save_for_hf` has it."""
    name, kwargs = constructor.get("name", ""), dict(constructor.get("kwargs", {}))
    given = getattr(model, "pretrained_cfg", None)
    if not name.startswith(_TIMM) or not isinstance(given, Mapping):
        return {}
    classes = kwargs.pop("num_classes", getattr(model, "num_classes", None))
    return {
        "architecture": name.removeprefix(_TIMM),
        "num_classes": classes,
        "num_features": getattr(model, "num_features", None),
        "model_args": kwargs,
        "pretrained_cfg": {**json.loads(json.dumps(dict(given))), "num_classes": classes},
    }


# ---------------------------------------------------------------- the model card


def _card(model: nn.Module, header: Mapping[str, Any]) -> str:
    """What can be said of a network without a run."""
    params = sum(parameter.numel() for parameter in model.parameters())
    name = (header["constructor"] or {}).get("name") or type(model).__name__
    cut = "Nothing was cut from it."
    if header["plan"]:
        cut = "Channels were cut out of it with netslim; `plan.json` says which."
    facts = {"library_name": "netslim", "tags": ["netslim", "pruning"]}
    return (
        front_matter(facts) + f"# {name}\n\n{cut} It has {params:,} parameters.\n\n"
        "## Not said\n\nData, accuracy and licence: write them here.\n"
    )


def _opened(constructor: Mapping[str, Any] | None, config: Mapping[str, Any]) -> str:
    """The section on how such a folder is opened, with netslim and without."""
    opened = "model = netslim.load(fresh_model, folder)  # fresh_model: the uncut architecture"
    if constructor:
        opened = "model = netslim.models.build(folder).eval()"
    code = f"import netslim\n\nfolder = ...  # where `hf download` has put it\n{opened}\n"
    others = "Other libraries do not build a network of these widths: it takes netslim."
    if config.get("model_type"):
        others = "Its configuration says its widths: `from_pretrained` of its class opens it, too."
    elif config.get("architecture"):
        others = "It was not cut: timm opens it by `local-dir:FOLDER` with `pretrained=True`, too."
    return f"## How to open it\n\n```python\n{code}```\n\n{others}\n"


# ---------------------------------------------------------------- reading


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is such a folder, as far as the names in it tell."""
    return os.path.isdir(path) and all(
        os.path.isfile(os.path.join(path, name)) for name in (WEIGHTS, CONFIG)
    )


def weights_in(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The checkpoint in such a folder, whose files are as they were; any other path as it is.

    Raises:
        CheckpointError: a file of the folder is damaged, missing or was exchanged.
    """
    if not is_folder(path):
        return path
    folder = Path(path)
    try:
        content = parse_json(read_text(folder / CONFIG))
        found = content.get("netslim") if isinstance(content, dict) else None
        if found is None:
            raise ValueError("it has no section netslim")
        own: _Own = typed(_Own, found)
        if not is_format(own.format, FORMAT):
            raise ValueError("it has a format that this version does not know")
        for name in (WEIGHTS, PLAN):
            _check(folder / name, own.sha256.get(name))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no folder that netslim.save(format='hub') has written, or not any more "
            f"({CONFIG}: {reason(error)}); take another copy"
        ) from None
    return folder / WEIGHTS


def _check(path: Path, expected: str | None) -> None:
    if expected is None:
        if path.exists():
            raise ValueError(f"it does not vouch for {path.name}")
    elif _digest(read_bytes(path)) != expected:
        raise ValueError(f"{path.name} was changed after it was written")


__all__ = ["is_folder", "weights_in", "write"]
