"""One supervised step of one global batch in 1 and in 2 processes, beside torch's DistributedDataParallel.

Each process takes its share of the micro-batches, and gradients are summed once a step; DistributedDataParallel (DDP)
sums them while its last backward pass runs, with the same model, documents and optimiser. Processes are started before,
and a call is a step: all are asked to take it, all have answered. On a CPU each has one thread, so that two of them are
twice the machine; on GPUs each has one.

The first two steps, loss and gradient norm, must be those of one process in float64 (on GPUs, where the 4B model does
not fit in float64, of one process alone in the same type).
"""

import functools
import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medmo_core.batch import Batch
from medmo_core.models.medmo import MedMO
from medmo_core.models.targets import learned_positions
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.distributed.sharding import prepare
from medmo_recipes.training.distributed.world import World, connect
from medmo_recipes.training.loading.loader import train_loader
from medmo_recipes.training.loading.skipped import SkippedSamples
from medmo_recipes.training.loading.sources import load_mixture
from medmo_recipes.training.loop.fit import train_step
from medmo_recipes.training.loop.run import Run
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import choose_trainable
from medmo_recipes.training.optim.optimizer import Optimizer

from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from ..suite.schema import Check

DOCUMENTS, MICRO_BATCH = 4, 2
DDP = "torch DDP"
CHECKED_STEPS = 2
BOUND = {"cpu": 1e-4, "cuda": 5e-2}
"""Relative: fp32 against float64; bf16 against bf16 summed in another order."""
TIMEOUT_S = 120.0
"""For any answer of a process; building the 4B model is the longest."""
SQUARE_PX = 1280 * 1280

Figures = tuple[float, float]
"""Loss and gradient norm."""
Step = Callable[[int], Figures]
"""Take step number so and so (0-based)."""


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return a comparison for each number of processes."""
    config = new_config(device, short)
    truth = functools.cache(partial(one_process, config))
    return [comparison(size, config, truth) for size in ((2,) if short else (1, 2))]


def comparison(size: int, config: RunConfig, truth: Callable[[], list[Figures]]) -> Comparison:
    """Compare in so many processes."""
    device = config.train.device
    cuda = device == "cuda"
    gpus = torch.cuda.device_count() if cuda else size
    absent = f"needs {size} GPUs, here are {gpus}" if gpus < size else ""
    pool = Shared(partial(Pool, size, config))
    ways = [Way(OURS, partial(_ready, OURS, pool, truth, device), "ours", absent),
            Way(DDP, partial(_ready, DDP, pool, truth, device), absent=absent)]  # fmt: skip
    where = f"{size} process{'es' if size > 1 else ''}{'' if cuda else ' of one thread'}"
    case = f"{'4B' if cuda else 'toy'}, SFT step of {DOCUMENTS} documents, {where}"
    work = {"step": Work(items=DOCUMENTS, unit="documents")}
    return Comparison(
        "recipes", "processes", case, config.model.dtype, ("step",), ways, work,
        seconds=1.0, apart=cuda, axis="processes", at=size,
    )  # fmt: skip


def new_config(device: torch.device, short: bool) -> RunConfig:
    """Return the run whose steps are taken: a stage's own settings, on documents of the embedded data."""
    config = CONFIGS["debug_instruct" if short else "tiny_instruct"]()
    if device.type == "cuda":
        config = CONFIGS["medmo_4b_instruct"]().change(
            model={"init": "medmo-4b"}, parallel={"shard": False}, optim={"kind": "adamw_bf16"},
            data={"min_pixels": SQUARE_PX, "max_pixels": SQUARE_PX, "num_workers": 0},
        )  # fmt: skip
    return config.change(
        data={"sources": {"embedded:grounding": 1.0}},
        optim={"lr": 1e-3, "schedule": "constant", "warmup_ratio": 0.0},
        train={"docs_per_step": DOCUMENTS, "micro_batch": MICRO_BATCH, "device": device.type, "num_threads": 1},
    )


def _ready(way: str, pool: Shared["Pool"], truth: Callable[[], list[Figures]], device: str) -> Ready:
    """Let the processes take the first steps, and compare what each says of them."""
    first, processes = truth(), pool()
    found = [processes.step(way) for _ in range(CHECKED_STEPS)]
    error = max(
        abs(figure - expected) / abs(expected)
        for answers, step in zip(found, first, strict=True)
        for answer in answers
        for figure, expected in zip(answer, step, strict=True)
    )
    check = Check("loss and gradient norm of one process", error, BOUND[device])
    return Ready({"step": lambda: processes.step(way)}, check)


