"""Several processes that share one training: data parallel (DDP), sharded (FSDP); what each of them holds and sends.

:func:`start` joins the processes that ``torchrun`` or ``accelerate launch`` started and returns what
:func:`course_utils.training.fit` takes as ``processes=``. Each process (a *rank*) computes some rows of each batch; the
gradients are summed over all. With DDP each rank keeps all weights, gradients and optimizer states (Li et al., 2020);
with FSDP it keeps its share of each tensor and gathers the weights of a block when that block computes (Zhao et al.,
2023; stage 3 of ZeRO, Rajbhandari et al., 2020). :class:`Team` starts processes of this machine from a notebook.
"""

import contextlib
import copy
import datetime
import hashlib
import os
import pickle
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils import training
from course_utils.environment import _device, _profile
from course_utils.training import Batch, Loss, Processes, Value, each_tensor, whole
from course_utils.transformer import Transformer, TransformerConfig

STRATEGIES = ("ddp", "zero2", "fsdp")
"""All on each rank; weights gathered once a step, gradients and states in shares; everything in shares."""
GRACE_S = 2.0
"""How long the ranks look for each other after one was lost."""
PATIENCE_S = 30.0
"""How long a team waits for what the others say of a rank that was lost."""
BROKEN = r"gloo/|NCCL|[Cc]onnection|[Tt]imed out|Broken pipe"
"""How errors of the libraries read when another rank is gone."""
LAUNCH = "torchrun --standalone --nproc_per_node={0} ... or accelerate launch --multi_gpu --num_processes={0} ..."
COLLECTIVES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "broadcast_": "broadcast",
}
"""Names that PyTorch gives to the operations, and those of the literature."""
_joined: dict[str, Any] = {}


class RankLost(RuntimeError):
    """A rank has ended, or cannot be reached, before the work was done.

    Attributes:
        ranks: numbers of the lost ranks; empty where none was there yet.
        first: whether this process is the first of those left: the one that should say so.
    """

    def __init__(self, message: str, ranks: Sequence[int] = (), first: bool = True):
        super().__init__(message)
        self.ranks, self.first = list(ranks), first


# --- joining


