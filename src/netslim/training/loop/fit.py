"""One training stage: a Lightning trainer around a network, resumable after each epoch."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

import netslim.ranks as ranks
import netslim.training.processes as processes
from netslim._support import reason, typed
from netslim._support.progress import Progress, untold
from netslim.data.loader import Loader
from netslim.data.splits import Data, Split
from netslim.errors import CheckpointError, TrainingError
from netslim.methods.gradual import GradualPruning
from netslim.methods.slimming import NetworkSlimming
from netslim.surgery.plan import PruningPlan
from netslim.training.loop.adapters import Gradual, Method, held_by, method_of
from netslim.training.loop.agreement import same_weights
from netslim.training.loop.captured import Unrecorded, recorder
from netslim.training.loop.checkpoints import UNREADABLE, SealedCheckpoints
from netslim.training.loop.classifier import Classifier, Means, Tally
from netslim.training.loop.epochs import (
    RECORD,
    EpochLoader,
    EpochRecord,
    Noted,
    Row,
    derive,
    made_up,
)
from netslim.training.loop.logbook import Logbook
from netslim.training.loop.progress import Display
from netslim.training.loop.room import check_room
from netslim.training.recipe.schedule import cut_epochs
from netslim.training.recipe.schema import Recipe, SlimmingOptions, Train
from netslim.training.stages import prune as cutting
from netslim.training.stages.environment import choose_layout
from netslim.training.stages.folder import StageFolder

_PRECISION: dict[str, Literal["16-mixed", "bf16-mixed"]] = {
    "fp16": "16-mixed",
    "bf16": "bf16-mixed",
}
_ALLOCATE = "can't allocate memory"  # of torch's allocator on CPUs
_ONE_VALUE = "Expected more than 1 value per channel when training"
_COMPILER = ("torch._dynamo", "torch._inductor")
_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
_WARNING_MODULES = r"pytorch_lightning|lightning_fabric|torchmetrics|tensorboard|torch\."
_WARNINGS = (
    r".*(does not have many workers|GPU available|Checkpoint directory|training_step` returned|"
    r"does not have a deterministic implementation|not deterministic because it uses CuBLAS).*"
)


@dataclass(frozen=True)
class History:
    """What a training stage leaves besides the weights.

    Attributes:
        rows: of metrics.csv, one an epoch.
        histograms: of the scales, before the first epoch and after each.
        layer, levels: the same of one layer; see `EpochRecord`.
        best: epoch and validation accuracy of the weights that were kept; empty for the last.
        left: what its method hands on to later stages.
        pruning: what cut the network on the way, if it was.
        unreadable: every picture that was left out because it cannot be read, and why.
    """

    rows: list[Row]
    histograms: list[list[int]]
    best: dict[str, Any]
    left: dict[str, Any]
    pruning: GradualPruning | None = None
    unreadable: tuple[str, ...] = ()
    layer: str = ""
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where a run trains: its recipe, data, device and precision."""

    recipe: Recipe
    data: Data
    device: torch.device
    precision: str
    display: Display

    def loader(self, split: str, seed: int = 0) -> Loader:
        """Batches of `train` (shuffled, augmented), `validation` or `test`; of several ranks each
        gets its share of every batch.
        """
        options, images, training = self.recipe.data, getattr(self.data, split), split == "train"
        rank, world = ranks.place()
        rest = len(images) % options.batch_size
        augment = None
        if training and options.augment:
            augment = options.augment.built()
        return self._loader(
            images,
            options.batch_size // world,
            shuffle=training,
            augment=augment,
            seed=seed,
            # Batch norm cannot learn from a last batch that has one image for a process.
            drop_last=training and 0 < rest < 2 * world and len(images) > 1,
            shard=(rank, world),
        )

    def loader_of(self, images: Split) -> Loader:
        """Batches of some images, all on this process and in their order."""
        return self._loader(images, self.recipe.data.batch_size)

    def _loader(self, images: Split, batch_size: int, **how: Any) -> Loader:
        return Loader(
            images,
            batch_size,
            mean=self.data.mean,
            std=self.data.std,
            device=self.device,
            memory_format=self.memory_format,
            workers=self.recipe.data.workers,
            **how,
        )

    def means(self, network: nn.Module, loader: Loader) -> Means:
        """`evaluate`, of as many batches as the recipe looks at; the network is on the device then,
        and in evaluation mode.
        """
        limit = self.recipe.trainer.limit_batches
        with self.display.counting("looking at images") as progress:
            return evaluate(network, loader, len(self.data.classes), self.device, limit, progress)

    def labels(self, images: Split) -> list[int]:
        """The classes of those of the images that `means` looks at, which are not shuffled."""
        found: list[int] = images.labels.tolist()
        limit = self.recipe.trainer.limit_batches
        if limit is None:
            return found
        return found[: limit * self.recipe.data.batch_size]

    def example(self) -> Tensor:
        """Two made-up images: (2, C, H, W), the same in every process."""
        return made_up(self.recipe.seed, self.data.shape)

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches of the training split, in the order of no stage."""
        loader = self.loader("train", derive(self.recipe.seed, "batches"))
        loader.set_epoch(0)
        return islice(iter(loader), count)

    @property
    def sharded(self) -> bool:
        """Whether networks are shared out over the processes while they train."""
        return self.recipe.trainer.strategy == "fsdp" and ranks.count() > 1

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and weights."""
        return choose_layout(self.recipe.trainer, self.device)

    @property
    def fused(self) -> bool:
        """Whether one kernel moves all weights; scaled gradients it could not clip."""
        return self.device.type == "cuda" and ranks.count() == 1 and self.precision != "fp16"


