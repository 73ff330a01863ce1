"""One run on one process and on two: the same run, whoever starts them and whatever dies.

The functions ``rank_...`` run in two real processes (see `two_ranks`); each test reads what the two
of them found.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import netslim.ranks as ranks
from drawing import not_drawing
from killed_runs import kill_rank_in_cut
from netslim.cli import main
from netslim.errors import NetslimError, RecipeError, TrainingError
from netslim.models import checkpoint
from netslim.training import processes, run
from netslim.training.commands import search, sensitivity, step
from netslim.training.loop import sharded
from netslim.training.loop.progress import StageBar, silent
from netslim.training.loop.synchronised import OverAllRanks
from netslim.training.processes import Place
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Exploration, Recipe, SearchOptions, TrainerOptions
from netslim.training.stages.environment import describe
from stage_runs import TRAIN
from two_ranks import IN_PARTS_ON_CPU, Found, on_two_ranks

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"
)
# What a rate this small leaves of the noise of sums in another order is below what decides.
SLOW = {"lr": 0.002, "weight_decay": 1e-4}
STAGES: list[dict[str, Any]] = [
    {
        "kind": "train",
        "epochs": 3,
        "optimizer": SLOW,
        "sparsity": {"strength": 0.01},
        "gradual": {"budget": {"cut_channels": 0.25}, "steps": 1, "end": 0.7, "batches": 2},
    },
    {"kind": "prune", "budget": {"cut_macs": 0.3}, "batches": 2},
    {
        "kind": "finetune",
        "epochs": 1,
        "optimizer": SLOW,
        "distill": {"teacher": "plain"},
        "keep": "best",
    },
    {"kind": "baseline", "name": "base"},
    {"kind": "measure", "latency": False},
]
STAGES = [{**TRAIN, "name": "plain", "optimizer": SLOW}, *STAGES]
LABELS = ("01-plain", "02-train", "03-prune", "04-finetune", "05-base")


def whole(**trainer: Any) -> Recipe:
    """A run of which the last batch of an epoch, of 18 images, and the test set are odd shares."""
    known = {"threads": 1, "device": "cpu", "tensorboard": False, "sync_batchnorm": True}
    return parse_recipe(
        {
            "name": "small",
            "title": "A test",
            "data": {"name": "digits", "batch_size": 64, "subset": 211, "augment": {"pad": 1}},
            "model": {"name": "zoo:vgg", "layers": [8, "M", 16], "in_channels": 1},
            "trainer": {**known, **trainer},
            "stages": STAGES,
        }
    )


def figures(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    curves = [
        {key: row for key, row in curve.items() if key != "stage"} for curve in results["curves"]
    ]
    rows = [{key: row[key] for key in ("accuracy", "loss", "top5")} for row in results["rows"]]
    sizes = [{key: row[key] for key in ("params", "macs")} for row in results["rows"]]
    plans = [json.loads((folder / label / "plan.json").read_text()) for label in LABELS[1:3]]
    kept = [plan["groups"] for plan in plans]
    return {"curves": curves, "rows": rows, "sizes": sizes, "kept": kept}


# ---------------------------------------------------------------- what both processes do


def run_undrawn(recipe: Recipe, folder: str | Path, **options: Any) -> dict[str, Any]:
    with not_drawing():
        return run(recipe, folder, **options)


def rank_whole(rank: int) -> dict[str, Any]:
    results = run_undrawn(whole(), "two")
    return {"rows": results["rows"], "weights": [weights(f"two/{label}/model") for label in LABELS]}


def rank_sharded(rank: int) -> dict[str, Any]:
    """Begun in parts, stopped behind a cut, and gone on with by DDP."""

    def stop(bar: StageBar, row: dict[str, Any]) -> None:
        if (bar.label, row["epoch"]) == ("02-train", 2):
            raise TrainingError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageBar, "epoch", stop)
        numbers = small_blocks(patch)
        with pytest.raises(TrainingError, match="stopped"):
            run_undrawn(whole(strategy="fsdp"), "sharded")
    run_undrawn(whole(), "sharded")
    return {"blocks": numbers, "weights": [weights(f"sharded/{label}/model") for label in LABELS]}


def small_blocks(patch: pytest.MonkeyPatch) -> list[int]:
    """Have small networks shared out by their blocks, too; the number of these, of each stage."""
    numbers, chosen = [], sharded.blocks

    def counted(network: nn.Module, least: int) -> list[nn.Module]:
        found = list(chosen(network, 80))
        numbers.append(len(found))
        return found

    patch.setattr(sharded, "blocks", counted)
    return numbers


def weights(name: str) -> str:
    return ranks.digest(dict(sorted(checkpoint.read(f"{name}.safetensors")[1].items())))


def rank_goes_on(rank: int) -> list[str]:
    """What was begun by two, of which one was killed, and went on by one."""
    return [row["key"] for row in run_undrawn(whole(strategy="fsdp"), "killed")["rows"]]


def rank_methods(rank: int) -> dict[str, Any]:
    """Each rank has statistics of its own; they must come out alike all the same."""
    options: dict[str, dict[str, Any]] = {
        "soft": {"sparsity": {"method": "soft_filter", "rate": 0.3}, "clip": 0.1},
        "drawn": {"sparsity": {"method": "centripetal", "target": 0.5}},
        "auto": {"sparsity": {"strength": "auto", "target": 0.3}, "epochs": 2},
    }
    found = {name: weights(_trained(name, stage)) for name, stage in options.items()}
    parts: dict[str, dict[str, Any]] = {"soft": {}, "drawn": {}}
    with pytest.MonkeyPatch.context() as patch:
        numbers = small_blocks(patch)
        for name in parts:
            one, two = (
                checkpoint.read(f"{file}.safetensors")[1]
                for file in (name, _trained(name, options[name], strategy="fsdp"))
            )
            parts[name] = {key: float((one[key] - two[key]).abs().max()) for key in one}
    return {**found, "parts": parts, "blocks": numbers}


def _trained(name: str, stage: dict[str, Any], **trainer: Any) -> str:
    recipe = step.step(
        "train",
        "zoo:vgg",
        "digits",
        {"epochs": 1, **stage},
        {"model.layers": "[8, M]", "model.in_channels": "1", "data.subset": "131"},
        settings={"trainer": {"tensorboard": False, "limit_batches": 2, **trainer}},
    )
    name += "".join(trainer.values())
    step.carry_out(recipe, Path(f"{name}.safetensors"), display=silent())
    return name


def rank_batch_norm(rank: int) -> list[float]:
    """Largest differences to the batch norm of one process that has all images."""
    torch.manual_seed(0)
    images, wanted = torch.randn(2, 7, 3, 4, 4, dtype=torch.float64)
    alone, mine = (nn.BatchNorm2d(3, dtype=torch.float64) for _ in range(2))
    share = slice(0, 5) if rank == 0 else slice(5, 7)
    whole_input, own_input = (part.clone().requires_grad_() for part in (images, images[share]))
    F.mse_loss(alone(whole_input), wanted, reduction="sum").backward()
    with OverAllRanks():
        found = mine(own_input)
    F.mse_loss(found, wanted[share], reduction="sum").backward()
    assert own_input.grad is not None
    assert whole_input.grad is not None
    pairs = [(own_input.grad, whole_input.grad[share])]
    pairs += list(zip(mine.buffers(), alone.buffers(), strict=True))
    gradients = {name: value.grad for name, value in mine.named_parameters()}
    sums = ranks.summed("gradients", gradients)  # type: ignore[arg-type]
    pairs += [(sums[name], value.grad) for name, value in alone.named_parameters()]
    mine.eval()
    with OverAllRanks():
        pairs.append((mine(images), alone.eval()(images)))
    return [float((one - other).detach().abs().max()) for one, other in pairs]


def rank_other_recipe(rank: int) -> None:
    run(parse_recipe({**whole().to_dict(), "seed": rank}), "other")


def rank_shares(rank: int) -> None:
    run(parse_recipe({**whole().to_dict(), "data": {"name": "digits", "batch_size": 63}}), "odd")


def rank_other_number(rank: int) -> None:
    run(whole(devices=3), "three")


def rank_told(rank: int) -> list[Any]:
    try:
        run(whole(), "/dev/null/folder")
    except NetslimError as error:
        return [error.told_by_another, type(error).__name__]
    return []


def rank_no_number(rank: int) -> None:
    """A loss that only one of them sees."""
    recipe = parse_recipe(
        {**whole().to_dict(), "name": "diverges", "stages": STAGES[:1] + STAGES[-1:]}
    )
    before = F.cross_entropy
    if rank == 1:
        F.cross_entropy = lambda *given, **more: before(*given, **more) * float("nan")
    try:
        run(recipe, "diverges")
    finally:
        F.cross_entropy = before


def rank_hangs(rank: int) -> list[str]:
    """The second process sleeps in its first step, for longer than it is waited for."""
    recipe = whole(timeout=1.5 / 60)
    recipe = parse_recipe({**recipe.to_dict(), "stages": [STAGES[0], STAGES[-1]]})
    before, told = F.cross_entropy, []
    if rank == 1:
        F.cross_entropy = lambda *given, **more: [time.sleep(3), before(*given, **more)][1]
    port = ranks.shared("a port", free_port)
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    try:
        run(recipe, "hangs")
    except NetslimError as error:
        told = [type(error).__name__, str(error)]
    finally:
        F.cross_entropy = before
        dist.destroy_process_group()
        again = Path("again").absolute().as_uri()
        dist.init_process_group("gloo", init_method=again, rank=rank, world_size=2)
    return told


def free_port() -> int:
    with socket.socket() as open_one:
        open_one.bind(("127.0.0.1", 0))
        return int(open_one.getsockname()[1])


def rank_described(rank: int) -> Any:
    return describe(torch.device("cpu"), "float32", "")["processes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def killed(folder: Path) -> str:
    """What is told where one of two was killed; then one process goes on, and is interrupted."""
    options = TrainerOptions(devices=2)
    with pytest.raises(TrainingError) as told:
        processes.start(options, partial(kill_rank_in_cut, whole(), folder / "killed"))
    assert (folder / "killed/02-train/last.ckpt").exists()
    assert not (folder / "killed/02-train/stage.json").exists()
    display = silent()

    def say(text: str) -> None:
        if text.startswith("02-train  epoch 2"):
            raise KeyboardInterrupt

    display.say = say  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(whole(), folder / "killed", display=display)
    return str(told.value)


@pytest.fixture(scope="module")
def found(folder: Path, killed: str) -> Found:
    return on_two_ranks(__file__, folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    run_undrawn(whole(), folder / "one", display=silent())
    return folder / "one"


# ---------------------------------------------------------------- the same run


def test_two_processes_do_what_one_does(found: Found, alone: Path, folder: Path):
    one, two = figures(alone), figures(folder / "two")
    assert one.pop("kept") == two.pop("kept")
    assert one.pop("sizes") == two.pop("sizes")
    assert flat(two) == pytest.approx(flat(one), rel=1e-4, abs=1e-6)


@IN_PARTS_ON_CPU
def test_a_network_in_parts_is_trained_as_a_whole_one(found: Found, alone: Path, folder: Path):
    one, two = figures(alone), figures(folder / "sharded")
    assert one.pop("kept") == two.pop("kept")
    assert one.pop("sizes") == two.pop("sizes")
    assert flat(two) == pytest.approx(flat(one), rel=1e-4, abs=1e-6)
    one, other = found["sharded"]
    assert one == other
    assert one["blocks"] == [2, 2]


@IN_PARTS_ON_CPU
def test_methods_act_on_parts_as_on_the_whole(found: Found):
    for rank in found["methods"]:
        assert rank["blocks"] == [1, 1]
        for name, differences in rank["parts"].items():
            assert max(differences.values()) < 1e-5, name


def flat(value: Any, where: str = "") -> dict[str, float]:
    """Every number by its place."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = dict(enumerate(value)).items()
    else:
        return {where: value} if isinstance(value, int | float) else {}
    return {
        name: number for key, part in parts for name, number in flat(part, f"{where}.{key}").items()
    }


