"""Modules, models, data, rewards and metrics for medical models that point at what they say.

The names used most; everything else is imported from the file that holds it. They are loaded when first asked for:
what needs no model, such as the help of a command, does not wait for PyTorch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accelerate import Accelerated, accelerate, restore
    from .batch import Batch, PatchSpec
    from .boxes import Boxes, parse_boxes, print_boxes
    from .models.medmo import MedMO
    from .profile import CheckpointProfile

__all__ = [
    "Accelerated",
    "Batch",
    "Boxes",
    "CheckpointProfile",
    "MedMO",
    "PatchSpec",
    "accelerate",
    "parse_boxes",
    "print_boxes",
    "restore",
]

_HOMES = {
    **dict.fromkeys(("Accelerated", "accelerate", "restore"), "accelerate"),
    **dict.fromkeys(("Batch", "PatchSpec"), "batch"),
    **dict.fromkeys(("Boxes", "parse_boxes", "print_boxes"), "boxes"),
    "MedMO": "models.medmo",
    "CheckpointProfile": "profile",
}


class _Package(ModuleType):
    """This package, in which the file `accelerate` does not take the place of the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "accelerate" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
