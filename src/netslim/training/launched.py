"""What a launcher says that a process is: one of how many, and which.

`torchrun` and SLURM tell it through variables of the environment. Nothing here waits for torch, so
that every command can ask.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from netslim.errors import RecipeError

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """What a launcher says that this process is.

    Attributes:
        rank: of all, from 0.
        world: how many there are.
        local_rank: on this machine, from 0; its GPU has this number, too.
        local_world: how many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def nodes(self) -> int:
        """On how many machines the run takes place."""
        return self.world // self.local_world


def place() -> Place:
    """What this process is, by its environment; alone where nobody says more.

    Raises:
        RecipeError: SLURM has another number of tasks on each machine.
    """
    found = os.environ
    if _by_torchrun():
        rank, world, local = (int(found[name]) for name in _OF_TORCHRUN[:3])
        return Place(rank, world, local, int(found.get("LOCAL_WORLD_SIZE", world)))
    if not _tasks() or _forgotten():
        return Place()
    return _of_slurm()


def refuse_forgotten() -> None:
    """Of what shares its work out: in a job of many tasks, who was not started as one is no one of
    them. Other commands of a batch script are right to be alone.

    Raises:
        RecipeError: SLURM has tasks that `srun` did not start.
    """
    if not _by_torchrun() and _tasks() and _forgotten():
        raise RecipeError(
            f"this SLURM job has {os.environ['SLURM_NTASKS']} tasks, and this process was not "
            "started by srun, so that it would wait for the others forever: put srun before the "
            "command"
        )


def for_one_process() -> RecipeError:
    """That what is asked for works on one process."""
    return RecipeError(
        "this works on one process: leave trainer.devices and trainer.num_nodes out, and start "
        "it without torchrun or srun (netslim run, train and finetune share their work out), "
        "or call it on one rank, with netslim.ranks.alone()"
    )


def _by_torchrun() -> bool:
    return all(name in os.environ for name in _OF_TORCHRUN)


def _tasks() -> bool:
    """Whether this is in a job of SLURM with several tasks, and not at a person's shell in it,
    which is a task of its own.
    """
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return int(os.environ.get("SLURM_NTASKS", 1)) > 1 and not interactive


def _forgotten() -> bool:
    """Whether `srun` has not started this."""
    return "SLURM_STEP_ID" not in os.environ


def _of_slurm() -> Place:
    """As Lightning reads it; address and port are put where `torch.distributed` looks for them."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    try:
        told = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise RecipeError(f"SLURM: {error}") from None
    os.environ.setdefault("MASTER_ADDR", told.main_address)
    os.environ.setdefault("MASTER_PORT", str(told.main_port))
    world, nodes = told.world_size(), int(os.environ.get("SLURM_NNODES", 1))
    if world % nodes:
        raise RecipeError(
            f"SLURM started {world} tasks on {nodes} machines; ask for as many on each, with "
            "--ntasks-per-node"
        )
    return Place(told.global_rank(), world, told.local_rank(), world // nodes)


__all__ = ["Place", "for_one_process", "place", "refuse_forgotten"]
