"""What every command has: examples in its help that can be typed as they stand, and JSON."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest

from netslim import cli
from netslim.cli.common import split_overrides
from places import REPOSITORY


def examples(command: str) -> list[list[str]]:
    """What stands behind `netslim` in the examples of a command's help, under a heading."""
    text = (cli.parser_of(command).epilog or "").replace("\\\n", " ")
    before, heading, after = f"\n{text}".partition("\nexamples:\n")
    assert heading
    assert "\n  netslim" not in before
    return [
        shlex.split(line.split(" > ")[0]) for line in re.findall(r"^  netslim (.*)", after, re.M)
    ]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_help_has_examples_that_can_be_typed(command):
    found = examples(command)
    own = [typed for typed in found if " ".join(typed).startswith(command)]
    assert len(own) >= 2
    for typed in found:
        name, rest = cli._split(typed)
        parser = cli.parser_of(name)
        tokens, dotted = split_overrides(rest)
        parser.read(tokens)
        assert parser.dotted or not dotted


def test_the_overview_has_examples_under_a_heading():
    assert re.search(r"^examples:\n  netslim ", cli.overview().epilog or "", re.M)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_prints_json_for_programs(command):
    assert "--json" in cli.parser_of(command).flags()


def test_exit_codes_are_documented_once_and_alike():
    page = (REPOSITORY / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)] == list(cli.EXIT_CODES)
    told = cli.overview().format_help()
    assert all(re.search(rf"^  {code} +\S", told, re.M) for code in cli.EXIT_CODES)


@pytest.mark.parametrize(
    ("code", "typed"),
    [
        (2, "nope"),
        (2, "prune zoo:vgg11 --out x.safetensors --nope 1"),
        (2, "prune zoo:vgg11 --out x.safetensors --by nope"),
        (2, "prune zoo:vgg11"),
        (2, "prune zoo:vgg11 --out x.safetensors --cut-macs much"),
        (2, "run digits --model.width"),
        (1, "run nope"),
        (1, "run digits --stages.sparse.nope 1"),
        (1, "run digits --seed x"),
        (1, "prune zoo:vgg11 --out x.safetensors"),
        (1, "prune zoo:vgg11 --out x.safetensors --input 3 32 32 --cut-macs 0.5 --criterion nope"),
        (1, "inspect zoo:nope"),
    ],
)
def test_the_parser_refuses_with_2_and_netslim_with_1(code, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(typed.split()) == code
    assert not [*tmp_path.iterdir()]


def test_the_tab_key_completes_commands_options_and_choices(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "netslim.bash"
    script.write_text(capsys.readouterr().out)

    def completed(typed: str) -> set[str]:
        words = " ".join(map(shlex.quote, shlex.split(typed))) + (" ''" * typed.endswith(" "))
        number = len(shlex.split(typed)) - (not typed.endswith(" "))
        line = (
            f"source {script}; COMP_WORDS=({words}); COMP_CWORD={number}; "
            "_shtab_netslim; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert {"prune", "predict"} <= completed("netslim pr")
    assert "sensitivity" not in completed("netslim pr")
    assert "--cut-macs" in completed("netslim prune --cut-m")
    assert "executorch" in completed("netslim export --to ")
    assert cli.main(["completion", "zsh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"].startswith("#compdef netslim")
