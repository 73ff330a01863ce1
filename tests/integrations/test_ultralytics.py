"""A tiny detector, trained sparsely, cut, and fine-tuned within the trainer of ultralytics.

Skipped where the package is not installed (the extra ``yolo``). Nothing is downloaded.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import netslim
from elsewhere import Without
from netslim.errors import ArgumentError, TrainingError
from netslim.integrations.ultralytics import SparseTraining, images, replace_network, trainer_of
from places import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend

SIZE = 64
LAYOUT = {
    "nc": 10,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2f", [16, True]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[3, 4], 1, "Detect", ["nc"]]],
}
HALF = netslim.Budget(cut_macs=0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, in which ultralytics writes its settings, too."""
    folder = tmp_path_factory.mktemp("yolo")
    for name, value in {
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
    }.items():
        os.environ[name] = value
    pytest.importorskip(
        "ultralytics", reason="needs ultralytics: pip install 'netslim[yolo]'", exc_type=ImportError
    )
    sys.path.insert(0, str(REPOSITORY / "examples"))
    from digit_scenes import write_scenes

    write_scenes(folder / "scenes", 16, 8, SIZE)
    (folder / "tiny.yaml").write_text(json.dumps(LAYOUT))
    return folder


def options(place: Path, name: str) -> dict[str, Any]:
    here = {"data": str(data(place)), "project": str(place), "name": name, "exist_ok": True}
    how = {"epochs": 2, "imgsz": SIZE, "batch": 8, "nbs": 8, "optimizer": "SGD", "device": "cpu"}
    return {**here, **how, "workers": 0, "plots": False, "verbose": False, "warmup_epochs": 0}


def data(place: Path) -> Path:
    return place / "scenes" / "data.yaml"


def shapes(yolo: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in yolo.model.state_dict().items()}


@pytest.fixture(scope="module")
def sparse(place: Path) -> tuple[Any, SparseTraining]:
    """A detector after two sparse epochs, and what made them so."""
    from ultralytics import YOLO

    yolo = YOLO(place / "tiny.yaml")
    make = partial(netslim.NetworkSlimming, strength=5.0, penalty="proximal")
    training = SparseTraining(make).register(yolo)
    yolo.train(**options(place, "sparse"))
    training.remove(yolo)
    return yolo, training


@pytest.fixture(scope="module")
def cut(place: Path, sparse: tuple[Any, SparseTraining]) -> Any:
    """The detector with half of its multiply-accumulates."""
    from ultralytics import YOLO

    yolo = YOLO(sparse[0].trainer.best)
    batches = images(yolo, data(place), size=SIZE, batch=4, count=2)
    replace_network(yolo, netslim.slim(yolo.model, batches[0], budget=HALF, criterion="bn_scale"))
    return yolo


@pytest.fixture(scope="module")
def tuned(place: Path, cut: Any) -> Any:
    """The cut detector after an epoch of two; a stop in the middle, then it was resumed."""
    from ultralytics import YOLO

    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    yolo = copy.copy(cut)
    yolo.callbacks = {**cut.callbacks, "on_fit_epoch_end": [stop]}
    with pytest.raises(KeyboardInterrupt):
        yolo.train(trainer=trainer_of(yolo), **options(place, "tuned"))
    yolo = YOLO(place / "tuned" / "weights" / "last.pt")
    yolo.train(trainer=trainer_of(yolo), resume=True)
    assert yolo.trainer.start_epoch == 1
    return yolo


def test_the_penalty_acts_within_their_trainer(sparse):
    yolo, training = sparse
    # Four steps of rate .01 and strength 5 take .2 of every scale, whose start is 1.
    assert training.method.scales().max() < 0.9
    average = netslim.NetworkSlimming(yolo.model).scales()
    assert average.max() < 1
    assert not training.method._attached


def test_a_cut_network_is_not_built_anew_without_a_word(place, cut):
    before = shapes(cut)
    with pytest.raises(KeyError, match=r"cut by netslim.*trainer=trainer_of\(yolo\)"):
        cut.train(**options(place, "refused"))
    assert shapes(cut) == before


def test_fine_tuning_keeps_the_cut_through_stop_and_resume(place, sparse, cut, tuned):
    from ultralytics import YOLO

    assert shapes(tuned) == shapes(cut) != shapes(sparse[0])
    assert {name: t.shape for name, t in tuned.trainer.ema.ema.state_dict().items()} == shapes(cut)
    before, after = (dict(one.model.named_parameters()) for one in (cut, tuned))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    best = YOLO(tuned.trainer.best)
    assert shapes(best) == shapes(cut)
    assert "metrics/mAP50(B)" in best.val(**_judged(place)).results_dict
    assert len(best.predict(torch.rand(2, 3, SIZE, SIZE), verbose=False)) == 2


def _judged(place: Path) -> dict[str, Any]:
    names = ("data", "imgsz", "plots", "verbose", "device", "workers", "project")
    return {name: options(place, "val")[name] for name in names}


