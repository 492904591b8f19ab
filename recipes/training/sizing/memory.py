"""Estimate of the memory that one process of a run needs at its worst moment, by what needs it; nothing is run.

A step is followed through its passes: activations grow until the last layer and shrink on the way back, gradients grow
on the way back (and stay, from the second pass of a step on), then the optimiser works. The worst moment of these is
the estimate. What each op keeps is counted in `activations.py`.

Not counted: the context of the device and its libraries (about 0.5 to 1 GiB on CUDA), and what the allocator loses
between tensors (a few per cent).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medmo_core.losses.chunked_head import DENSE_LOGITS
from medmo_core.models.medmo import MedMO
from medmo_core.modules.blocks import blocks_of

from ...settings.run_config import RunConfig
from ..distributed.sharding import kept_whole
from ..optim.adam import BUCKET, HALVES
from ..optim.adam_8bit import BLOCK, has_8bit_moments
from ..optim.adam_bf16 import CHUNK
from ..optim.muon import BATCH
from ..optim.optimizer import is_hidden_matrix
from .activations import BatchShape, gradient_bytes, stages
from .ledger import Device, MemoryStage

PARTS = ("weights", "gradients", "optimiser", "vision", "projector", "decoder", "head", "working")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its worst moment."""

    parts: dict[str, int]
    """By PARTS: "vision" to "head" are kept activations, "working" is what lives only at that moment."""
    moment: str
    """When that is."""
    device: Device
    """Kind of device whose code was counted."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """Say how much and of what, in two lines."""
        unit, name = (2**30, "GiB") if self.total >= 2**30 else (2**20, "MiB")
        shown = ", ".join(f"{part} {size / unit:.2f}" for part, size in self.parts.items() if size)
        code = "CUDA with liger-kernel" if self.device == "cuda" else "the CPU"
        decimal = f" ({self.total / 1e9:.1f} GB)" if self.total >= 2**30 else ""
        total = f"{self.total / unit:.2f} {name}{decimal}"
        return f"memory per process, ESTIMATED, not measured, for {code}: {total} {self.moment}\n  {shown}"


def estimate(
    model: MedMO, config: RunConfig, shape: BatchShape, *, processes: int = 1, passes: int = 1, device: Device
) -> Memory:
    """Estimate the memory of one process.

    Args:
        model: model of which what trains has been chosen; may be on the meta device.
        config: the run.
        shape: shape of the largest packed batch of a pass.
        processes: number of processes of the run.
        passes: forward passes of one process in a step.
        device: kind of device whose code will run.

    Returns:
        The worst moment from the second step on, when the optimiser's state exists.
    """
    settings, shards = config.model, 1
    if config.parallel.shard:
        shards = max(1, processes // config.parallel.replicas)
    sharded, whole = _divide(model, config)
    matrices = hidden_matrices(model)

    def state(parameters: Sequence[Tensor]) -> int:
        trained = [p for p in parameters if p.requires_grad]
        return sum(state_bytes(p, config.optim.kind, is_matrix=id(p) in matrices) for p in trained)

    element = next(model.parameters()).element_size()
    width = 2 if config.parallel.shard and config.parallel.compute_dtype == "bfloat16" else element
    done = stages(
        model,
        shape,
        device=device,
        width=width,
        recompute_text=settings.recompute_text,
        recompute_vision=settings.recompute_vision,
        dense_logits=DENSE_LOGITS,
        fused_head=device == "cuda" and config.stage != "reinforce",  # Liger returns no log-probabilities
    )
    fixed = {
        "weights": _bytes(sharded) // shards + _bytes(whole),
        "optimiser": state(sharded) // shards + state(whole),
    }
    trained = gradient_bytes(sharded) // shards + gradient_bytes(whole)
    gathered = _gathered(model, config, width) if shards > 1 else 0
    moments = [*_backward_moments(done, trained if passes > 1 else None, shards, gathered)]
    moments.append(("in the optimiser's step", _step(model, {id(p) for p in whole}, shards, config)))
    moment, parts = max(moments, key=lambda item: sum(item[1].values()))
    parts = {**fixed, **parts}
    return Memory({part: parts.get(part, 0) for part in PARTS}, moment, device)


def _backward_moments(
    done: Sequence[MemoryStage], all_gradients: int | None, shards: int, gathered: int
) -> list[tuple[str, dict[str, int]]]:
    """Return each stage's worst moment on the way back: what is still kept, and the gradients there are so far."""
    moments = []
    for index in reversed(range(len(done))):
        stage = done[index]
        kept: dict[str, int] = {}
        for earlier in done[: index + 1]:
            kept[earlier.part] = kept.get(earlier.part, 0) + earlier.kept
        later = sum(s.gradients for s in done[index + 1 :]) // shards
        working = stage.again + stage.working + gathered
        if all_gradients is not None:  # this pass's gradients come beside those there are, a few at a time
            later = all_gradients
        moments.append((f"in the backward pass of {stage.name}", {**kept, "gradients": later, "working": working}))
        after = {part: size - stage.kept * (part == stage.part) for part, size in kept.items()}
        later = all_gradients if all_gradients is not None else later + stage.gradients // shards
        moments.append((f"after the backward pass of {stage.name}", {**after, "gradients": later, "working": gathered}))
    return moments


