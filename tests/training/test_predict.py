"""Pictures are prepared as the network's file says, whichever file that is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import netslim
from netslim.cli import main
from netslim.data.preprocessing import KEY, Preprocessing
from netslim.errors import RecipeError
from netslim.training.commands.predict import predict
from stage_runs import HALF, TRAIN, carry_out, recipe

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


def test_evaluate_looks_at_an_onnx_file_as_at_what_it_was_made_of(place, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    for index, kind in enumerate(PREPARED.classes):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        generator = np.random.default_rng(index)
        for name in range(8):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"{name}.png")
    data = ["--data", f"folder:{tmp_path / 'pictures'}", "--device", "cpu", "--json"]

    def evaluated(file):
        assert main(["evaluate", str(file), *data]) == 0
        return json.loads(capsys.readouterr().out)

    whole = evaluated(place / "net.safetensors")
    for name, flags in {"plain": [], "inside": ["--normalise"]}.items():
        file = tmp_path / f"{name}.onnx"
        assert main(["export", str(place / "net.safetensors"), "--out", str(file), *flags]) == 0
        capsys.readouterr()
        found = evaluated(file)
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert found["size_bytes"] == file.stat().st_size
        told = ("split", "images", "top1", "top5")
        assert [found[key] for key in told] == [whole[key] for key in told]
        assert (found["params"], found["macs"]) == (None, None)
    assert main(["evaluate", str(file), *data[:-1]]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("size on disk ")
    weights = ["--weights", str(place / "net.safetensors")]
    assert main(["evaluate", str(file), *data, *weights]) == 1
    assert "inside.onnx is finished, and takes no --weights" in capsys.readouterr().err
    file = tmp_path / "plain.onnx"
    assert main(["evaluate", str(file), "--data", "digits", "--device", "cpu"]) == 1
    assert (
        "plain.onnx gives (2, 3) for 2 images, but digits has 10 classes" in capsys.readouterr().err
    )
    file.write_bytes(file.read_bytes()[:100])
    assert main(["evaluate", str(file), "--data", "digits", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.endswith("; is it a whole .onnx file?\n")


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


# ---------------------------------------------------------------- in int8


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A run that ends in int8, with a stage behind it that goes on from the network as it was."""
    pytest.importorskip("onnxruntime")
    stages = (
        TRAIN,
        {"kind": "quantize", "batches": 3, "scales": "tensor"},
        {**HALF, "name": "cut"},
    )
    return carry_out(tmp_path_factory.mktemp("int8") / "run", *stages)


def test_a_run_sets_int8_beside_float_in_the_same_runtime(quantized):
    rows = quantized.rows
    assert list(rows) == ["before", "pruned", "onnx", "int8"]
    folder = quantized.folder / "02-quantize"
    assert rows["onnx"]["size_bytes"] == (folder / "model.onnx").stat().st_size
    assert rows["int8"]["size_bytes"] == (folder / "model.int8.onnx").stat().st_size
    assert rows["onnx"]["accuracy"] == rows["before"]["accuracy"]
    assert rows["int8"]["accuracy"] == pytest.approx(rows["before"]["accuracy"], abs=0.02)
    assert {rows[key]["params"] for key in ("before", "onnx", "int8")} == {rows["before"]["params"]}
    assert quantized.stage("02-quantize")["layers"] == [3, 3]
    told = "02-quantize: 3 of 3 layers compute in int8 (training batches looked at: 3)"
    assert any(note.startswith(told) for note in quantized.results["notes"])
    assert quantized.results["network"] == "03-cut/model.safetensors"
    assert sum(quantized.widths) == 12


def test_a_finished_quantize_stage_is_not_done_again_and_vouches_for_its_files(quantized):
    file = quantized.folder / "02-quantize" / "model.int8.onnx"
    before = file.stat().st_mtime_ns
    (quantized.folder / "results.json").unlink()
    stages = (
        TRAIN,
        {"kind": "quantize", "batches": 3, "scales": "tensor"},
        {**HALF, "name": "cut"},
    )
    carry_out(quantized.folder, *stages)
    assert file.stat().st_mtime_ns == before
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        RecipeError, match=r"model\.int8\.onnx was changed after the stage finished"
    ):
        carry_out(quantized.folder, *stages)
    file.write_bytes(content)


def test_quantize_sets_both_beside_each_other(quantized, tmp_path, capsys):
    network = str(quantized.folder / "01-train" / "model.safetensors")
    out = tmp_path / "new" / "small.int8.onnx"
    typed = ["quantize", network, "--data", "digits", "--out", str(out), "--split", "test"]
    assert main([*typed, "--batches", "3", "--trainer.threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["float"]["accuracy"] == quantized.rows["before"]["accuracy"]
    assert found["float"]["size_bytes"] > found["int8"]["size_bytes"]
    assert found["int8"]["size_bytes"] == out.stat().st_size
    assert found["int8"]["latency_ms"]["backend"] == "onnxruntime"
    assert (found["images"], found["layers"], found["batches"]) == (359, [3, 3], 3)
    assert main(typed) == 1
    assert "exists already" in capsys.readouterr().err
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(picture)
    answers = [next(predict(file, [picture], top=10)).classes for file in (network, str(out))]
    assert dict(answers[0]) == pytest.approx(dict(answers[1]), abs=0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "a.pt2"], "a network in int8 is written to an .onnx file"),
        (["--out", "a.onnx", "--batches", "0"], "batches: is 0, must be 1 or more"),
        (["--out", "a.onnx", "--latency-batch", "-1"], "give 0 or more images"),
        (["--out", "a.onnx", "--limit-images", "0"], "give 1 or more"),
    ],
)
def test_mistakes_in_quantize(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "zoo:mlp", "--data", "digits", *flags]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- for the hub


def test_a_run_becomes_a_folder_with_a_card_of_its_results(quantized, tmp_path, capsys):
    out = tmp_path / "digits"
    run = str(quantized.folder)
    assert (
        main(["hub", run, "--out", str(out), "--license", "mit", "--title", 'A "7": digits']) == 0
    )
    told = "README.md, config.json, model.safetensors, plan.json"
    assert capsys.readouterr().out.startswith(f"{out}: {told}\n")
    network = quantized.network("03-cut")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(netslim.models.build(out).eval()(x), network(x))
    text = (out / "README.md").read_text()
    _, facts, body = text.split("---\n", 2)
    known = yaml.safe_load(facts)
    assert (known["license"], known["library_name"]) == ("mit", "netslim")
    assert known["pipeline_tag"] == "image-classification"
    (index,) = known["model-index"]
    (result,) = index["results"]
    assert index["name"] == 'A "7": digits'
    assert result["dataset"]["name"] == "digits"
    assert result["metrics"][0]["value"] == pytest.approx(quantized.rows["pruned"]["accuracy"])
    for part in (
        "| pruned | ",
        "largest relative deviation",
        "`digits`. Inputs: 8 × 8 pixels",
        "mit",
    ):
        assert part in body
    assert main(["hub", run, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["hub", str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    assert "no results.json here" in capsys.readouterr().err


def test_a_masked_network_is_not_quantized():
    with pytest.raises(RecipeError, match="put a 'convert' stage before it"):
        recipe(TRAIN, {**HALF, "mode": "mask"}, {"kind": "quantize"})
