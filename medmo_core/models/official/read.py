"""Read official checkpoints: safetensors in one file or in shards, tensor by tensor into a model built on `meta`.

Each tensor is copied straight from the file's memory map into its final place, cast on the way, so the host never
holds more than the model itself. Every name and shape is checked before the first byte is copied: a model is filled
completely or stays as it is. Pickle files are never opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...nearest import nearest_name
from .folder import Checkpoint, listed, open_checkpoint, opened
from .names import CONFIG_FILE

OfficialName = Callable[[str], str | None]
LocalRows = Callable[[Tensor], tuple[Tensor, slice]]
"""Parameter -> the memory of it that this process has, and which rows of the whole parameter that holds."""


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    official_name: OfficialName | None = None,
    local_rows: LocalRows | None = None,
) -> None:
    """Fill a model, built on the meta device or not, from a checkpoint.

    A parameter on the meta device is given memory on `device`; one that already has memory is overwritten where it
    is. Tied parameters stay tied. Peak host memory is the model plus nothing: file pages are mapped, not copied.

    Args:
        model: its parameter names are official names.
        checkpoint: folder that `open_checkpoint` has read.
        dtype: cast floating tensors to it; None keeps each tensor's own.
        device: where meta parameters are materialised.
        official_name: maps a name in the file to the model's name, None for a tensor that the model has no use for;
            None (the default): Qwen3-VL's names.
        local_rows: rows of each parameter that this process holds, where parameters lie in parts on several processes:
            only these are read. None: all of everything.

    Raises:
        ValueError: names are missing or left over, or a shape differs. Nothing has been written then.
    """
    tensors = _named_tensors(model)
    rename = official_name or _qwen3_vl_names(checkpoint.files)
    sources = {name: rename(name) for name in checkpoint.files}
    wanted = {source: target for source, target in sources.items() if target is not None}
    _drop_redundant_head(tensors, wanted, checkpoint)
    _check_names(tensors, wanted, checkpoint)
    for source, target in wanted.items():
        _check_shape(source, target, checkpoint, tuple(tensors[target].shape))
    slots = _slots(model)
    with torch.no_grad():
        for path, names in _by_file(wanted, checkpoint).items():
            with opened(path) as file:
                for source in names:
                    target = tensors[wanted[source]]
                    if local_rows is None:
                        _place(file.get_tensor(source), target, slots, dtype, device)
                    else:
                        _read_rows(file, source, *local_rows(target))


def load_encoder(encoder: nn.Module, path_or_hub_id: str | Path, *, revision: str | None = None) -> None:
    """Overwrite an encoder's weights with those of a transformers checkpoint of its family.

    Args:
        encoder: encoder with `official_name(name) -> str | None`; for a fused encoder call this once for each tower.
        path_or_hub_id: folder or hub id of, for instance, a SigLIP2 or a DINOv2 model (vision tower alone or the
            whole model; text towers, pooling heads and mask tokens are left out).
        revision: branch, tag or commit on the hub.

    Raises:
        TypeError: the encoder does not say which official names are its own.
        ValueError: names or shapes do not fit.
    """
    official_name = getattr(encoder, "official_name", None)
    if official_name is None:
        raise TypeError(
            f"{type(encoder).__name__} does not map official names; load its towers one by one (`encoder.towers`)"
        )
    checkpoint = open_checkpoint(path_or_hub_id, revision=revision)
    device = next(encoder.parameters()).device
    load_weights(encoder, checkpoint, device=device, official_name=official_name)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything a checkpoint must hold: parameters (tied ones once) and persistent buffers."""
    names = {id(tensor): name for name, tensor in reversed(list(model.state_dict(keep_vars=True).items()))}
    tensors = model.state_dict(keep_vars=True)
    return {name: tensors[name] for name in sorted(names.values())}


def _qwen3_vl_names(files: Iterable[str]) -> OfficialName:
    """Official names are the model's own; a checkpoint of the headless base model lacks the leading `model.`."""
    headless = not any(name.startswith("model.") for name in files)
    return lambda name: f"model.{name}" if headless and name.startswith(("visual.", "language_model.")) else name


def _drop_redundant_head(tensors: dict[str, Tensor], wanted: dict[str, str], checkpoint: Checkpoint) -> None:
    """Some writers store a tied head as well; it may be left out only when it is the embedding, bit for bit."""
    head, embedding = "lm_head.weight", "model.language_model.embed_tokens.weight"
    if head in tensors or head not in wanted or embedding not in wanted:
        return
    with opened(checkpoint.files[head]) as a, opened(checkpoint.files[embedding]) as b:
        same = torch.equal(a.get_tensor(head), b.get_tensor(embedding))
    if not same:
        raise InputError(
            f"{checkpoint.folder}: {CONFIG_FILE} ties the head to the embedding, but {head} differs from {embedding}; "
            "set tie_word_embeddings to false there to use it"
        )
    del wanted[head]


def _check_names(tensors: dict[str, Tensor], wanted: dict[str, str], checkpoint: Checkpoint) -> None:
    missing = sorted(set(tensors) - set(wanted.values()))
    unexpected = sorted(source for source, target in wanted.items() if target not in tensors)
    if not missing and not unexpected:
        return
    lines = [f"{checkpoint.folder}: the checkpoint's tensors are not this model's"]
    for title, names, others in (
        ("missing", missing, [source for source in unexpected]),
        ("unexpected", unexpected, missing or sorted(tensors)),
    ):
        if not names:
            continue
        lines.append(f"  {len(names)} {title}: {listed(names)}")
        near = nearest_name(names[0], others[:5000])
        if near:
            lines.append(f"    nearest to {names[0]} is {near} in the {'file' if title == 'missing' else 'model'}")
    lines.append(f"  does {CONFIG_FILE} describe these weights?")
    raise InputError("\n".join(lines))


def _check_shape(source: str, target: str, checkpoint: Checkpoint, expected: tuple[int, ...]) -> None:
    found = checkpoint.shapes[source]
    if found != expected:
        raise InputError(
            f"{checkpoint.files[source]}: {source} is {list(found)}, the model's {target} is {list(expected)}; "
            f"does {CONFIG_FILE} describe these weights?"
        )


def _by_file(wanted: dict[str, str], checkpoint: Checkpoint) -> dict[Path, list[str]]:
    groups: dict[Path, list[str]] = {}
    for source in wanted:
        groups.setdefault(checkpoint.files[source], []).append(source)
    return groups


def _slots(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place in the module tree where a tensor hangs, by the tensor's identity (tied ones hang in several)."""
    slots: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                slots.setdefault(id(tensor), []).append((module, leaf))
    return slots


def _read_rows(file: Any, source: str, memory: Tensor, rows: slice) -> None:
    """Read some rows of a tensor into `memory`; a process may have none."""
    if memory.numel():
        memory.copy_(file.get_slice(source)[rows] if memory.ndim else file.get_tensor(source))


def _place(
    source: Tensor,
    target: Tensor,
    slots: dict[int, list[tuple[nn.Module, str]]],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Copy one mapped tensor to where it belongs; `copy_` casts without a second full-size tensor."""
    if not target.is_meta:
        target.copy_(source)
        return
    kept = dtype if dtype is not None and source.is_floating_point() else source.dtype
    filled = torch.empty(source.shape, dtype=kept, device=device)
    filled.copy_(source)
    if isinstance(target, nn.Parameter):
        filled = nn.Parameter(filled, requires_grad=target.requires_grad)
    for module, leaf in slots[id(target)]:
        setattr(module, leaf, filled)
