"""Controls: the same questions about other images, which a model that looks must fail."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from medmo_core.boxes import Boxes
from medmo_core.data.records.sample import Sample
from medmo_core.data.records.store import store_of
from medmo_core.errors import InputError


def shuffle_images(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Give every question the images of another sample, and leave the question and its truth as they are.

    A model that looks must fall to what needs no looking. A sample comes back unchanged where no other has as many
    images and other ones. The result is for asking only: score the answers against the samples themselves, whose boxes
    fit their own image.
    """
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    donors: dict[int, Sample] = {}
    for place, index in enumerate(order):
        others = order[place + 1 :] + order[:place]
        own, count = _pictures(samples[index]), len(samples[index].images)
        fitting = (samples[o] for o in others if len(samples[o].images) == count)
        donors[index] = next((s for s in fitting if not own & _pictures(s)), samples[index])
    return [_shown_with(sample, donors[index]) for index, sample in enumerate(samples)]


def _shown_with(sample: Sample, donor: Sample) -> Sample:
    """Return the sample with another's images; boxes that its question gives keep their place relative to the image."""
    images = donor.images
    boxes = list(sample.boxes)
    for index in set(range(len(boxes))) - set(sample.sought):
        box = boxes[index]
        old, new = sample.images[box.image].size, images[box.image].size
        if old is None or new is None:
            raise InputError(f"{sample.id}: the question gives a box, so width and height of its image must be stated")
        row = torch.tensor([box.xyxy_px], dtype=torch.float64)
        x1, y1, x2, y2 = Boxes(row, "pixel", old).resize(new).xyxy[0].tolist()
        boxes[index] = replace(box, xyxy_px=(x1, y1, x2, y2))
    return replace(sample, images=images, boxes=tuple(boxes), root=donor.root)  # tables and shards hold their own


def _pictures(sample: Sample) -> set[tuple[Any, ...]]:
    store = store_of(sample.root)
    return {(store, i.path, i.frame, i.slice_index, i.plane) for i in sample.images}