class Pool:
    """Processes that stay and take steps together; they end with this object, or with the process that made it.

    Args:
        size: number of processes.
        config: whose steps they take.
    """

    def __init__(self, size: int, config: RunConfig) -> None:
        # The meeting place is ours, as it is the launcher's under torchrun: it picks a free port itself.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._taken: dict[str, int] = {}
        context = multiprocessing.get_context("forkserver")  # safe beside threads and CUDA
        context.set_forkserver_preload([__name__])  # imported once for all
        self._links: list[Connection] = []
        self._processes: list[BaseProcess] = []
        weakref.finalize(self, _end, self._processes, self._links)
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (theirs, config, rank, size, self._store.port)
            process = context.Process(target=_serve, args=arguments, name=f"process {rank} of {size}", daemon=True)
            process.start()
            theirs.close()  # so that its end closes with it
            self._processes.append(process)
            self._links.append(ours)

    def step(self, way: str) -> list[Figures]:
        """Let all take the next step of a way; returns what each says of it.

        Raises:
            RuntimeError: a process failed; the message holds its traceback.
            TimeoutError: one does not answer.
        """
        number = self._taken.get(way, 0)
        self._taken[way] = number + 1
        for link in self._links:
            link.send((way, number))
        answers: dict[Connection, Figures] = {}
        while len(answers) < len(self._links):
            # Whichever speaks first: one that failed keeps the others from answering.
            ready = wait([link for link in self._links if link not in answers], TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"no answer in {TIMEOUT_S:g} s from {len(self._links) - len(answers)} processes")
            answers |= {link: self._answer(link) for link in cast(list[Connection], ready)}
        return [answers[link] for link in self._links]

    def _answer(self, link: Connection) -> Figures:
        process = self._processes[self._links.index(link)]
        try:
            figures, failure = link.recv()
        except (EOFError, OSError) as error:
            process.join(1.0)
            raise RuntimeError(f"{process.name} ended with status {process.exitcode}") from error
        if failure:
            raise RuntimeError(f"{failure.splitlines()[-1]} (in {process.name})\n{failure}")
        return cast(Figures, figures)


def _end(processes: Sequence[BaseProcess], links: Sequence[Connection]) -> None:
    """End processes; what they are doing is given up."""
    for process in processes:
        process.kill()
    for process, link in zip(processes, links, strict=False):
        process.join()
        link.close()


def _serve(link: Connection, config: RunConfig, rank: int, size: int, port: int) -> None:
    """Take steps until the other end closes, as a process that torchrun has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run is asked to end, and ends this
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    train = config.train
    steps: dict[str, Step] = {}
    try:
        with connect(train.device, num_threads=train.num_threads, shard=True, timeout_s=TIMEOUT_S) as world:
            while True:
                try:
                    way, number = link.recv()
                except (EOFError, OSError):
                    os._exit(0)  # at once: taking the group down would wait for the others
                if way not in steps:
                    steps[way] = new_steps(way, config, world)
                link.send((steps[way](number), ""))
    except Exception:
        link.send((None, traceback.format_exc()))
    os._exit(1)


def one_process(config: RunConfig) -> list[Figures]:
    """Take the first steps of a run in this process, on a CPU in float64."""
    device = torch.device(config.train.device)
    step = new_steps(OURS, config, World(0, 1, device), torch.float64 if device.type == "cpu" else None)
    return [step(number) for number in range(CHECKED_STEPS)]


def new_steps(way: str, config: RunConfig, world: World, dtype: torch.dtype | None = None) -> Step:
    """Make model, optimiser and this process's batches; returns what takes a step with them.

    Args:
        way: ours or DDP.
        config: config of the run.
        world: the processes.
        dtype: the weights are turned into, once they are drawn; None: left as they are.
    """
    kit = load_kit(config, world.device)
    model = kit.model if dtype is None else kit.model.to(dtype)
    choose_trainable(config, model)
    prepare(model, config, world)
    optimizer = Optimizer(model, config.optim, config.train.steps)
    # All that a step asks of a run: no folder, no log.
    parts = SimpleNamespace(config=config, world=world, kit=kit, optimizer=optimizer, skipped=SkippedSamples(None))
    run = cast(Run, parts)
    mixture = load_mixture(config.data, seed=config.train.seed)
    loader = train_loader(config, mixture.draw, kit.processor, world, run.skipped)
    batches = loader.step(0, look_ahead=False)
    loader.close()
    if way == DDP:
        return _ddp_step(model, optimizer, batches, world)

    def step(number: int) -> Figures:
        result = train_step(run, batches, model.token_losses, number)
        return result.loss, result.grad_norm

    return step


class _Loss(nn.Module):
    """The summed loss of a batch as a forward pass, which DDP wants it to be."""

    def __init__(self, model: MedMO) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return the sum over target tokens."""
        return self.model.token_losses(batch).total


def _ddp_step(model: MedMO, optimizer: Optimizer, batches: Sequence[Batch], world: World) -> Step:
    parallel = DistributedDataParallel(_Loss(model))

    def step(number: int) -> Figures:
        learned = sum(len(learned_positions(batch)) for batch in batches)
        targets = world.sum(torch.tensor(float(learned)))
        total = torch.zeros((), device=world.device)
        for index, batch in enumerate(batches):
            with nullcontext() if index + 1 == len(batches) else parallel.no_sync():
                loss = parallel(batch.to(world.device, non_blocking=True))
                (loss * (world.size / targets.item())).backward()  # DDP divides by the processes
            total += loss.detach()
        norm, _ = optimizer.step(number)
        return float(world.sum(total) / targets.item()), norm

    return step
