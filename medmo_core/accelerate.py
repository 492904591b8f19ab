"""Our modules inside a loaded transformers Qwen3-VL model, by one explicit call that can be undone.

    accelerated = medmo_core.accelerate(model)    # Qwen3VLForConditionalGeneration, Qwen3VLModel, or a part of one
    print(accelerated)                            # what was replaced, and what was left alone and why
    accelerated.restore()

Only this one model changes. Its patch embedding, vision attention, patch mergers and text attention (norm and rotation
of queries and keys; attention function and cache stay transformers' own, as configured) are exchanged for stand-ins
that call our ops. A stand-in has the very state of what it replaces: parameters, children, hooks and flags are the same
objects, so optimisers, `state_dict`, checkpoints and isinstance checks stay as they are, before, during and after.

Stand-ins read some weights themselves and not through the child that holds them. A module with a child that is not
plain (quantised, sharded, wrapped by an adapter, hooked) is therefore left alone and listed under `kept`; a child that
is wrapped later makes its stand-in raise, never pass the wrapper by.

transformers is not imported here: classes are known by name, and what does not fit is named.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmo_kernels.attention import attention
from medmo_kernels.patch_embed import patch_embed
from medmo_kernels.projector import ProjectorWeights, projector
from medmo_kernels.qk_norm_rope import qk_norm_rope
from medmo_kernels.transforms import is_plain

RMS_NORM = "Qwen3VLTextRMSNorm"
OWNERS = {
    "Qwen3VLVisionModel": ("Qwen3VLVisionPatchEmbed", "Qwen3VLVisionAttention", "Qwen3VLVisionPatchMerger"),
    "Qwen3VLTextModel": ("Qwen3VLTextAttention",),
}
"""Class of a part of the model -> classes of the modules in it that are replaced."""


@dataclass(frozen=True)
class Replacement:
    """One exchanged module.

    Attributes:
        name: where it stands in the model, dotted.
        op: what serves it now: `patch_embed`, `attention`, `projector` or `qk_norm_rope`.
        original: the module that stood there.
        stand_in: the one that stands there now.
    """

    name: str
    op: str
    original: nn.Module
    stand_in: nn.Module


class Accelerated:
    """A model with our modules in it. Print it to see which.

    Attributes:
        model: the model that was handed in, changed in place.
        replaced: every exchanged module.
        kept: (name, reason) of modules that could have been exchanged but were left alone.
    """

    def __init__(self, model: nn.Module, replaced: Sequence[Replacement], kept: Sequence[tuple[str, str]]) -> None:
        self.model = model
        self.replaced = tuple(replaced)
        self.kept = tuple(kept)
        self._active = True

    def counts(self) -> dict[str, int]:
        """Return how many modules each op serves now."""
        return dict(Counter(replacement.op for replacement in self.replaced))

    def restore(self) -> nn.Module:
        """Put every original module back where it stood, and return the model.

        Raises:
            RuntimeError: it was restored already, or somebody else has exchanged one of the modules since.
        """
        if not self._active:
            raise RuntimeError("this model was restored already")
        for replacement in self.replaced:
            if self.model.get_submodule(replacement.name) is not replacement.stand_in:
                raise RuntimeError(f"{replacement.name} was exchanged again since accelerate(): undo that first")
        for replacement in self.replaced:
            _put(self.model, replacement.name, replacement.original)
        self._active = False
        return self.model

    def __str__(self) -> str:
        state = "replaced" if self._active else "replaced and restored"
        lines = [f"{type(self.model).__name__}: {len(self.replaced)} modules {state}"]
        by_op = _grouped((replacement.op, replacement.name) for replacement in self.replaced)
        lines += [f"  {op:<14}{len(names):>3}  {_span(names)}" for op, names in by_op.items()]
        return "\n".join([*lines, *_kept_lines(self.kept)])


def accelerate(model: nn.Module) -> Accelerated:
    """Exchange modules of a loaded transformers Qwen3-VL model for ours, in place.

    Numerics: the same functions; 16-bit results differ by roundings, of which ours have fewer. Gradients reach the same
        parameters.

    Args:
        model: `Qwen3VLForConditionalGeneration`, `Qwen3VLModel`, one of their two parts, or a module that holds one.

    Returns:
        What was replaced; its `restore()` undoes it.

    Raises:
        TypeError: no Qwen3-VL model of transformers is in `model`.
        AttributeError: a module lacks what this call builds on: another version of transformers; the message names it.
        RuntimeError: the model is accelerated already, or none of its modules can be replaced.
    """
    stand_ins = [name for name, module in model.named_modules() if isinstance(module, _StandIn)]
    if stand_ins:
        raise RuntimeError(f"this model is accelerated already ({stand_ins[0]}, ...): restore it first")
    replaced, kept = [], []
    for name, module in _candidates(model):
        kind = KINDS[type(module).__name__]
        _check_fit(name, module, kind)
        reason = _refusal(module, kind.reads)
        if "forward" in vars(module):
            reason = "its forward was exchanged by somebody else"
        if reason:
            kept.append((name, reason))
        else:
            replaced.append(Replacement(name, kind.op, module, _stand_in(module, kind)))
    if not replaced:
        raise RuntimeError("\n".join(["nothing can be replaced:", *_kept_lines(kept)]))
    for replacement in replaced:
        _put(model, replacement.name, replacement.stand_in)
    return Accelerated(model, replaced, kept)


def restore(accelerated: Accelerated) -> nn.Module:
    """Put back what `accelerate` replaced, and return the model; the same as `accelerated.restore()`."""
    return accelerated.restore()


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules to replace, having checked that every part of the model has all it should have."""
    owners = [(name, part) for name, part in model.named_modules() if type(part).__name__ in OWNERS]
    if not owners:
        raise TypeError(
            f"{type(model).__name__} holds no {' or '.join(OWNERS)}: accelerate() takes a Qwen3-VL model of "
            "transformers that is not sharded or compiled yet"
        )
    found = []
    for owner_name, owner in owners:
        for kind in OWNERS[type(owner).__name__]:
            inside = [(name, module) for name, module in owner.named_modules() if type(module).__name__ == kind]
            if not inside:
                raise AttributeError(f"{owner_name or 'the model'} ({_origin(owner)}) holds no {kind}")
            found += [(f"{owner_name}.{name}".lstrip("."), module) for name, module in inside]
    return found


