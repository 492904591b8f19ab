"""Former place of `medmo_core.data.images.patches`."""

from ..moved import forward

__getattr__ = forward(__name__, "medmo_core.data.images.patches")