def test_the_file_opens_where_netslim_is_not_installed(tuned):
    reading = SimpleNamespace(Unpickler=Without, load=Without, __name__="reading")
    written = torch.load(tuned.trainer.best, pickle_module=reading, weights_only=False)
    x = torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(written["model"].float()(x)[0], tuned.model.eval()(x)[0])


def test_what_their_export_runs_in_place_of_forward_is_cut_too(cut):
    block = cut.model.model[2]
    x = torch.rand(1, block.cv1.conv.in_channels, 8, 8)
    assert torch.equal(block.forward_split(x), block(x))
    assert block.c < 8


def test_methods_that_trace_first_act_at_the_end_of_epochs(place, sparse):
    from ultralytics import YOLO

    def make(network: torch.nn.Module) -> netslim.SoftFilterPruning:
        graph = netslim.trace(network, torch.zeros(1, 3, SIZE, SIZE))
        return netslim.SoftFilterPruning(graph, network, rate=0.5)

    yolo = YOLO(sparse[0].trainer.best)
    training = SparseTraining(make).register(yolo)
    yolo.train(**{**options(place, "soft"), "epochs": 1, "val": False})
    weight = training.method.model.model[1].conv.weight
    assert (weight.flatten(1).abs().sum(1) == 0).sum() == 8
    assert training.method.plan().groups


def test_images_are_those_of_the_training_set_as_their_network_gets_them(place, cut):
    first, second = images(cut, data(place), size=SIZE, batch=3, count=2)
    assert first.shape == second.shape == (3, 3, SIZE, SIZE)
    assert 0 <= first.min() < 0.5 < first.max() <= 1
    again, _ = images(cut, data(place), size=SIZE, batch=3, count=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, images(cut, data(place), size=SIZE, batch=3, seed=1)[0])


def test_what_does_not_fit_a_cut_network_is_refused(place, cut):
    other = json.loads(data(place).read_text())
    other["names"] = {"0": "digit"}
    (place / "one.yaml").write_text(json.dumps(other))
    with pytest.raises(ArgumentError, match=r"network has 10 classes, and the data 1.*uncut"):
        cut.train(
            trainer=trainer_of(cut), **{**options(place, "one"), "data": str(place / "one.yaml")}
        )
    folded = copy.deepcopy(cut.model).fuse(verbose=False)
    with pytest.raises(ArgumentError, match=r"normalisation is folded.*open its file anew"):
        replace_network(cut, folded)
    with pytest.raises(ArgumentError, match="network is a Linear"):
        replace_network(cut, torch.nn.Linear(2, 2))
    by_hand = copy.copy(cut)
    by_hand.ckpt = {}  # as of a network that was built from a YAML file and never trained
    with pytest.raises(ArgumentError, match=r"put it in by replace_network"):
        trainer_of(by_hand)
    with pytest.raises(ArgumentError, match="count must be a whole number"):
        images(cut, data(place), count=0)


def test_registering_is_done_once_and_undone_once(cut):
    training = SparseTraining(netslim.NetworkSlimming)
    with pytest.raises(TrainingError, match="no sparse training has begun"):
        _ = training.method
    before = {event: list(acts) for event, acts in cut.callbacks.items()}
    training.register(cut)
    with pytest.raises(ArgumentError, match="registered with this model already"):
        training.register(cut)
    training.remove(cut)
    assert cut.callbacks == before
    with pytest.raises(ArgumentError, match="is not registered"):
        training.remove(cut)


@pytest.mark.parametrize(
    "call",
    [trainer_of, SparseTraining(netslim.NetworkSlimming).register],
    ids=["trainer", "sparse"],
)
def test_only_models_of_theirs_are_taken(call):
    with pytest.raises(ArgumentError, match=r"a model of ultralytics.*not a Linear"):
        call(torch.nn.Linear(2, 2))


def test_the_way_that_the_page_shows(place, sparse, tmp_path, monkeypatch):
    text = (REPOSITORY / "docs" / "yolo.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[0]
    here = f"epochs=1, batch=8, nbs=8, project={str(tmp_path)!r}"
    for shown, short in (
        ("640", str(SIZE)),
        ("epochs=100", here),
        ("val(", f"val(project={str(tmp_path)!r}, "),
    ):
        assert shown in code
        code = code.replace(shown, short)
    monkeypatch.chdir(tmp_path)
    shutil.copy(sparse[0].trainer.best, "yolo11n.pt")
    shutil.copy(data(place), "data.yaml")
    names: dict[str, Any] = {}
    exec(compile(code, "docs/yolo.md", "exec"), names)
    cost = netslim.cost(names["yolo"].model, names["batches"][0][:1])
    assert cost.macs <= 0.5 * netslim.cost(sparse[0].model, names["batches"][0][:1]).macs
    assert "metrics/mAP50(B)" in names["yolo"].metrics.results_dict
