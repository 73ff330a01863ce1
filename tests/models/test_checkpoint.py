"""Checkpoints hold what it takes to rebuild the network, and nothing that is executed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as encode
from torch import nn

from nets import Chain, DenseBlock, Residual, cut_half
from netslim import Budget, load, models, prune, prune_, save, score, select, trace
from netslim.errors import ArgumentError, CheckpointError
from netslim.models import checkpoint
from netslim.models.checkpoint import read

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def same(a, b):
    state = b.state_dict()
    return all(torch.equal(t, state[n]) for n, t in a.state_dict().items()) and len(state) == len(
        a.state_dict()
    )


def test_round_trip_of_a_pruned_network(tmp_path):
    small = prune(Residual(), cut_half(Residual(), X)[1])
    path = save(small, tmp_path / "small.safetensors", metadata={"accuracy": 0.5})
    fresh = Residual()
    loaded = load(fresh, path)
    assert same(small, loaded)
    assert fresh.stem[0].out_channels == 6
    assert read(path)[0]["metadata"] == {"accuracy": 0.5}
    assert torch.equal(loaded.eval()(X), small.eval()(X))


def test_equal_networks_give_equal_files(tmp_path):
    """One written here, one by another process."""
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    code = (
        "import sys, torch, netslim; torch.manual_seed(0); netslim.save(torch.nn.Linear(3, "
        "2), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(there)], check=True)
    torch.manual_seed(0)
    save(nn.Linear(3, 2), here)
    assert here.read_bytes() == there.read_bytes()


def test_trained_on_pruned_again_and_reloaded_in_another_process(tmp_path):
    model = models.build("zoo:resnet20", width=0.5)
    x = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        graph = trace(model, x)
        plan = select(graph, score(graph, model), Budget(cut_channels=0.3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        prune_(model, plan, optimizer=optimizer)
        model.train()
        model(x).square().mean().backward()
        optimizer.step()
    path = save(
        model,
        tmp_path / "m.safetensors",
        constructor=models.constructor("zoo:resnet20", {"width": 0.5}),
    )
    save(
        nn.ParameterList([nn.Parameter(x), nn.Parameter(model.eval()(x).detach())]),
        tmp_path / "io.safetensors",
    )
    code = (
        "import sys, torch, netslim, netslim.models\n"
        "from netslim.models.checkpoint import read\n"
        "m = netslim.models.build(sys.argv[1]).eval()\n"
        "io = read(sys.argv[2])[1]\n"
        "assert torch.equal(m(io['0']), io['1'])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "io.safetensors")], check=True
    )


def test_shared_and_strided_tensors(tmp_path):
    def build():
        tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
        tied[1].weight = tied[0].weight
        return nn.ModuleDict(
            {"tied": tied, "conv": nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)}
        )

    model = build()
    loaded = load(build(), save(model, tmp_path / "x.safetensors"))
    assert same(model, loaded)
    assert loaded["tied"][0].weight is loaded["tied"][1].weight


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(tmp_path, keep):
    path = save(Chain(), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a whole netslim checkpoint"):
        load(Chain(), path)


def test_tampered_weights_and_header(tmp_path):
    path = save(Chain(), tmp_path / "x.safetensors")
    payload = bytearray(path.read_bytes())
    payload[-3] ^= 1
    path.write_bytes(payload)
    with pytest.raises(CheckpointError, match="was changed after it was saved"):
        load(Chain(), path)
    path = save(Chain(), tmp_path / "y.safetensors", metadata={"a": 1})
    before = path.read_bytes()
    payload = re.sub(rb'(metadata[\\": {a]+)1', rb"\g<1>2", before)
    assert payload != before
    path.write_bytes(payload)
    with pytest.raises(CheckpointError, match="was changed after it was saved"):
        load(Chain(), path)


def test_another_model_another_file_no_file(tmp_path):
    small = prune(Residual(), cut_half(Residual(), X)[1])
    path = save(small, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="was not saved from this architecture"):
        load(Chain(), path)
    with pytest.raises(CheckpointError, match="was not saved from this architecture"):
        load(DenseBlock(), save(Chain(), tmp_path / "y.safetensors"))
    with pytest.raises(CheckpointError, match="does not say how its network is built"):
        models.build(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*none\.safetensors: No such file"):
        load(Chain(), tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="was not written by netslim: name its network"):
        load(Chain(), tmp_path / "other.safetensors")


def test_bad_metadata_and_unwritable_folder(tmp_path):
    with pytest.raises(CheckpointError, match="must be plain JSON"):
        save(Chain(), tmp_path / "x.safetensors", metadata={"a": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(Chain(), tmp_path / "file" / "x.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = save(Chain(), tmp_path / "x.safetensors")
    before = path.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(CheckpointError, match="disk full"):
        save(Residual(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_header_is_readable_json(tmp_path):
    path = save(prune(Chain(), cut_half(Chain(), X)[1]), tmp_path / "x.safetensors")
    payload = path.read_bytes()
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(
        json.loads(json.loads(payload[8 : 8 + size])["__metadata__"]["netslim"])["header"]
    )
    assert json.loads(header["plan"])["groups"]["first.0"]["size"] == 6


# ---------------------------------------------------------------- sizes that were forged


class Viewed(nn.Module):
    """Its forward reads a size that a cut must change."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b = nn.Conv2d(3, 6, 3, stride=3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(self.a(x).view(-1, self.width, 2, 2).relu())


