"""One wish is one network, whichever way it is asked for; and a group that does not verify is left
alone by all.
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netslim
import wished
from netslim import Budget, GradualPruning, PruningPlan
from netslim.cli import main
from netslim.errors import VerificationError
from netslim.graph.modules.batches import held_out
from netslim.methods.cutting import left_alone
from netslim.methods.noise import stand_in
from netslim.selection import Compensation
from netslim.surgery.history import history
from netslim.training.commands.step import step
from netslim.training.loop.progress import Display
from netslim.training.recipe.schema import Prune, Recipe
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.prune import carry_out, convert
from netslim.training.stages.runner import Runner

pytestmark = pytest.mark.usefixtures("undrawn")

SHARE = 0.495  # about half, and the first that a search tries
WIDTHS = {"first": 8, "second": 8, "third": 12}
SAID = left_alone(["second"])
PACKAGE = Path(netslim.__file__).parent


@dataclass(frozen=True)
class Wish:
    """What is to go, and what is said of how; the rest is left to netslim."""

    budget: dict[str, float] = field(default_factory=dict)
    per_group: dict[str, int] = field(default_factory=dict)
    data: bool = False
    how: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """As keywords of the library."""
        compensation = (
            {"compensation": Compensation(self.how["fold"])} if "fold" in self.how else {}
        )
        plain = {key: value for key, value in self.how.items() if key != "fold"}
        budget = Budget(**self.budget) if self.budget else None
        return {"budget": budget, "per_group": self.per_group or None, **plain, **compensation}

    @property
    def keys(self) -> dict[str, Any]:
        """As keys of a stage."""
        return {"budget": self.budget, "per_group": self.per_group, **self.how}

    @property
    def flags(self) -> list[str]:
        """As typed."""
        found = [
            f"--{key.replace('_', '-')}={value}"
            for key, value in {**self.budget, **self.how}.items()
        ]
        if self.per_group:
            found += ["--layers", *self.per_group, "--counts", *map(str, self.per_group.values())]
        return found


WISHES = {
    "half of the MACs": Wish({"cut_macs": SHARE}),
    "half of the MACs, with data": Wish({"cut_macs": SHARE}, data=True),
    "half of the channels": Wish({"cut_channels": SHARE}),
    "half of the channels, with data": Wish({"cut_channels": SHARE}, data=True),
    "amounts by name": Wish(per_group={"first": 4, "second": 4}),
    "all of it said": Wish(
        {"cut_macs": SHARE},
        data=True,
        how={"criterion": "l1", "allocation": "uniform", "fold": "linear"},
    ),
}


@dataclass
class Workshop:
    """One of the two networks, and what is needed to ask for a cut of it."""

    name: str
    folder: Path
    log: pytest.LogCaptureFixture

    @property
    def model(self) -> str:
        return f"wished:{self.name}"

    @property
    def network(self) -> nn.Module:
        return getattr(wished, self.name)()

    @cached_property
    def runner(self) -> Runner:
        return Runner(
            self.recipe(WISHES["half of the channels"]), RunFolder(self.folder), Display(), ""
        )

    @property
    def example(self) -> torch.Tensor:
        return self.runner.example()

    def batches(self, wish: Wish) -> list[Any] | None:
        return list(self.runner.bench.batches(10)) if wish.data else None

    def recipe(self, wish: Wish, **more: Any) -> Recipe:
        return step(
            "prune",
            self.model,
            "digits",
            {**wish.keys, **more},
            settings={"trainer": {"device": "cpu"}},
        )

    def stage(self, wish: Wish, **more: Any) -> Prune:
        stage = self.recipe(wish, **more).stages[0]
        assert isinstance(stage, Prune)
        return stage


Outcome = tuple[dict[str, int], str]  # what stays of each group, and what was said


def of_plan(plan: PruningPlan, words: str) -> Outcome:
    return {**WIDTHS, **{name: len(cut.kept) for name, cut in plan.groups.items()}}, words


def of_network(network: nn.Module, words: str) -> Outcome:
    return {name: getattr(network, name).out_channels for name in WIDTHS}, words


# ---------------------------------------------------------------- the ways to ask


def verbs(shop: Workshop, wish: Wish) -> Outcome:
    network = shop.network
    graph = netslim.trace(network, shop.example[:1])
    scores = netslim.score(graph, network, wish.how.get("criterion", "l1"))
    options = wish.options
    allocation = options.get("allocation", "global")
    plan = netslim.select(
        graph, scores, options["budget"], per_group=options["per_group"], allocation=allocation
    )
    if "fold" in wish.how:
        folding = netslim.surgery.compensate(network, plan, shop.batches(wish), wish.how["fold"])
        network, plan = folding.model, folding.plan
    small = netslim.prune(network, plan)
    netslim.verify(network, small, plan, shop.example)
    return of_network(small, "")


def slim(shop: Workshop, wish: Wish) -> Outcome:
    return of_network(
        netslim.slim(shop.network, shop.example[:1], batches=shop.batches(wish), **wish.options),
        shop.log.text,
    )


def gradual(shop: Workshop, wish: Wish) -> Outcome:
    network, options = shop.network, wish.options
    budget = options.pop("budget")
    GradualPruning(
        network, shop.example[:1], budget, steps=1, batches=shop.batches(wish), **options
    ).step()
    return of_network(network, shop.log.text)


def sensitivity(shop: Workshop, wish: Wish) -> Outcome:
    (share,) = {amount / WIDTHS[name] for name, amount in wish.per_group.items()}
    found = netslim.sensitivity(
        shop.network,
        shop.example[:1],
        lambda _: 0.5,
        criterion="l1",
        ratios=[share],
        groups=list(wish.per_group),
    )
    return {**WIDTHS, **{row.group: row.size - row.removed for row in found.rows}}, " ".join(
        found.notes
    )


def stage(shop: Workshop, wish: Wish, **more: Any) -> Outcome:
    done = carry_out(
        shop.stage(wish, **more), shop.network, shop.example, shop.runner.bench.batches
    )
    assert of_network(done.network, "") == of_plan(done.plan, "")
    assert set(done.left_alone) == ({"second"} if shop.name == "baked" else set())
    return of_plan(done.plan, " ".join(done.warnings))


def greedy(shop: Workshop, wish: Wish) -> Outcome:
    return stage(shop, wish, by="greedy")


def mask_and_convert(shop: Workshop, wish: Wish) -> Outcome:
    masked = carry_out(
        shop.stage(wish, mode="mask"), shop.network, shop.example, shop.runner.bench.batches
    )
    assert of_network(masked.network, "") == (WIDTHS, "")
    done = convert(masked.network, masked.plan, shop.example)
    assert of_plan(done.plan, "") == of_network(done.network, "")
    return of_network(done.network, " ".join(masked.warnings))


def command(shop: Workshop, wish: Wish, *more: str) -> Outcome:
    out = shop.folder / "small.safetensors"
    where = ["--data", "digits", "--device", "cpu"] if wish.data else ["--input", "1", "8", "8"]
    said = prune(shop, shop.model, *where, *wish.flags, *more, "--out", str(out))
    plan = PruningPlan.from_json(out.with_suffix(".plan.json").read_text())
    return of_plan(plan, said)


def command_mask(shop: Workshop, wish: Wish) -> Outcome:
    masked, out = shop.folder / "masked.safetensors", shop.folder / "small.safetensors"
    where = ["--data", "digits", "--device", "cpu"] if wish.data else ["--input", "1", "8", "8"]
    said = prune(shop, shop.model, *where, *wish.flags, "--mask", "--out", str(masked))
    prune(shop, str(masked), *where, "--by", "mask", "--trust", "--out", str(out))
    return of_plan(PruningPlan.from_json(out.with_suffix(".plan.json").read_text()), said)


def prune(shop: Workshop, *arguments: str) -> str:
    """What a person sees on standard error: log and warnings alike."""
    with redirect_stderr(StringIO()) as printed:
        assert main(["prune", *arguments]) == 0
    return shop.log.text + printed.getvalue()


def search(shop: Workshop, wish: Wish) -> Outcome:
    out = shop.folder / "search"
    (amount,) = wish.budget
    flags = [flag for flag in wish.flags if not flag.startswith("--cut-")]
    flags += ["--resource", amount.removeprefix("cut_")]
    arguments = [shop.model, "--data", "digits", "--device", "cpu", "--epochs", "0", "--tries", "1"]
    assert main(["search", *arguments, "--max-drop", "99", *flags, "--out", str(out)]) == 0
    made = out / "candidates" / f"{SHARE:.4f}" / "01-prune"
    said = json.loads((made / "stage.json").read_text())["warnings"]
    return of_plan(PruningPlan.from_json((made / "plan.json").read_text()), " ".join(said))


ENTRANCES: dict[str, Callable[[Workshop, Wish], Outcome]] = {
    "library verbs": verbs,
    "slim": slim,
    "GradualPruning": gradual,
    "sensitivity": sensitivity,
    "prune stage": stage,
    "prune stage, by greedy": greedy,
    "mask and convert stages": mask_and_convert,
    "netslim prune": command,
    "netslim prune --mask, then --by mask": command_mask,
    "netslim search": search,
}

_SILENT = "score and select each say for themselves what is taken, and score knows no budget"
_ONE = "it cuts one group at a time, by a share or a number"
_LAYERS = "it goes from layer to layer, by a share or a number"
_DATA = "there is always data"
CANNOT = {
    **{("library "
        "verbs", wish): _SILENT for wish in WISHES if wish not in ("amounts by "
                                                                   "name", "all of it said")},
    **{("sensitivity", wish): _ONE for wish in WISHES if wish != "amounts by name"},
    **{("prune stage, by greedy", wish): _LAYERS for wish in WISHES if wish != "amounts by name"},
    **{(name, wish): _DATA for name in ("prune stage", "mask and convert stages", "netslim search")
       for wish in ("half of the MACs", "half of the channels")},
    ("netslim search", "amounts by name"): "the search itself says how much goes",
    ("GradualPruning", "all of it "
                       "said"): "nothing is folded, for the training that goes on mends what "
                                "is lost",
    ("mask and convert stages", "all of it said"): "a mask cuts nothing, so nothing is folded",
    ("netslim prune --mask, then --by "
     "mask", "all of it said"): "a mask cuts nothing, so nothing is folded",
}  # fmt: skip
PAIRS = [(entrance, wish) for entrance in ENTRANCES for wish in WISHES]


@pytest.fixture
def shop(
    request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Workshop:
    caplog.set_level(logging.WARNING, "netslim")
    return Workshop(request.param, tmp_path, caplog)


EXPECTED: dict[tuple[str, str], dict[str, int]] = {}


def expected(shop: Workshop, wish: str) -> dict[str, int]:
    """What stays by the choice that is documented, made by hand from select alone; once."""
    key = shop.name, wish
    if key not in EXPECTED:
        network, asked = shop.network, WISHES[wish]
        graph = netslim.trace(network, shop.example[:1])
        criterion, allocation = {
            "half of the MACs": ("obs", "cost"),
            "half of the MACs, with data": ("obs", "cost"),
            "half of the channels": ("bn_scale", "global"),
            "half of the channels, with data": ("obs", "cost"),
            "amounts by name": ("l1", "global"),
            "all of it said": ("l1", "uniform"),
        }[wish]
        batches = shop.batches(asked)
        if wish == "half of the MACs":
            made = stand_in(network, shop.example[:1])
            assert made is not None
            network, batches = made.network, made.batches
        elif batches is not None:
            batches, _ = held_out(batches)
        scores = netslim.score(graph, network, criterion, batches=batches)
        amounts = dict(asked.per_group)
        if shop.name == "baked":
            del scores["second"]
            amounts.pop("second", None)
        budget = asked.options["budget"]
        plan = netslim.select(graph, scores, budget, per_group=amounts, allocation=allocation)
        EXPECTED[key] = of_plan(plan, "")[0]
        assert EXPECTED[key] != WIDTHS
    return EXPECTED[key]


@pytest.mark.parametrize("shop", ["sound", "baked"], indirect=True)
@pytest.mark.parametrize(("entrance", "wish"), [pair for pair in PAIRS if pair not in CANNOT])
def test_the_same_widths_the_same_groups_left_alone_the_same_words(entrance, wish, shop):
    if entrance == "library verbs" and shop.name == "baked":
        with pytest.raises(
            VerificationError, match="eight channels expected"
        ):  # the caller chooses anew
            ENTRANCES[entrance](shop, WISHES[wish])
        return
    widths, words = ENTRANCES[entrance](shop, WISHES[wish])
    assert widths == expected(shop, wish)
    if shop.name == "sound":
        assert "left alone" not in words
    else:
        assert widths["second"] == WIDTHS["second"]
        assert words.count(SAID) == 1


def test_what_an_entrance_cannot_be_asked_for_is_told():
    assert CANNOT.keys() <= set(PAIRS)
    assert all(CANNOT.values())
    for wish in WISHES:
        assert sum((entrance, wish) not in CANNOT for entrance in ENTRANCES) >= 3


def names_of(path: Path) -> set[str]:
    """What a file imports from other modules, by name."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        f"{(node.module or '').rpartition('.')[2]}.{alias.name}"
        for node in found
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_loop_stands_once_and_every_user_of_it_is_an_entrance():
    """A new module that cuts needs a row above; nobody proves a cut for itself."""
    sources = {path: names_of(path) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    users = [path for path, names in sources.items() if "cutting.cut" in names]
    assert {path.stem for path in users if "training" not in path.parts} == {
        "slim",
        "gradual",
        "sensitivity",
    }
    assert len([path for path in users if "training" in path.parts]) == 1  # the stages
    provers = {path.stem for path, names in sources.items() if "verify.verify" in names}
    assert provers == {"cutting"}


@pytest.mark.parametrize("shop", ["sound"], indirect=True)
@pytest.mark.parametrize("wish", ["half of the MACs", "half of the MACs, with data"])
def test_what_was_chosen_is_told_at_every_entrance(wish, shop, capsys):
    asked = WISHES[wish]
    small = netslim.slim(
        shop.network, shop.example[:1], batches=shop.batches(asked), **asked.options
    )
    past = history(small)
    assert past is not None
    command(shop, asked)
    printed = capsys.readouterr().out
    if asked.data:
        told = "criterion obs, allocation cost, compensation sequential"
        done = carry_out(shop.stage(asked), shop.network, shop.example, shop.runner.bench.batches)
        assert [one.kept for one in done.mended] == [True, False, False]  # which is not told
        assert f"chosen: {told}" in done.plan.notes
    else:
        told = "criterion obs on noise, allocation cost, compensation sequential"
    assert past.notes[0].startswith(f"chosen: {told}")
    assert f"chosen: {told}" in printed


@pytest.mark.parametrize("shop", ["sound"], indirect=True)
def test_the_doors_with_data_leave_the_same_weights(shop):
    asked = WISHES["half of the MACs, with data"]
    one = netslim.slim(shop.network, shop.example[:1], batches=shop.batches(asked), **asked.options)
    done = carry_out(shop.stage(asked), shop.network, shop.example, shop.runner.bench.batches)
    out = shop.folder / "small.safetensors"
    where = ["--data", "digits", "--device", "cpu", *asked.flags]
    prune(shop, shop.model, *where, "--out", str(out))
    two, three = done.network.state_dict(), netslim.models.build(out, trust=True).state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, two[name])
        assert torch.equal(value, three[name])


