"""Wrong usage: one line, the nearest name, code 2; and messages in the words that were typed."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time
from argparse import Action

import pytest

import netslim.__main__
from netslim import cli
from netslim._support.interrupts import as_interrupts
from netslim.cli import cut_flags, main, registered
from netslim.cli.parser import Parser
from netslim.cli.wording import said
from netslim.selection.budget.allocation import ALLOCATIONS
from netslim.selection.criteria.registry import CRITERIA
from netslim.selection.options import Budget, Compensation, Limits, Scoring, declared
from netslim.training.recipe.schema import Exploration, SearchOptions

CUT = ["prune", "zoo:vgg11", "--input", "3", "32", "32", "--out", "x.safetensors"]
SEARCH = ["search", "zoo:vgg11", "--data", "digits", "--out", "found"]
LOOK = ["sensitivity", "zoo:vgg11", "--data", "digits", "--out", "explored"]
TRAIN = ["train", "zoo:vgg11", "--data", "digits", "--out", "x.safetensors"]


def told(capsys, *arguments: str, code: int = 2) -> str:
    """The one line that a failing command prints."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert not captured.out
    return line


WRONG = [
    (["serch"], "no command 'serch'; did you mean 'search'", "netslim --help"),
    (["--verison"], "no option --verison; did you mean '--version'", "netslim --help"),
    ([*CUT, "--cut-mac", "0.5"], "no option --cut-mac; did you mean '--cut-macs'", "netslim prune --help"),
    ([*CUT, "--cut-mac=0.5"], "did you mean '--cut-macs'", "netslim prune --help"),
    ([*CUT, "--order", "greedy"], "no option --order; did you mean '--by'?", "netslim prune --help"),
    ([*CUT, "--by", "greed"], "--by greed: there is no such choice; did you mean 'greedy'?", "netslim prune --help"),
    ([*CUT, "--reduction=men"], "did you mean 'mean'", "netslim prune --help"),
    ([*CUT, "--device", "xxxx"], "choose one of auto, cpu, cuda", "netslim prune --help"),
    (["prune", "zoo:vgg11", "--inptu", "3"], "no option --inptu; did you mean '--input'", "netslim prune --help"),
    (["prune"], "required: MODEL, --out", "netslim prune --help"),
    ([*CUT, "--round-to", "x"], "--round-to: give a whole number, not 'x'", "netslim prune --help"),
    ([*CUT, "--round-to"], "--round-to: expected one argument", "netslim prune --help"),
    ([*CUT, "other"], "unrecognized arguments: other", "netslim prune --help"),
    ([*SEARCH, "--over", "macs"], "--over macs: there is no such choice; macs is for --resource", "netslim search --help"),
    (["inspect", "zoo:vgg11", "--kind", "a"], "no option --kind; options of the model go by", "inspect --help"),
    ([*TRAIN, "--width", "8"], "no option --width; did you mean '--model.width'?", "netslim train --help"),
    ([*TRAIN, "--image-size", "8"], "did you mean '--data.image_size'?", "netslim train --help"),
    (["run", "digits", "--model", "zoo:vgg11"], "did you mean '--model.name'?", "netslim run --help"),
    ([*TRAIN, "--optimizer", "adamw"], "did you mean '--optimizer.name'?", "train --help"),
    ([*CUT, "--cut-macs", "50%"], "--cut-macs: give a number, not '50%'", "prune --help"),
    (["run", "digits", "--precision", "bf16"], "did you mean '--trainer.precision'?", "netslim run --help"),
    (["inspect", "zoo:vgg11", "--precision", "x"], "no option --precision; options of the model go by", "inspect --help"),
    (["bench", "zoo:vgg99", "--width", "8"], "no option --width; did you mean '--weights'", "bench --help"),
    (["run", "digits", "--epochs", "3"], "go by their dotted names", "netslim run --help"),
    (["report", "x", "--data.root", "y"], "no option --data.root", "netslim report --help"),
    (["run", "digits", "--seed", "1", "--seed=2"], "--seed is given twice", "netslim run --help"),
    ([*CUT, "--layers", "a", "--layers", "b"], "--layers is given twice", "netslim prune --help"),
    (["run", "digits", "--data.root", "a", "--data.root=b"], "--data.root is given twice", ""),
    (["run", "digits", "--data.root"], "--data.root needs a value", ""),
    ([*TRAIN, "--lr", "1", "--optimizer.lr", "2"], "--lr and --optimizer.lr say the same", "train --help"),
    ([*TRAIN, "--epochs", "1", "--stages.train.epochs", "2"], "--epochs and --stages.train.epochs", "train --help"),
    ([*CUT, "--cut-macs", "0.1", "--budget.cut_macs", "0.2"], "--cut-macs and --budget.cut_macs", "prune --help"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message", "page"), WRONG, ids=[" ".join(item[0][-3:]) for item in WRONG]
)
def test_wrong_usage_is_one_line(arguments, message, page, capsys):
    line = told(capsys, *arguments)
    assert message in line
    assert line.endswith(page)


def test_what_may_be_given_again_may(capsys):
    """Inputs of several tensors, and a word of the value that looks like an option's."""
    shapes = ["--input", "3", "32", "32", "--input", "3", "32", "32"]
    assert "one input" not in told(capsys, "inspect", "zoo:vgg99", *shapes, code=1)


@pytest.mark.parametrize("word", ["none", "null"])
def test_none_and_null_are_one_word(word):
    options = cli.parser_of("prune").read([*CUT[1:], "--fold", word, "--normalize", word])
    assert (options.fold, options.normalize) == ("none", "none")


# ---------------------------------------------------------------- in the words that were typed

KINDS = (Budget, Limits, Scoring, Compensation, SearchOptions, Exploration)
FIELDS = {name: item for kind in KINDS for name, item in declared(kind).items()}


def made_of_fields(command: str) -> list[Action]:
    """The flags of a command that take numbers and are made of an options class.

    `--max-drop` of `netslim prune` has the name of an option of the search, and is none.
    """
    actions = cli.parser_of(command).flags().values()
    made = {action.dest: action for action in actions if action.dest in FIELDS}
    if command != "search":
        del made["max_drop"]
    return [action for action in made.values() if action.type in (int, float)]


def out_of_range(action: Action) -> str:
    known = FIELDS[action.dest].metadata
    if known["least"] is not None:
        return f"{known['least'] - 1}"
    return f"{known['above'] if known['above'] is not None else 7}"


RANGES = [
    (arguments, action.option_strings[0], out_of_range(action))
    for arguments in ([*CUT, "--layers", "a", "--counts", "1"], SEARCH, LOOK)
    for action in made_of_fields(arguments[0])
]


def test_the_table_is_made_of_all_fields():
    flags = [flag for _, flag, _ in RANGES]
    assert len(flags) > 25
    assert {"--cut-macs", "--max-params", "--round-to", "--max-cut", "--tries"} <= {*flags}


@pytest.mark.parametrize(
    ("arguments", "flag", "value"), RANGES, ids=[f"{a[0]} {b} {c}" for a, b, c in RANGES]
)
def test_a_number_out_of_range_is_told_by_its_flag(arguments, flag, value, capsys):
    line = told(capsys, *arguments, flag, value, code=1)
    assert line.startswith((f"netslim: {flag}: ", f"netslim: {flag} "))
    assert "_" not in line


FLAGS = sorted(
    {
        (command, action.dest, action.option_strings[0])
        for command in ("prune", "search", "sensitivity")
        for action in cli.parser_of(command).flags().values()
        if action.dest in FIELDS and not (command == "prune" and action.dest == "layers")
    }
)


@pytest.mark.parametrize(("command", "name", "flag"), FLAGS)
def test_every_option_has_its_flag_in_messages(command, name, flag):
    parser = cli.parser_of(command)
    assert said(f"{name} must be 1, got 2", parser) == f"{flag} must be 1, got 2"
    assert said(f"the cut, {name}=8, fails", parser) == f"the cut, {flag} 8, fails"
    assert said(f"What binds: {name}=0.5.", parser) == f"What binds: {flag} 0.5."


# Messages that the library gives; what `netslim prune` makes of them, and a run of a recipe.
MESSAGES = [
    ("per_group.layer1.0.conv1: is 1.5, must be 3", "--layers layer1.0.conv1: is 1.5, must be 3", None),
    ("per_group names no group that can be cut: 'x'", "--layers names no group that can be cut: 'x'", None),
    ("budget.cut_macs must be a number, got 2", "--cut-macs must be a number, got 2", None),
    ("a share; min_channels=2 and max_cut=0.5 allows 3", "a share; --min-channels 2 and --max-cut 0.5 allows 3",
     "a share; min_channels: 2 and max_cut: 0.5 allows 3"),
    ("binds: shortcuts='avoid' (without it 3), allow_inexact=False (4)",
     "binds: --shortcuts avoid (without it 3), no --allow-inexact (4)",
     "binds: shortcuts: avoid (without it 3), allow_inexact: false (4)"),
    ("cut only with allow_inexact=True", "cut only with --allow-inexact", "cut only with allow_inexact: true"),
    ("criterion: 'by: greedy' looks at weights; use l1 or by: scores",
     "--criterion: --by greedy looks at weights; use l1 or --by scores", None),
    ("max_cut of 'a': give the share", "--max-cut of 'a': give the share", None),
    ("allocation='knapsack' takes one budget; use 'cost'", "--allocation knapsack takes one budget; use 'cost'",
     "allocation: knapsack takes one budget; use 'cost'"),
    ("zoo:a has no images: set data.batch_size above 0", "zoo:a has no images: set --batch-size above 0", None),
    ("protect names no group: 'x'", "--protect names no group: 'x'", None),
    ("if you know it, say trust=True (--trust), or", "if you know it, say --trust, or", None),
    ("RuntimeError: Given groups=1, weight", "RuntimeError: Given groups=1, weight", None),
    ("latency: budget_seconds=0; give", "latency: budget_seconds=0; give", None),
    ("groups names no group: 'x'", "--layers names no group: 'x'", "groups names no group: 'x'"),
    ("is cuda; use --trainer.device cpu", "is cuda; use --device cpu", "is cuda; use --trainer.device cpu"),
    ("cut_macs=0.9 cannot be met", "--cut-macs 0.9 cannot be met", "cut_macs: 0.9 cannot be met"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "typed", "written"), MESSAGES, ids=[item[0] for item in MESSAGES])
def test_messages_of_the_library_are_translated(text, typed, written):
    assert said(text, cli.parser_of("prune")) == typed
    assert said(text, cli.parser_of("run")) == (written or text)


def test_what_was_typed_by_its_dotted_name_is_told_by_that(capsys):
    assert told(capsys, *CUT, "--cut-macs", "0.5", "--stages.prune.round_to", "0", code=1).startswith(
        "netslim: --stages.prune.round_to must be"
    )  # fmt: skip
    line = told(capsys, *TRAIN, "--gradual.budget.cut_macs", "1.5", code=1)
    assert line.startswith("netslim: --gradual.budget.cut_macs must be")


def test_whether_cuts_are_timed_is_said_of_budgets_of_latency(capsys):
    line = told(capsys, *CUT, "--cut-macs", "0.5", "--no-latency-check", code=1)
    assert "--no-latency-check belongs to --cut-latency or --max-latency-ms" in line
    options = cli.parser_of("prune").read([*CUT[1:], "--no-latency-check"])
    assert cut_flags.latency(options, True, "--cut-latency") == {"check": False}
    options = cli.parser_of("prune").read([*CUT[1:]])
    assert cut_flags.latency(options, True, "--cut-latency") == {}


def test_a_wish_that_cannot_be_met_is_told_by_flags(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--cut-macs",
        "0.9",
        "--max-cut",
        "0.2",
        "--criterion",
        "l2",
        "--model.width",
        "0.1",
    ]
    line = told(capsys, *CUT, *arguments, code=1)
    assert "--cut-macs 0.9" in line
    assert "--max-cut 0.2" in line
    assert "_" not in line


# ---------------------------------------------------------------- light, anywhere


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


# Whose help lists criteria, ways of allocation or backends, which torch is imported for.
READ_REGISTRIES = {"prune", "search", "sensitivity", "bench"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["recipes"],
        ["options"],
        ["criteria"],
        ["serch"],
        ["--help"],
        *([name, "--help"] for name in cli.COMMANDS if name not in READ_REGISTRIES),
    ],
)
def test_what_needs_no_network_does_not_wait_for_torch(arguments):
    done = fresh(
        "import sys\n"
        "from netslim.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'rich', 'matplotlib'} & set(sys.modules))\n"
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_output_that_is_not_utf8_gets_question_marks():
    """The table of a search, and a title with a letter that ASCII lacks."""
    code = "from netslim.cli import main\nmain([])\nprint('\\N{EN DASH}')"
    assert fresh(code, PYTHONIOENCODING="ascii").stdout.endswith("?\n")


def test_a_file_in_the_current_directory_takes_no_library_s_place(tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n")
    done = subprocess.run(
        [sys.executable, "-m", "netslim.cli", "recipes", "digits"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "name: digits" in done.stdout, done.stderr


def test_a_parser_knows_every_command():
    assert all(isinstance(cli.parser_of(name), Parser) for name in cli.COMMANDS)


def test_help_knows_what_is_registered_before_it_is(monkeypatch):
    """Read off the sources, where torch was not imported; other tests may have registered more."""
    ours = {name for name, made in CRITERIA.items() if made.__module__.startswith("netslim.")}
    known = registered.criteria()
    ways = {name: inspect.getdoc(way) for name, way in ALLOCATIONS.items()}
    monkeypatch.delitem(sys.modules, "torch")
    assert registered.criteria() == {name: known[name] for name in ours}
    read = registered.allocations()
    assert read.items() <= ways.items()
    assert {"global", "cost"} <= read.keys()


def test_an_interruption_while_the_command_line_is_imported_is_told(capsys, monkeypatch):
    """Ctrl-C within the first moments, before `netslim.cli` can answer it."""

    class Interrupting:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "netslim.cli", Interrupting())
    assert netslim.__main__.main() == 130
    assert capsys.readouterr().err == "netslim: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_an_import_is_done(number, tmp_path, monkeypatch):
    """A library that takes any exception in there for a missing module would go on with half."""
    text = f"import os\nos.kill(os.getpid(), {number:d})\nfor _ in range(10**5): pass\nwhole = True"
    (tmp_path / "slow_to_import.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_to_import", raising=False)

    def imported_and_waited() -> None:
        with as_interrupts():
            importlib.import_module("slow_to_import")
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        imported_and_waited()
    assert sys.modules["slow_to_import"].whole


def test_a_second_interruption_does_not_wait_for_an_import(tmp_path):
    text = "import pathlib, time\npathlib.Path('begun').touch()\nwhile True: time.sleep(0.01)"
    (tmp_path / "without_end.py").write_text(text)
    code = "import sys; sys.path.insert(0, '.')\nfrom netslim._support.interrupts import as_interrupts\n"
    code += "with as_interrupts():\n    import without_end"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # it is sent again meanwhile, several times, and still waits
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "netslim: interrupted\n"
    assert process.returncode == 130