def start(strategy: str | None = None, *, processes: int | None = None, timeout: float = 600.0) -> Processes:
    """Join the other processes that a launcher started, and return what ``fit(processes=...)`` takes.

    Reads the variables that ``torchrun``, ``accelerate launch`` and :class:`Team` set (``RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR``...), on one machine or many. On a GPU each rank takes the GPU of its local number.

    Args:
        strategy: one of :data:`STRATEGIES`; by default ``fsdp`` under ``accelerate launch --use_fsdp``, else ``ddp``.
        processes: how many there must be; by default any number.
        timeout: seconds that a rank waits for the others.

    Returns:
        A :class:`course_utils.training.Processes`; the plain one where this process is alone.

    Raises:
        ValueError: the strategy is unknown, or the number of processes is not the one that was asked for.
        RankLost: the others did not come.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if strategy is None:
        keeps = os.environ.get("FSDP_RESHARD_AFTER_FORWARD") == "false"
        strategy = ("zero2" if keeps else "fsdp") if os.environ.get("ACCELERATE_USE_FSDP") == "true" else "ddp"
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)}")
    if processes is not None and processes != world:
        raise ValueError(
            f"processes={processes}: {world} {'is' if world == 1 else 'are'} running. "
            f"Start them with {LAUNCH.format(processes)}"
        )
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= set(os.environ):
        raise ValueError(
            "accelerate launch was told of several processes and started one: that is what it does with --cpu. "
            f"Use {LAUNCH.format(2)} (without a GPU that starts processes on the CPU, whatever the option's name)"
        )
    if world == 1:
        return Processes()
    device = _device(None, _profile(None)) if os.environ.get("ACCELERATE_USE_CPU") != "True" else torch.device("cpu")
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(
                f"LOCAL_RANK={local}: this machine has {there} GPUs; start at most so many processes on it"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        wait = datetime.timedelta(seconds=timeout)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            _joined["store"], rank, _ = next(dist.rendezvous("env://", timeout=wait))
            dist.init_process_group(backend, store=_joined["store"], rank=rank, world_size=world, timeout=wait)
        except dist.DistError as error:
            raise RankLost(
                f"rank {os.environ['RANK']} of {world} found no others within {timeout:g} s: {error}"
            ) from None
    return DDP(device) if strategy == "ddp" else FSDP(device, keep_weights=strategy == "zero2")


class _Ranks(Processes):
    """What both strategies have in common."""

    def __init__(self, device: torch.device):
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device

    def computing(self, key: tuple[int, int], last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let each rank draw its own dropout, and leave the generators alike on all."""
        return self._drawing(f"{key} {self.rank}")

    @contextlib.contextmanager
    def _drawing(self, key: str) -> Iterator[None]:
        devices = [self.device] if self.device is not None and self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
            yield

    def rows(self, batch: Batch) -> tuple[Batch, float]:
        """Return this rank's consecutive rows of a batch, and their share of it.

        A rank for which there is no row gets the first one, with a share of 0: it has to take part.

        Raises:
            ValueError: the tensors do not have the same first dimension.
        """
        lengths: set[int] = set()

        def note(tensor: Tensor) -> Tensor:
            lengths.update(tensor.shape[:1])
            return tensor

        each_tensor(batch, note)
        if len(lengths) != 1:
            raise ValueError(
                f"a batch whose tensors have the first dimensions {sorted(lengths)} cannot be split over ranks; "
                f"expected the first dimension of each to count the examples"
            )
        count = lengths.pop()
        low, high = (count * rank // self.world for rank in (self.rank, self.rank + 1))
        share = (high - low) / count
        low, high = (low, high) if share else (0, 1)
        return each_tensor(batch, lambda tensor: tensor[low:high] if tensor.ndim else tensor), share

    def total(self, *values: float) -> list[float]:
        """Return the sums of these numbers over all ranks."""
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def agreed(self, make: Callable[[], Value]) -> Value:
        """Return on every rank what ``make`` returns on rank 0, or raise the error that it raises there."""
        box: list[Any] = [None]
        if self.rank == 0:
            try:
                box = [(make(), None)]
            except (ValueError, OSError) as error:
                box = [(None, error)]
        dist.broadcast_object_list(box, 0)
        value, problem = box[0]
        if problem is not None:
            raise problem
        return value

    def placed(self, tensor: Tensor | None, form: tuple[list[int], torch.dtype], like: Tensor | None) -> Tensor:
        """Return this rank's part of a tensor that rank 0 has."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        full = torch.empty(form[0], dtype=form[1]) if tensor is None else tensor.contiguous()
        dist.broadcast(full, 0)
        if not isinstance(like, DTensor):
            return full
        return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    @contextlib.contextmanager
    def _together(self, device: torch.device) -> Iterator[None]:
        """Begin alike, end at the same step when asked to, and say which rank was lost."""
        from course_utils import checkpoints

        def ask(number: int, frame: Any) -> None:
            self.asked = True

        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            checkpoints.set_generator_states(self.agreed(lambda: checkpoints.generator_states(device)), device)
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not re.search(BROKEN, str(error)):
                raise
            lost = self._lost()
            if not lost.ranks:
                raise
            raise lost from error
        finally:
            self.asked = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _lost(self) -> RankLost:
        """Look which ranks still answer, and say which do not and what to do."""
        store = dist.PrefixStore("lost", _joined["store"])
        missing = [rank for rank in range(self.world) if rank != self.rank]
        end = time.monotonic() + GRACE_S
        try:
            store.set(str(self.rank), "here")
            while missing and time.monotonic() < end:
                missing = [rank for rank in missing if not store.check([str(rank)])]
                time.sleep(0.02)
        except RuntimeError:  # rank 0 kept the store
            missing = [0]
        first = min(set(range(self.world)) - set(missing)) == self.rank
        if self.checkpoint:
            todo = f"the same command goes on from step {self.checkpoint[1]} ({self.checkpoint[0]})"
        else:
            todo = "start the same command again"
        return RankLost(f"rank {', '.join(map(str, missing))} of {self.world} was lost; {todo}", missing, first)


class DDP(_Ranks):
    """Every rank keeps everything; the gradients are summed in buckets while the backward pass runs."""

    _parallel: nn.parallel.DistributedDataParallel | None = None

    @contextlib.contextmanager
    def working(
        self, model: nn.Module, loss: Loss, device: torch.device, dtype: torch.dtype | None
    ) -> Iterator[tuple[nn.Module, Loss]]:
        """Give the model itself, with rank 0's weights, and a loss whose backward pass sums the gradients."""
        with self._together(device):
            # Wrapped is the loss, not the model: a loss may look at the model and call what it likes.
            self._parallel = parallel = nn.parallel.DistributedDataParallel(
                _WithLoss(model.to(device), loss), find_unused_parameters=True, gradient_as_bucket_view=True
            )
            parallel.require_forward_param_sync = False  # buffers are tables here, not statistics: alike from the start
            parallel.register_comm_hook(None, _summed)
            try:
                yield model, lambda _, batch: parallel(batch)
            finally:
                self._parallel = None

    @contextlib.contextmanager
    def computing(self, key: tuple[int, int], last: bool) -> Iterator[None]:
        """Sum the gradients after the last batch of a step only."""
        assert self._parallel is not None
        with super().computing(key, last), contextlib.nullcontext() if last else self._parallel.no_sync():
            yield


class FSDP(_Ranks):
    """Every rank keeps its share of each tensor; a block's weights are gathered when it computes.

    While the training runs, the model that was given is empty, and a sharded copy of it works; an error leaves it so.
    """

    def __init__(self, device: torch.device, keep_weights: bool = False):
        super().__init__(device)
        self.keep_weights = keep_weights

    @contextlib.contextmanager
    def working(
        self, model: nn.Module, loss: Loss, device: torch.device, dtype: torch.dtype | None
    ) -> Iterator[tuple[nn.Module, Loss]]:
        """Give a sharded copy of the model; its weights are gathered into the model at the end.

        Raises:
            ValueError: float16 (its loss scaling does not know of shares).
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if dtype is torch.float16:
            raise ValueError("dtype=torch.float16: not with sharded weights; use torch.bfloat16, or strategy='ddp'")
        with self._together(device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no block's result is changed in place
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), 0)
            same = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
            working = copy.deepcopy(model, same)  # new modules, the same weights in memory
            mesh = init_device_mesh(device.type, (self.world,))
            for part in [*blocks(working), working]:
                fully_shard(part, mesh=mesh, reshard_after_forward=not self.keep_weights)
            for part in working.modules():
                if isinstance(part, FSDPModule):
                    part.set_force_sum_reduction_for_comms(True)  # the sum over the ranks, not their mean
                    part.set_gradient_divide_factor(1.0)
            working.to(device)
            for parameter in model.parameters():
                parameter.data = parameter.data.new_empty(0)
            yield working, loss
            working.reshard()  # type: ignore[operator]
            with torch.no_grad():
                for parameter, share in zip(model.parameters(), working.parameters(), strict=True):
                    parameter.data = whole(share.detach()).to(parameter.device)
                for buffer, copied in zip(model.buffers(), working.buffers(), strict=True):
                    buffer.data = copied.data  # a table of positions may have grown


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Any:
        return self.loss(self.model, batch)


def _summed(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: the sum over the ranks (its own would be their mean)."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that FSDP gathers one at a time: the entries of the outermost module lists.

    Args:
        model: any module; in a Transformer they are its blocks.
    """
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return [block for block in found if any(True for _ in block.parameters())]


# --- processes of this machine


class Team:
    """Processes of this machine, joined by gloo over the loopback, that wait for functions to run.

    >>> with Team(2) as team:                        # doctest: +SKIP
    ...     team.run(ring_all_reduce, torch.ones(4))   # one result a rank

    What the ranks print is printed here after each call, rank by rank.
    """

    def __init__(self, processes: int = 2, *, timeout: float = 600.0):
        """Start the processes; each imports torch, which takes seconds.

        Args:
            processes: how many.
            timeout: seconds after which a call is given up.

        Raises:
            ValueError: the number of processes is no number of 1 or more.
        """
        if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
            raise ValueError(f"processes={processes!r}: expected a whole number of 1 or more")
        self.timeout, self._calls = timeout, 0
        self._folder = tempfile.TemporaryDirectory(prefix="course-team-")
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it outlives the ranks
        common = {
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "ACCELERATE_USE_CPU": "True", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        if sys.platform in ("linux", "darwin"):
            common["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
        self._ranks = []
        for rank in range(processes):
            with open(self._path(f"output.{rank}"), "wb") as output:
                child = subprocess.Popen(
                    [sys.executable, "-c", "from course_utils.distributed import _serve; _serve()"],
                    stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder.name,
                    env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )  # fmt: skip
            self._ranks.append(child)
        self._shown = [0] * processes

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, function: Callable[..., Value], *arguments: Any, **named: Any) -> list[Value]:
        """Call a function on every rank at the same time.

        Args:
            function: one of a module that can be imported (not of a notebook); ``runpy.run_path`` runs a script.
            *arguments: its arguments, the same on each rank.
            **named: likewise.

        Returns:
            What it returned, rank by rank.

        Raises:
            ValueError: the function cannot be found by its name in another process.
            RankLost: a rank ended on the way; the others are ended too, and the team with them.
            RuntimeError: the function raised an error on a rank; the message has its last line, the notes all.
            TimeoutError: it took too long.
        """
        if not self._ranks:
            raise ValueError("this team has ended; start another one: Team(2)")
        if getattr(function, "__module__", "__main__") == "__main__" or "<" in getattr(function, "__qualname__", "<"):
            raise ValueError(
                f"{function!r}: expected a function of a module that can be imported; another process does not have "
                f"what a notebook defines"
            )
        self._calls += 1
        self._path(f"{self._calls}.task").write_bytes(pickle.dumps((function, arguments, named)))
        for child in self._ranks:
            with contextlib.suppress(OSError):  # a rank that has ended is found below
                assert child.stdin is not None
                child.stdin.write(f"{self._calls}\n".encode())
                child.stdin.flush()
        try:
            answers = self._answers()
        except KeyboardInterrupt:
            self.close()
            raise
        self._show()
        if len(answers) < len(self._ranks):  # the others wait for a rank that raised an error
            self.close()
        for rank, (_, problem) in answers.items():
            if problem:
                error = RuntimeError(f"rank {rank}: {problem.strip().splitlines()[-1]}")
                error.add_note(problem)
                raise error
        return [answers[rank][0] for rank in range(len(answers))]

    def close(self) -> None:
        """End the processes. A call afterwards does nothing."""
        for child in self._ranks:
            child.kill()
            child.wait()
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        self._ranks = []
        self._folder.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _answers(self) -> dict[int, tuple[Any, str]]:
        """Wait for the answers: rank to (value, traceback); one is missing only where another rank raised an error."""
        answers: dict[int, tuple[Any, str]] = {}
        dead: dict[int, int] = {}
        end = time.monotonic() + self.timeout
        while len(answers) < len(self._ranks) and time.monotonic() < end:
            for rank, child in enumerate(self._ranks):
                code, path = child.poll(), self._path(f"{self._calls}.{rank}")
                if rank not in answers and path.exists():
                    answers[rank] = pickle.loads(path.read_bytes())
                elif code is not None and rank not in answers and rank not in dead:
                    dead[rank] = code
                    end = min(end, time.monotonic() + PATIENCE_S)  # time for the others to say what they saw
                failed = any(problem for _, problem in answers.values())
                if failed:  # the others may wait for this rank for ever
                    end = min(end, time.monotonic() + 2 * GRACE_S)
            if len(answers) + len(dead) == len(self._ranks):
                break
            time.sleep(0.01)
        if dead:
            self._show()
            self.close()
            how = ", ".join(f"rank {rank} {_ending(code)}" for rank, code in dead.items())
            seen = [problem.strip().splitlines()[-1].split(": ", 1)[-1] for _, problem in answers.values() if problem]
            raise RankLost(f"{how}. {f'A rank that was left says: {seen[0]}' if seen else ''}".strip(), list(dead))
        missing = [rank for rank in range(len(self._ranks)) if rank not in answers]
        if missing and not any(problem for _, problem in answers.values()):
            self._show()
            self.close()
            raise TimeoutError(f"rank {', '.join(map(str, missing))} gave no answer within {self.timeout:g} s")
        return answers

    def _show(self) -> None:
        for rank in range(len(self._ranks)):
            text = self._path(f"output.{rank}").read_bytes()
            new, self._shown[rank] = text[self._shown[rank] :].decode(errors="replace"), len(text)
            for line in new.splitlines():
                print(f"[rank {rank}] {line}")


def run(function: Callable[..., Value], *arguments: Any, processes: int = 2, timeout: float = 600.0) -> list[Value]:
    """Call a function once on several processes of this machine: a :class:`Team` for one call.

    Args:
        function: as for :meth:`Team.run`.
        *arguments: its arguments.
        processes: how many.
        timeout: seconds after which it is given up.

    Returns:
        What it returned, rank by rank.
    """
    with Team(processes, timeout=timeout) as team:
        return team.run(function, *arguments)


def fit(model: nn.Module, dataset: Any, strategy: str = "ddp", **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    """Train on all ranks of a team: ``team.run(distributed.fit, model, dataset, "fsdp", steps=20)``.

    Args:
        model: as for :func:`course_utils.training.fit`, as the next.
        dataset: likewise.
        strategy: one of :data:`STRATEGIES`.
        **settings: as for :func:`course_utils.training.fit`.

    Returns:
        The history, and the weights by their names.
    """
    history = training.fit(model, dataset, processes=start(strategy), progress=False, **settings)
    return history, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Drill:
    """A fire drill: as ``on_step`` of a training it kills one rank after one step, as a broken machine would.

    Attributes:
        rank: which one.
        step: after which step.
    """

    rank: int
    step: int

    def __call__(self, step: int, model: nn.Module, loss: float) -> None:
        """Kill this process if it is its turn."""
        if step == self.step and dist.get_rank() == self.rank:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _serve() -> None:
    """What a process of a team does: join the others, then run what it is told until its input ends."""
    start()
    for line in sys.stdin:
        number, rank = line.strip(), os.environ["RANK"]
        try:
            function, arguments, named = pickle.loads(Path(f"{number}.task").read_bytes())
            answer = pickle.dumps((function(*arguments, **named), ""))
        except Exception:
            answer = pickle.dumps((None, traceback.format_exc()))
        Path(f"{number}.{rank}.tmp").write_bytes(answer)
        os.replace(f"{number}.{rank}.tmp", f"{number}.{rank}")
    os._exit(0)  # without the farewells of the process group, for which the others may not be there


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


# --- collectives by hand, and what is sent and held


def ring_all_reduce(values: Float[Tensor, " numbers"]) -> tuple[Tensor, int]:
    """Sum a tensor over the ranks, each of which sends only to the next one (Patarasuk and Yuan, 2009).

    The tensor is cut into as many parts as there are ranks. In ``world - 1`` rounds each rank passes on the part that
    it added to last, after which each has one finished part; in as many rounds again the finished parts go round.

    Args:
        values: this rank's numbers; on each rank the same count.

    Returns:
        The sum, and the bytes that this rank sent: ``2 (world - 1) / world`` of the tensor.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    parts, sent = [part.clone() for part in values.tensor_split(world)], 0
    for turn in range(2 * (world - 1)):
        out, into = parts[(rank - turn) % world], parts[(rank - turn - 1) % world]
        received = torch.empty_like(into)
        sending = dist.isend(out, (rank + 1) % world)
        dist.recv(received, (rank - 1) % world)
        assert sending is not None
        sending.wait()
        sent += out.nbytes
        into.copy_(into + received if turn < world - 1 else received)
    return torch.cat(parts), sent


def summed(rows: Float[Tensor, "ranks numbers"], ring: bool = True) -> tuple[Tensor, int | None]:
    """Sum the rows over the ranks, of which each has its own row only.

    Args:
        rows: one row a rank.
        ring: by :func:`ring_all_reduce`; else by the library's all-reduce.

    Returns:
        The sum, and the bytes that this rank sent over its connections; None where the system does not tell.
    """
    mine = rows[dist.get_rank()].clone()
    dist.barrier()
    before = sent_bytes()
    if ring:
        mine = ring_all_reduce(mine)[0]
    else:
        dist.all_reduce(mine)
    dist.barrier()  # what was sent has left
    after = sent_bytes()
    return mine, None if before is None or after is None else after - before


def sent_bytes() -> int | None:
    """Return the bytes that this process has sent over its TCP connections; None where the system does not tell.

    Linux counts them (``tcpi_bytes_sent`` of ``TCP_INFO``). Connections that were closed no longer count.
    """
    if sys.platform != "linux":
        return None
    total = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own is gone by now
            if not stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(number))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                    information = connection.getsockopt(socket.IPPROTO_TCP, 11, 256)  # 11: TCP_INFO
                    total += struct.unpack_from("Q", information, 200)[0]
    return total


class Traffic(TorchDispatchMode):
    """Counts the collective operations of this process, and the bytes of the tensors that they work on.

    Attributes:
        calls: operation to number of calls: ``all-reduce``, ``all-gather``, ``reduce-scatter``, ``broadcast``.
        bytes: operation to bytes of the whole tensors (for all-gather that of the result, for reduce-scatter that of
            the input).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a collective operation, and run it."""
        name = COLLECTIVES.get(function.__name__.split(".")[0]) if function.namespace == "c10d" else None
        if name:
            tensors = [value for part in args for value in (part if isinstance(part, list) else [part])]
            size = max(value.nbytes for value in tensors if isinstance(value, Tensor))
            self.calls[name] = self.calls.get(name, 0) + 1
            self.bytes[name] = self.bytes.get(name, 0) + size
        return function(*args, **(kwargs or {}))

    def sent(self, world: int) -> int:
        """Return what a ring sends for it from each rank: ``(world - 1) / world`` of each tensor, all-reduce twice.

        Args:
            world: number of ranks.
        """
        twice = self.bytes.get("all-reduce", 0) * 2
        return (twice + self.bytes.get("all-gather", 0) + self.bytes.get("reduce-scatter", 0)) * (world - 1) // world


@dataclass(frozen=True)
class Held:
    """What one rank holds, in bytes of what lies in its memory."""

    weights: int
    gradients: int
    states: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.states


def held(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Held:
    """Count the bytes of a model's weights and gradients, and of the optimizer's states, on this rank.

    Args:
        model: the model; of sharded tensors this rank's part counts.
        optimizer: its optimizer.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
    states = [value for state in (optimizer.state.values() if optimizer else ()) for value in state.values()]
    # What FSDP gathered stands in the model, while its shares stand in the optimizer.
    weights = {id(parameter): parameter for parameter in [*model.parameters(), *trained]}.values()
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    return Held(_bytes(weights), _bytes(gradients), _bytes(states))


def _bytes(tensors: Any) -> int:
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors)


@dataclass(frozen=True)
class Step:
    """What one rank held and sent in one training step.

    Attributes:
        forward: held when the forward pass ends.
        backward: held when the gradients are complete, before the update.
        calls: collective operations, by name; two of the all-reduces are of a few numbers (losses, signals).
        traffic: bytes of the tensors that they worked on, by name.
        predicted: bytes that rings would send from this rank for them.
        sent: bytes that this rank did send over its connections; None where the system does not tell.
    """

    forward: Held
    backward: Held
    calls: dict[str, int]
    traffic: dict[str, int]
    predicted: int
    sent: int | None


def measure(strategy: str, config: TransformerConfig, batch: int = 8, tokens: int = 16) -> Step:
    """Train a Transformer for two steps, and return what this rank held and sent in the second.

    To be called on all ranks: ``team.run(measure, "fsdp", config)``.

    Args:
        strategy: one of :data:`STRATEGIES`.
        config: the model.
        batch: rows of the whole batch.
        tokens: tokens a row.
    """
    ranks = start(strategy)
    torch.manual_seed(0)
    model, data = Transformer(config), torch.randint(config.vocabulary_size, (batch, tokens))
    optimizers: list[torch.optim.Optimizer] = []
    moments: dict[str, Held] = {}
    traffic, sent = Traffic(), sent_bytes()

    def loss(model: nn.Module, rows: Batch) -> tuple[Tensor, Tensor]:
        result = training.next_token_loss(model, rows)
        moments["forward"] = held(model, *optimizers)
        return result

    def before_update(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        optimizers[:] = [optimizer]
        moments["backward"] = held(nn.Module(), optimizer)

    def after_step(step: int, model: nn.Module, value: float) -> None:
        nonlocal sent
        if step == 1:
            sent = sent_bytes()
            traffic.__enter__()
        else:
            traffic.__exit__(None, None, None)
            sent = sent_bytes() - sent if sent is not None else None  # type: ignore[operator]

    hook = register_optimizer_step_pre_hook(before_update)
    try:
        training.fit(
            model, lambda number: {"input_ids": data}, steps=2, loss=loss, on_step=after_step, progress=False,
            processes=ranks,
        )  # fmt: skip
    finally:
        hook.remove()
    return Step(**moments, calls=traffic.calls, traffic=traffic.bytes, predicted=traffic.sent(ranks.world), sent=sent)