def fit(
    bench: Bench,
    network: nn.Module,
    stage: Train,
    folder: StageFolder,
    seed: int,
    *,
    mask: PruningPlan | None = None,
    teacher: nn.Module | None = None,
) -> History:
    """Train `network` in place as `stage` says; goes on from the folder's last checkpoint, if any.

    Args:
        seed: of the stage; order, augmentation and dropout of every epoch follow from it.
        mask: a plan whose removed channels are held at zero.
        teacher: the network to learn from where the stage distils.

    Raises:
        TrainingError: a loss that is not finite; finished epochs are kept.
        CheckpointError: the checkpoint is damaged.
        KeyboardInterrupt: finished epochs are kept.
    """
    folder.path.mkdir(exist_ok=True)
    resume = ranks.shared(f"where {folder.label} goes on", lambda: _resumed(folder))
    if resume is None:
        _set_first_scales(network, stage)
    ranks.shared("the room on the disk", lambda: check_room(network, stage, folder))
    same_weights(f"the weights that {folder.label} starts from", network)
    method, pruning = _acting(bench, network, stage, seed, mask)
    network.train()  # Lightning leaves the mode as it is
    if not bench.sharded:  # FSDP2 takes no weights but those in their usual layout
        network.to(memory_format=bench.memory_format)
    loader, checking = bench.loader("train", seed), bench.loader("validation")
    limit = bench.recipe.trainer.limit_batches
    steps = min(len(loader), limit or len(loader))
    module = Classifier(network, stage, len(bench.data.classes), steps, method, teacher)
    module.weight, module.checked = loader.weight, checking.own_batches
    module.sync_batchnorm = bench.recipe.trainer.sync_batchnorm
    if bench.recipe.trainer.compile:
        module.compile_network()
    module.fused = bench.fused
    _record(bench, module, loader)
    with (
        _logbook(bench, folder) as book,
        bench.display.training(folder.label, stage.epochs) as shown,
    ):
        record = EpochRecord(
            folder,
            seed,
            shown.epoch,
            shown.step,
            book,
            lambda: (*loader.unreadable, *checking.unreadable),
        )
        with processes.in_step(f"stage {folder.label}"):
            _run(bench, module, record, loader, checking, resume)
    return replace(_finished(module, record), pruning=pruning)


