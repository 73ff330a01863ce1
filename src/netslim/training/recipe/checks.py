"""What types alone cannot refuse in a recipe, refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from netslim._support import many, nearest
from netslim.data.preprocessing import check_normalisation
from netslim.errors import ArgumentError, DataError, RecipeError
from netslim.models.other_files import WEIGHTS, no_checkpoint
from netslim.selection.budget.allocation import ALLOCATIONS, allocation_of
from netslim.selection.criteria.registry import CRITERIA, reads_data
from netslim.selection.criteria.scoring import UNLED, check_options
from netslim.selection.defaults import AUTO, PLAIN
from netslim.selection.options import Compensation, Scoring
from netslim.training.recipe.schedule import cut_epochs
from netslim.training.recipe.schema import (
    METHODS,
    Baseline,
    Convert,
    DataOptions,
    DistillOptions,
    GradualOptions,
    OptimizerOptions,
    Prune,
    Quantize,
    Recipe,
    Scratch,
    SlimmingOptions,
    Stage,
    Train,
    TrainerOptions,
)

Result = TypeVar("Result")

_MOST_STEPS = 10_000  # of a gradual cut
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check(recipe: Recipe, *, whole: bool = True) -> None:
    """Refuse, before anything runs, what types alone cannot; `whole` as for `parse_recipe`.

    Raises:
        RecipeError: naming the first option that is out of range.
    """
    _need(_NAME.fullmatch(recipe.name), "name", recipe.name, "letters, digits, '.', '_' and '-'")
    data = recipe.data
    _need(data.batch_size >= 1, "data.batch_size", data.batch_size, "1 or more")
    _check_augmentation(data)
    _need(
        data.validation >= 0,
        "data.validation",
        data.validation,
        "a share below 1, a number of images, or 0",
    )
    _need(
        data.subset is None or data.subset >= 2,
        "data.subset",
        data.subset,
        "2 or more images, or null",
    )
    if "trust" in recipe.model.kwargs:
        raise RecipeError("model.trust: it is said of all: trust: true beside model, or --trust")
    if data.augment is not None:
        scale = data.augment.scale
        _need(
            scale is None or (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1),
            "data.augment.scale",
            scale,
            "two shares of the area in rising order, above 0 and up to 1, or null",
        )
    share = data.unreadable
    _need(0 <= share < 1, "data.unreadable", share, "a share from 0 up to, not including, 1")
    _need(recipe.seed >= 0, "seed", recipe.seed, "0 or more")
    limit, threads = recipe.trainer.limit_batches, recipe.trainer.threads
    _need(limit is None or limit >= 1, "trainer.limit_batches", limit, "1 or more, or null")
    _need(threads is None or threads >= 1, "trainer.threads", threads, "1 or more, or null")
    for key in ("devices", "num_nodes"):
        number = getattr(recipe.trainer, key)
        _need(number is None or number >= 1, f"trainer.{key}", number, "1 or more, or null")
    _need(
        not (recipe.trainer.compile and recipe.trainer.sync_batchnorm),
        "trainer.compile",
        True,
        "false with sync_batchnorm, which looks into every call of batch norm",
    )
    _check_sharded(recipe.trainer)
    most, patience = 1e6, recipe.trainer.timeout
    _need(0 < patience <= most, "trainer.timeout", patience, f"minutes, above 0, to {most:,.0f}")
    _check_names(recipe)
    if whole:
        _check_end(recipe)
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if isinstance(stage, Train):
            _check_train(stage, where, recipe)
        elif isinstance(stage, Prune):
            _check_prune(stage, where)
            _check_criterion(stage, where)
            _check_prepared(stage, where, recipe)
        elif isinstance(stage, Baseline | Scratch):
            imitated(recipe, stage)
        elif isinstance(stage, Quantize):
            _need(stage.batches >= 1, f"{where}.batches", stage.batches, "1 or more")


def _check_sharded(trainer: TrainerOptions) -> None:
    """What does not go with a network that is shared out."""
    sharded = trainer.strategy == "fsdp"
    _need(
        not (sharded and trainer.compile),
        "trainer.compile",
        True,
        "false with strategy fsdp: what gathers the parts is not compiled; take one of them",
    )
    _need(
        not (sharded and trainer.precision == "fp16"),
        "trainer.precision",
        "fp16",
        "bf16, float32 or auto with strategy fsdp: a loss scale must see whole gradients",
    )


def imitated(recipe: Recipe, stage: Baseline | Scratch) -> tuple[int, Train]:
    """Position of the stage that another one copies, and its settings as plain training.

    Raises:
        RecipeError: there is no such stage, or, for a `scratch` stage, none before it, or nothing
            that was cut.
    """
    where = f"stages.{stage.name}"
    seen, before = recipe.stages, " at all"
    if isinstance(stage, Scratch):
        seen, before = seen[: seen.index(stage)], " before it"
    trained = [(index, item) for index, item in enumerate(seen) if isinstance(item, Train)]
    if not trained:
        raise RecipeError(
            f"{where}.like: no training stage comes{before}, so there is none to imitate"
        )
    if isinstance(stage, Scratch) and not (_is_file(recipe) or any(cuts(item) for item in seen)):
        raise RecipeError(
            f"{where}: nothing is cut before it; put it after a prune stage, or use a "
            "`baseline` stage"
        )
    for index, item in trained:
        if stage.like in (None, item.name):
            return index, _plain(item)
    names = [item.name for _, item in trained]
    raise RecipeError(
        f"{where}.like: no training stage is called {stage.like!r}{nearest(str(stage.like), names)}"
    )


def _plain(stage: Train) -> Train:
    """Without what makes a stage's training special, but with the scales it starts from."""
    first = isinstance(stage.sparsity, SlimmingOptions) and stage.sparsity.gamma_init
    start = None
    if first:
        start = SlimmingOptions(strength=0.0, gamma_init=first)
    return replace(stage, sparsity=start, gradual=None, distill=None)