def _origin(module: nn.Module) -> str:
    version = getattr(sys.modules.get("transformers"), "__version__", "of unknown version")
    return f"{type(module).__name__} of transformers {version}"


def _check_fit(name: str, module: nn.Module, kind: type[_StandIn]) -> None:
    """Raise an AttributeError that names the first thing that is missing."""
    for path in kind.needs:
        held: Any = module
        for part in path.split("."):
            if not hasattr(held, part):
                raise AttributeError(f"{name} ({_origin(module)}) has no `{path}`, which accelerate() builds on")
            held = getattr(held, part)
    parameters = inspect.signature(type(module).forward).parameters
    for argument in kind.takes:
        if argument not in parameters:
            raise AttributeError(f"{name} ({_origin(module)}): forward takes no `{argument}`, as accelerate() expects")
    for function in kind.uses:
        if not hasattr(sys.modules[type(module).__module__], function):
            raise AttributeError(f"{type(module).__module__} ({_origin(module)}) has no `{function}`")


def _refusal(module: nn.Module, reads: Mapping[str, type[nn.Module] | str]) -> str:
    """Say why a stand-in must not read these children's weights itself, or return an empty text."""
    for child_name, expected in reads.items():
        child = getattr(module, child_name)
        known = type(child).__name__ == expected if isinstance(expected, str) else type(child) is expected
        if not known:
            return f"{child_name} is a {type(child).__module__}.{type(child).__name__}"
        if "forward" in vars(child) or child._forward_hooks or child._forward_pre_hooks:
            return f"{child_name} has hooks or another forward than its class"
        if isinstance(child, nn.GELU) and child.approximate != "none":
            return f"{child_name} is the {child.approximate} form of GELU"
        for parameter_name, parameter in child._parameters.items():
            if parameter is not None and not is_plain(parameter):
                return f"{child_name}.{parameter_name} is a {type(parameter).__name__}"
    return ""


def _stand_in(original: nn.Module, kind: type[_StandIn]) -> nn.Module:
    """Return an object of a subclass of the original's class with the original's state and our forward."""
    stand_in = _stand_in_again(type(original), kind)
    # One state with two faces: what happens to one (eval(), to(), hooks, adapters) is never missed by the other.
    object.__setattr__(stand_in, "__dict__", original.__dict__)
    return stand_in


