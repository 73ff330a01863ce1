"""The shape of the package: imports point one way, `import netslim` is light, the surface is what
it says.
"""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import netslim
from places import REPOSITORY

PACKAGE = REPOSITORY / "src" / "netslim"

# Each room, and the rooms it may import directly; what these may import, it may too. Every room may
# import errors. `netslim` is the package itself, whose lazy exports reach everything. The report
# reads results on disk alone.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "wrapping": {"plan"},
    "plan": set(),
    "graph": {"plan", "wrapping"},
    "rules": {"graph"},
    "files": set(),
    "imports": set(),
    "scores": {"graph", "statistics", "imports"},
    "statistics": {"graph", "batches"},
    "cost": {"graph"},
    "latency": {"graph", "backends"},
    "backends": {"graph", "export", "wrapping"},
    "meter": {"graph"},
    "tables": {"files", "latency", "backends", "export", "budget", "scores", "surgery"},
    "resolve": {"plan", "graph"},
    "selection": set(),
    "budget": {"meter", "resolve"},
    "mirror": {"plan", "graph"},
    "optimizers": set(),
    "companions": {"plan", "wrapping"},
    "surgery": {"mirror", "optimizers", "companions"},
    "silence": {"graph", "plan"},
    "verify": {"silence"},
    "greedy": {"budget", "scores"},
    "merging": {"resolve"},
    "batches": {"graph", "plan"},
    "insertion": {"graph", "batches"},
    "recalibrate": {"wrapping", "batches"},
    "fold": {"merging", "surgery", "silence", "batches"},
    "regression": {"fold"},
    "reconstruct": {"regression"},
    "slim": {"budget", "scores", "surgery", "tables", "verify", "reconstruct", "recalibrate"},
    "search": {"files"},
    "sensitivity": {"files", "budget", "scores", "surgery", "verify", "recalibrate"},
    "gradual": {"slim", "sparsity"},
    "zoo": set(),
    "models": {"zoo", "insertion", "imports"},
    "checkpoint": {"surgery", "models"},
    "export": {"graph", "wrapping"},
    "sparsity": {"graph", "budget", "scores", "merging", "surgery", "optimizers"},
    "data": set(),
    "plots": set(),
    "report": {"plots"},
    "recipes": set(),
    "training": {
        *(
            "netslim",
            "search",
            "sensitivity",
            "slim",
            "gradual",
            "cost",
            "latency",
            "models",
            "checkpoint",
            "sparsity",
        ),
        *("data", "report", "recipes", "selection"),
    },
    "cli": {"netslim", "training"},
}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(room: str) -> set[str]:
    found, waiting = {room, "errors"}, [room]
    while waiting:
        for other in ROOMS.get(waiting.pop(), set()) - found:
            found.add(other)
            waiting.append(other)
    return found


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of ours in a file, lazy ones inside functions included."""
    package = ["netslim", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "netslim":
                yield node.lineno, parts[1] if len(parts) > 1 else "netslim"


def test_the_table_has_no_cycle():
    for room in ROOMS:
        assert all(room not in allowed(other) for other in ROOMS[room]), (
            f"{room} would import itself"
        )


def test_a_relative_import_is_understood(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "graph").mkdir()
    file = tmp_path / "graph" / "rules.py"
    file.write_text(
        "from ..plan import x\nfrom . import y\nfrom .atoms import z\ndef f():\n    import "
        "netslim.cli\n"
    )
    assert list(imported(file)) == [(1, "plan"), (2, "graph"), (3, "graph"), (5, "cli")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path):
    room = room_of(path)
    assert room in ROOMS, (
        f"{path.name} is a new room: give it a row in ROOMS and in CONTRIBUTING.md"
    )
    wrong = [
        f"line {line} imports {other}"
        for line, other in imported(path)
        if other not in allowed(room)
    ]
    assert not wrong, f"{room} may import only {sorted(allowed(room))}: {'; '.join(wrong)}"


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light_and_touches_no_gpu():
    heavy = {
        "torchvision",
        "lightning",
        "pytorch_lightning",
        "torchmetrics",
        "matplotlib",
        "onnx",
        "onnxruntime",
    }
    heavy |= {
        "sklearn",
        "pandas",
        "pyarrow",
        "tensorboard",
        "jsonargparse",
        "rich",
        "timm",
        "datasets",
        "yaml",
    }
    code = f"""
