"""What makes up for a cut is kept only where it brings the outputs nearer on held-out examples."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim import Budget
from netslim.graph.modules.batches import held_out
from netslim.methods.cutting import Cut, by_scores, cut
from netslim.methods.mending import Judge, nearest
from netslim.selection import Compensation, Scoring
from netslim.selection.defaults import Choice
from netslim.surgery import recalibrate
from netslim.surgery.history import history
from netslim.training.recipe.schema import Prune
from netslim.training.stages.prune import carry_out

FRESH = Compensation(recalibrate=True)
BOTH = Compensation("linear", recalibrate=True)
KEPT = "compensation kept: batch-norm statistics taken anew; on batches held out"
LEFT = "compensation left out: batch-norm statistics taken anew; on batches held out"


def drawn(count: int, seed: int, size: int = 16) -> list[tuple[Tensor]]:
    """Batches as those that the network was trained on."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 2, 5, 5, generator=generator),) for _ in range(count)]


def other(batches: list[tuple[Tensor]]) -> list[tuple[Tensor]]:
    """Batches of another distribution."""
    return [(images * torch.tensor([4.0, 0.25])[:, None, None] + 3,) for (images,) in batches]


def filled() -> nn.Sequential:
    """Two convolutions of 8 channels with normalisation, and a linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for cin, cout in ((2, 8), (8, 8)):
        layers += [nn.Conv2d(cin, cout, 3), nn.BatchNorm2d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Its statistics are those of `drawn`; the later half of each layer is much like the first."""
    network = filled()
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight[4:] = 0.5 * layer.weight[:4] + 0.02 * torch.randn(
                4, *layer.weight.shape[1:]
            )
            layer.bias[4:] = 0.5 * layer.bias[:4]
        network[3].weight[:, 4:] = network[3].weight[:, :4]
        network[-1].weight[:, 4:] = 0
    return recalibrate(network, drawn(8, 1)).eval()


def halved(
    network: nn.Module, batches: list[Any] | None, compensation: Compensation, **options: Any
) -> Cut[nn.Module]:
    """Half of each layer goes."""
    graph = netslim.trace(network, torch.zeros(1, 2, 5, 5))
    scores = netslim.score(graph, network, "l2")
    choose = by_scores(
        graph,
        scores,
        Budget(cut_channels=0.5),
        choice=Choice(Scoring("l2"), "uniform", compensation),
    )
    work, held = batches, []
    if batches is not None:
        work, held = held_out(batches)
    example = options.pop("example", torch.zeros(1, 2, 5, 5))
    return cut(network, graph, choose, example, compensation=compensation, batches=work, held=held)


def statistics(network: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in network.named_buffers() if "running" in name]


def test_the_last_quarter_is_held_out():
    assert held_out([1, 2]) == ([1], [2])
    assert held_out([*range(9)]) == ([*range(7)], [7, 8])
    images, labels = torch.arange(10)[:, None], torch.arange(10)
    ((work, _),), ((held, targets),) = held_out([(images, labels)])
    assert work[:, 0].tolist() == [*range(8)]
    assert held[:, 0].tolist() == targets.tolist() == [8, 9]
    (held,) = held_out([{"x": images, "labels": labels, "scale": 2}])[1]
    assert (held["scale"], held["labels"].tolist()) == (2, [8, 9])


@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 2), ((torch.zeros(8, 2), torch.zeros(6, 2)),), {"x": 1}]
)
def test_nothing_is_held_out_of_what_cannot_be_taken_apart(batch):
    assert held_out([batch]) == ([batch], [])


def test_the_error_is_relative_and_the_mean_over_outputs():
    class Two(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x * self.factor, "b": 1000 * x}

    judge = Judge(Two(2.0), [(torch.tensor([[1.0], [2.0]]),), (torch.tensor([[3.0]]),)])
    near, far = judge.errors([Two(3.0), Two(torch.nan)])
    assert near == pytest.approx(0.25 / 2)
    assert far == 1e9
    assert judge.sees()
    assert not Judge(Two(2.0), []).sees()


def test_statistics_of_the_same_distribution_are_kept(network):
    done = halved(network, drawn(8, 2), FRESH)
    (mending,) = done.mended
    assert mending.kept
    assert mending.after < mending.before
    assert done.notes[-1].startswith(KEPT)
    assert done.warnings == ()
    assert done.plan.why.compensation == "batch-norm statistics taken anew"


