"""Documents to learn from and prompts to answer: random tokens about images of random pixels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, mrope_position_ids
from medmo_core.data.document import Document
from medmo_core.data.records.sample import Sample
from medmo_core.models import MedMO
from medmo_core.models.config import ModelConfig
from medmo_recipes.reinforcement.completions import join

from ..modules.documents import pixel_values, random_model

MODEL_NAMES = {"medmo-4b": "4B", "medmo-8b": "8B"}
"""Preset -> as shown; another by itself."""


def recomputing_model(preset: str, device: torch.device, dtype: torch.dtype) -> MedMO:
    """Build our model, the same weights each time; all blocks are computed again in the backward pass."""
    model = random_model(preset, device, dtype)
    model.checkpoint_activations("all")
    return model


def make_prompt(
    config: ModelConfig, sides: Sequence[int], text: int, *, name: str = "image", seed: int = 0
) -> Document:
    """Draw a prompt: four tokens of text, images, the rest of the text.

    Args:
        config: config of a model with Qwen3-VL's encoder.
        sides: side of each image, in patches; none: text alone.
        text: tokens beside those of the images and their two marks, at least 5.
        name: name of the sample.
        seed: seed of all that is random.
    """
    rng, vision = np.random.default_rng(seed), config.vision
    merge = vision.spatial_merge_size
    ids = rng.integers(0, config.bos_token_id, 4).tolist()
    for side in sides:
        visual = [config.image_token_id] * (side // merge) ** 2
        ids += [config.vision_start_token_id, *visual, config.vision_end_token_id]
    visual_end = len(ids) - 1 if sides else 0
    ids += rng.integers(0, config.bos_token_id, text - 4).tolist()
    grid = np.array([[1, side, side] for side in sides]).reshape(-1, 3)
    positions = mrope_position_ids(
        torch.tensor(ids), torch.from_numpy(grid), merge_size=merge, image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
    )  # fmt: skip
    shape = (sum(side**2 for side in sides), 3 * vision.patch_size**2)
    return Document(
        input_ids=np.array(ids),
        labels=None,
        position_ids=positions.numpy(),
        patches={"qwen3_vl": rng.integers(0, 256, shape, dtype=np.uint8)} if sides else {},
        image_grid_thw={"qwen3_vl": grid} if sides else {},
        sample=Sample(id=name, task="grounding" if sides else "text"),
        visual_end=visual_end,
    )


def make_answers(config: ModelConfig, count: int, length: int, *, seed: int = 1) -> list[list[int]]:
    """Draw answers of some tokens."""
    return np.random.default_rng(seed).integers(0, config.bos_token_id, (count, length)).tolist()


def answered(prompt: Document, answers: Sequence[Sequence[int]]) -> list[Document]:
    """Return a document per answer; they hold the same image, and packing may share it."""
    return [join(prompt, answer) for answer in answers]


def unshared(item: Document) -> Document:
    """Return the item with a copy of its pixels: nothing shows that another has the same."""
    return replace(item, patches={name: rows.copy() for name, rows in item.patches.items()})


def padded(items: Sequence[Document], config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return documents as transformers takes them: rows padded at the right, normalised pixels of doubled frames.

    Args:
        items: documents, all with labels or all without.
        config: config of the model.
        dtype: dtype of the pixels.
    """
    shape = (len(items), max(len(item.input_ids) for item in items))
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX)
    for row, item in enumerate(items):
        length = len(item.input_ids)
        ids[row, :length], mask[row, :length] = torch.from_numpy(item.input_ids), 1
        if item.labels is not None:
            labels[row, :length] = torch.from_numpy(item.labels)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
    }
    if items[0].labels is not None:
        inputs["labels"] = labels
    seeing = [item for item in items if item.patches]
    if seeing:
        vision = config.vision
        patches = torch.cat([torch.from_numpy(item.patches["qwen3_vl"]) for item in seeing])
        inputs["pixel_values"] = pixel_values(patches, vision.patch_size, vision.temporal_patch_size, dtype)
        inputs["image_grid_thw"] = torch.cat([torch.from_numpy(item.image_grid_thw["qwen3_vl"]) for item in seeing])
    return inputs
