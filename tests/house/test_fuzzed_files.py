"""Every kind of file that netslim reads, changed at random: it is read, or refused by an error of
netslim's, in the time and memory of a small file. `NETSLIM_FUZZ=5000` tries so many of each kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import netslim
from large_data import examples, write_shards, write_tables
from mutating import bytes_changed, json_changed, tree_changed
from netslim import models
from netslim._support import digest_of_plain
from netslim.data.preprocessing import KEY, Preprocessing
from netslim.data.sources import load
from netslim.errors import NetslimError
from netslim.measure.table.curves import points
from netslim.measure.table.latency_table import LatencyTable, Measured, Site, fixed_size
from netslim.methods.search import _Journal
from netslim.methods.sensitivity import _resumed
from netslim.methods.sensitivity_result import Sensitivity
from netslim.models import checkpoint
from netslim.models.weights import fill, read_state
from netslim.report import run_page, search_page, sensitivity_page
from netslim.report.results_file import read as read_results
from netslim.surgery import plan_file
from netslim.training import run
from netslim.training.commands.predict import classifier
from netslim.training.commands.status import _seconds, status
from netslim.training.loop.auto_strength import _read as read_strength
from netslim.training.loop.checkpoints import _MARK
from netslim.training.loop.epochs import EpochRecord
from netslim.training.loop.fit import _checked, put_best
from netslim.training.recipe.reading import load_recipe
from netslim.training.stages.folder import RunFolder, StageFolder
from netslim.training.stages.ground import Ground
from netslim.training.stages.results import assemble
from sensitivities import made as sensitivity_of
from stage_runs import HALF, TRAIN, recipe

USUAL = 120
TRIES = int(os.environ.get("NETSLIM_FUZZ", USUAL))
SECONDS = 5
MEBIBYTES = 96  # that no reading of files this small may take

RECIPE = recipe({**TRAIN, "keep": "best", "sparsity": {"strength": 1e-3}}, HALF)
NET = {"name": "zoo:vgg", "kwargs": {"layers": [4, "M"], "in_channels": 1, "num_classes": 3}}
X = torch.rand(1, 1, 8, 8)


@dataclass(frozen=True)
class Kind:
    """How a kind of file is made, changed and read.

    Attributes:
        make: writes one into a folder, and says where it is.
        change: its content -> another one.
        read: reads it.
    """

    make: Callable[[Path], Path]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


def drawn(path: Path) -> bool:
    """Figures take longer than all else: they are drawn of some."""
    return TRIES > USUAL or zlib.crc32(path.read_bytes()) % 20 == 0


# --- what is read ---------------------------------------------------------------------------------


def fresh() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(NET["name"], **NET["kwargs"])


def small_and_plan() -> tuple[torch.nn.Module, Any]:
    model = fresh()
    graph = netslim.trace(model, X)
    scores = netslim.score(graph, model, "l1")
    plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
    return netslim.prune(model, plan), plan


def plan(place: Path) -> Path:
    (place / "plan.json").write_text(small_and_plan()[1].to_json())
    return place / "plan.json"


def read_plan(path: Path) -> None:
    found = netslim.PruningPlan.from_json(path.read_text("utf-8", "replace"))
    found.explain()
    found.to_json()
    netslim.prune(fresh(), found)


def saved(place: Path) -> Path:
    prepared = Preprocessing((0.5,), (0.5,), (8, 8), False, ("a", "b", "c")).to_json()
    return netslim.save(
        small_and_plan()[0], place / "m.safetensors", constructor=NET, metadata={KEY: prepared}
    )


def read_saved(path: Path) -> None:
    checkpoint.is_ours(path)
    Preprocessing.noted(checkpoint.noted(path), str(path))
    models.build(str(path))
    netslim.load(fresh(), path)


def weights(place: Path, **how: Any) -> Path:
    content = {"epoch": 3, "state_dict": fresh().state_dict(), "names": ["a", {"b": 2.0}]}
    torch.save(content, place / "w.pth", **how)
    return place / "w.pth"


def others_weights(place: Path) -> Path:
    from safetensors.torch import save_file

    save_file(fresh().state_dict(), place / "w.safetensors", {"format": "pt"})
    return place / "w.safetensors"


def read_weights(path: Path) -> None:
    state, key = read_state(path)
    fill(fresh(), state, path, key=key)


def latency(place: Path) -> Path:
    model, kernels = fresh(), []
    graph = netslim.trace(model, X)
    for number in range(len(graph.costs)):
        axes = [[1, 2, 4], [1, 16, 32]][: 1 + number % 2]
        axes = [list(axis) for axis in axes]
        times = tuple((point, 0.1 + sum(point) / 100) for point in points(axes))
        kernels.append(Measured(f"kernel {number}", tuple(map(tuple, axes)), times))
    sites = [
        Site(
            cost.module,
            cost.operator,
            fixed_size(cost, range(len(kernel.axes))),
            tuple(range(len(kernel.axes))),
            number,
        )
        for number, (kernel, cost) in enumerate(zip(kernels, graph.costs, strict=True))
    ]
    table = LatencyTable(
        "eager", "cpu", 1, ((1, 1, 8, 8),), graph.fingerprint, tuple(sites), tuple(kernels)
    )
    table.save(place / "t.json")
    return place / "t.json"


def read_latency(path: Path) -> None:
    found = LatencyTable.load(path)
    str(found)
    found.stack.times(np.full((len(found.stack.base), 2), 3.0))
    found.ms(netslim.trace(fresh(), X))


def sensitivity(place: Path) -> Path:
    settings = {"model": {"name": "m"}, "images": 40, "split": "validation"}
    found = sensitivity_of({"a": [0.1, 0.2, 0.4], "b": [0.0, 0.1, 0.1]})
    return replace(found, settings=settings).save(place / "s.json")


def read_sensitivity(path: Path) -> None:
    found = Sensitivity.load(path)
    found.table(0.1)
    found.ranking()
    found.to_csv()
    if drawn(path):
        sensitivity_page.page(found.to_dict())


HEADER = {"format": 1, "kind": "sensitivity journal", "of": {"weights": "abc", "images": 3}}


def journal(place: Path) -> Path:
    lines = [HEADER, *({"group": "a", "removed": n, "value": 0.5} for n in range(3))]
    (place / "j.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place / "j.jsonl"


def lines_changed(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = json_changed(lines[number], draw)
    return b"\n".join(lines) + b"\n"


def search_journal(place: Path) -> Path:
    found = _Journal(place / "search.json")
    found.note(0.5, 0.9)
    found.note(0.25, 0.95)
    return place / "search.json"


# --- recipes and run folders ----------------------------------------------------------------------


def own_recipe(place: Path) -> Path:
    tree = RECIPE.to_dict()
    tree["stages"].insert(1, {"repeat": {"times": 2, "stages": [{"kind": "train", "epochs": 1}]}})
    tree |= {"extends": "digits", "small": {"stages": {"sparse": {"epochs": 1}}}, "notes": ["a"]}
    (place / "own.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return place / "own.yaml"


parsed = cache(yaml.safe_load)  # which takes its time


def yaml_changed(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.25:
        return bytes_changed(content, draw)
    text = json.dumps(tree_changed(parsed(content), draw), indent=1)
    if draw.random() < 0.3:
        strange = [
            "&a [*a]",
            "2001-99-99",
            "!!int x",
            ".inf",
            "!!timestamp now",
            "[" * 5000,
            "9" * 99,
        ]
        text = re.sub(r": [^\[{]\S*$", f": {draw.choice(strange)},", text, count=1, flags=re.M)
    return text.encode("utf-8", "surrogatepass")


RUN: dict[str, Path] = {}


def in_run(name: str) -> Callable[[Path], Path]:
    """A file in a copy of a run folder; the run is made once."""

    def copied(place: Path) -> Path:
        shutil.copytree(RUN["folder"], place / "run")
        return next((place / "run").glob(name))

    return copied


def run_folder(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "run")


def resealed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    content = {key: value for key, value in tree.items() if key != "digest"}
    return content | {"digest": digest_of_plain(content)}


def sealed_json(content: bytes, draw: random.Random) -> bytes:
    return json_changed(content, draw, resealed)


def sealed_plan(content: bytes, draw: random.Random) -> bytes:
    def sealed(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        plain = {key: value for key, value in tree.items() if key != "digest"}
        return plain | {"digest": plan_file._digest(plain)}

    return json_changed(content, draw, sealed)


def read_config(path: Path) -> None:
    folder = RunFolder(path.parent)
    try:
        status(path.parent)
    finally:
        folder.belongs_to(RECIPE)


def stages_of(path: Path) -> list[StageFolder]:
    folder = RunFolder(run_folder(path))
    found = [folder.stage(index, stage) for index, stage in enumerate(RECIPE.stages)]
    for stage in found:
        written = json.loads((RUN["folder"] / stage.label / "stage.json").read_text())
        stage.ground = Ground(lambda written=written: written["stands_on"], lambda changed: False)
    return found


def read_stages(path: Path) -> None:
    folder = RunFolder(run_folder(path))
    done = [found for stage in stages_of(path) if (found := stage.results()) is not None]
    results = assemble(RECIPE, done, folder.noted_environment(), "")
    folder.results.write_text(json.dumps(results))
    show(folder)


def show(folder: RunFolder) -> None:
    found = read_results(folder.path)
    run_page.summary(found)
    str(run_page.table(found))
    if drawn(folder.results):
        run_page.page(found)


def read_page(path: Path) -> None:
    show(RunFolder(path.parent))
    RunFolder(path.parent).noted_environment()


def read_checkpoint(path: Path) -> None:
    _checked(stages_of(path)[0])


def zip_changed(content: bytes, draw: random.Random) -> bytes:
    """With its seal put right, in most."""
    inside = content[: content.rindex(_MARK)]
    changed = bytes_changed(inside, draw)
    if draw.random() < 0.2:
        return changed
    return changed + _MARK + hashlib.sha256(changed).hexdigest().encode() + b"\n"


def read_best(path: Path) -> None:
    record = EpochRecord(stages_of(path)[0], 0)
    record.best = {"epoch": 1}  # as of version 0.1, without a digest
    put_best(models.build("zoo:vgg", layers=[8, "M", 16], in_channels=1), record)


def search_results(place: Path) -> Path:
    looks = {"accuracy": 0.9, "loss": 0.3, "top5": 1.0, "params": 100, "macs": 1000, "channels": 24}
    rows = [{"key": "original", **looks, "seconds": 1.0}]
    rows += [
        {"key": "candidate", "passed": cut < 0.5, "share": cut, **looks, "seconds": 1.0}
        for cut in (0.25, 0.5)
    ]
    content = {
        "format": 1, "title": "a", "command": "c", "resource": "macs", "max_drop": 1.0, "tries": 3,
        "tolerance": 0.1, "reference": "given", "baseline": 0.9, "epochs": 1, "rows": rows,
        "best": 0.25, "verdict": "v", "notes": ["n"], "seconds": 3.0, "environment": {"a": "b"},
        "tests": {"original": {"accuracy": 0.9, "loss": 0.1, "top5": 1.0}},
    }  # fmt: skip
    (place / "search.json").write_text(json.dumps(resealed(content)))
    return place / "search.json"


def read_search(path: Path) -> None:
    from netslim.training.commands.search import _finished

    found = _finished(RunFolder(path.parent))
    assert found is not None
    search_page.table(found)
    if drawn(path):
        search_page.page(found, "")


def strength(place: Path) -> Path:
    trials = [{"strength": 1e-3, "share": 0.2}, {"strength": 1e-2, "share": 0.8}]
    content = {"format": 1, "strength": 5e-3, "share": 0.5, "bracketed": True, "trials": trials}
    content |= {"target": 0.5, "epochs": 1, "warning": None}
    (place / "strength.json").write_text(json.dumps(resealed(content)))
    return place / "strength.json"


# --- data, and other people's formats -------------------------------------------------------------


def tables(place: Path) -> Path:
    write_tables(place, "train", examples(6), each=6)
    write_tables(place, "test", examples(3), each=6)
    return place / "train-00000.parquet"


def shards(place: Path) -> Path:
    write_shards(place, "train", examples(4), each=4)
    write_shards(place, "test", examples(3), each=4)
    return place / "pets-train-0000.tar"


def read_data(kind: str, path: Path) -> None:
    data = load(f"{kind}:{path.parent}", validation=0, image_size=16)
    assert len(data.train)


def header_changed(content: bytes, draw: random.Random) -> bytes:
    """Of a safetensors file: lengths, offsets, data types, and what netslim notes."""
    choice = draw.random()
    if choice < 0.2:
        return bytes_changed(content, draw)
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    inner = header.get("__metadata__", {}).get("netslim")
    if inner is None or choice < 0.4:
        header = tree_changed(header, draw)
    else:
        header["__metadata__"]["netslim"] = _noted_changed(inner, content, draw)
    text = json.dumps(header).encode()
    length = draw.choice([len(text)] * 19 + [2**62])
    return struct.pack("<Q", length) + text + rest


def _noted_changed(inner: str, content: bytes, draw: random.Random) -> str:
    header = json.loads(json.loads(inner)["header"])
    if draw.random() < 0.5:
        header["plan"] = sealed_plan(header["plan"].encode(), draw).decode("utf-8", "replace")
    else:
        header = tree_changed(header, draw)
    text = json.dumps(header, sort_keys=True)
    digest = checkpoint._digest(text, checkpoint.decode(content))
    entry = {"header": text, "digest": digest}
    if draw.random() < 0.1:
        entry = tree_changed(entry, draw)
    return json.dumps(entry)


def onnx_file(place: Path) -> Path:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    from onnx import TensorProto, helper, save

    float_, shapes = TensorProto.FLOAT, (("x", [1, 1, 2, 2]), ("y", [1, 4]))
    x, y = (helper.make_tensor_value_info(name, float_, shape) for name, shape in shapes)
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    prepared = Preprocessing((0.5,), (0.5,), (2, 2), False, ("a", "b", "c", "d")).to_json()
    helper.set_model_props(model, {KEY: json.dumps(prepared), "normalised_inside": "false"})
    save(model, place / "n.onnx")
    return place / "n.onnx"


def onnx_changed(content: bytes, draw: random.Random) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    prop = draw.choice(model.metadata_props)
    changed = json_changed(prop.value.encode(), draw)
    prop.value = changed.decode("utf-8", "replace")
    return model.SerializeToString()


KINDS = {
    "plan": Kind(plan, sealed_plan, read_plan),
    "checkpoint": Kind(saved, header_changed, read_saved),
    "weights": Kind(weights, bytes_changed, read_weights),
    "old weights": Kind(
        lambda place: weights(place, _use_new_zipfile_serialization=False),
        bytes_changed,
        read_weights,
    ),
    "others' weights": Kind(others_weights, header_changed, read_weights),
    "latency table": Kind(latency, json_changed, read_latency),
    "sensitivity": Kind(sensitivity, json_changed, read_sensitivity),
    "sensitivity journal": Kind(journal, lines_changed, lambda path: _resumed(path, HEADER["of"])),
    "search journal": Kind(search_journal, json_changed, _Journal),
    "search": Kind(search_results, sealed_json, read_search),
    "strength": Kind(strength, sealed_json, lambda path: read_strength(path, "")),
    "recipe": Kind(own_recipe, yaml_changed, lambda path: load_recipe(path)),
    "config.yaml": Kind(in_run("config.yaml"), yaml_changed, read_config),
    "environment.json": Kind(in_run("environment.json"), sealed_json, read_stages),
    "stage.json": Kind(in_run("0[123]-*/stage.json"), sealed_json, read_stages),
    "results.json": Kind(in_run("results.json"), sealed_json, read_page),
    "metrics.csv": Kind(in_run("*/metrics.csv"), bytes_changed, lambda path: _seconds(path)),
    "last.ckpt": Kind(in_run("*/last.ckpt"), zip_changed, read_checkpoint),
    "best.safetensors": Kind(in_run("*/best.safetensors"), header_changed, read_best),
    "parquet": Kind(tables, bytes_changed, lambda path: read_data("hf", path)),
    "tar": Kind(shards, bytes_changed, lambda path: read_data("wds", path)),
    "onnx": Kind(onnx_file, onnx_changed, lambda path: classifier(str(path))),
}


# --- trying ---------------------------------------------------------------------------------------


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """Most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def forget_peak() -> None:
    """What other tests took would hide what is taken here, where the system can forget it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def faults(kind: Kind, name: str, numbers: range, place: Path) -> Iterator[str]:
    """What should not have happened, a line each."""
    path = kind.make(place)
    content = path.read_bytes()
    kind.read(path)
    forget_peak()
    for number in numbers:
        changed = kind.change(content, random.Random(f"{name} {number}"))
        path.unlink()  # to write over a file takes longer
        path.write_bytes(changed)
        before = peak()
        try:
            with no_longer_than(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path)
        except NetslimError as error:
            if len(str(error)) > 2000:
                yield f"{number}: a message of {len(str(error))} characters: {str(error)[:200]}"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "netslim" in one[0]]
            at = f"{Path(ours[-1][0]).name}:{ours[-1][1]}, {Path(last[0]).name}:{last[1]}"
            yield f"{number}: {type(error).__name__}: {str(error)[:200]} ({at})"
        if (grown := peak() - before) > MEBIBYTES:
            yield f"{number}: took {grown} MiB"


@pytest.fixture(scope="module", autouse=True)
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from drawing import not_drawing

    folder = tmp_path_factory.mktemp("fuzz") / "made"
    with not_drawing():
        run(RECIPE, folder)
    RUN["folder"] = folder
    return folder


@pytest.mark.skipif(os.name != "posix", reason="alarms of the system")
@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_any_content_is_read_or_refused(name: str, tmp_path: Path, undrawn: None) -> None:
    found = list(faults(KINDS[name], name, range(TRIES), tmp_path))
    assert not found, f"{len(found)} of {TRIES}:\n" + "\n".join(found[:40])