# ---------------------------------------------------------------- nothing is left; all or nothing


@pytest.mark.parametrize("shop", ["baked"], indirect=True)
def test_when_nothing_is_left_the_reason_is_told(shop):
    with pytest.raises(
        VerificationError,
        match=r"no group that was asked for .* left alone, .*: second .*eight chan",
    ):
        netslim.slim(shop.network, shop.example[:1], per_group={"second": 4})
    with pytest.raises(
        netslim.errors.PlanError,
        match=r"cut_macs=0\.9 leaves .* left alone, because the cut did not verify",
    ):
        netslim.slim(
            shop.network,
            shop.example[:1],
            budget=Budget(cut_macs=0.9),
            limits=netslim.Limits(min_channels=2),
        )


@pytest.mark.parametrize("shop", ["baked"], indirect=True)
def test_strictly_nothing_is_cut_at_all(shop):
    with pytest.raises(VerificationError, match="eight channels expected"):
        netslim.slim(shop.network, shop.example[:1], budget=Budget(cut_macs=0.5), strict=True)


@pytest.mark.parametrize("shop", ["baked"], indirect=True)
def test_a_mask_is_proved_before_anything_is_trained_under_it(shop):
    done = carry_out(
        shop.stage(WISHES["amounts by name"], mode="mask"),
        shop.network,
        shop.example,
        shop.runner.bench.batches,
    )
    assert set(done.plan.groups) == {"first"}
    assert "second stays: its cut did not verify" in done.plan.notes
