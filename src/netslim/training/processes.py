"""A run on several processes: how they are recognised or started, and what each of them is.

One run may be one process or many, on one machine or on several, and it is the same run: the batch
size that a recipe says is that of all together, each takes its share of every batch, and one of
them writes the folder. Who starts them is not our matter: `torchrun` and SLURM tell each process
its place through variables of the environment, and where nobody has started more than one though
`trainer.devices` asks for it, `start` does as `torchrun` does, so that there is one way in.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import netslim.ranks as ranks
from netslim.errors import NetslimError, RecipeError, TrainingError
from netslim.training.launched import Place, for_one_process, place, refuse_forgotten
from netslim.training.loop.sharded import Sharded
from netslim.training.recipe.schema import TrainerOptions

# For what one rank does while the others wait: a cut, a latency table, a look at many images.
_PATIENCE = timedelta(hours=6)
_TIMED_OUT = "Timed out|timed out|timeout"
# Of the processes that train: in it they wait for each other no longer than `trainer.timeout`.
_training: ContextVar[Any] = ContextVar("training", default=None)
GRACE = 20.0  # seconds for others to end by themselves
_IMPORTED_ONCE = "netslim.training.imported_once"
_OWN = "netslim"  # id of the runs that are started here
_LOST = "Connection|closed|reset by peer|Timed out|timed out|NCCL|Broken pipe"

Surroundings = tuple[str, dict[str, str]]  # directory and environment


class _LostError(TrainingError):
    """Another process has ended; it, or who started them, knows why."""


@contextmanager
def joined(options: TrainerOptions) -> Iterator[Place]:
    """Inside, the processes of a run can exchange something, and each has its own GPU.

    Where `torch.distributed` is set up already, it is used as it is, and left so.

    Raises:
        RecipeError: the recipe asks for other numbers than the launcher has started.
            Or SLURM has tasks that `srun` did not start.
        TrainingError: another process has ended, so that this one cannot go on.
    """
    refuse_forgotten()
    here = place()
    _compare(options, here)
    if here.world == 1:
        yield here
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group(
            _backend(options, here),
            init_method="env://",
            rank=here.rank,
            world_size=here.world,
            timeout=timedelta(minutes=options.timeout),
        )
    try:
        with _patience(ours):
            yield here
    except RuntimeError as error:
        if isinstance(error, NetslimError) or not _is_lost(error):
            raise
        raise _LostError(
            f"rank {here.rank} of {here.world} has lost another one, which says why it has ended, "
            "unless it was killed; what is finished is kept, and the same command goes on from it"
        ) from error
    except NetslimError as error:
        error.told_by_another = here.rank > 0 and ranks.raised_by_all(error)
        raise
    if ours:
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def _patience(ours: bool) -> Iterator[None]:
    """Inside, ranks wait for hours for what one of them decides, if the processes are ours."""
    if not ours:
        yield
        return
    token = _training.set(dist.group.WORLD)
    try:
        with ranks.among(dist.new_group(timeout=_PATIENCE, backend="gloo")):
            yield
    finally:
        _training.reset(token)


@contextmanager
def in_step(where: str) -> Iterator[None]:
    """Inside, all processes do the same work at the same time, so that one which lags hangs.

    Raises:
        TrainingError: another process was waited for as long as `trainer.timeout` says; names
            `where`.
    """
    together: AbstractContextManager[Any] = nullcontext()
    if _training.get() is not None and ranks.count() > 1:
        together = ranks.among(_training.get())
    try:
        with together:
            yield
    except RuntimeError as error:
        if isinstance(error, NetslimError) or not _timed_out(error):
            raise
        rank, world = ranks.place()
        raise TrainingError(
            f"{where}: rank {rank} of {world} has waited in vain for another one, which hangs, or "
            "is slower by more than trainer.timeout (in minutes); end what is left of the "
            "processes, and the same command goes on from the last finished epoch"
        ) from error


def _timed_out(error: RuntimeError) -> bool:
    return any(word in str(error) for word in _TIMED_OUT.split("|"))


def _compare(options: TrainerOptions, here: Place) -> None:
    for key, asked, found in (
        ("devices", options.devices, here.local_world),
        ("num_nodes", options.num_nodes, here.nodes),
    ):
        if asked is not None and asked != found:
            raise RecipeError(
                f"trainer.{key}: the recipe asks for {asked}, and {found} were started; leave it "
                "out, and the launcher decides"
            )


def _backend(options: TrainerOptions, here: Place) -> str:
    """What the processes talk over; what is said in words always goes over the CPU."""
    if options.device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    if here.local_rank >= torch.cuda.device_count():
        raise RecipeError(
            f"process {here.local_rank} on this machine finds {torch.cuda.device_count()} GPUs; "
            "start one process a GPU, and let each see all of them (SLURM: --gpus-per-node, not "
            "--gpus-per-task)"
        )
    torch.cuda.set_device(here.local_rank)
    return "cpu:gloo,cuda:nccl"


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST.split("|"))


# ---------------------------------------------------------------- started here


def refuse_several(options: TrainerOptions) -> None:
    """Of what works on one process; in a distributed run, on one rank within `ranks.alone`.

    Raises:
        RecipeError: the recipe asks for several, or a launcher has started them.
    """
    several = place().world
    if dist.is_initialized():
        several = ranks.count()
    if several > 1 or to_start(options):
        raise for_one_process()


def to_start(options: TrainerOptions) -> bool:
    """Whether the recipe asks for several processes, and nobody has started them."""
    asked = (options.devices or 1) * (options.num_nodes or 1)
    return asked > 1 and place().world == 1


def start(options: TrainerOptions, job: Callable[[], Any]) -> None:
    """Do a job on the processes that `options` ask for on this machine, and wait for them.

    Args:
        options: with `devices`, and `num_nodes` where each machine starts its own: then
            ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` say how they find each other.
        job: can be pickled; called without arguments in each process.

    Raises:
        NetslimError: that of the process that failed first.
        KeyboardInterrupt: all have been told.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    devices, nodes = options.devices or 1, options.num_nodes or 1
    shared, store = _meeting_point(devices, nodes)
    way = context()
    told = way.SimpleQueue()
    threads = max(1, torch.get_num_threads() // devices)
    begin: Any = start_processes
    handed = (job, told, shared, surroundings(), threads)
    children = begin(_worked, handed, devices, join=False, start_method=way.get_start_method())
    try:
        while not children.join(grace_period=GRACE):
            pass
    except ProcessExitedException:
        raise _reason(children.processes, told, shared) from None
    except KeyboardInterrupt:
        _interrupt(children)
        raise
    finally:
        del store  # which the others need until now


def context() -> Any:
    """How processes are started: off one that has imported everything once, where the system can;
    each then begins at once, and they share the memory of what was imported.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([_IMPORTED_ONCE])
    return found


def surroundings() -> Surroundings:
    """Where this process works, and its environment: the one that others are started off has those
    of when it was started itself.
    """
    return str(Path.cwd()), dict(os.environ)


def surround(directory: str, environment: Mapping[str, str]) -> None:
    """Work there, in that environment."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)


def _meeting_point(devices: int, nodes: int) -> tuple[dict[str, Any], TCPStore | None]:
    """What each process is told, and the store where they meet; the first machine's process keeps
    it.
    """
    address, port, node = "127.0.0.1", 0, 0
    if nodes > 1:
        address, port, node = _told_by_hand(nodes)
    store = None
    if node == 0:
        store = TCPStore(address, port, is_master=True, wait_for_workers=False)
        port = store.port
    shared = {"first": node * devices, "world": devices * nodes, "local_world": devices}
    return {**shared, "address": address, "port": port}, store


def _told_by_hand(nodes: int) -> tuple[str, int, int]:
    """Address and port of the first machine, and which one this is."""
    names, found = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"), os.environ
    missing = [name for name in names if name not in found]
    if missing:
        raise RecipeError(
            f"trainer.num_nodes: {nodes} machines are to work together, and nobody says how they "
            f"find each other ({', '.join(missing)} in the environment): start the run with "
            "torchrun or srun on each of them"
        )
    return found[names[0]], int(found[names[1]]), int(found[names[2]])


def _worked(
    number: int,
    job: Callable[[], Any],
    told: Any,
    shared: dict[str, Any],
    around: Surroundings,
    threads: int,
) -> None:
    """One of the processes, told its place as `torchrun` tells it."""
    surround(*around)
    os.environ |= {
        "RANK": str(shared["first"] + number),
        "WORLD_SIZE": str(shared["world"]),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(shared["local_world"]),
        "MASTER_ADDR": shared["address"],
        "MASTER_PORT": str(shared["port"]),
        "TORCHELASTIC_RUN_ID": _OWN,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(threads)
    try:
        job()
    except NetslimError as error:
        error.told_by_another = False  # the process that started this one tells it
        told.put((shared["first"] + number, error))
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # which the process that started this one tells, too
        raise SystemExit(128 + signal.SIGINT) from None


def _reason(children: Any, told: Any, shared: dict[str, Any]) -> NetslimError:
    """Why the processes ended: what one of them says, or which was ended from outside."""
    said: list[tuple[int, NetslimError]] = []
    while not told.empty():
        said.append(told.get())
    reasons = [(rank, error) for rank, error in said if not isinstance(error, _LostError)]
    if reasons:
        return min(reasons, key=itemgetter(0))[1]
    codes = [(process.exitcode, shared["first"] + n) for n, process in enumerate(children)]
    # SIGTERM comes from here, and with SIGABRT PyTorch may end who has lost another.
    after = (-signal.SIGTERM, -signal.SIGABRT)
    code, rank = min(codes, key=lambda pair: (pair[0] >= 0, pair[0] in after, pair[1]))
    return TrainingError(
        f"rank {rank} of {shared['world']} was ended ({how_ended(code)}), and the others with it; "
        "what is finished is kept, and the same command goes on from it"
    )


def how_ended(code: int) -> str:
    """How a process has ended, by what the system says: ``exit code 1`` or ``by SIGKILL``."""
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _interrupt(children: Any) -> None:
    """Where only this process was interrupted, so are the others; finished epochs are kept."""
    for process in children.processes:
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
    for process in children.processes:
        process.join(GRACE)
        process.kill()


# ---------------------------------------------------------------- for Lightning


def trainer_arguments(options: TrainerOptions, device: torch.device) -> dict[str, Any]:
    """What `Trainer` is to know of the processes: that they are there, and meet already."""
    cuda = device.type == "cuda"
    known: dict[str, Any] = {"accelerator": "gpu" if cuda else "cpu"}
    if ranks.count() == 1:
        return known | {"devices": [device.index or 0] if cuda else 1}
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from pytorch_lightning.strategies import DDPStrategy

    here = place()

    class Joined(ClusterEnvironment):
        """The processes as they are; nothing is started, and nothing found out anew."""

        creates_processes_externally = True
        main_address, main_port = "", 0

        @staticmethod
        def detect() -> bool:
            return True

        def world_size(self) -> int:
            return here.world

        def set_world_size(self, size: int) -> None:
            pass

        def global_rank(self) -> int:
            return here.rank

        def set_global_rank(self, rank: int) -> None:
            pass

        def local_rank(self) -> int:
            return here.local_rank

        def node_rank(self) -> int:
            return here.rank // here.local_world

    # Statistics of batch norm are those of each rank's own images until the epoch ends, and are
    # averaged then: those of rank 0 alone would be of fewer.
    strategy = DDPStrategy(broadcast_buffers=False)
    if options.strategy == "fsdp":
        strategy = Sharded()
    return known | {
        "devices": here.local_world,
        "num_nodes": here.nodes,
        "strategy": strategy,
        "plugins": [Joined()],
    }


__all__ = [
    "GRACE",
    "Place",
    "how_ended",
    "in_step",
    "joined",
    "place",
    "refuse_several",
    "start",
    "to_start",
    "trainer_arguments",
]
