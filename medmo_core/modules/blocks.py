"""The repeated blocks of a network: found by name, computed again in the backward pass, compiled.

A block's `forward` is replaced on the object itself, beneath its hooks: parameter names stay, and a sharded block
gathers its weights once round all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..choices import Recompute
from .attention import PackedAttention, attention

BLOCK_LISTS = ("blocks", "layers", "layer")
"""What the families of encoders and decoders call their stack."""

KEPT_OPS = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::_scaled_mm",  # float8
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "medmo_kernels::attention",
        "torch_attn::_varlen_attn",
        "aten::_efficient_attention_forward",
        "xformers_flash::flash_fwd",
        "xformers_flash3::flash_fwd",
    }
)
"""Ops whose results "selected" keeps: costly to compute, small beside what they read."""


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network in order: what stands in module lists named as in `BLOCK_LISTS`."""
    lists = [m for name, m in network.named_modules() if name.rpartition(".")[2] in BLOCK_LISTS]
    return [block for stack in lists if isinstance(stack, nn.ModuleList) for block in stack]


def set_forward(
    blocks: Iterable[nn.Module],
    *,
    recompute: Recompute | bool = "nothing",
    compiled: bool = False,
    backend: str = "inductor",
) -> None:
    """Say how blocks run from now on; what was said before is replaced.

    A compiled block has one graph for all lengths of the packed tokens. Attention stands between two compiled parts.
    The compiler's own partition into forward and backward keeps what "selected" keeps, so that compiled blocks with
    "selected" are left to it.

    Args:
        blocks: blocks as `blocks_of` finds them.
        recompute: what is computed again in the backward pass; True: all, False: nothing.
        compiled: run through torch.compile.
        backend: back end of torch.compile.
    """
    again = {True: "all", False: "nothing"}[recompute] if isinstance(recompute, bool) else recompute
    if compiled and again == "selected":
        again = "nothing"
    for block in blocks:
        for module in block.modules():
            if isinstance(module, PackedAttention):
                # Here and not where the op is imported: loading the compiler takes a second.
                outside: Any = torch.compiler.disable(attention) if compiled else attention
                module.function = outside
        block.__dict__.pop("forward", None)
        if compiled or again != "nothing":
            block.__dict__["forward"] = _Forward(block, again, backend if compiled else None)


class _Forward:
    """A block's forward in place of its class's; a copy of the block gets another."""

    def __init__(self, block: nn.Module, recompute: str, backend: str | None) -> None:
        self.block, self.recompute, self.backend = block, recompute, backend
        self.run: Callable[..., Any] = MethodType(type(block).forward, block)
        if backend is not None:
            self.run = torch.compile(self.run, dynamic=True, backend=backend)

    def __call__(self, *arguments: Any) -> Any:
        if self.recompute == "nothing" or not torch.is_grad_enabled():
            return self.run(*arguments)
        if self.recompute == "all":
            return checkpoint(self.run, *arguments, use_reentrant=False)
        return checkpoint(self.run, *arguments, use_reentrant=False, context_fn=_keep_some)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        return _Forward(deepcopy(self.block, memo), self.recompute, self.backend)


def _keep_some() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name() in KEPT_OPS else CheckpointPolicy.PREFER_RECOMPUTE
