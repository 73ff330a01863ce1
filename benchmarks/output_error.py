"""More ways that were tried to lose less of a network that is cut to half and to a quarter of its
MACs: scores that know how the outputs of the network depend on each layer, and further fits of the
weights before and after fine-tuning. What each brought is in docs/budgets.md, beside the fold
`linear`, the default when this study was made; of all of this the fold `sequential` alone is part
of netslim, and the default since.

Scores. The criterion `obs` takes each layer's error as a share of what the layer computes. To first
order, an error d of a layer's outputs changes those of the network by J d, J the Jacobian, and of
that error the square is d^T G d, G the mean of J^T J over images, added up over the places of a map
(random sums of the outputs give it without labels).

- jacobian: the error is d^T G d, within layers and between them; least squares makes up for what
  goes as ever, for its fit does not depend on G
- jacobian, between layers: |d|^2 times the mean diagonal of G, so that layers are weighed against
  each other by it, channels of a layer as before
- jacobian, of labels: J is that of the log-likelihood of a label that the network itself draws
  (Fisher's information)
- gates: no least squares; the square of J times what a channel gives beside its mean, summed over
  the layers that read it; channels of a group go one by one, with the products between those gone

Fits. Right after the cut least squares makes up for what went (the fold `linear`, or `sequential`,
or none); then two epochs of fine-tuning, alike for all. A second fit takes the layers in order: the
weights of a whole kernel, not tap by tap, such that what the batch normalisation behind it gives is
nearest to that of the network before the cut, held by a ridge to the weights that were there. It
follows at once (two fits before), after fine-tuning, or between its two epochs.

Networks and fine-tuning are those of `without_data.py`. All figures are of the validation split;
the test set is not looked at.

    python benchmarks/output_error.py                            # all, three seeds
    python benchmarks/output_error.py --data digits --seeds 0
    python benchmarks/output_error.py --table                    # of the rows that are there

A run that was stopped goes on row by row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from _common import record, show
from compensation import BATCHES, accuracy
from torch import Tensor, nn
from without_data import EPOCHS, add_options, all_rows, cell, tuned

import netslim
from netslim.graph.modules.batches import held_out, inputs_of
from netslim.selection import Compensation
from netslim.selection.criteria.surgeon import WHOLE, obs, second_moments
from netslim.surgery.history import history
from netslim.training.stages.runner import Runner

LINEAR = "a linear fit"
BEFORE, NO_FIT, AFTER, BETWEEN = "before", "none", "before and after", "before and between"
TWICE, SEQUENTIAL = "twice before", "sequential"
WAYS = {  # score, fits
    LINEAR: ("obs", BEFORE),
    "jacobian": ("jacobian", BEFORE),
    "jacobian, between layers": ("jacobian_between", BEFORE),
    "jacobian, of labels": ("jacobian_of_labels", BEFORE),
    "gates": ("gates", BEFORE),
    "no fit": ("obs", NO_FIT),
    "jacobian, between layers, no fit": ("jacobian_between", NO_FIT),
    "a sequential fit": ("obs", SEQUENTIAL),
    "two fits before": ("obs", TWICE),
    "a fit before and after": ("obs", AFTER),
    "a fit before and between": ("obs", BETWEEN),
}
FOLDS = {NO_FIT: None, SEQUENTIAL: SEQUENTIAL}  # before anything else is done; else linear
TUNED = [way for way in WAYS if "fit" in way or "between" in way or way == LINEAR]
DRAWS = 2  # random sums of the outputs of each example
PULL = 0.1  # ridge of the second fit to trained weights, of the mean variance of what a layer reads
LIGHT = 0.01  # of the one to weights that were not trained
PLACES = 8192  # that the second fit looks at, of each batch
Draw = Callable[[Tensor, torch.Generator], Tensor]
Layers = dict[str, nn.Module]


# ---------------------------------------------------------------- scores


def layers_of(model: nn.Module) -> Layers:
    """Name of its weight -> layer."""
    kinds = (nn.Conv2d, nn.Linear)
    return {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, kinds)}


def of_outputs(output: Tensor, chance: torch.Generator) -> Tensor:
    """A random sum of the outputs of each example; squares of its slopes are those of J^T J."""
    return (output * torch.randn(output.shape, generator=chance)).sum()


def of_labels(output: Tensor, chance: torch.Generator) -> Tensor:
    """The likelihood of labels that the network draws itself."""
    labels = torch.multinomial(output.detach().softmax(1), 1, generator=chance)[:, 0]
    return nn.functional.cross_entropy(output, labels, reduction="sum")


def slopes(
    model: nn.Module, batches: Iterable[Any], draw: Draw, seen: dict[str, Tensor]
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """(value, gradient) of the tensors that hooks put into ``seen``, draw by draw."""
    chance = torch.Generator().manual_seed(0)
    model.eval().requires_grad_(True)
    for batch in batches:
        (images,), _ = inputs_of(batch)
        with torch.enable_grad():
            output = model(images)
            drawn = [draw(output, chance) for _ in range(DRAWS)]
        for one in drawn:
            found = torch.autograd.grad(one, list(seen.values()), retain_graph=one is not drawn[-1])
            yield {
                name: (value.detach(), slope)
                for (name, value), slope in zip(seen.items(), found, strict=True)
            }
        seen.clear()


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_layers(model: nn.Module, batches: Iterable[Any], draw: Draw) -> dict[str, Tensor]:
    """Weight -> G of its layer's outputs: (parts of a grouped convolution, outputs, outputs)."""
    seen: dict[str, Tensor] = {}
    layers, sums, count = layers_of(model), dict[str, Tensor](), 0

    def keep(name: str) -> Any:
        return lambda layer, args, output: seen.__setitem__(name, output)

    with hooked([m.register_forward_hook(keep(name)) for name, m in layers.items()]):
        for drawn in slopes(model, batches, draw, seen):
            for name, (_, slope) in drawn.items():
                rows = slope.movedim(1, -1).flatten(0, -2).double()
                rows = torch.unflatten(rows, 1, (getattr(layers[name], "groups", 1), -1))
                rows = rows.movedim(1, 0)
                sums[name] = sums.get(name, torch.zeros(())) + rows.mT @ rows
            count += len(slope)
    return {name: total / count for name, total in sums.items()}


