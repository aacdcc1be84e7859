"""Several processes on one run: which one this is, and how they agree.

Processes are those of `accelerate launch` (or torchrun); without a launcher there is one, and nothing here costs
anything. They exchange a few words between methods and nothing else: each has its own model on its own device, and what
it has done lies in the run folder, which on several hosts must be a shared one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from buzz.evaluation.errors import ConfigError, WriteError

T = TypeVar("T")

_TIMEOUT = timedelta(days=2)  # a process may wait for another that has a long batch left


class PeerLostError(RuntimeError):
    """Another process of the run is gone. What all of them finished is in the run folder."""


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    rank: this process, from 0. size: how many there are. local: this process among those of its host; None: it is the
    only one of the run.
    """

    rank: int = 0
    size: int = 1
    local: int | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks, locks the folder and writes everything but samples."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Whether a batch, by its number, is this process's. They are dealt in turn."""
        return number % self.size == self.rank

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank. All processes must call it.

        Raises:
            PeerLostError: one of them is gone.
        """
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        try:
            return gather_object([value])
        except RuntimeError as error:
            raise PeerLostError(str(error)) from error

    def share(self, value: T) -> T:
        """The main process's value; those of the others do not count. All processes must call it.

        Raises:
            PeerLostError: one of them is gone.
        """
        return self.gather(value if self.main else None)[0]  # type: ignore[return-value]

    def by_main(self, action: Callable[[], T]) -> T:
        """What `action` returns in the main process, for all of them, once it is done. All processes must call it.

        Raises:
            ConfigError, WriteError: as the action did, in all processes. PeerLostError: one of them is gone.
        """
        outcome: Any = None
        if self.main:
            try:
                outcome = action()
            except (ConfigError, WriteError) as error:
                outcome = error
        outcome = self.share(outcome)
        if isinstance(outcome, ConfigError | WriteError):
            raise outcome
        return outcome


ALONE = Group()


# What Open MPI, Intel MPI and MVAPICH call the words of torchrun.
_WORDS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
_MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)


def adopt_mpi() -> None:
    """Where mpirun started this process, name its place in the environment as torchrun does.

    `accelerate launch --cpu --mpirun_hostfile` leaves it at MPI's own names.
    """
    if "WORLD_SIZE" in os.environ:
        return
    for names in _MPI:
        if all(name in os.environ for name in names):
            os.environ.update({word: os.environ[name] for word, name in zip(_WORDS, names, strict=True)})
            return


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks() -> bool:
    """Whether this process tells about errors: one of each host does."""
    return not launched() or os.environ.get("LOCAL_RANK", "0") == "0"


def join() -> Group:
    """The processes of this run; waits until all of them have come here. Joining again changes nothing."""
    if not launched():
        if _lost_processes():
            warnings.warn(
                "accelerate launch --cpu has started one process (more need mpirun and --mpirun_hostfile); "
                "torchrun --nproc-per-node N starts several",
                stacklevel=2,
            )
        return ALONE
    from accelerate import PartialState

    # cpu: the words go through gloo wherever the models are, so a GPU holds nothing but its model, and may be shared.
    state = PartialState(cpu=True, timeout=_TIMEOUT)
    return Group(state.process_index, state.num_processes, state.local_process_index)


def _lost_processes() -> bool:
    """Whether accelerate was asked for several CPU processes and, as it does without mpirun, started this one alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ


def leave(status: int) -> NoReturn:
    """End this process.

    One of several ends at once, without taking the process group down: its threads now and then abort a process that
    ends in the usual way, and the launcher then calls a good run failed.
    """
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
