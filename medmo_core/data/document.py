"""A tokenised sample with its patches: one document, ready to be packed.

Shapes: T tokens, N patches, I images, p patch size, M visual tokens, D levels of features, E their width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch.looks import Looks
from .records.sample import Sample


@dataclass(frozen=True)
class Document:
    """One document ready to be packed.

    Attributes:
        input_ids: (T,) int64.
        labels: (T,) int64, -100 where nothing is learned; None for generation.
        position_ids: (3, T) int64.
        patches: encoder -> (N, 3 * p * p) uint8 in merge order; empty without images.
        image_grid_thw: encoder -> (I, 3) int64, in patches.
        sample: the sample it was made of.
        visual_end: number of tokens up to and with the last visual one; 0 without images.
        features: (1 + D, M, E) output of the vision tower, where it has run already (`Batch.features`).
        looks: where attention should be while the answer is said, positions counted within the document.
        coordinates: (T,) int64 codes of `batch.coordinates.Coordinates`, -1 where no coordinate is said; None: nowhere.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    position_ids: NDArray[np.int64]
    patches: dict[str, NDArray[np.uint8]]
    image_grid_thw: dict[str, NDArray[np.int64]]
    sample: Sample
    visual_end: int
    features: torch.Tensor | None = None
    looks: Looks | None = None
    coordinates: NDArray[np.int64] | None = None
