"""JSON and YAML of any form is refused by each reader with an error of netslim's."""

import os
from pathlib import Path

import pytest

from netslim.errors import NetslimError, RecipeError
from netslim.measure.table.latency_table import LatencyTable
from netslim.methods.search import _Journal
from netslim.methods.sensitivity import _resumed
from netslim.methods.sensitivity_result import Sensitivity
from netslim.report.results_file import read
from netslim.surgery.plan import PruningPlan
from netslim.training.recipe.reading import load_recipe
from netslim.training.stages.folder import read_json

TEXTS = {
    "deep": "[" * 100_000,
    "infinite": '{"format": 1, "share": Infinity}',
    "huge": '{"format": 1, "share": 1e999}',
}


def _results(text: str, folder: Path) -> object:
    (folder / "results.json").write_text(text)
    return read(folder)


def _stage(text: str, folder: Path) -> object:
    (folder / "stage.json").write_text(text)
    return read_json(folder / "stage.json", "delete it")


READERS = {
    "plan": lambda text, _: PruningPlan.from_json(text),
    "sensitivity": lambda text, _: Sensitivity.from_json(text),
    "latency table": lambda text, _: LatencyTable.from_json(text),
    "stage": _stage,
    "results": _results,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", READERS)
def test_only_our_errors_come_out(kind: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(NetslimError):
        READERS[kind](TEXTS[text], tmp_path)


def _digits(change: str) -> str:
    return f"extends: digits\nname: mine\n{change}\n"


def _stages(text: str) -> str:
    return f"name: mine\ndata: {{name: digits}}\nmodel: {{name: vgg11}}\nstages: {text}\n"


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)
RECIPES = {
    "deep": "a: " + "[" * 100_000,
    "deep and closed": "a: " + "[" * 5000 + "]" * 5000,
    "date": _digits("title: 2001-99-99"),
    "timestamp": _digits("title: !!timestamp now"),
    "number": _digits("seed: !!int x"),
    "digits": _digits("seed: " + "9" * 5000),
    "boolean": _digits("title: !!bool x"),
    "laughs": LAUGHS,
    "itself": "a: &a [*a]",
    "key": "2001-01-01: 1",
    "device": "extends: /dev/zero",
    "extends": "extends: [digits]",
    "nul": 'extends: "a\\0.yaml"',
    "kind": _stages("[{kind: [train]}]"),
    "method": _stages("[{kind: train, epochs: 1, sparsity: {method: [x]}}]"),
    "times": _stages("[{repeat: {times: 1000000, stages: [{kind: train, epochs: 1}]}}]"),
    "empty": _stages("[{repeat: {times: 1000000000, stages: []}}]"),
    "twice": _stages(
        "[{repeat: {times: 999, stages: [{repeat: {times: 999, stages: [{kind: measure}]}}]}}]"
    ),
    "steps": _stages(
        "[{kind: train, epochs: 9, gradual: {steps: 1000000000, budget: {cut_macs: 0.5}}}, "
        "{kind: measure}]"
    ),
    "epochs": _digits("stages: {sparse: {epochs: 1" + "0" * 400 + "}}"),
    "strength": _digits("stages: {sparse: {sparsity: {strength: 1.0e+300}}}"),
    "seed": _digits("seed: 18446744073709551616"),
    "change": _digits("stages: {sparse: 3}"),
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_of_any_form_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPES[text])
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_recipe_that_extends_itself_a_pipe_or_a_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {path}")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="a pipe"):
        load_recipe(tmp_path / "pipe.yaml")
    with open(tmp_path / "large.yaml", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(tmp_path / "large.yaml")


ENTRIES = (
    "3", "{}", '{"group": [1], "removed": 1, "value": 1}',
    '{"group": "a", "removed": {}, "value": 1}',
    '{"group": "a", "removed": 1, "value": 1' + "0" * 400 + "}",
)  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_mistyped_row_of_a_journal_is_refused(entry: str, tmp_path: Path) -> None:
    header = '{"kind": "sensitivity journal", "format": 1, "of": {}}'
    (tmp_path / "journal").write_text(f"{header}\n{entry}\n")
    with pytest.raises(NetslimError, match="line 2"):
        _resumed(tmp_path / "journal", {})
    (tmp_path / "journal").write_text('{"kind": "sensitivity journal", "format": 1, "of": 3}\n')
    with pytest.raises(NetslimError, match="line 1"):
        _resumed(tmp_path / "journal", {})


def test_a_number_too_large_for_a_share_is_refused(tmp_path: Path) -> None:
    row = '{"share": 1' + "0" * 400 + ', "score": 1}'
    (tmp_path / "journal").write_text(f'{{"format": 1, "tried": [{row}]}}')
    with pytest.raises(NetslimError, match="too large a number"):
        _Journal(tmp_path / "journal")
