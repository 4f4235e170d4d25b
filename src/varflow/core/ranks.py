"""Several processes that act as one.

``torchrun --nproc-per-node=N …`` starts N processes, *ranks* 0 … N − 1, with the same program. They share the
work of a fit and agree on everything else: rank 0 alone writes, an error on one ends all, one of them says why.

Two groups of PyTorch's distributed engine are used. The default one carries tensors (gloo on the CPU, NCCL on
CUDA). A second one, gloo on every machine, carries plain values, and may wait for days: for rank 0 to evaluate.

Machines need no common file system: what rank 0 reads of a run the others get from it (:func:`files_of_first`).
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from varflow.core.errors import NonFiniteError, RankError, SpecError, VarflowError

#: What torchrun tells each process.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=7)
#: Where the name of a launch lies in torchrun's store, and how long to look for that store.
_LAUNCH, _STORE_PATIENCE = "varflow/launch", timedelta(seconds=60)
#: Seconds that processes wait for each other to begin; PyTorch's own patience.
_MEETING = 1800.0

_P = ParamSpec("_P")
_T = TypeVar("_T")

_control: Any = None
_alone = False


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _connected() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _connected() else 1


def several() -> bool:
    """Whether there are others to agree with."""
    return world() > 1


def local() -> int:
    """The number of this process on its machine, which is that of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def launch() -> str | None:
    """A name of this start of torchrun, the same for every process that it ever starts; None without torchrun.

    It lies in the store that torchrun keeps for its workers and that outlives them. So a worker that takes the place
    of one that died has the name of that one, and a second start of the same command has another. The count of
    restarts in the environment does not tell: machines count for themselves, and may differ.
    """
    try:
        store = _lasting_store()
        return None if store is None else store.compare_set(_LAUNCH, "", uuid.uuid4().hex).decode()
    except RuntimeError:
        return None


def stay_alone() -> None:
    """Never meet the others: for commands that one process does by itself."""
    global _alone
    _alone = True


