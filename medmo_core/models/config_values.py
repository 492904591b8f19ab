"""Values of a config.json, checked by type, bounds and how they fit together, before a model is built of them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..nearest import nearest_name

LAYERS, WIDTH, TABLE = 1000, 2**20, 2**24
BOUNDS: dict[str, tuple[float, float]] = {
    "depth": (1, LAYERS),
    "num_hidden_layers": (1, LAYERS),
    "hidden_size": (1, WIDTH),
    "embed_dim": (1, WIDTH),
    "intermediate_size": (1, WIDTH),
    "mlp_dim": (1, WIDTH),
    "num_heads": (1, 4096),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (2, 4096),
    "patch_size": (1, 1024),
    "temporal_patch_size": (1, 64),
    "spatial_merge_size": (1, 64),
    "num_position_embeddings": (1, TABLE),
    "vocab_size": (1, TABLE),
    "max_position_embeddings": (1, 2**40),
    "rms_norm_eps": (0, 1),
    "rope_theta": (1, 1e15),
    "initializer_range": (0, 10),
}
"""Field -> its least and greatest value; others are numbers from 0 to TABLE."""
ACTIVATIONS = {"text_config": "silu", "vision_config": "gelu_pytorch_tanh"}
"""Part -> the activation that it is built with."""


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Return a copy of a JSON object; a null is an empty one.

    Raises:
        InputError: it is anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(where, value, "a JSON object")
    return dict(value)


def checked(value: Any, like: Any, where: str) -> Any:
    """Return a value of a config that has the type of a known one and lies within its bounds.

    Args:
        value: what the file says.
        like: a right value, whose type is asked for; None: any value.
        where: name of the field for the message, dotted.

    Raises:
        InputError: another type, not finite, or out of bounds.
    """
    if like is None:
        return value
    if isinstance(like, bool):
        if not isinstance(value, bool):
            raise wrong(where, value, "true or false")
        return value
    if isinstance(like, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise wrong(where, value, "a list of whole numbers")
        return tuple(checked(item, 0, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(like, int | float):
        low, high = BOUNDS.get(where.rpartition(".")[2], (0, TABLE))
        kinds, expected = (int, "a whole number") if isinstance(like, int) else (int | float, "a number")
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:  # NaN is not either
            raise wrong(where, value, f"{expected} from {low:,} to {high:,}")
        return type(like)(value)
    if not isinstance(value, type(like)):
        raise wrong(where, value, f"a value such as {like!r}")
    return value


def checked_part(values: Any, like: Any, required: Sequence[str], where: str) -> dict[str, Any]:
    """Return the fields of one part of a config that a dataclass has, each checked; nulls are left out.

    Args:
        values: JSON object.
        like: object of the dataclass with right values.
        required: fields that must be there.
        where: name of the part for the message.

    Raises:
        InputError: a field is missing or wrong.
    """
    values = as_object(values, where)
    missing = [name for name in required if values.get(name) is None]
    if missing:
        raise InputError(f"{where}.{missing[0]} is missing; the sizes of a model are never guessed")
    activation = values.get("hidden_act")
    if activation not in (None, ACTIVATIONS[where]):
        raise wrong(f"{where}.hidden_act", activation, repr(ACTIVATIONS[where]))
    present = {name: values[name] for name in vars(like) if values.get(name) is not None}
    return {name: checked(value, getattr(like, name), f"{where}.{name}") for name, value in present.items()}


def check_arguments(function: Any, given: Mapping[str, Any], where: str) -> None:
    """Check keyword arguments from a file against a constructor's names and the types of its defaults.

    Raises:
        InputError: an argument that it does not have (the nearest is named), or of another type, or out of bounds.
    """
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in ("device", "dtype")]
    for name, value in given.items():
        if name not in known:
            near = nearest_name(name, known)
            raise InputError(f"{where}.{name}: unknown" + (f"; did you mean {near!r}?" if near else ""))
        default = parameters[name].default
        if isinstance(default, bool | int | float):
            checked(value, default, f"{where}.{name}")


def require(condition: bool, where: str, value: Any, expected: str) -> None:
    """Raise InputError unless `condition` holds."""
    if not condition:
        raise wrong(where, value, expected)


def is_square(number: int) -> bool:
    """Whether a number is that of a square table's entries."""
    return math.isqrt(number) ** 2 == number


def wrong(where: str, value: Any, expected: str) -> InputError:
    """Make the error for a value of a config.json."""
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of many digits"
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InputError(f"{where} is {shown}, expected {expected}")
