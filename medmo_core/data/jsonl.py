"""Former place of `medmo_core.data.sources.jsonl`."""

from ..moved import forward

__getattr__ = forward(__name__, "medmo_core.data.sources.jsonl")