def join() -> None:
    """Meet the other processes, where torchrun started some; a second call does nothing.

    Raises:
        SpecError: this PyTorch cannot connect processes.
    """
    global _control, _reduced
    if _alone or _control is not None:
        return
    if not _connected():
        if not all(name in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
            return
        if not dist.is_available() or not dist.is_gloo_available():
            raise SpecError(
                "WORLD_SIZE: asks for several processes, and this PyTorch has no gloo; start one without torchrun"
            )
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", **_place())
        atexit.register(_leave)
    _control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    # Only now: it imports the compiler, which takes a second that one process alone can do without.
    _reduced = torch.compiler.disable(_reduced)


def share(name: str, whole: int) -> int:
    """The share of each rank in ``whole`` examples or samples.

    Raises:
        SpecError: they cannot be shared evenly, with the nearest numbers that can.
    """
    count = world()
    if whole % count == 0:
        return whole // count
    below, above = whole - whole % count, whole - whole % count + count
    nearest = f"{below} or {above}" if below else str(above)
    raise SpecError(
        f"{name}: {whole} in a step cannot be shared evenly by {count} processes; use {nearest}, or another number "
        "of processes"
    )


def _lasting_store() -> Any:
    """The store that torchrun keeps for its workers; None where it keeps none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not dist.is_available():
        return None
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_STORE_PATIENCE
    )


def _place() -> dict[str, Any]:
    """What ``init_process_group`` has to know beside its backend; nothing where it finds that by itself.

    The store outlives the workers, and PyTorch writes their addresses to the same keys each time: workers that were
    started again would look for those that died (pytorch/pytorch#135712). So each time has keys of its own.
    """
    store = _lasting_store()
    if store is None:
        return {}
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    met = dist.PrefixStore(f"varflow/{_meeting(store, number, count)}", store)
    return {"store": met, "rank": number, "world_size": count}


def _meeting(store: Any, number: int, count: int) -> str:
    """A name for this meeting of ``count`` processes that no other meeting in ``store`` has; the same for all.

    Everybody but rank 0 calls out a name of its own, and rank 0 answers whatever it hears, to those who died long ago
    as well, until as many have thanked it as it waits for.

    Raises:
        RankError: the others do not come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + _MEETING
    if number:
        store.set(f"varflow/here/{number}", own)
        while not store.check([f"varflow/answer/{own}"]):
            _wait(end)
        name: str = store.get(f"varflow/answer/{own}").decode()
        store.add(f"varflow/thanks/{name}", 1)
        return name
    answered: set[str] = set()
    while store.add(f"varflow/thanks/{own}", 0) < count - 1:
        for other in range(1, count):
            if store.check([f"varflow/here/{other}"]):
                called = store.get(f"varflow/here/{other}").decode()
                if called not in answered:
                    answered.add(called)
                    store.set(f"varflow/answer/{called}", own)
        _wait(end)
    return own


def _wait(end: float) -> None:
    if time.monotonic() > end:
        raise RankError(f"the other processes of this run did not come within {_MEETING // 60:.0f} minutes")
    time.sleep(0.01)


# -- tensors ---------------------------------------------------------------------------------------


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place, with the same bits on each; ``tensor`` itself where there is one process.

    Raises:
        RankError: another process has ended.
    """
    return _reduced(tensor) if several() else tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over ranks, whose gradient reaches each rank's own part alone.

    So that gradients, which are averaged over ranks, are those of a function of the mean.
    """
    if not several():
        return tensor
    own = tensor.detach()
    return tensor + (all_reduce(own.clone()) / world() - own)


def gather(tensor: Tensor) -> Tensor:
    """Everybody's tensors one after the other along dimension 0, in the order of the ranks; of equal shapes.

    Raises:
        RankError: another process has ended.
    """
    if not several():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    with _connection():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def copy_first(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0; :func:`meet` before."""
    if several():
        for tensor in [*module.parameters(), *module.buffers()]:
            # Dense in the usual order, and no bits, which not every engine sends.
            plain = tensor.detach().contiguous()
            with _connection():
                dist.broadcast(plain.view(torch.uint8) if plain.dtype == torch.bool else plain, 0)
            tensor.detach().copy_(plain)


def _reduced(tensor: Tensor) -> Tensor:
    with _connection():
        dist.all_reduce(tensor)
    return tensor


# -- agreement -------------------------------------------------------------------------------------


def meet(facts: Mapping[str, Any] | None = None) -> None:
    """Wait until every rank is here and well, and sees the same ``facts``.

    Raises:
        RankError: another rank met an error.
        SpecError: a fact differs, by its name.
    """
    if not several():
        return
    found = _exchange(None, dict(facts or {}))
    for name in facts or {}:
        values = [each[name] for each in found]
        if any(value != values[0] for value in values):
            raise SpecError(
                f"{name}: differ between the processes, which have to see the same; start all of them alike"
            )


def first(make: Callable[[], _T]) -> _T:
    """What ``make()`` gives on rank 0, for all; the others wait for it, and for its error."""
    if not several():
        return make()
    with agreed():
        box = [make() if rank() == 0 else None]
    with _connection():
        dist.broadcast_object_list(box, 0, group=_control)
    return box[0]  # type: ignore[return-value]


@contextmanager
def files_of_first(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A folder with the files of these names, those that there are: ``folder`` itself for rank 0.

    The others get a copy that is gone afterwards: their machine need not share a file system with that of rank 0.
    """
    if not several():
        yield folder
        return

    def read() -> dict[str, bytes]:
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}

    held = first(read)
    if rank() == 0:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="varflow-") as copy:
        for name, content in held.items():
            path = Path(copy) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(copy)


def first_of(value: _T | None) -> _T | None:
    """The value of the lowest rank that has one."""
    if not several():
        return value
    values: list[Any] = [None] * world()
    with _connection():
        dist.all_gather_object(values, value, group=_control)
    return next((value for value in values if value is not None), None)


@contextmanager
def agreed() -> Iterator[None]:
    """An error on one rank inside becomes an error on all of them, at the end of the block or in :func:`meet`.

    Raises:
        RankError: on ranks that are well, where another is not.
    """
    try:
        yield
    except Exception as error:
        if several() and not getattr(error, "exchanged", False):
            _speak(error)
            _exchange(error, {})
        raise
    meet()


@contextmanager
def lockstep() -> Iterator[None]:
    """Inside, ranks wait for each other's tensors. One that fails by itself leaves, and the others notice.

    NonFiniteError is raised by all of them at once.
    """
    try:
        yield
    except (RankError, NonFiniteError) as error:
        _speak(error)
        raise
    except BaseException as error:
        if several():
            _speak(error)
            _leave()
        raise


def together(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function that every rank calls: it begins with :func:`join`, and its errors are agreed."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        join()
        with agreed():
            return function(*args, **kwargs)

    return call


def by_first(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function that every rank calls and rank 0 runs: see :func:`first`."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return first(lambda: function(*args, **kwargs))

    return call


def _exchange(error: Exception | None, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Everybody's facts, or RankError where one has an error instead."""
    found: list[Any] = [None] * world()
    with _connection():
        dist.all_gather_object(found, (error is None, facts), group=_control)
    well = [fine for fine, _ in found]
    if all(well):
        return [each for _, each in found]
    if error is None:
        other = RankError(f"process {well.index(False)} met an error, which it names itself")
        other.silent = other.exchanged = True
        raise other
    return []


def _speak(error: BaseException) -> None:
    """Decide whether this rank says what happened; the first that asks does."""
    if getattr(error, "exchanged", False):
        return
    if isinstance(error, VarflowError):
        error.silent = error.silent or not _voice()
        error.exchanged = True
    elif several():
        # Not one of varflow's own: Python prints its traceback.
        _voice()
        error.exchanged = True  # type: ignore[attr-defined]


def _voice() -> bool:
    if not several():
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("varflow/voice", 1) == 1)
    except RuntimeError:
        # The process that kept the store is gone.
        return True


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        ended = RankError(
            "another process of this run ended without a word (killed, or out of memory); what was saved last is "
            "kept, go on with --resume"
        )
        _speak(ended)
        raise ended from error


def _connected() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


def _leave() -> None:
    """Close the connections; whoever waits for this process gets an error."""
    global _control
    _control = None
    # Closing NCCL would wait for what is under way; the end of the process does it.
    if dist.is_initialized() and not torch.cuda.is_available():
        dist.destroy_process_group()
