"""Another way of doing an op's work, and why it may be missing."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from medmo_kernels.spec import Arguments


def _unprepared(arguments: Arguments) -> Arguments:
    return arguments


@dataclass(frozen=True)
class Peer:
    """Another way of doing an op's work.

    Attributes:
        function: function of what `prepare` returns, with the op's result.
        needs: packages by import name.
        cuda: it runs on a GPU only.
        prepare: function from the op's arguments to the peer's: what a user of the peer would have at hand.
    """

    function: Callable[..., Any]
    needs: tuple[str, ...] = ()
    cuda: bool = False
    prepare: Callable[[Arguments], Arguments] = _unprepared

    def refusal(self, device: torch.device) -> str:
        """Say why it cannot run here, or return an empty text."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        return "runs on a GPU only" if self.cuda and device.type != "cuda" else ""

    def __call__(self, **arguments: Any) -> Any:
        """Do the whole from the op's own arguments."""
        return self.function(**self.prepare(arguments))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled by torch for each shape anew, when it is first called."""

    @cache
    def made() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    def call(*args: Any, **arguments: Any) -> Any:
        return made()(*args, **arguments)

    return call
