"""transformers' Qwen3-VL with the weights of one of our models, in the flavours that a reader would compare with.

Everything is done to the instance: what a library changes in transformers' module is taken back, and given to the
instance alone, so that flavours in one process do not change one another.
"""

import importlib.util
import sys
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmo_core.models.medmo import MedMO


@dataclass(frozen=True)
class Flavour:
    """A way to run transformers' model.

    Attributes:
        name: name as shown.
        attention: transformers' `attn_implementation`.
        liger: whether Liger's kernels are put in.
        compiled: every block compiled by itself, which is quick and survives the breaks between them.
        linear_patch_embed: its patch embedding as a matrix product instead of a 3-D convolution.
    """

    name: str
    attention: str = "sdpa"
    liger: bool = False
    compiled: bool = False
    linear_patch_embed: bool = False


def best_attention(device: torch.device) -> str:
    """Return the fastest attention that transformers has here."""
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


def flavours(device: torch.device) -> list[tuple[Flavour, str]]:
    """Return every flavour with the reason why it is absent on this machine; empty where it can run."""
    missing = "" if importlib.util.find_spec("transformers") else "transformers not installed"
    no_liger = "" if importlib.util.find_spec("liger_kernel") else "liger-kernel not installed"
    no_gpu = "" if device.type == "cuda" else "needs a GPU"
    slow = "" if device.type == "cuda" else "compiling takes longer than the whole comparison on a CPU"
    attention = best_attention(device)
    best = f"transformers, {'SDPA' if attention == 'sdpa' else 'FlashAttention 2'}, linear patches"
    return [
        (Flavour("transformers, stock"), missing),
        (Flavour(best, attention, linear_patch_embed=True), missing),
        (Flavour("transformers, Liger", attention, liger=True, linear_patch_embed=True), missing or no_gpu or no_liger),
        (Flavour("transformers, compiled", attention, compiled=True, linear_patch_embed=True), missing or slow),
    ]


def build(model: MedMO, flavour: Flavour, *, dtype: torch.dtype, train: bool) -> Any:
    """Build transformers' model with the weights of ours, on the same device.

    Args:
        model: a model with Qwen3-VL's encoder.
        flavour: one that can run here.
        dtype: dtype of its weights and activations.
        train: training mode, all blocks computed again in the backward pass; otherwise evaluation mode.

    Raises:
        ValueError: the weights are not those that transformers' model has.
    """
    import transformers

    config = transformers.Qwen3VLConfig(**model.config.to_dict())
    make: Any = transformers.Qwen3VLForConditionalGeneration._from_config
    with torch.device(model.head_weight.device):
        theirs: Any = make(config, attn_implementation=flavour.attention, dtype=dtype)
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    if unexpected or set(missing) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set()):
        raise ValueError(f"transformers' model lacks {unexpected[:3]}; it has {missing[:3]} beside ours")
    theirs.tie_weights()
    if flavour.linear_patch_embed:
        linear_patch_embed(theirs.model.visual.patch_embed)
    if train:
        theirs.gradient_checkpointing_enable({"use_reentrant": False})
    theirs.train(train)
    if flavour.liger:
        add_liger(theirs)
    if flavour.compiled:
        for block in (*theirs.model.visual.blocks, *theirs.model.language_model.layers):
            block.compile()
    return theirs


def linear_patch_embed(embed: nn.Module) -> None:
    """Turn transformers' patch embedding into the matrix product that it is."""
    projection: Any = embed.proj

    def forward(rows: Tensor) -> Tensor:
        return F.linear(rows.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)

    embed.forward = forward  # type: ignore[method-assign]


def add_liger(theirs: Any) -> None:
    """Apply Liger's kernels for Qwen3-VL to one instance.

    Liger replaces functions in transformers' module as well, which would reach every other model of the process: those
    names are restored, and the instance's modules that call them get a forward which sees Liger's.

    Raises:
        NotImplementedError: this version of Liger does not fit this version of transformers.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3_vl

    names = vars(sys.modules[type(theirs).__module__])
    before = dict(names)
    try:
        apply_liger_kernel_to_qwen3_vl(model=theirs)
    except ImportError as error:
        raise NotImplementedError(f"Liger does not fit this transformers: {error.msg}") from error
    changed = {name: value for name, value in names.items() if before.get(name) is not value}
    names.update(before)
    for module in theirs.modules():
        plain = type(module).forward
        if plain.__globals__ is names and changed.keys() & set(plain.__code__.co_names):
            seen = FunctionType(plain.__code__, names | changed, plain.__name__, plain.__defaults__, plain.__closure__)
            module.forward = MethodType(seen, module)
