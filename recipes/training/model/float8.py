"""Products in float8 in the decoder's linear layers, by torchao: weights and activations stay what they are.

Each product casts its two factors to 8-bit floats with a scale per row ("rowwise"): forward, and both products of the
backward pass. Layers are replaced in place by ones of the same name and the same weight, so checkpoints and export do
not notice. Compiled blocks (`model.compile=true`) fuse the casts; without that they cost much of what is won.
"""

import dataclasses

import torch
from torch import nn

from medmo_core.models.medmo import MedMO
from medmo_core.optional import import_optional

from ...settings.run_config import ConfigError

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MULTIPLE = 16
"""Widths that the hardware multiplies."""
OLDEST = (8, 9)
"""First CUDA capability with float8 products (Ada, Hopper)."""


def convert(model: MedMO, device: torch.device | None = None, *, emulate: bool = False) -> list[str]:
    """Make the decoder's linear layers that train multiply in float8, in place; before sharding and compiling.

    Frozen layers are left alone: torchao computes the gradient of a weight whether or not it is wanted.

    Args:
        model: model of which what trains has been chosen.
        device: device that it will run on; None: the one of its weights.
        emulate: whether products are made in the weights' type after rounding to float8, on any device: for tests.

    Returns:
        The names of the layers.

    Raises:
        ConfigError: the device has no float8, or no layer qualifies.
        ImportError: torchao is not installed; names the extra.
    """
    if not emulate:
        check_device(device or next(model.parameters()).device)
    torchao = import_optional("torchao.float8", "quant", "model.float8")
    prefix = "model.language_model.layers."
    names = [name for name, module in model.named_modules() if name.startswith(prefix) and _qualifies(name, module)]
    if not names:
        raise ConfigError(
            f"model.float8=true: no linear layer of the decoder trains whose widths are multiples of {MULTIPLE}; "
            "set model.float8=false"
        )
    chosen = set(names)
    # The number of tokens is an inner width in the gradient of a weight, and packs have any: padded to a multiple.
    config = dataclasses.replace(
        torchao.Float8LinearConfig.from_recipe_name("rowwise"), pad_inner_dim=True, emulate=emulate
    )
    torchao.convert_to_float8_training(model, module_filter_fn=lambda module, name: name in chosen, config=config)
    return names


def check_device(device: torch.device) -> None:
    """Refuse a device that cannot multiply in float8.

    Raises:
        ConfigError: names the device, its capability and the fix.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST:
        return
    have = "is no CUDA device"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        have = f"({torch.cuda.get_device_name(device)}) has compute capability {major}.{minor}"
    raise ConfigError(
        f"model.float8=true: {device} {have}; float8 products need {OLDEST[0]}.{OLDEST[1]} or later; "
        "set model.float8=false"
    )


def _qualifies(name: str, module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Linear)
        and name.rsplit(".", 1)[-1] in LAYERS
        and module.weight.requires_grad
        and module.in_features % MULTIPLE == 0
        and module.out_features % MULTIPLE == 0
    )
