"""What a recipe may say: typed dataclasses, each option with its meaning, its unit and its default.

A recipe is a YAML file with the fields of `Recipe`; `netslim.training.recipe.reading` reads,
overrides and checks it. The options of a cut are those of `netslim.selection.options`, which says
what each means and may be; in the YAML they stand flat in their stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from netslim._support import brief, checks_calls
from netslim.errors import ArgumentError
from netslim.measure.runtimes import TableBackend
from netslim.methods.quantization import Quantization
from netslim.selection.options import (
    AUTO,
    Budget,
    Checked,
    Compensation,
    Limits,
    Scoring,
    Shortcuts,
    declared,
    option,
)

if TYPE_CHECKING:
    from netslim.data.augment import Augmentation

Options = TypeVar("Options")


def _meaning(text: str, otherwise: str = "") -> dict[str, Any]:
    """What `option` notes of a field, for one that has no default, or makes it anew.

    Args:
        text: what it means.
        otherwise: what stands in for a text that is not given: another key beside it, or `file`.
    """
    return {**option(None, text).metadata, "otherwise": otherwise}


def otherwise(item: Field[Any]) -> str:
    """The key whose text a field takes where none is given, or `file`; nothing of most."""
    found: str = item.metadata.get("otherwise", "")
    return found


_OF_STAGE = _meaning("of the stage; its kind when not given", "kind")


def _flat(kind: type[Any], *, auto: bool = False, **defaults: Any) -> Any:
    """A field whose own options stand in the YAML beside those of the class that has it.

    Where it may be `auto`, each of its options may be, and the field is "auto" where all of them
    are: what is taken then is decided where the network and its data are known.
    """
    known = {"flat": kind, "auto": auto}
    return field(default_factory=lambda: AUTO if auto else kind(**defaults), metadata=known)


def flat(item: Field[Any]) -> type[Any] | None:
    """The options class whose fields stand in a recipe in the place of this field, if it is one."""
    found: type[Any] | None = item.metadata.get("flat")
    return found


def option_types(kind: type[Any]) -> Mapping[str, Any]:
    """Option -> type, as a recipe or a command gives them: in the place of a flat field its own."""
    return _option_types(kind)  # type: ignore[arg-type]  # a class is Hashable


@cache
def _option_types(kind: Any) -> Mapping[str, Any]:
    hints, found = get_type_hints(kind), {}
    for item in fields(kind):
        inner = flat(item)
        if inner is None:
            found[item.name] = hints[item.name]
            continue
        for name in declared(inner):
            hint = get_type_hints(inner)[name]
            if item.metadata["auto"]:
                hint |= Literal["auto"]
            found[name] = hint
    return found


def assembled(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Options of a class from values by name, those of its flat fields put together.

    Raises:
        ArgumentError: what an options class refuses; the text begins with the option's name.
    """
    left = dict(values)
    for item in fields(kind):  # type: ignore[arg-type]
        inner = flat(item)
        if inner is None or item.default_factory is MISSING:
            continue
        default = item.default_factory()
        own = {name: left.pop(name) for name in declared(inner) if name in left}
        said = {
            name: value for name, value in own.items() if not item.metadata["auto"] or value != AUTO
        }
        left[item.name] = default
        if said and default == AUTO:
            left[item.name] = inner(**said)
        elif said:
            left[item.name] = replace(default, **said)
    return kind(**left)


