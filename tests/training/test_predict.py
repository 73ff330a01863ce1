"""Pictures are prepared as the network's file says, whichever file that is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import netslim
from netslim.cli import main
from netslim.data.preprocessing import KEY, Preprocessing
from netslim.errors import RecipeError
from netslim.training.commands.predict import predict

PREPARED = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.3, 0.1), (8, 8), True, ("cat", "dog", "owl"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network's file, and pictures beside it: one of its size, a larger one and a grey one."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    kwargs = {"layers": [8, "M", 16], "num_classes": 3}
    network = netslim.models.build("zoo:vgg", **kwargs)
    constructor = {"name": "zoo:vgg", "kwargs": kwargs}
    told = {KEY: PREPARED.to_json()}
    netslim.save(network, folder / "net.safetensors", constructor=constructor, metadata=told)
    netslim.save(network, folder / "untold.safetensors", constructor=constructor)
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name, shape in {"a": (8, 8, 3), "b": (20, 30, 3), "c": (9, 9)}.items():
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    (folder / "pictures" / "notes.txt").write_text("none")
    return folder


def test_a_picture_is_normalised_by_the_values_of_the_file(place):
    network = netslim.models.build(place / "net.safetensors").eval()
    (answer,) = predict(str(place / "net.safetensors"), [place / "pictures" / "a.png"], top=3)
    pixels = torch.from_numpy(np.array(Image.open(place / "pictures" / "a.png"))).permute(2, 0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPARED.mean, PREPARED.std))
    with torch.no_grad():
        want = network(((pixels / 255 - mean) / std)[None]).softmax(1)[0]
    assert [name for name, _ in answer.classes] == [
        PREPARED.classes[n] for n in want.argsort(descending=True)
    ]
    assert answer.classes[0][1] == pytest.approx(want.max().item(), rel=1e-5)


def test_onnx_files_that_normalise_inside_or_not_answer_alike(place, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    said = {}
    for name, flags in {"plain": [], "inside": ["--normalise"]}.items():
        file = str(tmp_path / f"{name}.onnx")
        # The shape of an input is the one that the network was trained on.
        assert main(["export", str(place / "net.safetensors"), "--out", file, *flags]) == 0
        capsys.readouterr()
        assert main(["predict", file, str(place / "pictures"), "--json"]) == 0
        said[name] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    direct = list(predict(str(place / "net.safetensors"), [place / "pictures"]))
    assert [answer.picture for answer in direct] == [row["picture"] for row in said["plain"]]
    for rows in said.values():
        for answer, row in zip(direct, rows, strict=True):
            assert row["classes"][0][0] == answer.classes[0][0]
            assert row["classes"][0][1] == pytest.approx(answer.classes[0][1], rel=1e-4)


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_answered(
    place, capsys, tmp_path
):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    good = place / "pictures" / "a.png"
    assert main(["predict", str(place / "net.safetensors"), str(bad), str(good)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith(f"{good}  ")
    assert f"{bad}: the picture cannot be decoded" in told.err


@pytest.mark.parametrize(
    ("network", "pictures", "message"),
    [
        ("untold.safetensors", "pictures", "does not say how its images are prepared"),
        ("net.safetensors", "nowhere.png", "there is no such picture"),
        ("net.safetensors", "empty", "holds no pictures"),
        ("zoo:vgg", "pictures", r"give a \.safetensors or \.onnx file"),
    ],
)
def test_what_cannot_be_answered_is_refused(place, network, pictures, message):
    (place / "empty").mkdir(exist_ok=True)
    named = network if ":" in network else str(place / network)
    with pytest.raises(RecipeError, match=message):
        list(predict(named, [place / pictures]))


def test_normalising_inside_needs_values(place, tmp_path, capsys):
    out = str(tmp_path / "a.onnx")
    untold = str(place / "untold.safetensors")
    assert main(["export", untold, "--input", "3", "8", "8", "--out", out, "--normalise"]) == 1
    assert "does not say how its images are normalised" in capsys.readouterr().err
    assert main(["export", untold, "--out", out]) == 1
    assert "--input is needed" in capsys.readouterr().err