import sys, torch
before = set(sys.modules)
import netslim
import netslim.graph, netslim.selection.budget, netslim.surgery.prune, netslim.verify, netslim.models.checkpoint, netslim.methods
import netslim.models.zoo, netslim.models, netslim.cost, netslim.latency, netslim.measure.table
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & {heavy!r}), torch.cuda.is_initialized())
"""
    assert fresh(code) == "[] False"


def test_the_command_line_helps_without_loading_the_heavy_parts():
    code = """
import sys
import netslim.cli
print(sorted({"torchvision", "pytorch_lightning", "matplotlib", "sklearn"} & set(sys.modules)))
"""
    assert fresh(code) == "[]"


def test_all_is_sorted_and_everything_in_it_exists():
    assert list(netslim.__all__) == sorted(netslim.__all__)
    assert len(netslim.__all__) == len(set(netslim.__all__))
    for name in netslim.__all__:
        assert getattr(netslim, name).__doc__, f"netslim.{name} has no docstring"
    modules = {room_of(path) for path in SOURCES} - set(netslim.__all__)
    exported = {name for name in dir(netslim) if not name.startswith("_")} - modules
    lent = {"Any", "TYPE_CHECKING", "annotations", "importlib"}
    assert exported - lent == set(netslim.__all__) - modules


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = netslim.no_such_thing


def test_functions_named_as_their_module_are_functions_in_any_order():
    names = sorted(room for room in ROOMS if room in netslim.__all__)
    assert names == [
        "cost", "export", "greedy", "latency", "recalibrate", "reconstruct", "search", "sensitivity", "slim", "verify",
    ]  # fmt: skip
    calls = ", ".join(f"callable(netslim.{name})" for name in names)
    assert fresh(f"import netslim; print(all([{calls}]), all([{calls}]))") == "True True"
    modules = ", ".join(f"netslim.{name}" for name in names)
    assert fresh(f"import {modules}; print(all([{calls}]))") == "True"


@pytest.mark.parametrize("room", ["cost", "data", "graph", "models", "sparsity", "training", "zoo"])
def test_rooms_export_what_they_say(room):
    module = importlib.import_module(f"netslim.{room}")
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_recipes_are_package_data():
    found = [
        item for item in resources.files("netslim.recipes").iterdir() if item.name.endswith(".yaml")
    ]
    shipped = [item for item in found if not item.name.startswith("_")]
    assert "digits.yaml" in {item.name for item in shipped}
    assert all(
        f"name: {item.name.removesuffix('.yaml')}\n" in item.read_text(encoding="utf-8")
        for item in shipped
    )


def committed() -> list[Path]:
    """Every file that is tracked, or would be."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    return [
        REPOSITORY / name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()
    ]


def test_no_file_names_a_machine_or_a_package_index():
    words = ["/" + "work/", "/" + "opt/", "/" + "root/", "pypi." + "org", "files.python" + "hosted"]
    found = []
    for path in committed():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(REPOSITORY)}: {word}" for word in words if word in text]
    assert not found


def test_no_large_file_and_no_leftover_is_committed():
    for path in committed():
        assert path.stat().st_size < 2_000_000, (
            f"{path} is large; data and checkpoints do not belong in the repository"
        )
        assert path.suffix not in {
            ".pt",
            ".pth",
            ".ckpt",
            ".safetensors",
            ".pyc",
            ".orig",
            ".rej",
        }, path