def weighed(draw: Draw, between: bool = False) -> Callable[..., dict[Any, Tensor]]:
    """A measure for `obs`: the inner products are W^T G W, and their sum is no share of a layer's.

    They are those of the weights G^1/2 W, so a copy of the network gets these.
    """

    def measure(graph: Any, model: Any, batches: Any, loss: Any) -> dict[Any, Tensor]:
        batches = list(batches)
        own = second_moments(graph, model, batches, loss)
        copy = deepcopy(model)
        metric = by_layers(copy, batches, draw)
        for name, layer in layers_of(copy).items():
            weight = layer.weight.detach()
            rows = torch.unflatten(weight.double(), 0, (len(metric[name]), -1))
            root = _root(metric[name], between)
            weight.copy_(torch.einsum("pij,pj...->pi...", root, rows).flatten(0, 1))
        other = second_moments(graph, copy, batches[:1], loss)
        found = {key: torch.stack([own[key][:, 0], other[key][:, 1]], 1) for key in own}
        ones = torch.ones(1, 2, 1, 1, dtype=torch.float64)
        return found | {(WHOLE, tensor): ones for _, tensor in own}

    return measure


def _root(metric: Tensor, between: bool) -> Tensor:
    if between:
        level = metric.diagonal(dim1=1, dim2=2).mean().sqrt()
        return level * torch.eye(metric.shape[1], dtype=metric.dtype).expand_as(metric)
    values, vectors = torch.linalg.eigh(metric)
    return (vectors * values.clamp(min=0).sqrt()[:, None, :]) @ vectors.mT


