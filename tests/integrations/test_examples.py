"""The programs in examples/ run, each with so little training that it takes a moment."""

from __future__ import annotations

import re
import runpy

import pytest
from sklearn.datasets import load_digits

from places import REPOSITORY

FOLDER = REPOSITORY / "examples"
# Program -> what it needs beside netslim, and how little it does here.
PROGRAMS = {
    "accelerate_loop": ("accelerate", {"epochs": 1}),
    "audio_network": ("torch", {"steps": 2}),
    "image_folder": ("torchvision", {"epochs": 1}),
    "lightning_trainer": ("pytorch_lightning", {"epochs": 1}),
    "plain_loop": ("sklearn", {"epochs": 1}),
    "segmentation_unet": ("segmentation_models_pytorch", {"epochs": 1}),
    "timm_training": ("timm", {"epochs": 1}),
    "torchvision_detection": ("torchvision", {"steps": 2}),
    "transformers_trainer": ("transformers", {"epochs": 1}),
}


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, classes = load_digits(return_X_y=True)
    monkeypatch.setattr(
        "sklearn.datasets.load_digits", lambda return_X_y: (pictures[:128], classes[:128])
    )


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore")  # of the tools
def test_an_example_trains_cuts_half_and_trains_on(name, capsys):
    needs, little = PROGRAMS[name]
    pytest.importorskip(needs, reason=f"examples/{name}.py needs {needs}")
    program = runpy.run_path(str(FOLDER / f"{name}.py"))
    program["main"](**little)
    before, after = re.findall(r"^(\d+) -> (\d+) multiply-acc", capsys.readouterr().out, re.M)[0]
    assert int(after) <= 0.5 * int(before)