def test_statistics_of_another_distribution_are_left_out(network):
    batches = other(drawn(8, 2))
    done = halved(network, batches, FRESH)
    (mending,) = done.mended
    assert not mending.kept
    assert mending.after > mending.before
    assert done.notes[-1].startswith(LEFT)
    assert "tell less of the data than what it replaces" in done.notes[-1]
    assert done.warnings == ()  # it is the careful choice
    assert done.plan.why.compensation == "none"
    for notes in (done.plan.notes, history(done.network).notes):
        (told,) = [note for note in notes if note.startswith("chosen: ")]
        assert told == "chosen: criterion l2, allocation uniform, compensation none"
    plain = halved(network, None, Compensation())
    for ours, theirs in zip(statistics(done.network), statistics(plain.network), strict=True):
        assert torch.equal(ours, theirs)
    # What is left out would have been worse for images as in training, too.
    wanted, forced = Judge(network, drawn(2, 3)), recalibrate(plain.network, batches)
    with_it, without = wanted.errors([forced, done.network])
    assert with_it > 2 * without


def test_what_there_is_nothing_to_take_anew_for_is_not_told_as_done():
    """A network without statistics of batch normalisation."""
    bare = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    done = halved(bare, drawn(8, 2), FRESH)
    assert done.mended == ()
    assert done.plan.why.compensation == "none"


def test_a_fold_that_takes_outputs_away_is_left_out():
    """The first batches are all bright, the last is as in training."""
    network = recalibrate(filled(), drawn(8, 1)).eval()
    batches = [*((images / 100 + 50,) for (images,) in drawn(3, 2)), *drawn(1, 3)]
    done = halved(network, batches, Compensation("constant"))
    assert [(one.step, one.kept) for one in done.mended] == [("constant", False)]
    plain = halved(network, None, Compensation())
    assert done.plan.tensors == plain.plan.tensors
    probe = drawn(1, 4)[0][0]
    assert torch.equal(done.network(probe), plain.network(probe))


def test_steps_are_judged_together():
    """One alone takes the outputs away, and with the other brings them nearest of all."""

    class Off(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x + self.by

    ways = {(): Off(3.0), ("a",): Off(4.0), ("b",): Off(2.0), ("a", "b"): Off(1.0)}
    best, mended = nearest(ways, Judge(Off(0.0), [(torch.ones(4, 1),)]))
    assert best == ("a", "b")
    assert [(one.step, one.before, one.after, one.kept) for one in mended] == [
        ("a", 4.0, 1.0, True),
        ("b", 9.0, 1.0, True),
    ]
    del ways["a", "b"]
    best, (one, two) = nearest(ways, Judge(Off(0.0), [(torch.ones(4, 1),)]))
    assert best == ("b",)
    assert (one.harmful, two.harmful) == (True, False)


def test_both_steps_are_kept_where_both_help(network):
    done = halved(network, drawn(8, 2), BOTH)
    one, two = done.mended
    assert one.step == "linear"
    assert two.step == "batch-norm statistics taken anew"
    kept = [mending.after for mending in done.mended if mending.kept]
    assert kept
    assert len(set(kept)) == 1


def test_what_was_held_out_changes_nothing_but_the_choice(network):
    batches = drawn(8, 2)
    again = [*batches[:6], *drawn(2, 9)]
    one, two = (halved(network, seen, BOTH).network for seen in (batches, again))
    for ours, theirs in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [1, 3])
def test_of_too_few_examples_none_is_held_out_and_that_is_said(network, size):
    done = halved(network, drawn(1, 2, size), BOTH)
    assert [(one.step, one.kept) for one in done.mended] == [
        ("linear", True),
        ("batch-norm statistics taken anew", False),
    ]
    assert all("too few examples to hold any out" in str(one) for one in done.mended)
    assert done.notes[-1].startswith("compensation left out: batch-norm statistics taken anew")


def test_example_inputs_are_taken_apart_where_a_fold_has_no_batches(network):
    done = halved(network, None, Compensation("constant"), example=drawn(1, 2)[0][0])
    assert done.mended[0].before is not None


def test_slim_says_what_it_chose(network, caplog):
    caplog.set_level(logging.INFO, "netslim")

    def slim(batches: list[Any]) -> nn.Module:
        half = Budget(cut_macs=0.5)
        example = torch.zeros(1, 2, 5, 5)
        return netslim.slim(
            network, example, budget=half, criterion="l2", batches=batches, compensation=FRESH
        )

    kept = slim(drawn(8, 2))
    assert KEPT in caplog.text
    assert any(note.startswith(KEPT) for note in history(kept).notes)
    caplog.clear()
    slim(other(drawn(8, 2)))
    (left,) = [record for record in caplog.records if LEFT in record.getMessage()]
    assert left.levelno == logging.INFO


@pytest.mark.parametrize("by", ["scores", "greedy"])
def test_a_stage_chooses_in_the_same_way(network, by):
    stage = Prune(
        "prune", by=by, per_group={"0": 4, "3": 4}, scoring=Scoring("l1"), compensation=FRESH
    )
    for make, kept in ((lambda x: x, True), (other, False)):
        batches = [(x, torch.zeros(16)) for (x,) in make(drawn(8, 2))]
        done = carry_out(
            stage, copy.deepcopy(network), drawn(1, 3)[0][0], lambda n, b=batches: b[:n]
        )
        assert [one.kept for one in done.mended] == [kept]