@pytest.mark.parametrize(
    "name", ["whole", *(pytest.param(one, marks=IN_PARTS_ON_CPU) for one in ("methods", "goes_on"))]
)
def test_ranks_find_the_same(found: Found, name: str):
    one, two = found[name]
    assert one == two
    assert "error" not in one


@IN_PARTS_ON_CPU
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(
    killed: str, found: Found, alone: Path, folder: Path
):
    assert "rank 1 of 2 was ended" in killed
    assert "SIGKILL" in killed
    one, three = figures(alone), figures(folder / "killed")
    assert three.pop("kept") == one.pop("kept")
    assert flat(three) == pytest.approx(flat(one), rel=1e-4, abs=1e-6)


def test_statistics_are_those_of_all_images(found: Found):
    for differences in found["batch_norm"]:
        assert max(differences) < 1e-12


def test_the_environment_tells_how_many(found: Found):
    assert found["described"] == (2, 2)


# ---------------------------------------------------------------- what is refused


def test_ranks_with_different_recipes_stop_with_both_digests(found: Found):
    for told in found["other_recipe"]:
        assert told["error"] == "DisagreementError"
        assert "the ranks disagree on the recipe: rank 0 has" in told["text"]


def test_a_batch_that_cannot_be_shared_out_is_refused(found: Found):
    for told in found["shares"]:
        assert told["text"].endswith(
            "data.batch_size: 63 images are not the same number for each of 2 processes; say 62 or 64"
        )


