"""The shape of the package: rooms in one row, imports one way, a name is one thing, a light import."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

import netslim
from places import REPOSITORY

PACKAGE = REPOSITORY / "src" / "netslim"

# Each room, and the rooms it may import beside `errors` and `_support`, which everyone may. The
# report reads results on disk alone. `netslim` itself, which has a name for every verb, is for the
# two rooms that carry out what people say.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "_support": set(),
    "ranks": set(),
    "graph": set(),
    "surgery": {"ranks", "graph"},
    "selection": {"ranks", "graph", "surgery"},
    "models": {"graph", "surgery"},
    "measure": {"ranks", "graph", "surgery", "selection", "models"},
    "methods": {"ranks", "graph", "surgery", "selection", "models", "measure"},
    "data": set(),
    "report": {"graph", "methods"},
    "recipes": set(),
    "integrations": {"ranks", "graph", "surgery", "selection", "models", "measure", "methods"},
    "training": {
        *("ranks", "graph", "surgery", "selection", "models", "measure", "methods"),
        *("data", "report", "recipes", "netslim"),
    },
    "cli": {
        *("graph", "selection", "models", "measure", "methods", "data", "report", "training"),
        "netslim",
    },
    "__main__": {"cli"},
}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
SURFACE = [
    *("Budget", "CentripetalSGD", "ChannelGraph", "GradualPruning", "Limits", "Mask"),
    *("NetslimError", "NetworkSlimming", "PruningPlan", "SoftFilterPruning"),
    *("cost", "criterion", "export", "latency", "latency_table", "load", "prune", "prune_"),
    *(
        "quantize",
        "register_rule",
        "save",
        "score",
        "search",
        "select",
        "sensitivity",
        "slim",
        "trace",
    ),
    "verify",
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = ("netslim", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


@cache
def imported(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of all that a file imports: also within functions, for types alone, and
    by `importlib`.
    """
    return list(imports_of(path))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    here = module_of(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            root = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, root
            yield from ((node.lineno, f"{root}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                relative = name.value.startswith(".")
                yield node.lineno, ".".join(package) + name.value if relative else name.value


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    return {
        module: {name for _, name in imported(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }


def test_the_rooms_stand_in_one_row():
    """What a room may import stands before it, so that there is no way round."""
    order = list(ROOMS)
    for room, others in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in others - {"netslim"})


def test_every_kind_of_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "graph").mkdir()
    file = tmp_path / "graph" / "rules.py"
    file.write_text(
        "from ..plan import x\nfrom . import y\nif TYPE_CHECKING:\n    import netslim.data.raw\n"
        "def f():\n    import netslim.cli\n    importlib.import_module('netslim.models')\n"
    )
    assert [name for _, name in imported(file)] == [
        *("netslim.plan", "netslim.plan.x", "netslim.graph", "netslim.graph.y"),
        *("netslim.data.raw", "netslim.cli", "netslim.models"),
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path):
    room = room_of(path)
    assert room in ROOMS, (
        f"{path.name} is a new room: give it a row in ROOMS and in CONTRIBUTING.md"
    )
    may = {"errors", "_support", room, *ROOMS[room]}
    wrong = []
    for line, name in imported(path):
        top, *inner = name.split(".")
        other = inner[0] if inner and f"netslim.{inner[0]}" in ROOM_NAMES else "netslim"
        if top == "netslim" and other not in may and not (inner and "netslim" in may):
            wrong.append(f"line {line} imports {name}")
    assert not wrong, f"{room} may import only {sorted(may)}: {'; '.join(wrong)}"


ROOM_NAMES = {f"netslim.{room}" for room in ROOMS}


def test_no_module_imports_itself_on_a_way_round():
    direct = arrows()
    for start in direct:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in direct[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        assert start not in seen, f"{start} imports something that imports it again"


def test_the_row_of_rooms_is_told_in_the_guide():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for room in ROOMS:
        assert f"| `{room}" in text, f"CONTRIBUTING.md has no row for {room}"


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light_and_touches_no_gpu():
    heavy = {"torchvision", "lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "onnx"}
    heavy |= {"onnxruntime", "sklearn", "pandas", "pyarrow", "tensorboard", "jsonargparse", "rich"}
    heavy |= {"timm", "datasets", "yaml", "ultralytics"}
    code = f"""
import sys, torch
before = set(sys.modules)
import netslim
import netslim.graph, netslim.surgery, netslim.selection, netslim.models, netslim.models.zoo
import netslim.measure, netslim.methods
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & {heavy!r}), torch.cuda.is_initialized())
"""
    assert fresh(code) == "[] False"


def test_help_waits_for_no_torch():
    code = """
import sys
from netslim.cli import COMMANDS, parser_of
texts = [parser_of(command).format_help() for command in COMMANDS]
print("geometric_median" in "".join(texts), "torch" in sys.modules, "numpy" in sys.modules)
"""
    assert fresh(code) == "True False False"


def test_the_surface_is_what_it_says():
    assert netslim.__all__ == sorted(netslim.__all__) == sorted(SURFACE)
    for name in netslim.__all__:
        assert inspect.getdoc(getattr(netslim, name)), f"netslim.{name} has no docstring"
    rooms = {room for room in ROOMS if "_" not in room}
    named = {name for name in dir(netslim) if not name.startswith("_")} - rooms - {"annotations"}
    assert named - {"importlib", "TYPE_CHECKING"} == set(SURFACE)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = netslim.no_such_thing


ELSEWHERE = ("errors", "measure", "methods", "models", "selection", "surgery")


@pytest.mark.parametrize("room", ELSEWHERE)
def test_a_name_that_lives_in_a_room_says_so(room):
    names = set(importlib.import_module(f"netslim.{room}").__all__) - set(netslim.__all__)
    assert names
    for name in names:
        assert not hasattr(netslim, name)
        with pytest.raises(AttributeError, match=rf"{name}'; it is netslim\.{room}\.{name}$"):
            getattr(netslim, name)


def imported_if_there(name: str) -> ModuleType | None:
    """None for an integration whose tool is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith("netslim.integrations.") or "netslim" in str(error.name):
            raise
        return None


def test_a_name_is_one_thing():
    """Whoever imports a module by its dotted name gets the module, and no function of that name."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    modules = [imported_if_there(name) for name in names]  # all, before any is looked at
    for name, module in zip(names, modules, strict=True):
        if module is None:
            continue
        room, _, last = name.rpartition(".")
        assert name == "netslim" or getattr(sys.modules[room], last) is module, name


ROOMS_WITH_A_LIST = [
    module.name
    for module in pkgutil.walk_packages(netslim.__path__, "netslim.")
    if module.ispkg and "__all__" in MODULES[module.name].read_text(encoding="utf-8")
]


@pytest.mark.parametrize("room", ROOMS_WITH_A_LIST)
def test_rooms_export_what_they_say(room):
    module = importlib.import_module(room)
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
