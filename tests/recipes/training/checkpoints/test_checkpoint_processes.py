"""Checkpoints of several processes: each number is written once, and any number of processes reads it back."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from medmo_recipes.settings.run_config import Optim, RunConfig
from medmo_recipes.training.checkpoints import shard_writer
from medmo_recipes.training.checkpoints.checkpoints import Checkpoints, Resumed
from medmo_recipes.training.checkpoints.manifest import CheckpointError
from medmo_recipes.training.checkpoints.shard_reader import read_model
from medmo_recipes.training.distributed.world import connect
from medmo_recipes.training.optim.optimizer import Optimizer

CONFIG = RunConfig(stage="align", name="test")
KINDS = {"one": (1, False), "copies": (2, False), "shards": (2, True)}
"""How a run is laid over processes: their number, and whether its weights are sharded."""
Whole = dict[str, Tensor]


def make(seed: int, shard: bool) -> tuple[nn.Module, Optimizer]:
    """Return parts that do not divide by two, one too small to, one frozen and left whole; moments as after steps."""
    torch.manual_seed(seed)
    net = nn.ModuleDict({"odd": nn.Linear(6, 5), "row": nn.Linear(4, 1), "frozen": nn.Linear(3, 3)})
    net["frozen"].requires_grad_(False)
    if shard:
        fully_shard(net["odd"])
        fully_shard(net["row"])
    optimizer = Optimizer(net, Optim(), 10)
    for index, tensor in enumerate(optimizer.state_tensors().values()):
        whole = torch.full(tensor.shape, 10.0 * index) + torch.arange(tensor.numel()).view(tensor.shape)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        rank = torch.distributed.get_rank() if isinstance(tensor, DTensor) else 0
        parts = whole.chunk(2) if isinstance(tensor, DTensor) else [whole]
        if rank < len(parts):
            local.copy_(parts[rank] + seed)
    return net, optimizer


def whole(net: nn.Module, optimizer: Optimizer) -> Whole:
    named = {**dict(net.named_parameters()), **optimizer.state_tensors()}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in named.items()}


def save(folder: Path, shard: bool, in_background: bool = True) -> Whole:
    with connect("cpu", shard=shard) as world:
        net, optimizer = make(0, shard)
        torch.manual_seed(100 + world.rank)
        store = Checkpoints(folder, world, in_background=in_background)
        store.save(1, CONFIG, net, optimizer, shared={"cursor": 7}, own={"rank": world.rank})
        store.wait()
        assert store.all()  # finished in every process, not only in the one that finishes it
        return whole(net, optimizer)


def load(folder: Path, shards: tuple[bool, ...]) -> list[tuple[Whole, Resumed, Tensor]]:
    """Load into each kind of run in turn."""
    results = []
    with connect("cpu", shard=True) as world:
        for shard in shards:
            net, optimizer = make(1, shard)
            torch.manual_seed(200 + world.rank)
            resumed, _ = Checkpoints(folder, world).load_newest(net, optimizer)
            results.append((whole(net, optimizer), resumed, torch.rand(())))
    return results


@pytest.mark.parametrize("writer", KINDS)
def test_any_number_of_processes_reads_it(tmp_path: Path, run_processes: Callable[..., Any], writer: str) -> None:
    size, shard = KINDS[writer]
    written = run_processes(lambda: save(tmp_path, shard), size)[0]
    drawn = [torch.rand((), generator=torch.Generator().manual_seed(100 + rank)) for rank in range(size)]
    for reader_size, shards in ((1, (False,)), (2, (False, True))):
        results = run_processes(lambda shards=shards: load(tmp_path, shards), reader_size)
        for rank, (found, resumed, draw) in ((rank, one) for rank, each in enumerate(results) for one in each):
            assert found.keys() == written.keys()
            for name in written:
                assert torch.equal(found[name], written[name]), name
            assert (resumed.step, resumed.shared) == (1, {"cursor": 7})
            # Each process goes on for itself; fewer go on for those that are no more, too.
            assert resumed.own == [{"rank": r} for r in range(rank, size, reader_size)]
            new = torch.rand((), generator=torch.Generator().manual_seed(200 + rank))
            assert torch.equal(draw, drawn[rank] if rank < size else new)
    weights = read_model(tmp_path / "checkpoints" / "step-000001")
    assert all(torch.equal(tensor, written[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("shard", [True, False])
def test_each_number_is_written_once(tmp_path: Path, run_processes: Callable[..., Any], shard: bool) -> None:
    written = run_processes(lambda: save(tmp_path, shard))[0]
    folder = tmp_path / "checkpoints" / "step-000001"
    numbers: dict[str, int] = {}
    writers: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                numbers[name] = numbers.get(name, 0) + file.get_tensor(name).numel()
                writers.setdefault(name, set()).add(path.name.split("-")[1])
    assert numbers == {name if ":" in name else f"model:{name}": tensor.numel() for name, tensor in written.items()}
    assert set().union(*writers.values()) == {"0", "1"}  # copies too are divided among the processes
    assert len(writers["model:odd.weight"]) == (2 if shard else 1) and len(writers["model:frozen.weight"]) == 1
    assert {f"process-{rank}.json" for rank in range(2)} <= json.loads((folder / "manifest.json").read_text())[
        "files"
    ].keys()


@pytest.mark.parametrize("failing", [0, 1])
def test_all_fail_where_one_cannot_write(
    tmp_path: Path, run_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    run_processes(lambda: save(tmp_path, True))
    write_shards = shard_writer.write_shards

    def write_or_fail(path: Path, *rest: Any) -> Any:
        if path.name.startswith(f"tensors-{failing}-"):
            raise OSError("No space left on device")
        return write_shards(path, *rest)

    monkeypatch.setattr(shard_writer, "write_shards", write_or_fail)

    def try_to_save() -> str:
        with connect("cpu", shard=True) as world:
            store = Checkpoints(tmp_path, world, in_background=True)
            store.save(2, CONFIG, *make(0, True))
            with pytest.raises(CheckpointError) as error:
                store.wait()
            return str(error.value)

    said = run_processes(try_to_save)
    assert said == [f"step-000002 could not be saved: process {failing}: No space left on device"] * 2
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000001"]


def test_damage_that_one_process_finds_is_known_to_all(tmp_path: Path, run_processes: Callable[..., Any]) -> None:
    run_processes(lambda: save(tmp_path, True))
    path = next((tmp_path / "checkpoints" / "step-000001").glob("tensors-1-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    def try_to_load() -> str:
        with connect("cpu", shard=True) as world:
            with pytest.raises(CheckpointError) as error:
                Checkpoints(tmp_path, world).load_newest(*make(1, True))
            return str(error.value)

    first, second = run_processes(try_to_load)
    assert first == second and "tensors-1-0.safetensors has the checksum" in first


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_process_frozen_in_a_save_is_named_within_the_time_limit(
    tmp_path: Path, run_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, frozen: int
) -> None:
    write_shards, thaw = shard_writer.write_shards, tmp_path / "thaw"

    def write_or_wait(path: Path, *rest: Any) -> Any:
        while path.name.startswith(f"tensors-{frozen}-") and not thaw.exists():
            time.sleep(0.01)
        return write_shards(path, *rest)

    monkeypatch.setattr(shard_writer, "write_shards", write_or_wait)

    def try_to_save() -> str:
        with connect("cpu", shard=True) as world:
            store = Checkpoints(tmp_path, world, in_background=True, timeout_s=2)
            store.save(1, CONFIG, *make(0, True))
            with pytest.raises(CheckpointError) as error:
                store.wait()
            thaw.touch()
            return str(error.value)

    said = run_processes(try_to_save, timeout_s=60)[1 - frozen]
    assert said.startswith(f"step-000001 could not be saved: the files of process {frozen} are missing, which is gone,")
    assert "parallel.timeout_s" in said and not list((tmp_path / "checkpoints").glob("step-*"))
