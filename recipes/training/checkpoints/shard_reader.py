"""Read the tensors of a distributed checkpoint into a run, or whole, after checking that they are the ones wanted."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from .manifest import CheckpointError, find_damage
from .shard_writer import expect_no_group
from .state import MODEL


def read_tensors(path: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Fill `tensors`, sharded in whatever way, with those of a checkpoint; every process of the group calls this.

    Args:
        path: a checkpoint's folder.
        tensors: name -> tensor, written in place.
        group: the processes; None: this one alone.

    Raises:
        CheckpointError: the checkpoint has other names, shapes or types.
    """
    reader = dcp.HuggingFaceStorageReader(str(path))
    _compare(path, tensors, stored_tensors(reader))
    _load(path, reader, tensors, group)


def stored_tensors(reader: dcp.HuggingFaceStorageReader) -> dict[str, TensorStorageMetadata]:
    """Return name -> whole shape and type of every tensor of a checkpoint; only headers are read."""
    metadata = reader.read_metadata().state_dict_metadata
    return {name: data for name, data in metadata.items() if isinstance(data, TensorStorageMetadata)}


def read_model(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, whole, by parameter name; one process calls this.

    Raises:
        CheckpointError: the folder is incomplete or changed.
    """
    if damage := find_damage(path):
        raise CheckpointError(f"{path}: {damage}; choose another step")
    reader = dcp.HuggingFaceStorageReader(str(path))
    weights = {
        name.removeprefix(MODEL): torch.empty(data.size, dtype=data.properties.dtype)
        for name, data in stored_tensors(reader).items()
        if name.startswith(MODEL)
    }
    _load(path, reader, {MODEL + name: weight for name, weight in weights.items()}, None)
    return weights


def _load(
    path: Path, reader: dcp.HuggingFaceStorageReader, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    expect_no_group()
    try:
        dcp.load(dict(tensors), storage_reader=reader, planner=planner, process_group=group, no_dist=group is None)
    except dcp.CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"{path} could not be read: process {rank}: {cause}") from cause


def _compare(path: Path, here: Mapping[str, Tensor], there: Mapping[str, TensorStorageMetadata]) -> None:
    """Refuse a checkpoint whose tensors are not the run's: other names, shapes or types."""
    for part, hint in (
        ("model", "set the model and lora sections as they were, or start a new run from its exported weights"),
        ("optimizer", "set model.trainable, lora, optim.kind and model.dtype as they were"),
    ):
        ours, theirs = ({n for n in names if n.startswith(MODEL) == (part == "model")} for names in (here, there))
        odd = {"only there": theirs - ours, "only here": ours - theirs}
        if any(odd.values()):
            counts = ", ".join(f"{len(names)} {where}, as {min(names)}" for where, names in odd.items() if names)
            raise CheckpointError(f"{path}: holds another {part}'s tensors ({counts}); {hint}")
    for name, tensor in here.items():
        stored = there[name]
        if stored.size != tensor.shape or stored.properties.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: {name} is {tuple(stored.size)} {stored.properties.dtype}, "
                f"here {tuple(tensor.shape)} {tensor.dtype}; set the model section as it was"
            )
