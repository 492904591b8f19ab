"""Former place of `medmo_core.datasets.embedded.tasks`."""

from ..moved import forward

__getattr__ = forward(__name__, "medmo_core.datasets.embedded.tasks")
