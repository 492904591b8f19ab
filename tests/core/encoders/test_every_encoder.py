"""Walk over every encoder: what the protocol promises, and what stage 1 needs of each."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medmo_core.batch import Batch, PatchSpec, mrope_position_ids
from medmo_core.encoders import ENCODERS, Encoder, EncoderOutput
from medmo_core.models import MedMO
from medmo_core.modules.blocks import blocks_of, set_forward

NAMES = sorted(ENCODERS)
GRIDS = [(4, 4), (2, 6), (4, 4)]
# Parameters of the tiny size, counted by hand from the published architectures (see count_by_hand).
D, DEPTH, MLP = 128, 4, 512


def debug_encoder(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    encoder = MedMO.from_config("debug", encoder=name).encoder
    assert isinstance(encoder, nn.Module)
    return encoder


def rows_for(spec: PatchSpec, grids: list[tuple[int, int]], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = sum(rows * columns for rows, columns in grids)
    return torch.randint(0, 256, (count, spec.still_width), dtype=torch.uint8, generator=generator)


def inputs(encoder: Encoder, grids: list[tuple[int, int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    patches = {name: rows_for(spec, grids) for name, spec in encoder.specs.items()}
    return patches, dict.fromkeys(encoder.specs, torch.tensor([[1, *grid] for grid in grids]))


@pytest.mark.parametrize("name", NAMES)
def test_protocol_and_shapes(name: str) -> None:
    encoder = debug_encoder(name)
    assert isinstance(encoder, Encoder)
    assert encoder.name == name
    out = encoder(*inputs(encoder, GRIDS))
    assert isinstance(out, EncoderOutput)
    assert out.features.shape == (44, encoder.embed_dim)
    assert len(out.deepstack) == encoder.num_deepstack
    assert all(tap.shape == out.features.shape for tap in out.deepstack)
    assert not list(encoder.named_parameters(recurse=False))
    assert not list(encoder.named_buffers(recurse=False))


@pytest.mark.parametrize("name", NAMES)
def test_packed_images_equal_each_alone(name: str) -> None:
    encoder = debug_encoder(name)
    patches, grids = inputs(encoder, GRIDS)
    packed = encoder(patches, grids)
    sizes = [rows * columns for rows, columns in GRIDS]
    parts = {key: rows.split(sizes) for key, rows in patches.items()}
    for index, size in enumerate(sizes):
        own_patches = {key: rows[index] for key, rows in parts.items()}
        alone = encoder(own_patches, {key: grid[index : index + 1] for key, grid in grids.items()})
        start = sum(sizes[:index])
        for ours, single in zip((packed.features, *packed.deepstack), (alone.features, *alone.deepstack), strict=True):
            torch.testing.assert_close(ours[start : start + size], single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_raw_pixels_equal_normalised_floats(name: str) -> None:
    encoder = debug_encoder(name)
    patches, grids = inputs(encoder, GRIDS)
    floats = {}
    for key, rows in patches.items():
        spec = encoder.specs[key]
        mean, std = (torch.tensor(v).view(1, 3, 1) for v in (spec.image_mean, spec.image_std))
        floats[key] = ((rows.view(len(rows), 3, -1) / 255 - mean) / std).flatten(1)
    torch.testing.assert_close(encoder(patches, grids).features, encoder(floats, grids).features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient_and_position_matters(name: str) -> None:
    encoder = debug_encoder(name)
    patches, grids = inputs(encoder, [(4, 4)])
    torch.manual_seed(1)
    out = encoder(patches, grids)
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in (out.features, *out.deepstack)).backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()] == []
    same = {key: rows[:1].expand(16, -1) for key, rows in patches.items()}
    spread = encoder(same, grids).features.std(dim=0)
    assert spread.max() > 1e-3, "sixteen equal patches at sixteen places came out equal"


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    encoder = debug_encoder(name)
    blocks = blocks_of(encoder)
    assert len(blocks) == 2 * len(encoder.specs)  # the debug size has two a tower
    found = []
    for recompute in ("nothing", "all", "selected"):
        set_forward(blocks, recompute=recompute)
        encoder.zero_grad()
        encoder(*inputs(encoder, GRIDS)).features.square().sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for plain, *recomputed in zip(*found, strict=True):
        for other in recomputed:
            torch.testing.assert_close(plain, other)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_counts_are_refused(name: str) -> None:
    encoder = debug_encoder(name)
    patches, grids = inputs(encoder, GRIDS)
    with pytest.raises(ValueError, match="grids hold 44 patches, 43 rows"):
        encoder({key: rows[:-1] for key, rows in patches.items()}, grids)
    with pytest.raises(ValueError, match="patches have .* values each"):
        encoder({key: rows[:, :-3] for key, rows in patches.items()}, grids)


def count_by_hand(name: str) -> int:
    """Parameters of the tiny size, from the formulas of the papers."""
    attention, mlp, norm = 4 * (D * D + D), 2 * D * MLP + MLP + D, 2 * D
    block = attention + mlp + 2 * norm
    counts = {
        "qwen3_vl": DEPTH * block + (2 * 3 * 16 * 16 * D + D) + 256 * D,
        "siglip2": DEPTH * block + (3 * 16 * 16 * D + D) + 144 * D + norm,
        "dinov2": DEPTH * (block + 2 * D) + (3 * 14 * 14 * D + D) + (144 + 1) * D + D + norm,
    }
    return counts["siglip2"] + counts["dinov2"] if name == "fused" else counts[name]


@pytest.mark.parametrize("name", NAMES)
def test_tiny_size(name: str) -> None:
    encoder = MedMO.from_config("tiny", encoder=name, device="meta").encoder
    assert isinstance(encoder, nn.Module)
    assert sum(p.numel() for p in encoder.parameters()) == count_by_hand(name)


FIRST_NAMES = {
    "qwen3_vl": ("blocks.0.attn.qkv.weight",),
    "siglip2": ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.post_layernorm.bias"),
    "dinov2": ("dinov2.encoder.layer.0.attention.attention.query.weight", "dinov2.embeddings.cls_token"),
}
FIRST_NAMES["fused"] = FIRST_NAMES["siglip2"] + FIRST_NAMES["dinov2"]


def one_document(model: MedMO, grid: tuple[int, int]) -> Batch:
    """Three words, a picture, five words of which the last four are learned."""
    config, merge = model.config, model.merge_size
    visual = math.prod(grid) // merge**2
    ids = torch.tensor([5, 6, config.vision_start_token_id, *[config.image_token_id] * visual,
                        config.vision_end_token_id, 7, 8, 9, 10, 11])  # fmt: skip
    labels = ids.clone()
    labels[:-4] = -100
    patches, grids = inputs(model.encoder, [grid])
    positions = mrope_position_ids(
        ids, torch.tensor([[1, *grid]]), merge_size=merge,
        image_token_id=config.image_token_id, video_token_id=config.video_token_id,
    )  # fmt: skip
    return Batch(ids, labels, positions, torch.tensor([0, len(ids)], dtype=torch.int32), patches, grids)


@pytest.mark.parametrize("name", NAMES)
def test_one_config_field_aligns_it_with_the_decoder(name: str, tmp_path: Path) -> None:
    """Build, train the projector one step, save, load: all by `encoder=` alone."""
    torch.manual_seed(0)
    model = MedMO.from_config("debug", encoder=name)
    state = model.state_dict()
    assert all(f"model.visual.{first}" in state for first in FIRST_NAMES[name])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = [p for n, p in model.named_parameters() if n.startswith("model.visual.merger.")]
    for parameter in trained:
        parameter.requires_grad_(True)
    batch = one_document(model, (4, 6))
    before = model.loss(batch)
    before.backward()
    with torch.no_grad():
        for parameter in trained:
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert model.loss(batch) < before

    model.save_pretrained(tmp_path / "saved")
    again = MedMO.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert list(again.state_dict()) == list(state)
    assert torch.equal(again(batch), model(batch))
