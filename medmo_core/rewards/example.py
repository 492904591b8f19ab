"""A worked example of a reward: what goes in, what must come out."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One completion with its sample's columns and the score it must get.

    Args:
        about: what the example shows.
        completion: what the model wrote.
        score: the reward; None: not applicable.
        columns: one value per column, as a list column would hold for this completion.
    """

    about: str
    completion: Any
    score: float | None
    columns: dict[str, Any] = field(default_factory=dict)
