"""A training step in one piece: the bits of Lightning's loop, however it is replayed."""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import netslim
from netslim import models
from netslim.data.sources import load
from netslim.methods import adjustable
from netslim.training.loop import fit as fitting
from netslim.training.loop.adapters import Method
from netslim.training.loop.captured import WARM_UP, Recording, Unrecorded, WholeStep
from netslim.training.loop.checkpoints import SealedCheckpoints
from netslim.training.loop.classifier import Classifier, settle
from netslim.training.loop.fit import Bench, fit
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import load_recipe, parse_recipe
from netslim.training.stages.folder import StageFolder
from stage_runs import recipe
from tape import REFUSED, Tape

METHODS = {
    "none": {"clip": 1.0, "schedule": {"name": "onecycle"}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
    "l1": {"sparsity": {"strength": 0.01}},
    "smooth_l1": {"sparsity": {"strength": 0.01, "penalty": "smooth_l1"}},
    "proximal": {"sparsity": {"strength": 0.01, "penalty": "proximal", "pace": 2.0}},
    "soft_filter": {"sparsity": {"method": "soft_filter", "rate": 0.25}},
    "centripetal": {"sparsity": {"method": "centripetal", "target": 0.5, "strength": 0.1}},
    "gradual": {
        "sparsity": {"strength": 0.01},
        "gradual": {"budget": {"cut_macs": 0.4}, "steps": 1, "end": 0.5},
    },
    "mask": {},
}
BATCHES = 6  # of 32, and a short one, in an epoch
COMPARED = ("train_loss", "penalty", "train_accuracy", "val_loss", "deviation", "macs_left", "lr")


class AsOnAGPU(Bench):
    """Rates and strengths are tensors, and one kernel moves all weights."""

    fused = True


@pytest.fixture(scope="module")
def digits():
    return load("digits", subset=BATCHES * 32 + 10)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(adjustable, "_FLOATS", ())


@pytest.fixture
def tape(monkeypatch):
    found = Tape()
    monkeypatch.setattr(fitting, "recorder", lambda device: found)
    return found


def asked(method, **trainer):
    options = {"threads": 1, "device": "cpu", "tensorboard": False, **trainer}
    schedule = {"name": "cosine", "warmup": 0.5}
    train = {"kind": "train", "epochs": 2, "optimizer": {"lr": 0.05}, "schedule": schedule}
    data = {"name": "digits", "batch_size": 32, "augment": {"pad": 1}}
    return recipe(train | METHODS[method], data=data, trainer=options)


def network():
    torch.manual_seed(0)
    return models.build("zoo:vgg", layers=[8, "M", 8], in_channels=1)


def trained(
    digits, folder, method, kind=Bench, net=None, stop=False, precision="float32", **trainer
):
    """Weights, figures and what was said."""
    made, said = asked(method, **trainer), StringIO()
    bench = kind(made, digits, torch.device("cpu"), precision, Display(Console(file=said)))
    net, stage, mask = net or network(), made.stages[0], None
    if method == "mask":
        graph = netslim.trace(net, torch.randn(2, 1, 8, 8))
        mask = netslim.select(graph, netslim.score(graph, net), netslim.Budget(cut_channels=0.25))
    folder.mkdir(exist_ok=True)
    if stop:
        bench.display.say = interrupt
    history = fit(bench, net, stage, StageFolder(folder, 0, stage), 7, mask=mask)
    figures = [{key: row[key] for key in COMPARED} for row in history.rows]
    return net.state_dict(), figures, said.getvalue()


def interrupt(text):
    raise KeyboardInterrupt


def same(found, expected):
    assert found[1] == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name


@pytest.mark.parametrize("method", ["none", "adamw", "l1", "soft_filter", "gradual"])
def test_a_step_in_one_piece_computes_what_the_loop_computes(digits, tmp_path, method):
    loop = trained(digits, tmp_path / "loop", method, graph=False)
    found = trained(digits, tmp_path / "whole", method, graph=True)
    same(found, loop)
    # Asked for in vain, which is said; nothing is where nothing was asked for.
    assert found[2].count("captured as a CUDA graph: there is no GPU at work") == 1
    assert "captured" not in loop[2]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_tape_of_it_does_so_with_what_a_gpu_needs(digits, tmp_path, tape, method):
    loop = trained(digits, tmp_path / "loop", method, AsOnAGPU, graph=False)
    found = trained(digits, tmp_path / "whole", method, AsOnAGPU, graph=True)
    same(found, loop)
    # Recorded once, after a cut anew; all whole batches behind are replayed, and one to compare.
    assert tape.recorded == 1 + (method == "gradual")
    assert tape.replayed == 2 * BATCHES - WARM_UP * tape.recorded
    assert "not captured" not in found[2]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_replayed_tape_of_it_does_so_in_bf16(digits, tmp_path, tape):
    """The casts of weights, which autocast keeps for a step, are made anew in each replay."""
    how = {"precision": "bf16", "channels_last": True}
    loop = trained(digits, tmp_path / "loop", "l1", AsOnAGPU, graph=False, **how)
    same(trained(digits, tmp_path / "whole", "l1", AsOnAGPU, graph=True, **how), loop)
    assert tape.replayed


def test_a_rate_that_is_a_float_is_not_followed_so_the_tape_would_tell(digits, tmp_path, tape):
    loop = trained(digits, tmp_path / "loop", "none", graph=False)
    found = trained(digits, tmp_path / "whole", "none", graph=True)
    assert tape.replayed
    assert not torch.equal(found[0]["features.0.weight"], loop[0]["features.0.weight"])


@pytest.mark.usefixtures("as_on_a_gpu", "tape")
@pytest.mark.parametrize("method", ["adamw", "gradual"])
def test_one_that_is_interrupted_goes_on_to_the_same_bits(digits, tmp_path, method):
    whole = trained(digits, tmp_path / "whole", method, AsOnAGPU, graph=True)
    with pytest.raises(KeyboardInterrupt):
        trained(digits, tmp_path / "a", method, AsOnAGPU, stop=True, graph=True)
    content = SealedCheckpoints().load_checkpoint(tmp_path / "a/01-train/last.ckpt")
    (optimizer,) = content["optimizer_states"]
    assert [type(group["lr"]) for group in optimizer["param_groups"]] == [float]
    same(trained(digits, tmp_path / "a", method, AsOnAGPU, graph=True), whole)


@pytest.mark.parametrize("method", ["none", "adamw"])
@pytest.mark.parametrize(("first", "then"), [(Bench, AsOnAGPU), (AsOnAGPU, Bench)])
def test_one_goes_on_where_other_optimizers_are_the_best(digits, tmp_path, first, then, method):
    """As from a CPU to a GPU, and back."""
    layout = {Bench: False, AsOnAGPU: True}
    with pytest.raises(KeyboardInterrupt):
        trained(digits, tmp_path, method, first, stop=True, channels_last=layout[first])
    found = trained(digits, tmp_path, method, then, channels_last=layout[then])[1]
    expected = trained(digits, tmp_path / "whole", method)[1]
    for one, other in zip(found, expected, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


class Waits(nn.Module):
    """Its forward pass looks at a number."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, images):
        found = self.inner(images)
        return found * (2 if float(found.sum().detach()) == 0 else 1)


def test_what_a_capture_refuses_is_told_in_one_line_and_trained_as_ever(digits, tmp_path, tape):
    loop = trained(digits, tmp_path / "loop", "none", net=Waits(), graph=False)
    found = trained(digits, tmp_path / "whole", "none", net=Waits(), graph=True)
    same(found, loop)
    told = [line for line in found[2].splitlines() if "captured" in line]
    assert told == [
        "note: training steps are not captured as a CUDA graph: CUDA refuses the capture "
        f"(aten._local_scalar_dense.default: {REFUSED})"
    ]
    assert not tape.recorded


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ({"compile": True}, "trainer.compile makes graphs of its own"),
        ({"precision": "fp16"}, "the loss scale of fp16 changes from step to step"),
    ],
)
def test_what_cannot_be_captured_is_told_beforehand(digits, trainer, why):
    made, said = asked("none", graph=True, **trainer), StringIO()
    precision = trainer.get("precision", "float32")
    bench = Bench(made, digits, torch.device("cpu"), precision, Display(Console(file=said)))
    module = Classifier(network(), made.stages[0], 10, BATCHES + 1)
    fitting._record(bench, module, bench.loader("train"))
    assert module.recorder is None
    assert said.getvalue() == f"note: training steps are not captured as a CUDA graph: {why}\n"


def test_a_method_of_somebody_else_says_whether_it_can_be(digits):
    made, said = asked("none", graph=True), StringIO()
    bench = Bench(made, digits, torch.device("cpu"), "float32", Display(Console(file=said)))
    module = Classifier(network(), made.stages[0], 10, BATCHES + 1, Method(None))
    fitting._record(bench, module, bench.loader("train"))
    assert "does not say that it is steady" in said.getvalue()


def test_momentum_of_another_layout_is_laid_out_as_its_weights():
    layer = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    buffer = torch.randn(4, 4, 3, 3)
    optimizer.state[layer.weight]["momentum_buffer"] = buffer
    settle(optimizer, torch.device("cpu"), fused=True)
    found = optimizer.state[layer.weight]["momentum_buffer"]
    assert found.stride() == layer.weight.stride()
    assert torch.equal(found, buffer)


@pytest.mark.parametrize(("said", "meant"), [("auto", "auto"), ("true", True), ("false", False)])
def test_a_command_says_it_as_a_recipe_does(said, meant):
    found = load_recipe("digits", {"trainer.graph": said, "trainer.deterministic": "true"})
    assert (found.trainer.graph, found.trainer.deterministic) == (meant, True)
    assert parse_recipe(found.to_dict()) == found


# ---------------------------------------------------------------- the step alone


class Nothing(Unrecorded):
    """A capture that went wrong without a word."""

    def record(self, run):
        return Recording(lambda: torch.zeros(()), lambda: None)


def walker(weight, drawn):
    def step(inputs):
        noise = torch.rand(())
        drawn.append(noise.item())
        weight.add_(inputs.sum() * noise)
        return weight.sum()

    return step


def test_a_replay_that_does_nothing_is_found_out_and_the_step_counts():
    weight, drawn, told = torch.zeros(2), [], []
    whole = WholeStep(walker(weight, drawn), lambda: [[weight]], Nothing(), told.append)
    torch.manual_seed(0)
    for _ in range(6):
        whole(torch.ones(2))
    assert told == ["what was captured does not do what the step does"]
    torch.manual_seed(0)
    assert drawn == [torch.rand(()).item() for _ in range(6)]
    assert weight.tolist() == pytest.approx([2 * sum(drawn)] * 2)


def test_random_numbers_go_on_through_the_comparison():
    weight, drawn = torch.zeros(2), []
    whole = WholeStep(walker(weight, drawn), lambda: [[weight]], Unrecorded(), pytest.fail)
    torch.manual_seed(0)
    for _ in range(6):
        whole(torch.ones(2))
    assert whole.recorded
    torch.manual_seed(0)
    expected = [torch.rand(()).item() for _ in range(6)]
    assert drawn == [
        *expected[:4],
        *expected[3:],
    ]  # the fourth step is taken twice, and counts once
    assert weight.tolist() == pytest.approx([2 * sum(expected)] * 2)


def test_tensors_that_lie_elsewhere_are_recorded_anew_and_other_shapes_are_not():
    weights, tape = [torch.zeros(3)], Tape()
    seen = []

    def step(inputs):
        seen.append(len(inputs))
        weights[0].add_(inputs.sum())
        return weights[0].sum()

    whole = WholeStep(step, lambda: [weights], tape, pytest.fail)
    for size in (4, 4, 4, 4, 4, 3, 4):
        whole(torch.ones(size))
    assert seen == [4] * 5 + [3]  # as it is four times, and once to record; one of another shape
    assert weights[0].tolist() == [27.0] * 3
    whole.look_again()
    assert whole.recorded
    weights[0] = weights[0].clone()
    whole.look_again()
    assert not whole.recorded
    for _ in range(5):
        whole(torch.ones(4))
    assert (tape.recorded, weights[0].tolist()) == (2, [47.0] * 3)
    assert isinstance(whole(torch.ones(4)), torch.Tensor)
