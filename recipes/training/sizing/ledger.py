"""Bookkeeping of one module's activations: which tensors its backward pass reads, under names, and who made them."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from medmo_core.choices import Recompute

Device = Literal["cpu", "cuda"]
"""Kind of device whose code runs: the CPU's, or Triton and Liger."""


@dataclass
class MemoryStage:
    """One module of the forward pass, and what it costs until its backward pass is done."""

    part: str
    """"vision", "projector", "decoder" or "head"."""
    name: str
    kept: int = 0
    """Bytes from its forward pass to its backward pass."""
    again: int = 0
    """Bytes that its backward pass computes again and holds."""
    working: int = 0
    """Most bytes of gradients of activations, and of other intermediates, at one time of its backward pass."""
    gradients: int = 0
    """Bytes of the gradients of its parameters."""


class Ledger:
    """Tensors of one block by name: what its backward pass reads, and which of them products have made."""

    def __init__(self, width: int, device: Device, flows: bool) -> None:
        self.width, self.device, self.flows = width, device, flows
        self.read: dict[str, int] = {}
        self.products: dict[str, int] = {}
        self.wide = max(4, width)
        """Bytes of a number in which norms and softmax work."""

    def keep(self, name: str, numbers: int, width: int | None = None) -> None:
        """Count a tensor that the backward pass reads."""
        self.read[name] = numbers * (self.width if width is None else width)

    def linear(self, layer: Any, source: str, result: str, rows: int) -> None:
        """Count a linear layer, with its adapter if it has one: a weight that trains reads the layer's input."""
        base = getattr(layer, "base_layer", layer)
        inputs, outputs = base.in_features, base.out_features
        self.products[result if base is layer else f"{result} base"] = rows * outputs * self.width
        if base is not layer:
            ((adapter, rank),) = layer.r.items()  # by peft's name for the one adapter there is
            dropout = getattr(layer.lora_dropout[adapter], "p", 0.0)
            if dropout == 0:
                self.keep(source, rows * inputs)
            else:
                self.keep(f"{result} dropped", rows * inputs)
                self.keep(f"{result} mask", rows * inputs, 1 if self.device == "cuda" else self.width)
            self.keep(f"{result} low rank", rows * rank)
            self.products[f"{result} low rank"] = rows * rank * self.width
            self.products[f"{result} adapted"] = rows * outputs * self.width
            if adapter in layer.lora_magnitude_vector:
                self.keep(f"{result} direction", rows * outputs)
                self.keep(f"{result} adapted", rows * outputs)
        elif base.weight.requires_grad:
            self.keep(source, rows * inputs)

    def rms_norm(self, layer: nn.Module, source: str, rows: int, dim: int) -> None:
        """Count a root-mean-square norm."""
        if not self.flows and not layer.weight.requires_grad:  # type: ignore[union-attr]
            return
        if self.device == "cuda":  # the input and one number a row
            self.keep(source, rows * dim)
            return
        # torch computes it in fp32 or wider: a copy of a 16-bit input, and the normalised rows for the weight.
        self.keep(source if self.width >= 4 else f"{source} wide", rows * dim, self.wide)
        if cast(Tensor, layer.weight).requires_grad:
            self.keep(f"{source} normal", rows * dim, self.wide)

    def stage(self, part: str, name: str, recompute: Recompute, source: str, numbers: int) -> MemoryStage:
        """Sum up: what is kept, and what is computed again, when the block keeps only its input or products too."""
        stage = MemoryStage(part, name)
        if not self.read:
            return stage
        if recompute == "nothing":
            stage.kept = sum(self.read.values())
            return stage
        kept = {source: numbers * self.width} | (self.products if recompute == "selected" else {})
        stage.kept = sum(kept.values())
        stage.again = sum(size for tensor, size in self.read.items() if tensor not in kept)
        return stage