def _divide(model: MedMO, config: RunConfig) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that are sharded, if any are, and those that every process then holds whole."""
    whole = kept_whole(model, config.parallel) if config.parallel.shard else set()
    return [p for p in model.parameters() if p not in whole], [p for p in model.parameters() if p in whole]


def _gathered(model: MedMO, config: RunConfig, width: int) -> int:
    """Return the bytes of weights that a pass gathers at one time: the running block and the next, and what stays."""
    blocks = blocks_of(model.decoder)
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = [p for p in _divide(model, config)[0] if id(p) not in inside]
    # A block's whole gradient lives beside its weights until it is summed over the processes, in fp32.
    return width * (2 * largest + sum(p.numel() for p in rest)) + largest * (width + 4)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def hidden_matrices(model: MedMO) -> set[int]:
    """Return the ids of the parameters that are matrices of hidden layers."""
    return {id(p) for name, p in model.named_parameters() if is_hidden_matrix(name, p)}


def state_bytes(parameter: Tensor, kind: str, *, is_matrix: bool) -> int:
    """Return the bytes of an optimiser's state of one parameter, a matrix of a hidden layer or another."""
    numbers = parameter.numel()
    if kind == "muon" and is_matrix:
        return numbers * (8 if parameter.dtype in HALVES else parameter.element_size())
    if kind in ("adamw", "muon"):
        return numbers * (12 if parameter.dtype in HALVES else 2 * parameter.element_size())
    if kind == "adamw_bf16":
        return 4 * numbers
    return 2 * (numbers + 4 * numbers // BLOCK) if has_8bit_moments(parameter) else 8 * numbers


def _step(model: MedMO, whole: set[int], shards: int, config: RunConfig) -> dict[str, int]:
    """Return the worst moment of the optimiser's step, which frees gradients as it goes from parameter to parameter."""
    trained = [p for p in model.parameters() if p.requires_grad]
    numbers = [p.numel() // (1 if id(p) in whole else shards) for p in trained]
    left = sum(n * p.element_size() for n, p in zip(numbers, trained, strict=True))
    if config.optim.kind in ("adamw", "muon"):  # 16-bit gradients are widened, many at a time
        matrices = hidden_matrices(model) if config.optim.kind == "muon" else set()
        rest = zip(numbers, trained, strict=True)
        widened = sum(n for n, p in rest if p.dtype in HALVES and id(p) not in matrices)
        # Gradient, momentum ahead, whole and in a batch, direction and two products of Newton and Schulz.
        largest = max((p.numel() for p in trained if id(p) in matrices), default=0)
        working = 24 * max(largest, min(BATCH, sum(p.numel() for p in trained if id(p) in matrices)))
        return {"gradients": left, "working": max(4 * min(BUCKET, widened), working)}
    # fp32 weight, gradient, two moments and denominator, and random bits; 64-bit codes while a moment is quantised.
    moments = []
    for count, parameter in zip(numbers, trained, strict=True):
        quantised = config.optim.kind == "adamw_8bit" and has_8bit_moments(parameter)
        moments.append({"gradients": left, "working": (57 if quantised else 24) * min(CHUNK, count)})
        left -= count * parameter.element_size()
    return max(moments, key=lambda parts: sum(parts.values()))
