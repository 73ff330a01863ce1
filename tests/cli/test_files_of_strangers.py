"""JSON of any form is refused by each reader with an error of netslim's."""

from pathlib import Path

import pytest

from netslim.errors import NetslimError
from netslim.measure.table.latency_table import LatencyTable
from netslim.methods.sensitivity_result import Sensitivity
from netslim.report.results_file import read
from netslim.surgery.plan import PruningPlan
from netslim.training.stages.folder import read_json

TEXTS = {"deep": "[" * 100_000, "infinite": '{"format": 1, "share": Infinity}'}


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
