"""What a recipe may say: typed dataclasses, each option with its meaning, its unit and its default.

A recipe is a YAML file with the fields of `Recipe`; `netslim.training.recipe.reading` reads,
overrides and checks it. The options of a cut are those of `netslim.selection.options`, which says
what each means and may be; in the YAML they stand flat in their stage.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

from netslim.selection.options import Budget, Compensation, Limits, Scoring, declared


def _flat(kind: type[Any], **defaults: Any) -> Any:
    """A field whose own options stand in the YAML beside those of the class that has it."""
    return field(default_factory=lambda: kind(**defaults), metadata={"flat": kind})


def flat(item: Field[Any]) -> type[Any] | None:
    """The options class whose fields stand in a recipe in the place of this field, if it is one."""
    found: type[Any] | None = item.metadata.get("flat")
    return found


def plain(value: Any) -> Any:
    """Options as they stand in YAML: mappings, lists and leaves."""
    if is_dataclass(value):
        return _plain_options(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _plain_options(options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in fields(options):
        value = getattr(options, item.name)
        if flat(item) is not None:
            found |= {name: plain(getattr(value, name)) for name in declared(value)}
        else:
            found[item.name] = plain(value)
    return found


@dataclass(frozen=True)
class AugmentOptions:
    """Random crop and mirror of the training images."""

    pad: int = 4  # pixels of zero padding before cropping back
    flip: bool = True  # mirror half of the images


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are served."""

    name: str  # digits, torchvision:CIFAR10, folder:PATH, hf:ID-or-local-folder
    root: str | None = None  # the folder that holds data sets
    batch_size: int = 128
    validation: int | float = 0.1  # share or number of training images set apart; 0 for none
    subset: int | None = None  # train on so many images, drawn by the seed; null takes all
    augment: AugmentOptions | None = None
    image_size: int | None = None  # resize to a square of this many pixels
    download: bool = False
    workers: int = 2  # processes that decode, for sets too large for memory


@dataclass(frozen=True)
class ModelOptions:
    """A network by name; every other key of the section goes to its constructor."""

    name: str  # zoo:vgg16, torchvision:resnet18, timm:..., package.module:factory
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainerOptions:
    """Where and how the arithmetic is done."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16", "auto"] = (
        "float32"  # auto: bf16 where the processor computes it
    )
    channels_last: bool = False
    threads: int | None = None  # CPU threads; null leaves torch's choice
    limit_batches: int | None = None  # only so many batches an epoch and split: for a dry run
    tensorboard: bool = True  # also write events for TensorBoard


@dataclass(frozen=True)
class OptimizerOptions:
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    norm_decay: float | None = (
        None  # weight decay of batch-norm scales and shifts; null: as of all weights, 0: none
    )


@dataclass(frozen=True)
class ScheduleOptions:
    """How the learning rate moves, step by step, from `optimizer.lr`."""

    name: Literal["constant", "multistep", "cosine", "onecycle"] = "constant"
    milestones: list[float] = field(
        default_factory=list
    )  # multistep: epochs, or shares of all epochs when below 1
    factor: float = 0.1  # multistep: what the rate is multiplied with at each milestone
    warmup: float = 0.0  # epochs of linear rise from 0 (not onecycle, which rises by itself)
    rise: float = 0.3  # onecycle: share of the steps spent rising
    start: float = 0.04  # onecycle: the first rate as a share of the highest


@dataclass(frozen=True)
class SlimmingOptions:
    """Network Slimming: a penalty that drives batch-norm scales to zero."""

    method: Literal["network_slimming"] = "network_slimming"
    strength: float | Literal["auto"] = (
        1e-4  # lambda of the penalty; auto: found from short runs, for `target`
    )
    target: float | None = (
        None  # auto: share of scales near zero; null takes cut_channels of the next prune stage
    )
    gamma_init: float | None = (
        0.5  # every scale before the first step; null leaves the network's own
    )
    penalty: Literal["l1", "smooth_l1", "proximal"] = "l1"
    delta: float | None = (
        None  # smooth_l1: below this |gamma| the penalty is a parabola; null takes 0.01
    )
    pace: float = 1.0  # learning rate of the scales, as a multiple of that of everything else


@dataclass(frozen=True)
class SoftFilterOptions:
    """Soft Filter Pruning: the weakest filters are zeroed after each epoch, and may come back."""

    method: Literal["soft_filter"] = "soft_filter"
    rate: float | dict[str, float] = 0.3  # share zeroed of each group, or by name pattern
    criterion: Literal["l1", "l2", "geometric_median"] = "l2"
    shortcuts: Literal["avoid", "include"] = (
        "avoid"  # include: also channels that several layers add up
    )
    projections: bool = True  # false leaves alone what a projection takes part in
    every: int = 1  # zero after every so many epochs
    at_start: bool = (
        True  # also before the first step; from scratch, what is zeroed then mostly stays zero
    )


@dataclass(frozen=True)
class CentripetalOptions:
    """Centripetal SGD: the filters of a cluster are drawn together until they are one."""

    method: Literal["centripetal"] = "centripetal"
    target: float | dict[str, int | float] = (
        0.625  # what remains of each group: a share, or by name pattern
    )
    clusters: Literal["kmeans", "even", "imbalanced"] = "kmeans"
    strength: float = 3e-3  # the centripetal strength, epsilon
    vector_strength: float = 0.1  # of biases and batch-norm vectors, times `strength`
    shortcuts: Literal["avoid", "include"] = "include"
    protect: list[str] = field(default_factory=list)  # name patterns that are left alone


SparsityOptions = SlimmingOptions | SoftFilterOptions | CentripetalOptions


@dataclass(frozen=True)
class DistillOptions:
    """Learn from the unpruned network beside the labels (Hinton et al. 2015)."""

    teacher: str | None = (
        None  # a stage, a checkpoint or a model; null: the last training stage before the first cut
    )
    temperature: float = 4.0
    weight: float = 0.9  # share of the teacher's part in the loss


@dataclass(frozen=True)
class LatencyOptions:
    """How long layers take at every width, for budgets of latency: a table, or where and how to
    measure one.
    """

    table: str | None = (
        None  # a file that netslim.LatencyTable wrote; null measures here, once for a machine
    )
    backend: Literal["eager", "compile", "onnxruntime"] = "eager"
    batch: int = 1  # images in a timed call


@dataclass(frozen=True)
class GradualOptions:
    """Cut the network in steps while it trains, each at an epoch's end; what `Prune` does at once."""

    budget: Budget = field(
        default_factory=Budget
    )  # in the end, of the network the stage starts from
    steps: int = 5  # how many cuts
    schedule: Literal["linear", "exponential", "cubic"] = (
        "cubic"  # how much of the budget each takes
    )
    begin: float = 0.0  # share of the stage's epochs that lie before the steps; the first cut ends the first step
    end: float = 0.6  # share of the stage's epochs after which the last cut is made
    scoring: Scoring = _flat(Scoring, criterion="l2")
    batches: int = 10  # this and all below: as in a prune stage
    allocation: str = "global"
    limits: Limits = _flat(Limits)
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    per_group: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Train:
    """Train the network in hand; with `sparsity`, by the penalty too; with `gradual`, make it
    smaller on the way.
    """

    kind: ClassVar[str] = "train"
    name: str
    epochs: int
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    sparsity: SparsityOptions | None = None
    gradual: GradualOptions | None = None
    distill: DistillOptions | None = None
    clip: float | None = None  # largest gradient norm
    keep: Literal["last", "best"] = (
        "last"  # weights of the last epoch, or of the best by validation after all cuts
    )