def cuts(stage: Stage) -> bool:
    """Whether a stage makes the network smaller (or masks it)."""
    return isinstance(stage, Prune) or (isinstance(stage, Train) and stage.gradual is not None)


def _is_file(recipe: Recipe) -> bool:
    """Whether the network comes from a file; nobody here knows how that was trained."""
    return bool(recipe.model.files)


def _check_names(recipe: Recipe) -> None:
    names = [stage.name for stage in recipe.stages]
    for name in names:
        _need(_NAME.fullmatch(name), "stage name", name, "letters, digits, '.', '_' and '-'")
        if names.count(name) > 1:
            raise RecipeError(f"two stages are called {name!r}; give each a 'name' of its own")
    _check_masks(recipe)


def _check_end(recipe: Recipe) -> None:
    kinds = [stage.kind for stage in recipe.stages]
    if kinds[-1] != "measure" or kinds.count("measure") > 1:
        raise RecipeError(
            "the last stage, and no other, must be of kind measure: the test set is looked at "
            "once, at the end"
        )


def _check_masks(recipe: Recipe) -> None:
    masked: str | None = None
    for stage in recipe.stages:
        if isinstance(stage, Convert) and masked is None:
            raise RecipeError(
                f"stages.{stage.name}: no prune stage with 'mode: mask' comes before it"
            )
        if isinstance(stage, Prune | Scratch | Quantize) and masked is not None:
            raise RecipeError(
                f"stages.{stage.name}: put a 'convert' stage before it, which cuts what "
                f"{masked} masked"
            )
        if isinstance(stage, Train) and stage.sparsity is not None and masked is not None:
            raise RecipeError(
                f"stages.{stage.name}.sparsity: the network is masked by {masked}; convert it first"
            )
        if isinstance(stage, Train) and stage.gradual is not None and masked is not None:
            raise RecipeError(
                f"stages.{stage.name}.gradual: the network is masked by {masked}; convert it first"
            )
        if isinstance(stage, Prune | Convert):
            masked = None
        if isinstance(stage, Prune) and stage.mode == "mask":
            masked = stage.name


