"""Load a checkpoint folder and ask it about images."""

from .kit import Kit
from .load import load

__all__ = ["Kit", "load"]