def test_another_number_than_was_started_is_refused(found: Found):
    for told in found["other_number"]:
        assert "trainer.devices: the recipe asks for 3, and 2 were started" in told["text"]


def test_what_all_of_them_raise_is_told_once(found: Found):
    assert found["told"] == ([False, "RecipeError"], [True, "RecipeError"])


def test_a_rank_that_hangs_is_told_with_its_stage(found: Found):
    one, other = found["hangs"]
    assert one[0] == "TrainingError"
    assert one[1].startswith("stage 01-plain: rank 0 of 2 has waited in vain for another one")
    assert other[0] == "_LostError"


def test_a_loss_of_one_rank_stops_both(found: Found):
    for told in found["no_number"]:
        assert told["error"] == "TrainingError"
        assert "the loss is not finite" in told["text"]


# ---------------------------------------------------------------- who is who

ELASTIC = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
MEETING = {"MASTER_ADDR": "node0", "MASTER_PORT": "1234"}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_JOB_ID": "123456",
    "SLURM_NODELIST": "gpu[07-08]",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NAME": "slim",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*ELASTIC, *MEETING, *SLURM):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def setenv(environment: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        environment.setenv(name, value)


def test_alone_where_nobody_says_more(environment: pytest.MonkeyPatch):
    assert processes.place() == Place()
    setenv(environment, {"WORLD_SIZE": "4", "RANK": "1"})  # of machines, not of processes
    assert processes.place() == Place()