def _check_train(stage: Train, where: str, recipe: Recipe) -> None:
    optimizer, schedule, sparsity = stage.optimizer, stage.schedule, stage.sparsity
    _need(stage.epochs >= 1, f"{where}.epochs", stage.epochs, "1 or more")
    _need(optimizer.lr > 0, f"{where}.optimizer.lr", optimizer.lr, "above 0")
    _check_adaptive(stage, where)
    _need(
        0 <= optimizer.momentum < 1,
        f"{where}.optimizer.momentum",
        optimizer.momentum,
        "from 0 to below 1",
    )
    _need(
        optimizer.weight_decay >= 0,
        f"{where}.optimizer.weight_decay",
        optimizer.weight_decay,
        "0 or more",
    )
    nesterov = not optimizer.nesterov or optimizer.momentum > 0
    _need(nesterov, f"{where}.optimizer.nesterov", True, "false when the momentum is 0")
    _need(schedule.factor > 0, f"{where}.schedule.factor", schedule.factor, "above 0")
    _need(
        all(m > 0 for m in schedule.milestones),
        f"{where}.schedule.milestones",
        schedule.milestones,
        "above 0",
    )
    _need(
        0 <= schedule.warmup < stage.epochs,
        f"{where}.schedule.warmup",
        schedule.warmup,
        "from 0 to below the epochs",
    )
    _need(0 < schedule.rise < 1, f"{where}.schedule.rise", schedule.rise, "between 0 and 1")
    _need(0 < schedule.start <= 1, f"{where}.schedule.start", schedule.start, "above 0, at most 1")
    _need(stage.clip is None or stage.clip > 0, f"{where}.clip", stage.clip, "above 0, or null")
    decay = optimizer.norm_decay
    _need(decay is None or decay >= 0, f"{where}.optimizer.norm_decay", decay, "0 or more, or null")
    if sparsity is not None:
        _in_place(f"{where}.sparsity", lambda: sparsity.check(_later(recipe, stage)))
    if stage.gradual is not None:
        _check_gradual(stage, stage.gradual, f"{where}.gradual")
    if stage.distill is not None:
        _check_distill(stage, where, recipe)
    if stage.keep == "best" and recipe.data.validation == 0:
        raise RecipeError(
            f"{where}.keep: 'best' needs validation images; set data.validation above 0, or "
            "keep: last"
        )


def _check_adaptive(stage: Train, where: str) -> None:
    """What goes with sgd alone."""
    name, rate = stage.optimizer.name, stage.optimizer.lr
    if name == "sgd":
        return
    usual = rate < OptimizerOptions.lr
    _need(usual, f"{where}.optimizer.lr", rate, f"given for {name}: of the size 0.001")
    if stage.sparsity is not None and not stage.sparsity.any_optimizer:
        raise RecipeError(
            f"{where}.optimizer.name: {stage.sparsity.method} goes with sgd alone: {name} gives "
            "each weight a step of its own"
        )


def _check_gradual(stage: Train, options: GradualOptions, where: str) -> None:
    if not options.budget.given() and not options.per_group:
        raise RecipeError(
            f"{where}.budget: say how much to cut in the end, for example 'budget: {{cut_macs: "
            f"0.5}}'"
        )
    if stage.sparsity is not None and not stage.sparsity.any_size:
        free = " or ".join(name for name, kind in METHODS.items() if kind.any_size)
        raise RecipeError(
            f"{where}: {stage.sparsity.method} works on the groups of a network that keeps its "
            f"size; cut gradually without it, or with {free}"
        )
    _need(options.steps >= 1, f"{where}.steps", options.steps, "1 or more")
    _need(0 <= options.begin < 1, f"{where}.begin", options.begin, "a share from 0 to below 1")
    _need(options.begin < options.end <= 1, f"{where}.end", options.end, "above begin, at most 1")
    # At most one step an epoch; more are not even listed, for they may be millions.
    falls = cut_epochs(replace(options, steps=min(options.steps, _MOST_STEPS)), stage.epochs)
    if len(set(falls)) < options.steps or falls[0] < 1:
        raise RecipeError(
            f"{where}.steps: {many(options.steps, 'step')}, each at an epoch's end, do not fit "
            f"between {options.begin:g} and {options.end:g} of {many(stage.epochs, 'epoch')}; "
            "take fewer steps, more epochs, or a larger part of them"
        )
    if options.limits.blocks:
        raise RecipeError(
            f"{where}.blocks: channels go step by step, and no block does: leave it out, or add a "
            "prune stage"
        )
    _check_amounts(options, where)
    _check_named(options.scoring, where)


