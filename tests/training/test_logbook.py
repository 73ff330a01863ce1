"""TensorBoard and its like: every epoch is told once, also after a kill."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from netslim.errors import RecipeError
from netslim.training.loop.logbook import Logbook
from netslim.training.recipe.schema import TrainerOptions

ROWS = [{"epoch": n, "step": n * 10, "train_loss": 1 / n, "zero": None} for n in (1, 2, 3)]


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss"]
    return [(event.step, round(event.value, 4)) for event in events.Scalars("train_loss")]


@pytest.mark.parametrize("told", [2, 1])
def test_a_stage_that_goes_on_tells_its_last_epoch_once(tmp_path, told):
    scales = torch.ones(3)
    book = Logbook(TrainerOptions(), tmp_path, "01-train")
    book.open([])
    for row in ROWS[:told]:
        book.write(row, scales)
    book.close()  # and killed: epoch 2 is in the checkpoint, and told or not
    again = Logbook(TrainerOptions(), tmp_path, "01-train")
    again.open(ROWS[:2])
    for row in ROWS[1:]:
        again.write(row, scales)
    again.close()
    assert scalars(tmp_path / "tensorboard" / "01-train") == [(1, 1.0), (2, 0.5), (3, 0.3333)]


def test_a_logger_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    book = Logbook(TrainerOptions(loggers=["trackio"], tensorboard=False), tmp_path, "01-train")
    with pytest.raises(RecipeError, match=r"trainer\.loggers: trackio .*pip install trackio"):
        book.open([])


def test_nothing_is_written_where_nothing_is_wanted(tmp_path):
    book = Logbook(TrainerOptions(tensorboard=False), tmp_path, "01-train")
    book.open([])
    book.write(ROWS[0], torch.ones(3))
    book.close()
    assert not list(tmp_path.iterdir())
