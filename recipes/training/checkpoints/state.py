"""State of a process that a checkpoint stores: tensors of model and optimiser by name, random generators, host copies.

Tensors are called "KIND:PARAMETER": "model:..." for weights and saved buffers, and the optimiser's own kinds
("exp_avg:...", "master:...").
"""

import random
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..distributed.shards import local_part, reshard

MODEL = "model:"


class KeepsTensors(Protocol):
    """An optimiser, as far as checkpoints know it."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return its state by name; writing into the tensors changes it."""
        ...


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every distinct weight and saved buffer once, under its first name; a tied head is its embedding."""
    reshard(model)
    tensors = {MODEL + name: p.detach() for name, p in model.named_parameters()}
    saved = model.state_dict().keys()
    tensors.update({MODEL + name: b.detach() for name, b in model.named_buffers() if name in saved})
    return tensors


def run_tensors(model: nn.Module, optimizer: KeepsTensors) -> dict[str, Tensor]:
    """Return the tensors of a run; writing into them changes model and optimiser."""
    return model_tensors(model) | {name: tensor.detach() for name, tensor in optimizer.state_tensors().items()}


def frozen_names(model: nn.Module) -> set[str]:
    """Return the names of tensors that no step changes."""
    return {MODEL + name for name, p in model.named_parameters() if not p.requires_grad}


class HostCopies:
    """Buffers on the host that a run's tensors are copied to, so that they can be written while training goes on.

    They are kept between saves (pinned under CUDA, where copies then run at the speed of the bus) and take as much
    memory as the process's own part of what trains: 12 to 14 bytes a parameter with AdamW in fp32, divided by the
    processes where sharded.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor], constant: Collection[str]) -> dict[str, Tensor]:
        """Return each tensor's local part as it is now.

        Args:
            tensors: name -> tensor; copied, and valid until the next call.
            constant: names of tensors that never change; passed on as they are.
        """
        taken: dict[str, Tensor] = {}
        device = torch.device("cpu")
        for name, tensor in tensors.items():
            local = local_part(tensor)
            taken[name] = local
            if name in constant:
                continue
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
                self._buffers[name] = buffer
            taken[name] = buffer.copy_(local, non_blocking=True)
            device = local.device if local.is_cuda else device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return taken


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's and torch's generators as JSON values."""
    version, numbers, gauss = random.getstate()
    states = {"python": [version, list(numbers), gauss], "torch": _to_text(torch.get_rng_state())}
    if device.type == "cuda":
        states["cuda"] = _to_text(torch.cuda.get_rng_state(device))
    return states


def set_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Bring the generators to where `generator_states` found them."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(_from_text(states["torch"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_from_text(states["cuda"]), device)


def _to_text(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_text(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