def wanted_share(recipe: Recipe, stage: Train) -> float:
    """The share of scales (0 to 1) that a stage with ``strength: auto`` is to leave near zero.

    Raises:
        RecipeError: neither the stage nor the next prune stage says it.
    """
    options = stage.sparsity
    assert isinstance(options, SlimmingOptions)
    return _in_place(f"stages.{stage.name}.sparsity", lambda: options.share(_later(recipe, stage)))


def _later(recipe: Recipe, stage: Stage) -> tuple[Stage, ...]:
    return recipe.stages[recipe.stages.index(stage) + 1 :]


def _in_place(where: str, work: Callable[[], Result]) -> Result:
    """What `work` gives; what it refuses is told with its place in the recipe."""
    try:
        return work()
    except ArgumentError as error:
        raise RecipeError(f"{where}.{error}") from None


def _check_distill(stage: Train, where: str, recipe: Recipe) -> None:
    options = stage.distill
    assert options is not None
    _need(options.temperature > 0, f"{where}.distill.temperature", options.temperature, "above 0")
    _need(0 <= options.weight <= 1, f"{where}.distill.weight", options.weight, "from 0 to 1")
    _check_teacher_images(options, f"{where}.distill")
    if options.teacher_weights is not None and ":" not in (options.teacher or ""):
        raise RecipeError(
            f"{where}.distill.teacher_weights: name the network that they belong to as teacher, "
            "such as zoo:vgg16"
        )
    teacher(recipe, stage)


def _check_augmentation(data: DataOptions) -> None:
    try:
        if data.augment is not None:
            data.augment.built()
    except DataError as error:
        raise RecipeError(f"data.augment: {error}") from None


def _check_teacher_images(options: DistillOptions, where: str) -> None:
    mean, std = options.teacher_mean, options.teacher_std
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise RecipeError(f"{where}: teacher_mean and teacher_std belong together: give both")
    try:
        check_normalisation(mean, std)
    except DataError as error:
        raise RecipeError(f"{where}.teacher_mean: {error}") from None


def teacher(recipe: Recipe, stage: Train) -> int | str:
    """Position of the stage whose network a stage learns from, or the name of a model.

    Raises:
        RecipeError: there is none before it, or none of the name.
    """
    here = recipe.stages.index(stage)
    earlier = [
        (index, item)
        for index, item in enumerate(recipe.stages[:here])
        if isinstance(item, Train | Baseline)
    ]
    wanted = None
    if stage.distill is not None:
        wanted = stage.distill.teacher
    where = f"stages.{stage.name}.distill.teacher"
    if wanted is not None and (":" in wanted or wanted.endswith(".safetensors")):
        return wanted
    if wanted is not None and wanted.endswith(WEIGHTS):
        raise RecipeError(
            f"{where}: {wanted} holds weights, and does not say of which network: name the network "
            "as teacher, such as zoo:vgg16, and the file as teacher_weights"
        )
    if wanted is not None:
        for index, item in earlier:
            if item.name == wanted:
                return index
        if told := no_checkpoint(wanted):
            raise RecipeError(f"{where}: {told}")
        names = [item.name for _, item in earlier]
        raise RecipeError(
            f"{where}: no training stage before it is called {wanted!r}{nearest(wanted, names)}"
        )
    cut = next(
        (index for index, item in enumerate(recipe.stages) if cuts(item)), len(recipe.stages)
    )
    before = [index for index, item in earlier if index < cut and isinstance(item, Train)]
    if not before:
        raise RecipeError(
            f"{where}: no training stage before the first cut could teach; name one, such as a "
            "baseline"
        )
    return before[-1]


def _check_prune(stage: Prune, where: str) -> None:
    budget = stage.budget.given()
    if stage.by == "scores" and not budget and not stage.per_group:
        raise RecipeError(
            f"{where}.budget: say how much to cut, for example 'budget: {{cut_channels: 0.5}}'"
        )
    if stage.by == "greedy" and (budget or not stage.per_group):
        raise RecipeError(
            f"{where}.per_group: 'by: greedy' takes counts or shares by name, and no budget"
        )
    if stage.by in ("zeros", "clusters") and (budget or stage.per_group):
        raise RecipeError(
            f"{where}.budget: 'by: {stage.by}' finds out itself what goes; leave budget and "
            "per_group out"
        )
    fold = isinstance(stage.compensation, Compensation) and stage.compensation.fold
    if fold and (stage.mode == "mask" or stage.by == "clusters"):
        what = "a merge throws nothing away"
        if stage.mode == "mask":
            what = "a mask cuts nothing"
        raise RecipeError(f"{where}.fold: {what}, so there is nothing to fold; leave it out")
    if stage.limits.blocks and (stage.by != "scores" or stage.mode == "mask"):
        what = f"'by: {stage.by}' chooses channels"
        if stage.mode == "mask":
            what = "a mask silences channels"
        raise RecipeError(f"{where}.blocks: {what}, and drops no block; leave it out")
    if stage.mode == "mask" and stage.by == "clusters":
        raise RecipeError(f"{where}.mode: merging cannot be done by a mask; use mode: cut")
    _check_amounts(stage, where)