def test_torchrun_is_recognised(environment: pytest.MonkeyPatch):
    setenv(environment, ELASTIC | MEETING)
    assert processes.place() == Place(5, 8, 1, 4)
    assert processes.place().nodes == 2


def test_slurm_is_recognised(environment: pytest.MonkeyPatch):
    setenv(environment, SLURM)
    assert processes.place() == Place(5, 8, 1, 4)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "18456")
    assert processes.place() == Place(5, 8, 1, 4)


def test_a_job_of_slurm_that_srun_did_not_start_is_told(environment: pytest.MonkeyPatch):
    setenv(environment, {key: SLURM[key] for key in SLURM if key != "SLURM_STEP_ID"})
    assert processes.place() == Place()  # as a command in a batch script that works alone
    with (
        pytest.raises(RecipeError, match="put srun before the command"),
        processes.joined(TrainerOptions()),
    ):
        pass


def test_a_shell_of_slurm_is_one_process(environment: pytest.MonkeyPatch):
    setenv(environment, SLURM | {"SLURM_JOB_NAME": "interactive"})
    assert processes.place() == Place()


def test_several_machines_must_find_each_other(environment: pytest.MonkeyPatch):
    with pytest.raises(RecipeError, match=r"MASTER_ADDR, MASTER_PORT, NODE_RANK in the environ"):
        run(whole(num_nodes=2), "nowhere", display=silent())


def test_what_works_on_one_process_says_so(environment: pytest.MonkeyPatch, tmp_path: Path):
    options: list[Any] = [SearchOptions(), Exploration()]
    commands: list[Callable[[Recipe], Any]] = [
        step.evaluate,
        lambda recipe: step.prune(recipe, tmp_path / "a.safetensors"),
        lambda recipe: step.unmask(recipe, tmp_path / "a.safetensors"),
        lambda recipe: search.carry_out(recipe, options[0], tmp_path),
        lambda recipe: sensitivity.explore(recipe, tmp_path, options[1]),
    ]

    def refused(**trainer: Any) -> None:
        recipe = parse_recipe({**whole(**trainer).to_dict(), "stages": STAGES[2:3]}, whole=False)
        for command in commands:
            with pytest.raises(RecipeError, match="this works on one process"):
                command(recipe)

    refused(devices=2)
    setenv(environment, ELASTIC | MEETING)
    refused()
    assert not list(tmp_path.iterdir())


def test_so_do_commands_that_several_have_begun(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """All that do not share their work out, before they look at anything."""
    setenv(environment, ELASTIC | MEETING)
    for typed in (
        ["export", "zoo:mlp", "--input", "1", "8", "8", "--out", "a.onnx"],
        ["bench", "zoo:mlp", "--input", "1", "8", "8"],
        ["predict", "a.onnx", "a.png"],
        ["report", "runs/digits"],
    ):
        assert main(typed) == 1
        assert "this works on one process" in capsys.readouterr().err
