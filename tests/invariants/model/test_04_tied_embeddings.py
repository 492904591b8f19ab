"""Tied embeddings stay one tensor through meta init, sharding, an optimiser step, saving and loading.

And the gradient of that tensor is the sum of both its uses, as embedding and as head.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from medmo_core.batch import Batch
from medmo_core.models import PRESETS, MedMO
from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.optim.optimizer import Optimizer

CONFIG = PRESETS["debug"].override(vocab_size=64, tie_word_embeddings=True, bos_token_id=34, eos_token_id=36)
CONFIG = CONFIG.override(vision_start_token_id=43, vision_end_token_id=44, image_token_id=46, video_token_id=47)


def make_batch() -> Batch:
    ids = torch.randint(0, 32, (14,), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 8, 14], dtype=torch.int32)
    positions = torch.cat([torch.arange(8), torch.arange(6)]).expand(3, -1)
    return Batch(ids, ids.clone(), positions, bounds)


def make_model() -> MedMO:
    torch.manual_seed(1)
    return MedMO.from_config(CONFIG, dtype=torch.float64)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone, so that sharding runs as it does among many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_tied(model: MedMO) -> None:
    """One parameter, one storage, no second name; what the embedding holds is what the head multiplies with."""
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names and "lm_head.weight" not in model.state_dict()
    assert sum(name.endswith("embed_tokens.weight") for name in names) == 1
    assert model.head_weight is model.decoder.embed_tokens.weight


def check_gradient_is_the_sum(model: MedMO) -> None:
    """The tied gradient equals that of an untied twin's embedding plus that of its head."""
    twin = MedMO.from_config(CONFIG.override(tie_word_embeddings=False), dtype=torch.float64)
    tensors = {name: whole(p.detach()) for name, p in model.named_parameters()}
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    twin.load_state_dict(tensors)
    twin.loss(make_batch(), "sum").backward()
    model.loss(make_batch(), "sum").backward()
    assert twin.decoder.embed_tokens.weight.grad is not None and twin.lm_head.weight.grad is not None
    assert model.head_weight.grad is not None
    expected = twin.decoder.embed_tokens.weight.grad + twin.lm_head.weight.grad
    torch.testing.assert_close(whole(model.head_weight.grad), expected, rtol=1e-12, atol=1e-12)


def test_from_meta_to_disk_and_back(tmp_path: Path) -> None:
    model = make_model()
    check_tied(model)
    model.save_pretrained(tmp_path / "saved")
    with torch.device("meta"):
        check_tied(MedMO(CONFIG))
    loaded = MedMO.from_pretrained(tmp_path / "saved").train()  # built on meta, then filled
    check_tied(loaded)
    check_gradient_is_the_sum(loaded)
    assert torch.equal(loaded.head_weight, model.head_weight)


def test_through_sharding_and_a_step(one_process: None, tmp_path: Path) -> None:
    model = make_model()
    for layer in model.decoder.layers:
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")
    assert isinstance(model.head_weight, DTensor)
    check_tied(model)
    check_gradient_is_the_sum(model)
    before = whole(model.head_weight.detach()).clone()
    Optimizer(model, Optim(lr=1e-2, warmup_ratio=0.0), steps=3).step(0)
    check_tied(model)
    assert not torch.equal(whole(model.head_weight.detach()), before)
    check_gradient_is_the_sum(model)


def test_untying_on_the_way_is_noticed() -> None:
    """What meta initialisation does elsewhere: the head becomes a separate tensor."""
    model = make_model()
    head = torch.nn.Linear(*reversed(model.head_weight.shape), bias=False, dtype=torch.float64)
    model.lm_head = head
    model.config = CONFIG.override(tie_word_embeddings=False)
    with pytest.raises(AssertionError):
        check_tied(model)
    with torch.no_grad():
        head.weight.copy_(model.decoder.embed_tokens.weight)
    with pytest.raises(AssertionError):  # each of the two has a part of the gradient only
        check_half(model)


def check_half(model: MedMO) -> None:
    model.loss(make_batch(), "sum").backward()
    tied = make_model()
    tied.loss(make_batch(), "sum").backward()
    assert tied.head_weight.grad is not None
    torch.testing.assert_close(model.head_weight.grad, tied.head_weight.grad)