def _check_amounts(stage: Prune | GradualOptions, where: str) -> None:
    """How much goes of what, and how it is spread."""
    _need(stage.batches >= 1, f"{where}.batches", stage.batches, "1 or more")
    _need(stage.latency.batch >= 1, f"{where}.latency.batch", stage.latency.batch, "1 or more")
    for name, value in stage.per_group.items():
        fits = value >= 0 and (isinstance(value, int) or value < 1)
        _need(
            fits,
            f"{where}.per_group.{name}",
            value,
            "a number of channels (3) or a share from 0 to below 1 (0.3)",
        )
    if stage.allocation != AUTO and stage.allocation not in ALLOCATIONS:
        _check_allocation(stage.allocation, f"{where}.allocation")


def _check_allocation(name: str, where: str) -> None:
    if ":" not in name:
        known = nearest(name, ALLOCATIONS)
        raise RecipeError(f"{where}: there is no allocation {name!r}{known}")
    try:
        allocation_of(name)
    except ArgumentError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_prepared(stage: Prune, where: str, recipe: Recipe) -> None:
    """For `by: zeros` and `by: clusters` the network must have been trained, and not otherwise
    since.
    """
    before = [
        item
        for item in recipe.stages[: recipe.stages.index(stage)]
        if isinstance(item, Train | Prune | Convert)
    ]
    if stage.by not in ("zeros", "clusters") or (not before and _is_file(recipe)):
        return
    sparsity = None
    if before and isinstance(before[-1], Train):
        sparsity = before[-1].sparsity
    if sparsity is None or not sparsity.prepares(stage.by, str(stage.scoring.criterion)):
        raise RecipeError(
            f"{where}.by: '{stage.by}' cuts what the stage right before it has prepared: a "
            f"training stage whose sparsity has {_PREPARED[stage.by]}"
        )


_PREPARED = {
    "clusters": "method centripetal",
    "zeros": "penalty proximal, or method soft_filter where another criterion than bn_scale is "
    "given here, such as l2",
}


def _check_criterion(stage: Prune, where: str) -> None:
    scoring = stage.scoring
    name = _check_named(scoring, where)
    unused = [
        key
        for key in ("reduction", "over", "normalize")
        if getattr(scoring, key) != getattr(Scoring, key)
    ]
    if stage.by in ("zeros", "clusters") and unused:
        raise RecipeError(f"{where}.{unused[0]}: 'by: {stage.by}' compares no scores; leave it out")
    if stage.by in ("greedy", "zeros") and reads_data(name):
        raise RecipeError(
            f"{where}.criterion: 'by: {stage.by}' looks at weights alone, but {name} at data; "
            "use l1, l2 or by: scores"
        )


def _check_named(scoring: Scoring, where: str) -> str:
    """The criterion's name, once it is known that there is one and that it can do what is asked of
    it.
    """
    name = str(scoring.criterion)
    if name == AUTO:
        return PLAIN  # what is taken in its place is known with the network and the data alone
    if name not in CRITERIA and ":" not in name:
        raise RecipeError(
            f"{where}.criterion: there is no criterion {name!r}{nearest(name, CRITERIA)}"
        )
    if scoring.lead != "mean" and name in UNLED:
        raise RecipeError(
            f"{where}.lead: {name} does not look at the layers, so none can lead; leave it out"
        )
    try:
        check_options(scoring)
    except ArgumentError as error:
        raise RecipeError(f"{where}.criterion: {error}") from error
    return name


def _need(holds: object, where: str, value: object, wanted: str) -> None:
    if not holds:
        raise RecipeError(f"{where}: is {value!r}, must be {wanted}")