def _stand_in_again(original: type[nn.Module], kind: type[_StandIn]) -> nn.Module:
    """Return an empty object of a class that is both; a pickle's state fills it."""
    stand_in_class = type(f"Accelerated{original.__name__}", (kind, original), {"__doc__": kind.__doc__})
    return stand_in_class.__new__(stand_in_class)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the second words of all pairs by their first."""
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _kept_lines(kept: Sequence[tuple[str, str]]) -> list[str]:
    by_reason = _grouped((reason, name) for name, reason in kept)
    return [f"  {'left alone':<14}{len(names):>3}  {_span(names)}: {reason}" for reason, names in by_reason.items()]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class _StandIn(nn.Module):
    """Declarations that all stand-ins share.

    Attributes:
        op: what serves them.
        needs: attributes they read, dotted.
        takes: arguments that the original's forward must have.
        uses: functions they take from the original's file.
        reads: children whose weights they read themselves -> the class these must have.
    """

    op: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    takes: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Mapping[str, type[nn.Module] | str]] = {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made here and has no name to be found by: a file holds the original's class and the state.
        kind, original = type(self).__bases__
        return _stand_in_again, (original, kind), self.__getstate__()

    def _assert_plain(self) -> None:
        reason = _refusal(self, self.reads)
        if reason:
            raise RuntimeError(
                f"{reason} since accelerate(), which would pass it by: restore the model, then accelerate it again"
            )


class _PatchEmbed(_StandIn):
    """One matrix product for the rows of transformers' processor (all frames, normalised); our op for raw uint8 rows.

    Rows of the processor are multiplied in full even where they are stills, whose two frames are equal: nobody has
    said so, and looking would cost what it saves.
    """

    op = "patch_embed"
    needs = ("proj",)
    takes = ("hidden_states",)
    proj: nn.Conv3d
    reads: ClassVar = {"proj": nn.Conv3d}

    def forward(self, hidden_states: Tensor) -> Tensor:
        self._assert_plain()
        weight, bias = self.proj.weight, self.proj.bias
        if hidden_states.dtype == torch.uint8:
            return patch_embed(hidden_states, weight, bias)
        return F.linear(hidden_states.to(weight.dtype).view(-1, weight[0].numel()), weight.flatten(1), bias)


class _VisionAttention(_StandIn):
    """All images in one call, rotation included; projections stay modules of their own."""

    op = "attention"
    needs = ("qkv", "proj", "num_heads", "head_dim", "scaling", "attention_dropout")
    takes = ("hidden_states", "cu_seqlens", "position_embeddings")
    qkv: nn.Module
    proj: nn.Module
    num_heads: int
    head_dim: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        q_THD, k_THD, v_THD = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(1)
        rope = _half_tables(position_embeddings, self.head_dim)
        out_THD = attention(q_THD, k_THD, v_THD, cu_seqlens, False, self.scaling, rope=rope, max_seqlen=max_seqlen)
        return self.proj(out_THD.flatten(1))


class _PatchMerger(_StandIn):
    """Norm, 2 x 2 merge, linear, GELU, linear in our projector op."""

    op = "projector"
    needs = ("norm", "linear_fc1", "act_fn", "linear_fc2", "hidden_size")
    takes = ("x",)
    norm: nn.LayerNorm
    linear_fc1: nn.Linear
    linear_fc2: nn.Linear
    hidden_size: int
    reads: ClassVar = {"norm": nn.LayerNorm, "linear_fc1": nn.Linear, "act_fn": nn.GELU, "linear_fc2": nn.Linear}

    def forward(self, x: Tensor) -> Tensor:
        self._assert_plain()
        norm, fc1, fc2 = self.norm, self.linear_fc1, self.linear_fc2
        weights = ProjectorWeights(norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        merge_size = round((self.hidden_size / x.shape[-1]) ** 0.5)
        return projector([x], [weights], merge_size=merge_size, eps=norm.eps)[0]


class _TextAttention(_StandIn):
    """Norm and rotation of queries and keys in one pass; cache and attention are transformers' own."""

    op = "qk_norm_rope"
    needs = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"),
        *("head_dim", "layer_idx", "scaling", "attention_dropout", "config._attn_implementation"),
    )
    takes = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values")
    uses = ("ALL_ATTENTION_FUNCTIONS", "eager_attention_forward")
    reads: ClassVar = {"q_norm": RMS_NORM, "k_norm": RMS_NORM}
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: Any
    k_norm: Any
    head_dim: int
    layer_idx: int
    scaling: float
    attention_dropout: float
    config: Any

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        self._assert_plain()
        heads = (*hidden_states.shape[:2], -1, self.head_dim)  # (B, L, H or K, D)
        query, key, value = (proj(hidden_states).view(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = _half_tables(position_embeddings, self.head_dim)
        q_THD, k_TKD = qk_norm_rope(
            query.flatten(0, 1),
            key.flatten(0, 1),
            self.q_norm.weight,
            self.k_norm.weight,
            cos.expand(*heads[:2], -1).flatten(0, 1),
            sin.expand(*heads[:2], -1).flatten(0, 1),
            eps=self.q_norm.variance_epsilon,
        )
        query, key, value = (x.view(heads).transpose(1, 2) for x in (q_THD, k_TKD, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        out, weights = self._attend()(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(out.reshape(*heads[:2], -1)), weights

    def _attend(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """Return the attention function that the model's configuration names."""
        theirs = sys.modules[type(self).__bases__[1].__module__]
        functions: Any = theirs.ALL_ATTENTION_FUNCTIONS
        return functions.get_interface(self.config._attn_implementation, theirs.eager_attention_forward)


def _half_tables(position_embeddings: tuple[Tensor, Tensor], head_dim: int) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of the first half of a head: transformers writes the same angles twice, side by side."""
    cos, sin = (table[..., : head_dim // 2].float() for table in position_embeddings)
    return cos, sin


KINDS: dict[str, type[_StandIn]] = {
    "Qwen3VLVisionPatchEmbed": _PatchEmbed,
    "Qwen3VLVisionAttention": _VisionAttention,
    "Qwen3VLVisionPatchMerger": _PatchMerger,
    "Qwen3VLTextAttention": _TextAttention,
}
"""Class in transformers -> what stands in for it."""