@dataclass(frozen=True)
class Finetune(Train):
    """Train the network in hand after a cut, without a penalty unless one is asked for."""

    kind: ClassVar[str] = "finetune"


@dataclass(frozen=True)
class Baseline:
    """Train a fresh copy of the recipe's network as another stage does, without the penalty, for
    comparison.
    """

    kind: ClassVar[str] = "baseline"
    name: str
    like: str | None = None  # the stage to imitate; null takes the first `train` stage


@dataclass(frozen=True)
class Scratch:
    """Train the architecture in hand from fresh weights as another stage does (Liu et al. 2019,
    Scratch-E and -B).
    """

    kind: ClassVar[str] = "scratch"
    name: str
    like: str | None = (
        None  # the stage to imitate, without its sparsity; null takes the first `train` stage
    )
    budget: Literal["E", "B"] = (
        "E"  # E: as many epochs; B: as many multiply-accumulates, so more epochs
    )


@dataclass(frozen=True)
class Prune:
    """Trace, score, select, cut, verify."""

    kind: ClassVar[str] = "prune"
    name: str
    by: Literal["scores", "greedy", "zeros", "clusters"] = "scores"
    # scores: what `budget` and `per_group` say; greedy: `per_group`, layer after layer, what was
    # cut before left out of the scores; zeros: channels whose filters or scales are exactly zero;
    # clusters: merge those of the C-SGD stage
    budget: Budget = field(default_factory=Budget)
    scoring: Scoring = _flat(Scoring)
    batches: int = 10  # training batches for criteria that need data
    allocation: str = "global"  # how the cut is spread over the groups, see netslim.select
    limits: Limits = _flat(Limits)
    latency: LatencyOptions = field(
        default_factory=LatencyOptions
    )  # read by budgets of latency alone
    per_group: dict[str, int | float] = field(
        default_factory=dict
    )  # counts (3) or shares (0.3) to cut, by group name
    mode: Literal["cut", "mask"] = (
        "cut"  # mask: silence the channels and hold them at zero; a `convert` stage cuts them
    )
    compensation: Compensation = _flat(Compensation)  # from training batches


@dataclass(frozen=True)
class Convert:
    """Cut out what a `prune` stage with `mode: mask` has silenced."""

    kind: ClassVar[str] = "convert"
    name: str


@dataclass(frozen=True)
class Measure:
    """Look at the test set, once, for every network of the run; count and time them."""

    kind: ClassVar[str] = "measure"
    name: str
    latency: bool = True
    latency_batch: int = 1  # images in a timed call


Stage = Train | Finetune | Baseline | Scratch | Prune | Convert | Measure
KINDS: dict[str, type[Any]] = {
    kind.kind: kind for kind in (Train, Finetune, Baseline, Scratch, Prune, Convert, Measure)
}


@dataclass(frozen=True)
class Recipe:
    """A run from data to measured networks."""

    name: str
    title: str
    data: DataOptions
    model: ModelOptions
    stages: tuple[Stage, ...]
    published: list[dict[str, str | int | float]] = field(
        default_factory=list
    )  # rows of the paper: label, error in percent, ...
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe as plain data, in the form of the YAML file, with nothing left to
        defaults.
        """
        found = {item.name: plain(getattr(self, item.name)) for item in fields(self)}
        found["model"] = {"name": self.model.name, **self.model.kwargs}
        found["stages"] = [{"kind": stage.kind, **plain(stage)} for stage in self.stages]
        return found
