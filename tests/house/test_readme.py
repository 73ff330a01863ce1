"""The documentation is executed: what README.md shows works as shown."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from netslim.cli import main
from netslim.training.recipe.files import read_yaml, shipped
from netslim.training.recipe.reading import parse_recipe
from places import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/from-the-originals.md",
    "docs/coverage.md",
    "docs/distributed.md",
    "docs/own-network.md",
    "docs/scaling.md",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md, python block {number + 1}", "exec"), names)
    before, after = map(
        int, re.findall(r"^(\d+) -> (\d+)$", capsys.readouterr().out, flags=re.MULTILINE)[0]
    )
    assert after <= 0.5 * before
    assert names["check"].deviation < 1e-10
    assert sum(p.numel() for p in names["again"].parameters()) < sum(
        p.numel() for p in names["model"].parameters()
    )
    assert names["small"][0][0].out_channels == 8


def test_the_library_example_has_at_most_fifteen_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 15


def test_the_example_recipe_is_valid():
    recipe = parse_recipe(read_yaml(blocks("yaml")[0]))
    assert [stage.kind for stage in recipe.stages] == ["train", "prune", "finetune", "measure"]


def test_the_recipes_it_names_are_shipped():
    rows = re.findall(r"^\| `([\w-]+)` \|", README, flags=re.MULTILINE)
    assert len(rows) == 4
    assert {*rows, *re.findall(r"netslim run ([\w-]+) ", README)} <= set(shipped())


def test_no_figure_is_missing():
    assert "@@" not in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (
            target.startswith("https://")
            or (REPOSITORY / document).parent.joinpath(target).exists()
        ), target


def test_commands_and_their_options_exist(capsys):
    lines = [
        line.split("#")[0].split() for block in blocks("console") for line in block.splitlines()
    ]
    commands = sorted({words[1] for words in lines if words and words[0] == "netslim"})
    expected = (
        "bench evaluate export finetune inspect predict prune recipes report run search sensitivity "
        "status train"
    )
    assert commands == expected.split()
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    text = README + (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in {"demo", "test", *re.findall(r"^make (\w+)", text, flags=re.MULTILINE)}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
