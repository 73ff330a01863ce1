"""`netslim bench paper`: a command of two words."""

from __future__ import annotations

import pytest

from netslim import cli


def paper(*arguments: str) -> int:
    return cli.main(["bench", "paper", *arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--minutes", "0"], 2, "--minutes 0: give more than 0; see netslim bench paper --help"),
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
    assert paper("--rows", "digits", "--seeds", "0", "1", "--minutes", "0.0001") == 0
    said = capsys.readouterr().out
    assert "0 of 2 rows are finished; stopped" in said
    assert "go on with: netslim bench paper --rows digits --seeds 0 1 --minutes 0.0001" in said
    assert (tmp_path / "paper" / "results.md").exists()
    assert not (tmp_path / "runs").exists()
