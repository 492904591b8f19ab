"""A debug model and a packed batch with an image."""

import pytest
import torch

from medmo_core.batch import Batch
from medmo_core.models.medmo import MedMO


@pytest.fixture
def model_and_batch() -> tuple[MedMO, Batch]:
    """Hand out a model with random weights and one document about a picture."""
    torch.manual_seed(0)
    model = MedMO.from_config("debug", initializer_range=0.1)
    ids = torch.randint(0, 400, (41,))  # a length that no hardware multiplies
    ids[3:7] = model.config.image_token_id
    return model, Batch(
        input_ids=ids,
        labels=torch.where(torch.arange(41) > 20, ids, -100),
        position_ids=torch.arange(41).expand(3, -1).contiguous(),
        cu_seqlens=torch.tensor([0, 41], dtype=torch.int32),
        patches={"qwen3_vl": torch.randint(0, 256, (16, 768), dtype=torch.uint8)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 4, 4]])},
    )
