"""AdamW over what trains: decay groups, warm-up and cosine, fp32 master weights under bfloat16.

A bfloat16 weight has 8 significant bits: an update below 1/256 of it vanishes. For bfloat16 models the optimiser
therefore keeps an fp32 copy of each trainable weight, updates that, and rounds once per step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .config import Optim

HELD_IN_FP32 = (torch.bfloat16, torch.float16)


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """Return the rate of optimiser step `step` (0-based) out of `steps`: linear warm-up, then the schedule."""
    warmup = round(optim.warmup_ratio * steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - warmup) / max(1, steps - warmup)
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices that multiply activations, not to norms, biases or embeddings."""
    return parameter.ndim >= 2 and "embed_tokens" not in name and "pos_embed" not in name


class Optimizer:
    """AdamW on the trainable parameters of a model, by name.

    Args:
        model: its parameters with requires_grad are optimised; call after the choice of what trains.
        optim: the numbers.
        steps: optimiser steps of the whole run, for the schedule.
        lr_scale: parameter name -> factor on the rate (from `optim.lr_scale`, resolved by the caller).

    Raises:
        ValueError: nothing trains.
    """

    def __init__(
        self, model: nn.Module, optim: Optim, steps: int, lr_scale: Callable[[str], float] = lambda name: 1.0
    ) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise ValueError("nothing trains: no parameter requires a gradient")
        self.optim, self.steps = optim, steps
        self._updated: dict[str, nn.Parameter] = {}  # what AdamW holds: the parameter, or its fp32 master
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named.items():
            held = parameter
            if parameter.dtype in HELD_IN_FP32:
                held = nn.Parameter(parameter.detach().float())
            self._updated[name] = held
            key = (optim.weight_decay if decays(name, parameter) else 0.0, lr_scale(name))
            groups.setdefault(key, []).append(held)
        plain = not any(isinstance(p, DTensor) for p in self.named.values())
        self._adamw = torch.optim.AdamW(
            [{"params": p, "weight_decay": decay, "lr_scale": scale} for (decay, scale), p in groups.items()],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            fused=plain,  # one pass over memory; sharded tensors take the foreach form
        )

    def gradient_norm(self) -> Tensor:
        """Return the global norm over all parameters and, for sharded ones, over all processes (fp32 or wider)."""
        squares: dict[bool, list[Tensor]] = {True: [], False: []}  # sharded or not
        for parameter in self.named.values():
            gradient = parameter.grad
            if gradient is None:
                continue
            wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            squares[isinstance(gradient, DTensor)].append(torch.linalg.vector_norm(local, dtype=wide).square())
        total = torch.stack(squares[False]).sum() if squares[False] else torch.zeros(())
        if squares[True]:
            sharded = torch.stack(squares[True]).sum()
            if dist.get_world_size() > 1:
                dist.all_reduce(sharded)
            total = total.to(sharded.device) + sharded
        return total.sqrt()

    @torch.no_grad()
    def step(self, step: int) -> tuple[float, float]:
        """Clip, update and clear the gradients.

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
        scale = min(1.0, self.optim.clip_norm / (norm + 1e-6)) if self.optim.clip_norm else 1.0
        for name, parameter in self.named.items():
            if parameter.grad is None:
                continue
            held = self._updated[name]
            if held is not parameter:
                held.grad, parameter.grad = parameter.grad.to(held.dtype), None
            if scale < 1:
                assert held.grad is not None
                held.grad.mul_(scale)
        rate = learning_rate(step, self.steps, self.optim)
        for group in self._adamw.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self._adamw.step()
        for name, parameter in self.named.items():
            if self._updated[name] is not parameter:
                parameter.copy_(self._updated[name])
        self.zero_grad()
        return norm, rate

    def zero_grad(self) -> None:
        """Free all gradients."""
        for name, parameter in self.named.items():
            parameter.grad = None
            self._updated[name].grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return "KIND:parameter name" -> tensor: moments, step counts and master weights."""
        tensors: dict[str, Tensor] = {}
        for name, held in self._updated.items():
            if held is not self.named[name]:
                tensors[f"master:{name}"] = held.detach()
            for kind, value in self._adamw.state.get(held, {}).items():
                tensors[f"{kind}:{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` returned, in place.

        Raises:
            ValueError: a parameter that trains here did not train there (or the other way round).
        """
        there = {key.split(":", 1)[1] for key in tensors}
        # A parameter that never received a gradient has no moments: absence alone is no difference.
        foreign = sorted(there - self.named.keys())
        if foreign:
            raise ValueError(f"the checkpoint trained {len(foreign)} parameters that are frozen here, as {foreign[0]}")
        state: dict[nn.Parameter, dict[str, Any]] = {}
        for key, value in tensors.items():
            kind, name = key.split(":", 1)
            held = self._updated[name]
            if kind == "master":
                held.copy_(value)
            else:
                # AdamW keeps its step count on the CPU unless fused; the stored tensor says what it was.
                device = held.device if kind != "step" or self._adamw.defaults["fused"] else torch.device("cpu")
                state.setdefault(held, {})[kind] = value.to(device)
        self._adamw.state.clear()
        self._adamw.state.update(state)