def _set_first_scales(network: nn.Module, stage: Train) -> None:
    options = stage.sparsity
    if isinstance(options, SlimmingOptions) and options.gamma_init is not None:
        NetworkSlimming(network, 0.0, gamma_init=options.gamma_init)


def _acting(
    bench: Bench, network: nn.Module, stage: Train, seed: int, mask: PruningPlan | None
) -> tuple[Method | None, GradualPruning | None]:
    """What acts on the network while it trains, and what of that cuts it."""
    if mask is None:
        method = method_of(stage, network, bench.example(), seed)
    else:
        method = held_by(mask, network)
    if stage.gradual is None:
        return method, None
    with bench.display.counting("layer times") as progress:
        pruning = cutting.gradually(
            stage.gradual, network, bench.example(), bench.batches, bench.recipe.seed, progress
        )
    return Gradual(pruning, cut_epochs(stage.gradual, stage.epochs), method), pruning


def evaluate(
    network: nn.Module,
    loader: Loader,
    classes: int,
    device: torch.device,
    limit: int | None = None,
    progress: Progress = untold,
) -> Means:
    """Mean cross entropy and accuracies over a loader's images, in float32 and evaluation mode; of
    several ranks each looks at its share. ``progress`` is told how many batches are done.
    """
    network = network.to(device).eval()
    tally = Tally(classes).to(device)
    own = min(limit or len(loader), loader.own_batches)
    with torch.inference_mode():
        for done, (images, labels) in zip(range(own), loader, strict=False):
            logits = network(images)
            tally.add(logits, labels, F.cross_entropy(logits, labels))
            progress("", done + 1, own)
    return tally.of_all_ranks("what a network answers")


def _record(bench: Bench, module: Classifier, loader: Loader) -> None:
    """Have whole steps recorded where that is wanted and can be; say why where it cannot."""
    wanted = bench.recipe.trainer.graph
    if wanted is False or (wanted == "auto" and bench.device.type == "cpu"):
        return

    def refused(why: str) -> None:
        bench.display.say_once(f"training steps are not captured as a CUDA graph: {why}")

    why = _unsteady(bench, module)
    if why is not None:
        refused(why)
        return
    module.recorder, module.unrecorded = recorder(bench.device), refused
    if type(module.recorder) is Unrecorded:
        refused("there is no GPU at work; each is run as the one function that would be captured")
    if loader.picks_suffice:
        module.batch = loader.batch


