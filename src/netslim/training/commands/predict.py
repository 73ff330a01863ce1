"""What a network says of pictures: read, prepared as in its training, and classified."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from netslim import models
from netslim.data.pictures import ENDINGS, Files, Form, Pictures
from netslim.data.preprocessing import KEY, Preprocessing
from netslim.data.unreadable import PictureError
from netslim.errors import RecipeError
from netslim.models import checkpoint
from netslim.models.file_constructors import Trust
from netslim.models.other_files import no_checkpoint
from netslim.training.stages.onnx_network import Exported


@dataclass(frozen=True)
class Answer:
    """What a network says of one picture.

    Attributes:
        picture: its file.
        classes: name and probability of the likeliest, in falling order; empty where the picture
            could not be read.
        problem: why it could not be read.
    """

    picture: str
    classes: tuple[tuple[str, float], ...]
    problem: str = ""


@dataclass(frozen=True)
class Classifier:
    """A network with what it takes to ask it.

    Attributes:
        scores: inputs (1, C, H, W) -> scores (1, classes).
        prepared: how its inputs are made from pictures.
    """

    scores: Callable[[Tensor], Tensor]
    prepared: Preprocessing

    @torch.inference_mode()
    def answer(self, path: str, top: int) -> Answer:
        """The `top` likeliest classes of the picture in the file `path`."""
        size, prepared = self.prepared.size, self.prepared
        # Only squares are made of pictures of any size; others had one size from the beginning.
        form = Form(
            (prepared.channels, *size),
            resize=size[0] == size[1],
            resize_size=prepared.resize_size,
        )
        try:
            image = Pictures(Files((path,)), form)[0]
        except PictureError as error:
            return Answer(path, (), str(error))
        shares = self.scores(prepared.normalise(image[None])).softmax(1)[0]
        best = shares.topk(min(top, len(prepared.classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Answer(path, tuple((prepared.classes[index], share) for index, share in pairs))


def predict(
    network: str, pictures: Sequence[str | os.PathLike[str]], *, top: int = 1, trust: Trust = ()
) -> Iterator[Answer]:
    """What a network says of each picture.

    Args:
        network: a `.safetensors` checkpoint or an `.onnx` file that says how its images are
            prepared, as those do that netslim trained.
        pictures: files, and folders of which all pictures are taken.
        top: how many classes to name.
        trust: as for `netslim.models.build`.

    Raises:
        RecipeError: the file does not say how images are prepared, or there is no picture.
        NetslimError: the network cannot be read.
    """
    asked = classifier(network, trust)
    for path in _files(pictures):
        yield asked.answer(path, top)


def classifier(network: str, trust: Trust = ()) -> Classifier:
    """The network in a file, ready to be asked.

    Raises:
        RecipeError: the file does not say how images are prepared.
        NetslimError: it cannot be read.
    """
    if network.endswith(".onnx"):
        return _of_onnx(network)
    if not network.endswith(".safetensors"):
        raise RecipeError(no_checkpoint(network) or f"{network}: give a .safetensors or .onnx file")
    prepared = prepared_by(network)
    if prepared is None:
        raise _unknown(network)
    return Classifier(models.build(network, trust=trust).eval(), prepared)


def prepared_by(network: str) -> Preprocessing | None:
    """What a checkpoint says of its images; None where it, or what is no checkpoint, does not say.

    For who builds the network of the file, too, which tells whether it was changed.

    Raises:
        NetslimError: it cannot be read.
    """
    if not network.endswith(".safetensors"):
        return None
    return Preprocessing.noted(checkpoint.noted(network), network)


def _of_onnx(path: str) -> Classifier:
    network = Exported(path)
    if network.prepared is None:
        raise _unknown(path)
    return Classifier(network, network.prepared)


def _unknown(network: str) -> RecipeError:
    return RecipeError(
        f"{network} does not say how its images are prepared, so that its answers would mean "
        "nothing: netslim train, finetune, prune and run write files that do, and netslim.save "
        f"takes metadata={{{KEY!r}: ...}}"
    )


def _files(given: Sequence[str | os.PathLike[str]]) -> list[str]:
    found: list[str] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*") if file.is_file())
            found += [file for file in inside if file.lower().endswith(ENDINGS)]
        elif path.exists():
            found.append(str(path))
        else:
            raise RecipeError(f"{path}: there is no such picture")
    if not found:
        raise RecipeError(f"{', '.join(map(str, given))}: holds no pictures")
    return found


__all__ = ["Answer", "Classifier", "classifier", "predict", "prepared_by"]