def forged(path, plan):
    """Put another plan into a checkpoint, and a digest that fits."""
    header, tensors = read(path)
    text = json.dumps(header | {"plan": json.dumps(plan)})
    entry = json.dumps({"header": text, "digest": checkpoint._digest(text, tensors)})
    path.write_bytes(encode(tensors, {"netslim": entry}))


@pytest.mark.parametrize("case", ["none", "other", "more", "a module", "not there"])
def test_forged_sizes_are_refused_in_few_words(case, tmp_path):
    path = save(prune(Viewed(), cut_half(Viewed(), X)[1]), tmp_path / "m.safetensors")
    plan = json.loads(read(path)[0]["plan"].to_json())
    (width,) = plan["patches"]
    del plan["digest"]
    plan["patches"] = {
        "none": [],
        "other": [width | {"new": width["new"] - 1}],
        "more": [width, {"module": "a", "attribute": "stride[0]", "old": 3, "new": 1}],
        "a module": [width | {"attribute": "b"}],
        "not there": [width | {"attribute": "breadth"}],
    }[case]
    if case in ("a module", "not there"):  # as far as the plan goes, all is well
        for group in plan["groups"].values():
            group.pop("sizes", None)
    forged(path, plan)
    with pytest.raises(CheckpointError) as caught:
        load(Viewed(), path)
    assert len(str(caught.value)) < 400
    assert "kernel_size" not in str(caught.value)


def refilled(path, change):
    """Put other tensors into a checkpoint, and a digest that fits."""
    header, tensors = read(path)
    text = json.dumps(header | {"plan": header["plan"].to_json()})
    tensors = {name: change(tensor) for name, tensor in tensors.items()}
    entry = json.dumps({"header": text, "digest": checkpoint._digest(text, tensors)})
    path.write_bytes(encode(tensors, {"netslim": entry}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_numbers_of_another_kind_are_refused(dtype, tmp_path):
    path = save(prune(Chain(), cut_half(Chain(), X)[1]), tmp_path / "m.safetensors")
    try:
        refilled(path, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    except KeyError:
        pytest.skip(f"this safetensors writes no {dtype}")
    with pytest.raises(
        CheckpointError, match=f"has {dtype} numbers as '.*the network torch.float32"
    ):
        load(Chain(), path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_read_as_the_networks(dtype, tmp_path):
    path = save(prune(Chain(), cut_half(Chain(), X)[1]).to(dtype), tmp_path / "m.safetensors")
    assert {p.dtype for p in load(Chain(), path).parameters()} == {torch.float32}


def test_values_that_are_no_numbers_are_told(tmp_path, caplog):
    model = Chain()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    load(Chain(), save(model, tmp_path / "m.safetensors"))
    assert "has values in head.weight that are no numbers (NaN)" in caplog.text


def test_a_network_is_built_in_one_reading_of_its_file(tmp_path, monkeypatch):
    """What it notes besides stands in its first bytes."""
    made = {"name": "zoo:vgg", "kwargs": {"layers": [8, "M", 8], "in_channels": 1}}
    model = models.build(made["name"], **made["kwargs"])
    path = save(model, tmp_path / "m.safetensors", constructor=made, metadata={"accuracy": 0.5})
    read_bytes, whole = checkpoint.read_bytes, []

    def counted(file):
        whole.append(file)
        return read_bytes(file)

    monkeypatch.setattr(checkpoint, "read_bytes", counted)
    assert checkpoint.noted(path) == {"accuracy": 0.5}
    assert not whole
    assert same(model, models.build(path))
    assert [*map(Path, whole)] == [path]


@pytest.mark.parametrize("damage", ["short", "others", "empty"])
def test_what_cannot_be_noted_is_refused(damage, tmp_path):
    path = save(Chain(), tmp_path / "m.safetensors")
    payload = path.read_bytes()
    path.write_bytes(
        {"short": payload[:100], "others": encode({"x": torch.ones(1)}), "empty": b""}[damage]
    )
    with pytest.raises(CheckpointError, match=r"not a whole netslim|not written by netslim"):
        checkpoint.noted(path)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("net.pth", r"load_state_dict\(torch.load\('net.pth'\)\)"),
        ("net.onnx", "name the .safetensors file that it was made of"),
        ("folder", "name one in it, such as .*inner.safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_told_for_what_it_is(name, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inner.safetensors").touch()
    for file in ("net.pth", "net.onnx"):
        (tmp_path / file).write_bytes(b"no header")
    with pytest.raises(CheckpointError, match=way):
        load(nn.Linear(1, 1), name)


@pytest.mark.parametrize("path", ["", ".", "a" * 300])
def test_a_network_is_not_saved_where_no_file_can_be(path):
    with pytest.raises(ArgumentError, match="path must name a file"):
        save(nn.Linear(1, 1), path)


class Twins(nn.Module):
    """Two layers whose weights are one tensor, or two."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.two.weight = self.one.weight


@pytest.mark.parametrize(
    ("saved", "way"), [(True, "tie them in the model"), (False, "give each its own")]
)
def test_a_tie_that_only_one_side_has_is_told(saved, way, tmp_path):
    path = save(Twins(saved), tmp_path / "twins.safetensors")
    with pytest.raises(CheckpointError, match=f"'two.weight' and 'one.weight' are one .*{way}"):
        load(Twins(not saved), path)