def shut(graph: Any, model: Any, batches: Any, loss: Any) -> dict[str, Tensor]:
    """Group -> mean products of the first-order changes of the outputs without each channel."""
    copy = deepcopy(model)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, args: Any) -> Any:
            read = args[0]
            # A view of its own for each layer: the slope is by what this one reads alone.
            own = read.view_as(read) if read.requires_grad else read.clone().requires_grad_(True)
            seen[name] = own
            return (own, *args[1:])

        return hook

    sums: dict[str, Tensor] = {}
    count = 0
    layers = layers_of(copy)
    with hooked([m.register_forward_pre_hook(keep(name)) for name, m in layers.items()]):
        for drawn in slopes(copy, batches, of_outputs, seen):
            terms = {name: _changes(*pair) for name, pair in drawn.items()}
            for group in graph.prunable:
                parts = [s for s in group.tensors("consumer") if s.tensor in terms and not s.mixed]
                change = torch.zeros(len(next(iter(terms.values()))), group.size).double()
                for s in parts:
                    if getattr(layers[s.tensor], "groups", 1) == 1:
                        units = torch.from_numpy(s.units)
                        change.index_add_(
                            1, units, terms[s.tensor][:, torch.from_numpy(s.positions)]
                        )
                sums[group.name] = sums.get(group.name, torch.zeros(())) + change.T @ change
            count += len(change)
    return {name: total / count for name, total in sums.items()}


def _changes(read: Tensor, slope: Tensor) -> Tensor:
    """(examples, channels): slope times value beside its mean, summed over places."""
    about = read - read.mean([d for d in range(read.dim()) if d != 1], keepdim=True)
    return (
        (slope * about).flatten(2).sum(2).double() if read.dim() > 2 else (slope * about).double()
    )


@netslim.criterion(measure=weighed(of_outputs))
def jacobian(group: Any, measured: Any) -> Any:
    return obs(group, measured)


@netslim.criterion(measure=weighed(of_outputs, between=True))
def jacobian_between(group: Any, measured: Any) -> Any:
    return obs(group, measured)


@netslim.criterion(measure=weighed(of_labels))
def jacobian_of_labels(group: Any, measured: Any) -> Any:
    return obs(group, measured)


@netslim.criterion(measure=shut)
def gates(group: Any, measured: Any) -> Tensor:
    """The square of the change without a channel and those that went before, as it grows."""
    products = measured[group.name]
    gone, scores = torch.zeros(len(products)).double(), torch.zeros(len(products)).double()
    waiting, least = torch.ones(len(products), dtype=torch.bool), 0.0
    for _ in range(len(products)):
        growth = (products.diagonal() + 2 * gone).masked_fill(~waiting, torch.inf)
        place = int(growth.argmin())
        least = max(least, float(growth[place]))
        scores[place], waiting[place] = least, False
        gone = gone + products[place]
    return scores


# ---------------------------------------------------------------- the second fit


@torch.no_grad()
def fitted_again(
    small: nn.Module, whole: nn.Module, batches: list[Any], pull: float = PULL
) -> nn.Module:
    """``small``, its layers fitted in place to what ``whole`` computes, one after the other."""
    past = history(small)
    assert past is not None
    kept = {row.tensor: list(row.kept) for row in past.tensors if row.axis == 0}
    whole.eval()
    small.eval()
    for name, norm in _in_order(small, batches[0]):
        _fit(small, whole, name, norm, kept.get(name), batches, pull)
    return small


