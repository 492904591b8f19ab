"""Features of a step's images from a frozen vision tower, computed once and used by every pass over them."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models.medmo import MedMO

from ..training.distributed.sharding import trains


def keeps_features(model: MedMO) -> bool:
    """Whether the images of a step look the same to every pass of it: no part of the tower trains.

    A tower that is sharded all the same, so that every process must run it in every pass, is run.
    """
    return not trains(model.model.visual) and model.without_images is None


@torch.no_grad()
def encode_images(model: MedMO, prompts: Mapping[int, Document], *, per_pass: int) -> dict[int, Document]:
    """Return the prompts with the features of their images, which every document made of them carries on.

    Args:
        model: its tower is frozen (`keeps_features`).
        prompts: number of the draw -> prompt.
        per_pass: prompts whose images are encoded together.
    """
    device = model.head_weight.device
    encoded = dict(prompts)
    seeing = [(number, item) for number, item in prompts.items() if item.patches]
    for start in range(0, len(seeing), per_pass):
        chunk = seeing[start : start + per_pass]
        features = model.encode_images(pack([item for _, item in chunk]).to(device))
        grids = [item.image_grid_thw[model.primary_encoder] for _, item in chunk]
        sizes = [int(grid.prod(axis=1).sum()) // model.merge_size**2 for grid in grids]
        for (number, item), part in zip(chunk, features.split(sizes, dim=1), strict=True):
            encoded[number] = replace(item, features=part)
    return encoded
