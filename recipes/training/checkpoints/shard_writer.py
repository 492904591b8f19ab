"""The files of a distributed checkpoint: torch's DCP plans who writes which shard, safetensors hold them.

The layout is the one of DCP's own safetensors files (each header says where in the whole tensor a shard begins), so
DCP's reader puts them together for any number of processes. The writer here differs in three ways: it never holds more
than one tensor beside what it is given, sums each file while it is written, and keeps no pickled `.metadata`.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from medmo_core.durable import final_of, flush, write_bytes

from .manifest import THREADS, CheckpointError, FileSum

FILE_BYTES = 2**29  # a file is closed once it holds so much; files are written, summed and checked side by side
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    tensors: Mapping[str, Tensor], local: Mapping[str, Tensor], writer: "ShardWriter", group: dist.ProcessGroup | None
) -> None:
    """Write a run's tensors, each number once; every process of the group calls this, in any thread.

    Args:
        tensors: name -> tensor; what is sharded is written by the processes that hold it, whole copies by one of them.
        local: name -> values of this process's part.
        writer: where to.
        group: the processes; None: this one alone.

    Raises:
        CheckpointError: a process failed; nothing was finished.
    """
    planner = LocalPlanner(tensors, local)
    expect_no_group()
    try:
        # The planner has the tensors already; DCP would log each of them by name.
        dcp.save({}, storage_writer=writer, planner=planner, process_group=group, no_dist=group is None)
    except dcp.CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        name = final_of(writer.folder).name
        raise CheckpointError(f"{name} could not be saved: process {rank}: {cause}") from cause
    except RuntimeError as error:
        if group is None:
            raise
        raise CheckpointError(_who_is_missing(writer.folder, group.size())) from error


def _who_is_missing(folder: Path, size: int) -> str:
    """Say whose files a save is without that its processes did not end together."""
    missing = [str(rank) for rank in range(size) if not (folder / own_file(rank)).exists()]
    name = final_of(folder).name
    if not missing:
        return f"{name} could not be saved: every process wrote its files, but one stopped answering after that"
    return (
        f"{name} could not be saved: the files of process {', '.join(missing)} are missing, which is gone, frozen or "
        "slower than parallel.timeout_s allows"
    )


def own_file(rank: int) -> str:
    """Return the name of the file that holds a process's own values, and shows that its tensors are written."""
    return f"process-{rank}.json"


def expect_no_group() -> None:
    """Keep DCP from warning that one process alone has no process group."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class LocalPlanner(dcp.DefaultSavePlanner):
    """Planner that divides the tensors of the run, but writes the values of local parts given apart (their copies)."""

    def __init__(self, tensors: Mapping[str, Tensor], local: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._tensors, self._local = dict(tensors), local

    def set_up_planner(
        self, state_dict: Mapping[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the run's tensors in place of what DCP hands over."""
        super().set_up_planner(self._tensors, storage_meta, is_coordinator)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._local[index.fqn]


class ShardWriter(dcp.StorageWriter):
    """Writer of this process's shards and its own values; the first process then finishes the folder.

    Args:
        folder: the folder to fill, on a file system that all processes share; emptied first.
        rank: this process.
        own: JSON values of this process, written to process-RANK.json.
        finish: function called in the first process when all have written, with every file and its sum.
    """

    def __init__(
        self, folder: Path, *, rank: int, own: Mapping[str, Any], finish: Callable[[dict[str, FileSum]], None]
    ) -> None:
        self.folder, self.rank, self.own = folder, rank, own
        self._finish = finish

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder; only the first process does this, before any writes."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of an interrupted attempt
        self.folder.mkdir(parents=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the planned shards; returns one result per file."""
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"{self.folder}: made by the first process, not seen by process {self.rank}; "
                "train.out_dir must be on a file system that all nodes share"
            )
        files: dict[str, Callable[[Path], FileSum]] = {}
        for number, items in enumerate(split_items(plan.items)):
            name = f"tensors-{self.rank}-{number}.safetensors"
            files[name] = lambda path, items=items: write_shards(path, items, planner)
        with ThreadPoolExecutor(THREADS) as pool:
            sums = pool.map(lambda name: files[name](self.folder / name), files)
            results = [WriteResult(MetadataIndex(n), s.size, s) for n, s in zip(files, sums, strict=True)]
        name = own_file(self.rank)
        own = _write_bytes(self.folder / name, json.dumps(self.own).encode())
        results.append(WriteResult(MetadataIndex(name), own.size, own))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Hand over what all processes wrote; only the first process does this."""
        self._finish({result.index.fqn: result.storage_data for own in results for result in own})

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer serves one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the process is known already."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether the id could be a folder."""
        return isinstance(checkpoint_id, str | os.PathLike)


def split_items(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """Divide items into files, widest types first so that each tensor is aligned, each file up to FILE_BYTES."""
    files: list[list[WriteItem]] = [[]]
    filled = 0
    for item in sorted(items, key=lambda item: (-_data(item)[0].itemsize, item.index.fqn)):
        size = _num_bytes(item)
        if files[-1] and filled + size > FILE_BYTES:
            files.append([])
            filled = 0
        files[-1].append(item)
        filled += size
    return files


def write_shards(path: Path, items: Sequence[WriteItem], planner: SavePlanner) -> FileSum:
    """Write one safetensors file, tensor by tensor, to the disk.

    Returns:
        Its size and checksum.
    """
    header: dict[str, Any] = {}
    offset = 0
    for item in items:
        dtype, shape, _ = _data(item)
        if dtype not in DTYPE_NAMES:
            raise TypeError(f"{item.index.fqn}: {dtype} has no place in a safetensors file")
        end = offset + _num_bytes(item)
        header[item.index.fqn] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    begins = {item.index.fqn: {"saved_offsets": _data(item)[2]} for item in items}
    header["__metadata__"] = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(begins)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for item in items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor) and list(tensor.shape) == _data(item)[1]
            numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(numbers)
            digest.update(numbers)
    flush(path)
    return FileSum(8 + len(text) + offset, digest.hexdigest())


def _write_bytes(path: Path, content: bytes) -> FileSum:
    write_bytes(path, content)
    return FileSum(len(content), hashlib.sha256(content).hexdigest())


def _data(item: WriteItem) -> tuple[torch.dtype, list[int], list[int]]:
    """Return dtype, shape and place in the whole tensor of an item's values."""
    data = item.tensor_data
    assert data is not None  # every value of a run's state is a tensor
    return data.properties.dtype, list(data.chunk.sizes), list(data.chunk.offsets)


def _num_bytes(item: WriteItem) -> int:
    dtype, shape, _ = _data(item)
    return int(torch.Size(shape).numel()) * dtype.itemsize