def _in_order(model: nn.Module, batch: Any) -> list[tuple[str, str | None]]:
    """The layers as they run, with the batch normalisation that reads each."""
    made: dict[int, str] = {}
    order: dict[str, str | None] = {}
    outputs = []  # kept, so that no two of them are at one place of the memory

    def ran(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            outputs.append(output)
            made[id(output)], order[name] = name, None

        return hook

    def read(path: str) -> Any:
        def hook(layer: nn.Module, args: Any) -> None:
            if id(args[0]) in made:
                order[made[id(args[0])]] = path

        return hook

    handles = [m.register_forward_hook(ran(name)) for name, m in layers_of(model).items()]
    handles += [
        m.register_forward_pre_hook(read(path))
        for path, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    with hooked(handles):
        model(inputs_of(batch)[0][0])
    return list(order.items())


def _fit(
    small: nn.Module, whole: nn.Module, name: str, norm: str | None, kept: list[int] | None,
    batches: list[Any], pull: float,
) -> None:  # fmt: skip
    path = name.removesuffix(".weight")
    layer, after = small.get_submodule(path), small.get_submodule(norm) if norm else None
    reads, wants = [], []
    for batch in batches:
        images = inputs_of(batch)[0][0]
        wanted = _given(whole, norm or path, images)[1]
        wanted = wanted if kept is None else wanted[:, kept]
        read, _ = _given(small, path, images)
        if wanted.dim() > 2:
            read = nn.functional.unfold(
                read, layer.kernel_size, layer.dilation, layer.padding, layer.stride
            ).movedim(1, 2)
            wanted = wanted.flatten(2).movedim(1, 2)
        read, wanted = read.reshape(-1, read.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
        step = -(-len(read) // PLACES)
        reads.append(read[::step].double())
        wants.append(wanted[::step].double())
    read, wanted = torch.cat(reads), torch.cat(wants)
    weight = layer.weight.detach().double().flatten(1)
    steep = torch.ones(len(weight), dtype=torch.bool)
    if after is not None:  # what it must be given to give what is wanted
        steep = after.weight.abs() > 1e-2
        scale = (after.running_var + after.eps).sqrt() / after.weight
        wanted = (wanted - after.bias) * scale + after.running_mean
    missing = wanted - read @ weight.T
    if after is None and layer.bias is not None:
        missing = missing - layer.bias
    about, level = read - read.mean(0), missing.mean(0)
    square = about.T @ about / len(about)
    ridge = pull * square.diagonal().mean() * torch.eye(len(square)).double()
    step_ = torch.linalg.solve(square + ridge, about.T @ (missing - level) / len(about)).T
    step_[~steep] = 0
    layer.weight.add_(step_.view_as(layer.weight))
    shift = level - step_ @ read.mean(0)
    if after is not None:
        after.running_mean.sub_(torch.where(steep, shift, 0))
    elif layer.bias is not None:
        layer.bias.add_(shift)


def _given(model: nn.Module, path: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a module reads and gives."""
    found: list[tuple[Tensor, Tensor]] = []
    module = model.get_submodule(path)
    with hooked([module.register_forward_hook(lambda m, args, out: found.append((args[0], out)))]):
        model(images)
    return found[0]


# ---------------------------------------------------------------- rows and table


def row(network: nn.Module, runner: Runner, way: str, cut: float) -> dict[str, Any]:
    """Cut, fit, fine-tune where that is asked for, measure."""
    score, fit = WAYS[way]
    batches = list(runner.bench.batches(BATCHES))
    small = netslim.slim(
        network, torch.zeros_like(runner.example()[:1]), budget=netslim.Budget(cut_macs=cut),
        batches=batches, criterion=score, allocation="cost",
        compensation=Compensation(FOLDS.get(fit, "linear"), recalibrate=True),
    )  # fmt: skip
    if fit == TWICE:  # without what the first one held out
        fitted_again(small, network, held_out(batches)[0], LIGHT)
    found = {"way": way, "cut_macs": cut, "after_cut": accuracy(small, runner)}
    if way not in TUNED:
        return found
    if fit == BETWEEN:
        tuned(small, runner, range(1))
        fitted_again(small, network, batches)
        tuned(small, runner, range(1, EPOCHS))
    else:
        tuned(small, runner)
    if fit == AFTER:
        fitted_again(small, network, batches)
    return {**found, "tuned": accuracy(small, runner)}


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Mean and standard deviation over seeds, and of the difference to the linear fit."""
    keys = ("data", "network", "cut_macs", "way")
    by_place = {(*(r[k] for k in keys), r["seed"]): r for r in rows}
    table = []
    for key in dict.fromkeys(tuple(r[k] for k in keys) for r in rows):
        mine = {place[-1]: r for place, r in by_place.items() if place[:-1] == key}
        cells = []
        for name in ("after_cut", "tuned"):
            pairs = [
                (r[name], r[name] - by_place[(*key[:3], LINEAR, seed)][name])
                for seed, r in mine.items()
                if name in r
            ]
            cells += [cell([figure for figure, _ in pairs]), cell([gain for _, gain in pairs])]
        data, network, cut, way = key
        table.append([f"{data} {network}", f"{1 - cut:.0%}", way, *cells, str(len(mine))])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    rows = all_rows(options, "errors", WAYS, options.only, row)
    table = summary(rows)
    columns = ["network", "MACs left", "way", "after the cut", "than the linear fit"]
    columns += ["fine-tuned", "than the linear fit", "seeds"]
    show("Validation accuracy, percent", columns, table)
    record("output_error", {"rows": rows, "table": table})


if __name__ == "__main__":
    main()