def plain(value: Any) -> Any:
    """Options as they stand in YAML: mappings, lists and leaves."""
    if is_dataclass(value):
        return _plain_options(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _plain_options(options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in fields(options):
        value, inner = getattr(options, item.name), flat(item)
        if inner is None:
            found[item.name] = plain(value)
        elif value == AUTO:
            found |= dict.fromkeys(declared(inner), AUTO)
        else:
            found |= {name: plain(getattr(value, name)) for name in declared(value)}
    return found


@dataclass(frozen=True)
class AugmentOptions:
    """Random crop and mirror of the training images."""

    pad: int = option(4, "pixels of zero padding before cropping back")
    flip: bool = option(True, "mirror half of the images")
    crop: Literal["shift", "random_resized"] = option(
        "shift",
        "shift: pad and crop back; random_resized: cut a part out of the whole "
        "picture and bring it to the size of the images; pictures are decoded in "
        "every epoch then",
    )
    scale: list[float] | None = option(
        None, "least and largest share of the area that is cut out; null: 0.08 and 1"
    )

    def built(self) -> Augmentation:
        """What does it.

        Raises:
            DataError: a value is out of range.
        """
        from netslim.data.augment import Augment, RandomResizedCrop

        if self.crop == "shift":
            return Augment(self.pad, self.flip)
        if self.scale is None:
            return RandomResizedCrop(flip=self.flip)
        return RandomResizedCrop((self.scale[0], self.scale[1]), flip=self.flip)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are served."""

    name: str = field(
        metadata=_meaning(
            "digits, torchvision:CIFAR10, folder:PATH, hf:ID-or-local-folder, wds:PATH"
        )
    )
    root: str | None = option(
        None, "the folder that holds data sets; null: $NETSLIM_DATA, else data"
    )
    batch_size: int = option(128, "images in a training step")
    validation: int | float = option(
        0.1, "share or number of training images set apart; 0 for none"
    )
    subset: int | None = option(None, "train on so many images, drawn by the seed; null takes all")
    augment: AugmentOptions | None = option(
        None, "random crop and mirror of the training images; null leaves them"
    )
    image_size: int | None = option(None, "resize to a square of this many pixels")
    resize_size: int | None = option(
        None, "pixels of the shorter side before that square is cut out"
    )
    channels: Literal["rgb", "grey"] | None = option(None, "null: what the network takes")
    mean: list[float] | None = option(
        None,
        "of each channel, 0..1, to normalise by; null: what the network was trained "
        "with, else that of the training images",
    )
    std: list[float] | None = option(None, "as mean: the standard deviation of each channel")
    unreadable: float = option(
        0.01, "share of the pictures that may be left out, for they cannot be read"
    )
    streaming: bool = option(
        False, "hf: read shard by shard, neither downloaded nor held in memory"
    )
    download: bool = option(False, "let torchvision fetch what is missing")
    workers: int = option(2, "processes that decode, for sets too large for memory")


_TRAINED = ("weights_file", "weights", "pretrained")  # options of a model that was trained before


@dataclass(frozen=True)
class ModelOptions:
    """A network by name; every other key of the section goes to `netslim.models.build`."""

    name: str = field(
        metadata=_meaning(
            "zoo:vgg16, torchvision:resnet18, timm:..., package.module:factory, or a checkpoint"
        )
    )
    kwargs: dict[str, Any] = field(
        default_factory=dict,
        metadata=_meaning("every other key of the section: an option of the network"),
    )

    @property
    def is_file(self) -> bool:
        """Whether it is a checkpoint, which says itself how it is built."""
        return self.name.endswith(".safetensors")

    @property
    def trained(self) -> bool:
        """Whether it brings weights that were learnt before."""
        return self.is_file or any(self.kwargs.get(key) for key in _TRAINED)

    @property
    def weights_file(self) -> str | None:
        """The file with the weights of a network that has a name."""
        found: str | None = self.kwargs.get("weights_file")
        return found

    @property
    def files(self) -> list[str]:
        """The files that it is read from."""
        return [file for file in (self.name if self.is_file else None, self.weights_file) if file]


@dataclass(frozen=True)
class TrainerOptions:
    """Where and how the arithmetic is done."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute")
    precision: Literal["float32", "bf16", "fp16", "auto"] | None = option(
        None,
        "auto: bf16 where the processor computes it; null: so on a GPU, float32 on a "
        "CPU; fp16 is for GPUs that do not compute bf16",
    )
    channels_last: bool | None = option(None, "layout of images and weights; null: so on a GPU")
    graph: bool | Literal["auto"] = option(
        "auto",
        "whole training steps as a CUDA graph; auto: on a GPU; true: on a CPU as one "
        "function, too, to try it out",
    )
    deterministic: bool = option(
        False, "on a GPU the same bits each time, and slower; on a CPU so anyway"
    )
    compile: bool = option(
        False, "training by torch.compile: minutes at first, and faster steps on a GPU"
    )
    threads: int | None = option(None, "CPU threads; null leaves torch's choice")
    limit_batches: int | None = option(
        None, "only so many batches an epoch and split: for a dry run"
    )
    tensorboard: bool = option(True, "also write events for TensorBoard")
    loggers: list[Literal["wandb", "mlflow", "trackio"]] = field(
        default_factory=list,
        metadata=_meaning("further ones that are told of each epoch"),
    )
    devices: int | None = option(
        None, "processes on each machine, one a GPU; null: one, or as many as a launcher started"
    )
    num_nodes: int | None = option(None, "machines; null: one, or as many as a launcher started on")
    strategy: Literal["ddp", "fsdp"] = option(
        "ddp",
        "ddp: each process holds the whole network; fsdp: a part of it, of gradients and of states",
    )
    sync_batchnorm: bool = option(False, "batch norm over the images of all processes")
    timeout: float = option(
        30.0, "minutes that a process waits for another in training; then it hangs"
    )


@dataclass(frozen=True)
class OptimizerOptions:
    """How weights follow their gradients."""

    name: Literal["sgd", "adamw"] = option("sgd", "what follows the gradients")
    lr: float = option(0.1, "learning rate; adamw: of the size 0.001, to be given")
    momentum: float = option(0.9, "adamw: beta1")
    nesterov: bool = option(True, "Nesterov's correction, of sgd")
    weight_decay: float = option(1e-4, "pull of weights to 0")
    norm_decay: float | None = option(
        None, "weight decay of batch-norm scales and shifts; null: as of all weights, 0: none"
    )


@dataclass(frozen=True)
class ScheduleOptions:
    """How the learning rate moves, step by step, from `optimizer.lr`."""

    name: Literal["constant", "multistep", "cosine", "onecycle"] = option(
        "constant", "how the rate moves"
    )
    milestones: list[float] = field(
        default_factory=list,
        metadata=_meaning("multistep: epochs, or shares of all epochs when below 1"),
    )
    factor: float = option(0.1, "multistep: what the rate is multiplied with at each milestone")
    warmup: float = option(
        0.0, "epochs of linear rise from 0 (not onecycle, which rises by itself)"
    )
    rise: float = option(0.3, "onecycle: share of the steps spent rising")
    start: float = option(0.04, "onecycle: the first rate as a share of the highest")


@dataclass(frozen=True)
class SparsityOptions(Checked):
    """How a training stage makes its network sparse: one subclass a method, with its options and
    what it asks for.

    A subclass gives `method` its name, declares the rest by `option`, and is registered by
    `sparsity_method`; what carries it out is registered with
    `netslim.training.loop.adapters.adapter`.

    Attributes:
        method: its name.
        told: the option that a stage's headline tells, or none.
        any_size: whether it goes on when `gradual` makes the network smaller meanwhile.
        any_optimizer: whether it goes with others than sgd.
    """

    method: str = ""
    told: ClassVar[str] = ""
    any_size: ClassVar[bool] = False
    any_optimizer: ClassVar[bool] = True

    def prepares(self, by: str, criterion: str) -> bool:
        """Whether training by it leaves what a prune stage with this `by`, `zeros` or `clusters`,
        looks for.
        """
        return False

    def check(self, later: Sequence[Stage]) -> None:
        """Refuse what does not go with the stages behind the one that trains so.

        Raises:
            ArgumentError: its text begins with the option's name.
        """


METHODS: dict[str, type[SparsityOptions]] = {}
Method = TypeVar("Method", bound=type[SparsityOptions])


def sparsity_method(kind: Method) -> Method:
    """Class decorator: from now on recipes and `--sparsity.method` understand the method."""
    METHODS[kind.method] = kind
    return kind


@sparsity_method
@dataclass(frozen=True)
class SlimmingOptions(SparsityOptions):
    """Network Slimming: a penalty that drives batch-norm scales to zero (Liu et al. 2017)."""

    told: ClassVar[str] = "strength"
    any_size: ClassVar[bool] = True
    method: Literal["network_slimming"] = "network_slimming"
    strength: float | Literal["auto"] = option(
        1e-4, "lambda of the penalty; auto: found from short runs, for `target`", least=0
    )
    target: float | None = option(
        None,
        "auto: share of scales near zero; null takes cut_channels of the next prune stage",
        above=0,
        below=1,
    )
    gamma_init: float | None = option(
        0.5,
        "every scale before the first step; null leaves the network's own, as is the default where "
        "it was trained before",
        above=0,
    )
    penalty: Literal["l1", "smooth_l1", "proximal"] = option(
        "l1", "what is added to the loss, or shrinks the scales"
    )
    delta: float | None = option(
        None, "smooth_l1: below this |gamma| the penalty is a parabola; null takes 0.01", above=0
    )
    pace: float = option(
        1.0, "learning rate of the scales, as a multiple of that of everything else", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.strength != "auto":
            raise ArgumentError(
                "target: no share is aimed at where the strength is given; leave it out, or "
                "give strength auto"
            )

    def prepares(self, by: str, criterion: str) -> bool:
        return by == "zeros" and criterion in ("bn_scale", AUTO) and self.penalty == "proximal"

    def check(self, later: Sequence[Stage]) -> None:
        if self.strength == "auto":
            self.share(later)

    def share(self, later: Sequence[Stage]) -> float:
        """The share of scales (0 to 1) that `strength: auto` is to leave near zero, `later` stages
        being behind it.

        Raises:
            ArgumentError: neither `target` nor the next prune stage says it.
        """
        if self.target is not None:
            return self.target
        cut = next((item.budget.cut_channels for item in later if isinstance(item, Prune)), None)
        if not cut:
            raise ArgumentError(
                "target: strength auto needs the share of scales that is to come near zero, "
                "such as target: 0.7; it is taken from cut_channels of the next prune stage "
                "where there is one"
            )
        return cut


@sparsity_method
@dataclass(frozen=True)
class SoftFilterOptions(SparsityOptions):
    """Soft Filter Pruning: the weakest filters are zeroed after each epoch, and may come back (He
    et al. 2018).
    """

    told: ClassVar[str] = "rate"
    method: Literal["soft_filter"] = "soft_filter"
    rate: float | Mapping[str, float] = option(
        0.3, "share zeroed of each group, or by name pattern", least=0, below=1
    )
    criterion: Literal["l1", "l2", "geometric_median"] = option(
        "l2", "which filters are the weakest"
    )
    shortcuts: Shortcuts = option("avoid", "include: also channels that several layers add up")
    projections: bool = option(True, "false leaves alone what a projection takes part in")
    every: int = option(1, "zero after every so many epochs", least=1)
    at_start: bool = option(
        True, "also before the first step; from scratch, what is zeroed then mostly stays zero"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, rate in _each(self.rate):
            if not 0 <= rate < 1:
                raise ArgumentError(
                    f"rate.{key} must be a share from 0 to below 1, got {brief(rate)}"
                )

    def prepares(self, by: str, criterion: str) -> bool:
        return by == "zeros" and criterion != "bn_scale"


@sparsity_method
@dataclass(frozen=True)
class CentripetalOptions(SparsityOptions):
    """Centripetal SGD: the filters of a cluster are drawn together until they are one (Ding et al.
    2019).
    """

    told: ClassVar[str] = "strength"
    any_optimizer: ClassVar[bool] = False
    method: Literal["centripetal"] = "centripetal"
    target: float | Mapping[str, int | float] = option(
        0.625, "what remains of each group: a share, or by name pattern", above=0
    )
    clusters: Literal["kmeans", "even", "imbalanced"] = option(
        "kmeans", "which filters are drawn together"
    )
    strength: float = option(3e-3, "the centripetal strength, epsilon", above=0)
    vector_strength: float = option(
        0.1, "of biases and batch-norm vectors, times `strength`", least=0
    )
    shortcuts: Shortcuts = option(
        "include", "avoid: leave channels alone that several layers add up"
    )
    protect: list[str] = field(
        default_factory=list,
        metadata=_meaning("name patterns that are left alone"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.target, Mapping) and self.target > 1:
            raise ArgumentError(
                f"target must be a share above 0 and at most 1, got {brief(self.target)}"
            )
        for key, target in _each(self.target):
            if not (target >= 1 if isinstance(target, int) else 0 < target <= 1):
                raise ArgumentError(
                    f"target.{key} must be a share above 0 and at most 1 (0.625), or a number "
                    f"of channels (3), got {brief(target)}"
                )

    def prepares(self, by: str, criterion: str) -> bool:
        return by == "clusters"


def _each(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return []


@dataclass(frozen=True)
class DistillOptions:
    """Learn from the unpruned network beside the labels (Hinton et al. 2015)."""

    teacher: str | None = option(
        None, "a stage, a checkpoint or a model; null: the last training stage before the first cut"
    )
    teacher_weights: str | None = option(
        None, "file with the weights of a teacher that is a model by name"
    )
    teacher_mean: list[float] | None = option(
        None,
        "of each channel, 0..1, that these were trained with; null: that of the student's images",
    )
    teacher_std: list[float] | None = option(None, "as teacher_mean: the standard deviation")
    temperature: float = option(4.0, "what the scores of both are divided by")
    weight: float = option(0.9, "share of the teacher's part in the loss")


@dataclass(frozen=True)
class LatencyOptions:
    """How long layers take at every width, for budgets of latency: a table, or where and how to
    measure one.
    """

    table: str | None = option(
        None,
        "a file that netslim.measure.LatencyTable wrote; null measures here, once for a machine",
    )
    backend: TableBackend = option("eager", "what the network will run with")
    batch: int = option(1, "images in a timed call")
    check: bool = option(
        True,
        "time the cut network beside the whole one, and choose anew until it takes what was asked "
        "for; false goes by the table alone, as cuts in steps do",
    )


# What several kinds of stages say alike. In a class that they have for a base these keys would come
# before all others.
def _batches(what: str = "criteria that need data") -> Any:
    return option(10, f"training batches for {what}")


def _allocation() -> Any:
    return option(AUTO, "how the cut is spread over the groups, see netslim.select")


def _latency() -> Any:
    return field(
        default_factory=LatencyOptions,
        metadata=_meaning("read by budgets of latency alone"),
    )


def _per_group() -> Any:
    return field(
        default_factory=dict,
        metadata=_meaning("counts (3) or shares (0.3) to cut, by group name"),
    )


@dataclass(frozen=True)
class GradualOptions:
    """Cut the network in steps while it trains, each at an epoch's end: as `Prune` does at once."""

    budget: Budget = field(
        default_factory=Budget,
        metadata=_meaning("what goes in the end, of the network that the stage starts from"),
    )
    steps: int = option(5, "how many cuts")
    schedule: Literal["linear", "exponential", "cubic"] = option(
        "cubic", "how much of the budget each takes"
    )
    begin: float = option(
        0.0,
        "share of the stage's epochs that lie before the steps; the first cut ends the first step",
    )
    end: float = option(0.6, "share of the stage's epochs after which the last cut is made")
    scoring: Scoring = _flat(Scoring, criterion=AUTO)
    batches: int = _batches()
    allocation: str = _allocation()
    limits: Limits = _flat(Limits)
    latency: LatencyOptions = _latency()
    per_group: dict[str, int | float] = _per_group()


@dataclass(frozen=True)
class Train:
    """Train the network in hand; with `sparsity`, by the penalty too; with `gradual`, make it
    smaller on the way.
    """

    kind: ClassVar[str] = "train"
    name: str = field(metadata=_OF_STAGE)
    epochs: int = field(metadata=_meaning("passes over the training images"))
    optimizer: OptimizerOptions = field(
        default_factory=OptimizerOptions,
        metadata=_meaning("how weights follow their gradients"),
    )
    schedule: ScheduleOptions = field(
        default_factory=ScheduleOptions,
        metadata=_meaning("how the learning rate moves"),
    )
    sparsity: SparsityOptions | None = option(None, "what makes the network sparse; null: nothing")
    gradual: GradualOptions | None = option(None, "cuts on the way; null: none")
    distill: DistillOptions | None = option(None, "a teacher beside the labels; null: none")
    clip: float | None = option(None, "largest gradient norm")
    keep: Literal["last", "best"] = option(
        "last", "weights of the last epoch, or of the best by validation after all cuts"
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
    name: str = field(metadata=_OF_STAGE)
    like: str | None = option(None, "the stage to imitate; null takes the first `train` stage")


@dataclass(frozen=True)
class Scratch:
    """Train the architecture in hand from fresh weights as another stage does (Liu et al. 2019,
    Scratch-E and -B).
    """

    kind: ClassVar[str] = "scratch"
    renamed: ClassVar[dict[str, str]] = {"budget": "length"}  # since version 0.1
    name: str = field(metadata=_OF_STAGE)
    like: str | None = option(
        None, "the stage to imitate, without its sparsity; null takes the first `train` stage"
    )
    length: Literal["E", "B"] = option(
        "E", "E: as many epochs; B: as many multiply-accumulates, so more epochs"
    )


@dataclass(frozen=True)
class Prune:
    """Trace, score, select, cut, verify."""

    kind: ClassVar[str] = "prune"
    name: str = field(metadata=_OF_STAGE)
    by: Literal["scores", "greedy", "zeros", "clusters"] = option(
        "scores",
        "scores: what `budget` and `per_group` say; greedy: `per_group`, layer after "
        "layer, what was cut before left out of the scores; zeros: channels whose "
        "filters or scales are exactly zero; clusters: merge those of the C-SGD stage",
    )
    budget: Budget = field(
        default_factory=Budget,
        metadata=_meaning("how much goes"),
    )
    scoring: Scoring = _flat(Scoring, criterion=AUTO)
    batches: int = _batches()
    allocation: str = _allocation()
    limits: Limits = _flat(Limits)
    latency: LatencyOptions = _latency()
    per_group: dict[str, int | float] = _per_group()
    free_outputs: tuple[str, ...] = option(
        (), "outputs that may lose channels, by position or name, such as 1 or state.h"
    )
    mode: Literal["cut", "mask"] = option(
        "cut", "mask: silence the channels and hold them at zero; a `convert` stage cuts them"
    )
    compensation: Compensation | Literal["auto"] = _flat(Compensation, auto=True)


@dataclass(frozen=True)
class Convert:
    """Cut out what a `prune` stage with `mode: mask` has silenced."""

    kind: ClassVar[str] = "convert"
    name: str = field(metadata=_OF_STAGE)


@dataclass(frozen=True)
class Quantize:
    """Write the network in hand as ONNX files in float and in int8; stages behind it go on from the
    network as it was.
    """

    kind: ClassVar[str] = "quantize"
    name: str = field(metadata=_OF_STAGE)
    quantization: Quantization = _flat(Quantization)
    batches: int = _batches("the ranges of int8")


@dataclass(frozen=True)
class Measure:
    """Look at the test set, once, for every network of the run; count and time them."""

    kind: ClassVar[str] = "measure"
    name: str = field(metadata=_OF_STAGE)
    latency: bool = option(True, "time the networks, too")
    latency_batch: int = option(1, "images in a timed call")


Stage = Train | Finetune | Baseline | Scratch | Prune | Convert | Quantize | Measure
KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in get_args(Stage)}
# Whose networks later stages do not start from.
SIDE_BRANCHES = (Baseline, Scratch, Quantize)


# ---------------------------------------------------------------- beside recipes


@dataclass(frozen=True)
class SearchOptions(Checked):
    """What `netslim search` looks for."""

    resource: Literal["macs", "params", "channels", "activations", "latency"] = option(
        "macs", "what is cut, a share of it"
    )
    max_drop: float = option(
        0.5,
        "percentage points of validation accuracy that may be lost",
        metavar="POINTS",
        least=0,
        below=100,
    )
    tolerance: float = option(
        0.02, "the share is found to so much", metavar="SHARE", above=0, below=1
    )
    tries: int = option(8, "most candidates that are made", metavar="N", least=1)
    reference: Literal["given", "trained"] = option(
        "given", "count the drop from MODEL as it is, or trained as the candidates are"
    )


@dataclass(frozen=True)
class Exploration(Checked):
    """How `netslim sensitivity` measures; see the function of this name."""

    ratios: tuple[float, ...] = option(
        (0.25, 0.5, 0.75), "shares of a group that go", metavar="SHARE"
    )
    layers: tuple[str, ...] = option((), "only these, by name or pattern", metavar="NAME")
    scoring: Scoring = _flat(Scoring, criterion="l2")
    limits: Limits = _flat(Limits)
    batches: int = option(10, "of --data, for criteria that look", metavar="N", least=1)
    recalibrate: int = option(
        0, "take batch-norm statistics anew from N batches before each look", metavar="N", least=0
    )
    split: Literal["validation", "train"] = option("validation", "which images")
    limit_images: int | None = option(
        None, "look at N of them only, drawn by --seed", metavar="N", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = next((ratio for ratio in self.ratios if not 0 < ratio < 1), None)
        if wrong is not None:
            raise ArgumentError(f"ratios must be shares above 0 and below 1, got {wrong:g}")
        object.__setattr__(self, "ratios", tuple(sorted(set(self.ratios))))
        object.__setattr__(self, "layers", tuple(self.layers))


@checks_calls
@dataclass(frozen=True)
class Recipe:
    """A run from data to measured networks.

    Example:
        >>> recipe: netslim.training.Recipe = netslim.training.load_recipe("digits")
        >>> recipe.name, recipe.data.name, recipe.seed
        ('digits', 'digits', 0)
    """

    name: str = field(
        metadata=_meaning(
            "what the recipe and its folder are called; as its file when not given", "file"
        )
    )
    title: str = field(metadata=_meaning("a line about it; its name when not given", "name"))
    data: DataOptions = field(metadata=_meaning("which images"))
    model: ModelOptions = field(metadata=_meaning("which network"))
    stages: tuple[Stage, ...] = field(metadata=_meaning("what is done, in this order"))
    published: list[dict[str, str | int | float]] = field(
        default_factory=list,
        metadata=_meaning("rows of the paper: label, error in percent, ..."),
    )
    notes: list[str] = field(
        default_factory=list,
        metadata=_meaning("sentences for the report"),
    )
    seed: int = option(0, "of weights, order and augmentation")
    trainer: TrainerOptions = field(
        default_factory=TrainerOptions,
        metadata=_meaning("where and how the arithmetic is done"),
    )
    trust: bool = option(False, "call whatever constructor a checkpoint names; see SECURITY.md")

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe as plain data, in the form of the YAML file, with nothing left to
        defaults.
        """
        found = {item.name: plain(getattr(self, item.name)) for item in fields(self)}
        found["model"] = {"name": self.model.name, **self.model.kwargs}
        found["stages"] = [{"kind": stage.kind, **plain(stage)} for stage in self.stages]
        del found["trust"]  # it is said anew in each call, and changes no result
        return found