def _unsteady(bench: Bench, module: Classifier) -> str | None:
    """Why steps cannot be captured, if that is known beforehand."""
    method = module.method
    reasons = {
        "several processes exchange gradients": ranks.count() > 1,
        "trainer.compile makes graphs of its own": bench.recipe.trainer.compile,
        "the loss scale of fp16 changes from step to step": bench.precision == "fp16",
        "its method does not say that it is steady": method is not None and not method.steady,
    }
    return next((why for why, holds in reasons.items() if holds), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advertisements and the warnings of libraries about their own arrangements."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_WARNING_MODULES)
        warnings.filterwarnings("ignore", message=_WARNINGS)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _run(
    bench: Bench,
    module: Classifier,
    record: EpochRecord,
    loader: Loader,
    checking: Loader,
    resume: str | None,
) -> None:
    limit = bench.recipe.trainer.limit_batches
    with quiet(), _interruptible(), _arithmetic(bench.recipe.trainer.deterministic):
        trainer = _trainer(bench, module, record)
        picks = module.recorder is not None and loader.picks_suffice
        training = EpochLoader(loader, lambda: trainer.current_epoch, limit, picks=picks)
        validation = None
        if len(bench.data.validation):
            validation = [EpochLoader(checking, lambda: 0, limit)]
        with _told(module, record, bench.recipe.data.batch_size):
            trainer.fit(module, training, validation, ckpt_path=resume, weights_only=True)


@contextmanager
def _told(module: Classifier, record: EpochRecord, batch: int) -> Iterator[None]:
    """Say what torch means by what it raises where a batch is too large, or too small."""
    where = f"stage {record.folder.label}, epoch {module.current_epoch + 1}"
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        said = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _ALLOCATE in said:
            raise TrainingError(
                f"{where}: there is not enough memory to train on {batch} images at once: try "
                f"--data.batch_size {max(1, batch // 2)} with a new --out; {record.kept()}"
            ) from error
        if _ONE_VALUE in said:
            raise TrainingError(
                f"{where}: batch normalisation cannot learn from a single value of a channel, as a "
                f"batch of one small image has it: try --data.batch_size {max(2, 2 * batch)} with "
                f"a new --out; {record.kept()}"
            ) from error
        if type(error).__module__.startswith(_COMPILER):
            raise TrainingError(
                f"{where}: torch.compile cannot compile this network here "
                f"({said.strip().splitlines()[0]}); leave trainer.compile out, with a new --out; "
                f"{record.kept()}"
            ) from error
        raise


def _trainer(bench: Bench, module: Classifier, record: EpochRecord) -> pl.Trainer:
    placed = processes.trainer_arguments(bench.recipe.trainer, bench.device)
    plugins = [*placed.pop("plugins", []), SealedCheckpoints()]
    if bench.precision in _PRECISION:  # by its name Lightning would have fp16 on GPUs alone
        plugins.append(MixedPrecision(_PRECISION[bench.precision], bench.device.type))
    return pl.Trainer(
        **placed,
        plugins=plugins,
        max_epochs=module.stage.epochs,
        callbacks=[record],
        gradient_clip_val=module.stage.clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@contextmanager
def _arithmetic(deterministic: bool) -> Iterator[None]:
    """How a GPU computes: the same bits each time, or what is the fastest; on a CPU the bits are
    the same anyway.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    only_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
        # What torch has no fixed order for, such as pooling that overlaps, is done all the same.
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(strict, warn_only=only_warning)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Undo what Lightning does at Ctrl-C and SIGTERM: `SystemExit`, and no SIGINT ever after."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


def _resumed(folder: StageFolder) -> str | None:
    """The checkpoint that a stage goes on from, if it has one."""
    if not folder.checkpoint.exists():
        return None
    return _checked(folder)


def _checked(folder: StageFolder) -> str:
    try:
        content = SealedCheckpoints().load_checkpoint(folder.checkpoint, "cpu")
        if not {"state_dict", "loops", "optimizer_states", "callbacks"} <= content.keys():
            raise ValueError("it is not a Lightning checkpoint")
        record = typed(Mapping[str, Any], content["callbacks"]).get(RECORD, {})
        if record:
            typed(Noted, record)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder.checkpoint} is damaged ({reason(error)}); move {folder.path} away to run "
            "this stage from its beginning"
        ) from None
    folder.check_ground(record.get("stands_on"), folder.checkpoint)
    return str(folder.checkpoint)


@contextmanager
def _logbook(bench: Bench, folder: StageFolder) -> Iterator[Logbook]:
    book = Logbook(bench.recipe.trainer, folder.path.parent, folder.label)
    try:
        yield book
    finally:
        with quiet():
            book.close()


def put_best(network: nn.Module, record: EpochRecord) -> None:
    """Give a network the weights in best.safetensors.

    Raises:
        CheckpointError: it is not as it was written, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights = ranks.shared("the best weights", record.best_weights)
    try:
        network.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{record.folder.best} is damaged ({reason(error)}); move {record.folder.path} away to "
            "run this stage from its beginning"
        ) from None


def _finished(module: Classifier, record: EpochRecord) -> History:
    network = module.network
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if record.best:
        put_best(network, record)
    left = {}
    if module.method is not None:
        module.method.finish()
        left = module.method.left()
    best = {key: value for key, value in record.best.items() if key != "sha256"}
    unreadable = tuple(record.unreadable)
    return History(
        record.rows,
        record.histograms,
        best,
        left,
        unreadable=unreadable,
        layer=record.layer,
        levels=tuple(record.levels),
    )
