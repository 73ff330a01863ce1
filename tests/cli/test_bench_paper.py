"""`netslim bench paper`: a command of two words."""

from __future__ import annotations

import json

import pytest

from netslim import cli


def paper(*arguments: str) -> int:
    return cli.main(["bench", "paper", *arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--minutes", "0"], 2, "--minutes 0: give more than 0; see netslim bench paper --help"),
        (["--minutes", "nan"], 2, "--minutes nan: give a finite number; see netslim bench paper"),
        (["--rows", "digits", "--seeds", "0", "0"], 1, "the seed 0 is given twice: give it once"),
        (["--rows", "digits", "digits"], 1, "the row digits is given twice: give it once"),
        (["--minute", "1"], 2, "there is no option --minute; did you mean '--minutes'?"),
        (["--rows", "vgg19-cifar"], 1, "vgg19-cifar"),
        (["--rows", "digits", "--data.nam", "x"], 1, "data.nam"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, code, said):
    assert paper(*arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_time_nothing_is_run_and_it_is_said_how_to_go_on(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paper("--rows", "digits", "--seeds", "0", "1", "--minutes", "0.0001") == 3
    said = capsys.readouterr().out
    assert "0 of 2 rows are finished; stopped after " in said  # as long as the imports take
    assert " s, as the 0 s were over; only" in said
    assert "go on with: netslim bench paper --rows digits --seeds 0 1 --minutes 0.0001" in said
    assert paper("--rows", "digits", "--minutes", "1e-9", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["asked"], found["finished"], found["stopped"]) == (1, 0, True)
    assert found["results"] == "paper/paper.json"
    assert sorted(path.name for path in (tmp_path / "paper").iterdir()) == [
        *("paper.json", "results.md")
    ]
    assert not (tmp_path / "runs").exists()


def test_the_page_has_the_command_that_adds_what_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = ["--out", "results", "--page", "docs.md", "--trainer.threads", "1"]
    typed = ["--rows", "vgg16-l1-a", "--seeds", "0", "1", "--data.root", "x", "--runs", "y", *where]
    assert paper(*typed, "--minutes", "0.0001") == 3
    page = (tmp_path / "docs.md").read_text().replace(" \\\n ", "")
    again = ["netslim bench paper --minutes 9 --seeds 0 1", *where, "--rows vgg19-cifar10 "]
    assert " ".join(again) in page
    assert "## Failed" not in page
