"""Documents with an image each, for our model and for transformers', drawn the same way each time."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch, mrope_position_ids
from medmo_core.models.config import PRESETS, ModelConfig
from medmo_core.models.medmo import MedMO
from medmo_recipes.training.monitoring import flops

ENCODER = "qwen3_vl"


@dataclass(frozen=True)
class DocumentSizes:
    """Sizes of the documents that a model is given.

    Attributes:
        preset: the model.
        texts: number of text tokens of each document.
        side: side of each image, in patches.
        learned: how many tokens of a document, the last ones, are in the loss.
    """

    preset: str
    texts: tuple[int, ...]
    side: int
    learned: int

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return PRESETS[self.preset]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        visual = (self.side // self.config.vision.spatial_merge_size) ** 2
        return [text + visual for text in self.texts]

    @property
    def first(self) -> "DocumentSizes":
        """A small document of the same model, for which float64 is no matter."""
        return replace(self, texts=(24,), side=min(self.side, 16), learned=min(self.learned, 12))

    def flops(self, *, trains: bool) -> float:
        """Count the useful operations of one pass: forward, and backward where the model trains."""
        model = skeleton(self.preset).requires_grad_(trains)
        side = self.side // model.merge_size
        parts = [flops.BatchWork.planned(model, grid=(side, side), text_tokens=text, learned=self.learned)
                 for text in self.texts]  # fmt: skip
        useful = flops.UsefulFlops(model)
        return sum(useful.of(part) for part in parts)


@cache
def skeleton(preset: str) -> MedMO:
    """Return a model without weights, to count by."""
    return MedMO.from_config(preset, device="meta")


def random_model(preset: str, device: torch.device, dtype: torch.dtype, **changes: Any) -> MedMO:
    """Build our model with random weights, the same each time; `changes` as `MedMO.from_config` takes them."""
    torch.manual_seed(0)
    return MedMO.from_config(preset, device=device, dtype=dtype, **changes)


def frozen_model(preset: str, device: torch.device, dtype: torch.dtype) -> MedMO:
    """Build it in evaluation mode, without gradients."""
    return random_model(preset, device, dtype).requires_grad_(False).eval()


def make_batch(documents: DocumentSizes) -> Batch:
    """Draw some text, an image and an answer for each document, on the host."""
    config, side = documents.config, documents.side
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([[1, side, side]])
    rows, labels, positions = [], [], []
    for text, length in zip(documents.texts, documents.lengths, strict=True):
        before, visual = (text - 2) // 4, length - text
        ids = torch.randint(0, config.bos_token_id, (length,), generator=generator)
        ids[before : before + visual + 2] = config.image_token_id
        ids[before], ids[before + visual + 1] = config.vision_start_token_id, config.vision_end_token_id
        learned = torch.full_like(ids, IGNORE_INDEX)
        learned[-documents.learned :] = ids[-documents.learned :]
        rows.append(ids)
        labels.append(learned)
        positions.append(mrope_position_ids(ids, grid, merge_size=config.vision.spatial_merge_size,
                                            image_token_id=config.image_token_id,
                                            video_token_id=config.video_token_id))  # fmt: skip
    count, width = len(rows), 3 * config.vision.patch_size**2
    return Batch(
        input_ids=torch.cat(rows),
        labels=torch.cat(labels),
        position_ids=torch.cat(positions, dim=1),
        cu_seqlens=torch.tensor([0, *map(len, rows)]).cumsum(0, dtype=torch.int32),
        patches={ENCODER: torch.randint(0, 256, (count * side**2, width), dtype=torch.uint8, generator=generator)},
        image_grid_thw={ENCODER: grid.expand(count, -1).contiguous()},
        sample_ids=tuple(f"document {i}" for i in range(count)),
    )


def for_transformers(batch: Batch, config: ModelConfig, dtype: torch.dtype, *, packed: bool) -> dict[str, Tensor]:
    """Return the same documents as transformers' model takes them, on the same device.

    Args:
        batch: one image per document.
        config: config of the model.
        dtype: dtype of the pixels.
        packed: one row, positions in the text first, by which flash attention separates documents; otherwise rows,
            short ones filled up at the end. A filler is seen by no token before it, so that no mask is needed.
    """
    assert batch.labels is not None
    lengths, vision = batch.lengths(), config.vision
    ids, labels, positions = batch.input_ids[None], batch.labels[None], batch.position_ids[:, None]
    if packed:
        text = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
        positions = torch.cat([text[None, None], positions])
    elif len(lengths) > 1:
        ids, labels = padded(batch.input_ids, lengths, 0), padded(batch.labels, lengths, IGNORE_INDEX)
        positions = torch.stack([padded(axis, lengths, 0) for axis in batch.position_ids])
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": pixel_values(batch.patches[ENCODER], vision.patch_size, vision.temporal_patch_size, dtype),
        "image_grid_thw": batch.image_grid_thw[ENCODER],
    }


def padded(packed: Tensor, lengths: list[int], filler: int) -> Tensor:
    """Lay packed rows side by side, short ones filled up at the end."""
    return torch.nn.utils.rnn.pad_sequence([*packed.split(lengths)], batch_first=True, padding_value=filler)


def pixel_values(patches: Tensor, patch_size: int, frames: int, dtype: torch.dtype) -> Tensor:
    """Turn uint8 patches into the normalised rows of doubled frames that transformers' processor makes."""
    rows = patches.view(-1, 3, 1, patch_size, patch_size).expand(-1, -1, frames, -1, -1).flatten(1)
    return ((rows.float() / 255 - 0.5) / 0.5).to(dtype)


def prompts_of(count: int, device: torch.device) -> tuple[DocumentSizes, torch.dtype, str]:
    """Return prompts with an image each for this machine, the dtype they are run in, and the model's name as shown."""
    if device.type == "cuda":
        return DocumentSizes("medmo-4b", (448,) * count, 80, 1), torch.bfloat16, "4B"
    large = count > 8  # for a CPU
    return DocumentSizes("tiny", (16 if large else 32,) * count, 8 if large else 16, 1), torch.float32, "tiny"
