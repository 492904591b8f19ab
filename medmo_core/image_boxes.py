"""Former place of `medmo_core.boxes.image_boxes`."""

from .moved import forward

__getattr__ = forward(__name__, "medmo_core.boxes.image_boxes")
