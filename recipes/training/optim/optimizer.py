"""The optimiser of a run: what trains, in groups with rates of their own, clipped by one norm, moved by one rule.

`optim.kind` names the rule. "adamw" keeps moments in fp32, and under bfloat16 weights an fp32 master copy: a bfloat16
weight has 8 significant bits, and an update below 1/512 of it would vanish. "adamw_bf16" and "adamw_8bit" round at
random instead (`adam_bf16.py`, `adam_8bit.py`) and keep 8 and about 6 bytes a parameter, weight and gradient included.
"muon" (`muon.py`) moves the matrices of hidden layers by another rule, with one moment in fp32.

Gradients have the type of the weights. Under bfloat16 every micro-batch after the first is added in bfloat16, which
rounds the sum by up to 1/512 of it each time: in the noise for the few passes of a step, and the reason to prefer few
large passes to many small ones. Over processes sharded gradients are summed in fp32.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...settings.run_config import ConfigError, Optim
from ..distributed.shards import sharded_dims
from ..model.parts import NO_FACTOR, NameFactor
from .adam import Hyper, Rule, TrainedParameter, WideAdamW, squared_norms
from .adam_8bit import QuantisedAdamW
from .adam_bf16 import RoundingAdamW
from .muon import Muon

RULES: dict[str, Callable[[], Rule]] = {
    "adamw": WideAdamW,
    "adamw_bf16": RoundingAdamW,
    "adamw_8bit": QuantisedAdamW,
    "muon": Muon,
}
"""`optim.kind` -> rule."""


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """Return the rate of optimiser step `step` (0-based) out of `steps`: linear warm-up, then the schedule."""
    warmup = round(optim.warmup_ratio * steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - warmup) / max(1, steps - warmup)
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


TABLES = ("embed_tokens", "pos_embed", "position_embedding", "cls_token", "register_tokens")
"""Words in the names of parameters that are looked up or added, whatever their shape."""


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices that multiply activations, not to norms, biases or embeddings."""
    return parameter.ndim >= 2 and not any(word in name for word in TABLES)


HEAD = "lm_head"


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix of a hidden layer."""
    return parameter.ndim == 2 and decays(name, parameter) and HEAD not in name


class Optimizer:
    """The rule of `optim.kind` on the trainable parameters of a model, by name.

    Args:
        model: model whose parameters with requires_grad are optimised; sharded before, and what trains chosen before.
        optim: settings of the section.
        steps: optimiser steps of the whole run, for the schedule.
        lr_scale: factors on the rate (`optim.lr_scale`, resolved by `name_factor`).
        weight_decay_scale: factors on the decay (`optim.weight_decay_scale`).
        seed: seed of random rounding, the run's.

    Raises:
        ConfigError: nothing trains, or the kind needs bfloat16 weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: Optim,
        steps: int,
        lr_scale: NameFactor = NO_FACTOR,
        weight_decay_scale: NameFactor = NO_FACTOR,
        *,
        seed: int = 0,
    ) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise ConfigError("model.trainable: nothing trains: no parameter requires a gradient")
        check_types(self.named.items(), optim)
        self.optim, self.steps, self.seed = optim, steps, seed
        self._groups = {name: lr_scale.words(name) for name in self.named}
        self._rule = RULES[optim.kind]()
        self._parts = {
            name: TrainedParameter(
                name,
                parameter,
                lr_scale=lr_scale(name),
                weight_decay=optim.weight_decay * weight_decay_scale(name) if decays(name, parameter) else 0.0,
                is_matrix=is_hidden_matrix(name, parameter),
            )
            for name, parameter in self.named.items()
        }
        self._rate = learning_rate(0, steps, optim)
        # Not the run's step: one that teaches nothing takes no step here. A float, as torch's optimisers count.
        self._taken = torch.zeros((), dtype=torch.float64)
        self._is_allocated = False

    def allocate(self) -> None:
        """Make the whole state exist, as it is before the first step; the first step does it otherwise."""
        if not self._is_allocated:
            with torch.no_grad():
                for part in self._parts.values():
                    self._rule.allocate(part)
        self._is_allocated = True

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the global norm: every number of every parameter once, on whichever processes it lies."""
        gradients = {name: p.grad for name, p in self.named.items() if p.grad is not None}
        squares = squared_norms(gradients)
        total = torch.zeros((), dtype=torch.float64)
        for division, square in squares.items():
            if division is not None:
                mesh, placements = division
                for dim in sharded_dims(placements):  # replicas hold the same numbers: not counted again
                    dist.all_reduce(square, group=mesh.get_group(dim))
            total = total.to(square.device) + square
        return total.sqrt()

    @torch.no_grad()
    def step(self, step: int) -> tuple[float, float]:
        """Clip, update and clear the gradients; a parameter without a gradient has one of zero.

        Args:
            step: 0-based number of this optimiser step, for the schedule.

        Returns:
            (gradient norm before clipping, learning rate).

        Raises:
            FloatingPointError: the gradient norm is not finite; no weight has changed.
        """
        norm = float(self.gradient_norm())
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm}")
        self.allocate()
        clip = min(1.0, self.optim.clip_norm / (norm + 1e-6)) if self.optim.clip_norm else 1.0
        self._rate = learning_rate(step, self.steps, self.optim)
        self._taken += 1
        hyper = Hyper(count=int(self._taken), betas=self.optim.betas, eps=self.optim.eps, clip=clip, seed=self.seed)
        self._rule.update(list(self._parts.values()), self._rate, hyper)
        return norm, self._rate

    def rates(self) -> dict[str, float]:
        """Return the rates of the last step: "lr", and "lr/encoder" and so on for what has its own factor."""
        rates = {"lr": self._rate}
        for name, words in self._groups.items():
            if words:
                rates["lr/" + "+".join(words)] = self._rate * self._parts[name].lr_scale
        return rates

    def zero_grad(self) -> None:
        """Free all gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return "KIND:parameter name" -> tensor, in the memory of the state; sharded like the parameters.

        A checkpoint is read into these tensors.

        The number of steps taken, one for all, has the name of the first parameter.
        """
        self.allocate()
        tensors = {f"steps:{next(iter(self._parts))}": self._taken}
        for name, part in self._parts.items():
            tensors |= {f"{kind}:{name}": part.whole(tensor) for kind, tensor in part.state.items()}
        return tensors


def check_types(named: Iterable[tuple[str, Tensor]], optim: Optim) -> None:
    """Refuse weights that a kind of optimiser does not take.

    Raises:
        ConfigError: names a parameter and the settings that fit.
    """
    if optim.kind in ("adamw", "muon"):
        return
    for name, parameter in named:
        if parameter.dtype != torch.bfloat16:
            raise ConfigError(
                f"optim.kind={optim.kind} rounds bfloat16 weights, and {name} is {describe_types([parameter])}; "
                "set model.dtype=bfloat16 or optim.kind=adamw"
            )


def describe_types(parameters: Iterable[Tensor]) -> str:
    """Return the types of some parameters, as model.dtype spells them."""
    return " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
