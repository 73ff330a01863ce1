"""The documentation is executed: what README.md shows works as shown."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from netslim.cli import main
from netslim.selection.budget import ALLOCATIONS
from netslim.selection.criteria import CRITERIA
from netslim.training.recipe.files import read_yaml, shipped
from netslim.training.recipe.reading import parse_recipe
from places import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What is in its examples is run; those in Python go on from the one in README.md.
PAGES = {
    name: (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in (
        *("budgets", "coupling", "extending", "from-nncf", "from-torch-pruning", "methods"),
        *("numbers", "quick-start", "recipes", "sensitivity", "shipping", "transformers"),
        *("what-can-be-cut", "your-data", "your-loop"),
    )
}
DOCUMENTS = [
    "README.md",
    *(f"docs/{name}.md" for name in PAGES),
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/from-the-originals.md",
    "docs/command-line.md",
    "docs/coverage.md",
    "docs/distributed.md",
    "docs/faq.md",
    "docs/index.md",
    "docs/own-network.md",
    "docs/scaling.md",
    "docs/verified.md",
    "docs/yolo.md",
]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run_blocks(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """What the examples of a page leave, one after another, where these names are known before."""
    for number, block in enumerate(blocks("python", text)):
        exec(compile(block, f"python block {number + 1}", "exec"), names)
    return names


def test_the_example_cuts_half_and_proves_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(README, {})
    before, after = map(
        int, re.findall(r"^(\d+) -> (\d+)$", capsys.readouterr().out, re.MULTILINE)[0]
    )
    assert after <= 0.5 * before
    assert names["check"].deviation < 1e-10
    assert sum(p.numel() for p in names["again"].parameters()) < sum(
        p.numel() for p in names["model"].parameters()
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What the example of README.md leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        return run_blocks(README, {})


@pytest.fixture
def nothing_stays_taught():
    """What a page registers is known to that page alone."""
    before = [(known, dict(known)) for known in (CRITERIA, ALLOCATIONS)]
    yield
    for known, entries in before:
        known.clear()
        known.update(entries)


@pytest.mark.usefixtures("nothing_stays_taught")
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if blocks("python", text)])
def test_the_examples_of_a_page_go_on_from_it(name, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_blocks(PAGES[name], dict(start))
    if name == "your-loop":
        assert names["small"][0][0].out_channels == 8
    if name == "quick-start":
        assert names["accuracy"](names["small"]) > 0.9
    for picture in tmp_path.glob("*.svg"):  # draw it again where this fails: pages show it
        shown = REPOSITORY / "docs" / "pictures" / picture.name
        assert picture.read_text() == shown.read_text(), picture.name


def test_the_example_has_at_most_twelve_lines():
    assert len([line for line in blocks("python", README)[0].splitlines() if line.strip()]) <= 12


def test_the_example_recipe_is_valid():
    recipe = parse_recipe(read_yaml(blocks("yaml", PAGES["your-data"])[0]))
    assert [stage.kind for stage in recipe.stages] == ["train", "prune", "finetune", "measure"]


def test_the_recipes_that_are_named_are_shipped():
    text = PAGES["recipes"]
    rows = re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)
    assert len(rows) == 4
    assert {*rows, *re.findall(r"netslim run ([\w-]+) ", text)} <= set(shipped())


def test_every_page_is_reached_from_the_readme():
    index = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    reached = {*re.findall(r"\]\(docs/([^)]+\.md)\)", README)}
    assert "index.md" in reached
    reached.update(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert {path.name for path in (REPOSITORY / "docs").glob("*.md")} <= reached


def test_no_figure_is_missing():
    assert not [name for name, text in PAGES.items() if "@@" in text]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (
            target.startswith("https://")
            or (REPOSITORY / document).parent.joinpath(target.partition("#")[0]).exists()
        ), target


def test_commands_and_their_options_exist(capsys):
    lines = [
        line.split("#")[0].split()
        for text in (README, *PAGES.values())
        for block in blocks("console", text)
        for line in block.splitlines()
    ]
    commands = sorted({words[1] for words in lines if words and words[0] == "netslim"})
    expected = (
        "bench evaluate export finetune hub inspect models predict prune quantize recipes report "
        "run search sensitivity status train"
    )
    assert commands == expected.split()
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])


def test_what_verifies_a_claim_exists():
    text = (REPOSITORY / "docs/verified.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40
    for path, name in named:
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {name}\(", source, flags=re.MULTILINE), name


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    text = README + (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in {"demo", "test", *re.findall(r"^make (\w+)", text, flags=re.MULTILINE)}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
