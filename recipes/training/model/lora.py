"""Low-rank adapters on named linear layers, by peft: added, merged into official weights, and saved by themselves.

An adapted layer computes W x + (alpha / rank) B (A x) with W frozen; B begins at zero, so the model begins unchanged.
DoRA also learns the length of every row of the sum. Adapters have the type of the weights they stand beside; under
bfloat16 `optim.kind=adamw` keeps fp32 masters of them, which cost little.

Reference: Hu et al., LoRA, arXiv 2106.09685; Liu et al., DoRA, arXiv 2402.09353.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medmo_core.durable import replacing_folder, write_text
from medmo_core.models.medmo import MedMO
from medmo_core.optional import import_optional

from ...settings.run_config import ConfigError, Lora
from .parts import PARTS, select

ADAPTER = "default"  # peft's name for the one adapter there is
WEIGHTS_FILE = "adapter_model.safetensors"
READ_DIRECTLY = ("lm_head", "patch_embedding")
"""Linear layers whose weight other code reads instead of calling the layer: an adapter on them would do nothing."""


def _peft(module: str = "peft") -> Any:
    return import_optional(module, "lora", "lora.rank")


def adaptable_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that can carry an adapter."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] not in READ_DIRECTLY
    ]


def target_layers(model: MedMO, lora: Lora) -> list[str]:
    """Return the names of the layers that `lora.targets` means.

    Raises:
        ConfigError: a word that means no parameter, or none of a layer that can carry an adapter.
    """
    layers = adaptable_layers(model)
    found: set[str] = set()
    for word in lora.targets:
        parameters = select(model, [word], "lora.targets")
        chosen = {name for name in layers if f"{name}.weight" in parameters}
        if not chosen:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise ConfigError(
                f"lora.targets: {word!r} has no linear layer that can carry an adapter; expected one of "
                f"{', '.join(PARTS)}, or a prefix of layers named {', '.join(kinds)}, as {layers[-1]}"
            )
        found |= chosen
    return [name for name in layers if name in found]


def add_adapters(model: MedMO, lora: Lora) -> None:
    """Put adapters on the layers that `lora.targets` means, and freeze everything else, in place.

    The layer `x` becomes `x.base_layer`, beside `x.lora_A.default` and `x.lora_B.default` (and, for DoRA,
    `x.lora_magnitude_vector.default`). On the meta device the adapters have no values either.

    Raises:
        ConfigError: a target that does not exist or cannot carry an adapter.
        ImportError: peft is not installed; names the extra.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=target_layers(model, lora),
    )
    is_meta = next(model.parameters()).is_meta
    peft.inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=is_meta)
    for layer in adapted_layers(model).values():
        # peft makes adapters of 16-bit layers in fp32, which would run their products in fp32 too.
        for name, parameter in layer.named_parameters():
            if not name.startswith("base_layer."):
                parameter.data = parameter.data.to(layer.base_layer.weight.dtype)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that carry an adapter, by their names."""
    if not has_adapters(model):
        return {}
    kind = _peft("peft.tuners.lora").LoraLayer
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` has changed this model."""
    return hasattr(model, "peft_config")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let a model with adapters be the one it began as for a while; no weight changes and none is copied."""
    layers = list(adapted_layers(model).values())
    for layer in layers:
        layer._disable_adapters = True  # `enable_adapters` would also say anew what trains
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def own_name(name: str) -> str:
    """Return the official name of a parameter of a model with adapters: without the layer that peft puts in between."""
    return name.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_" in name


@torch.no_grad()
def merged_tensors(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights with the adapters added in, under their official names.

    Numerics: summed in fp32 (float64 for float64) and cast once to the type of the weight.

    Args:
        model: model with adapters; says which layers carry them.
        tensors: parameters of the model by name, whole (`whole_tensors`, or read from a checkpoint); None: its own as
            they are, which must not be sharded.
    """
    tensors = {name: p.detach() for name, p in model.named_parameters()} if tensors is None else tensors
    merged = {own_name(name): tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for name, layer in adapted_layers(model).items():
        first, second = (tensors[f"{name}.lora_{letter}.{ADAPTER}.weight"] for letter in "AB")
        weight = merged[f"{name}.weight"]
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        total = weight.to(wide) + layer.scaling[ADAPTER] * (second.to(wide) @ first.to(wide))
        magnitude = tensors.get(f"{name}.lora_magnitude_vector.{ADAPTER}.weight")
        if magnitude is not None:
            total *= (magnitude.to(wide) / total.norm(dim=1)).unsqueeze(1)
        merged[f"{name}.weight"] = total.to(weight.dtype)
    return merged


def save_adapter(folder: Path, model: nn.Module, base: str | None, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter alone in peft's layout: adapter_config.json and adapter_model.safetensors.

    Args:
        folder: made, or replaced at the very end; other files in it stay.
        model: model with adapters.
        base: folder or hub id of the model that the adapter belongs to; None where there is neither.
        tensors: parameters of the model by name, whole; None: its own as they are, see `merged_tensors`.
    """
    peft = _peft()
    tensors = {name: p.detach() for name, p in model.named_parameters()} if tensors is None else tensors
    stored = peft.get_peft_model_state_dict(
        model, {n: t for n, t in tensors.items() if is_adapter(n)}, save_embedding_layers=False
    )
    config: Any = model.peft_config
    values = {**config[ADAPTER].to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    # Sets have no order: sorted, equal adapters make equal files.
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}
    whole = {f"base_model.model.{name}": t.cpu().contiguous() for name, t in stored.items()}
    folder = folder.resolve()
    with replacing_folder(folder) as partial:
        if folder.exists():
            shutil.copytree(folder, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS_FILE))
        save_file(whole, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        write_text(partial / "adapter_config.json", json.dumps(plain, indent=2, default=str) + "\n")
