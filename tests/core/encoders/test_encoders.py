"""SigLIP 2 and DINOv2 against transformers, and what `fused` does with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medmo_core.encoders import Dinov2Encoder, FusedEncoder, Siglip2Encoder
from medmo_core.encoders.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from medmo_core.models.official.read import load_encoder

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()

GRIDS = [(4, 4), (2, 6), (8, 4), (6, 2)]  # rows, columns of patches; the tables below hold 4 x 4
MERGE = 2


def images(patch_size: int, seed: int) -> list[Tensor]:
    """One uint8 (3, H, W) picture per grid."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (3, rows * patch_size, columns * patch_size), dtype=torch.uint8, generator=generator)
        for rows, columns in GRIDS
    ]


def merge_rows(image: Tensor, p: int) -> Tensor:
    """Cut a picture into merge-ordered (C, p, p) rows."""
    _, height, width = image.shape
    blocks = image.view(3, height // (MERGE * p), MERGE, p, width // (MERGE * p), MERGE, p)
    return blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * p * p)


def to_merge_order(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reorder (rows * columns, D) raster features."""
    rows, columns = grid
    return features.view(rows // MERGE, MERGE, columns // MERGE, MERGE, -1).transpose(1, 2).flatten(0, 3)


def grids() -> Tensor:
    return torch.tensor([[1, rows, columns] for rows, columns in GRIDS])


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter, norms and layer scales included, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            one = parameter.dim() == 1 and name.endswith(("weight", "lambda1"))
            parameter.copy_(1 + 0.3 * noise if one else noise * 1.5 / max(parameter.shape[-1], 1) ** 0.5)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def gradients(output: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every output entry differently."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def on_disk(gradients: dict[str, Tensor], model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Put gradients through transformers' own saving, which gives them the names of published checkpoints."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(gradients.get(name, torch.zeros_like(parameter)))
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def assert_gradients_agree(ours: nn.Module, theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    own = {name: parameter.grad for name, parameter in ours.named_parameters()}
    renamed = {ours.official_name(name): value for name, value in theirs.items()}
    for name, gradient in own.items():
        assert gradient is not None, name
        reference = renamed[name]
        if name.endswith(("k_proj.bias", "key.bias")):  # softmax does not see a shift of all keys: zero in theory
            assert (gradient - reference).abs().max() < 1e-4 * max(g.abs().max() for g in own.values()), name
        else:
            assert relative_error(gradient, reference) < tolerance, (name, relative_error(gradient, reference))


@pytest.mark.parametrize(("width", "heads", "side"), [(32, 2, 4), (48, 3, 3)])
def test_siglip2_equals_transformers(tmp_path: Path, width: int, heads: int, side: int) -> None:
    config = transformers.Siglip2VisionConfig(
        hidden_size=width, intermediate_size=40, num_hidden_layers=2, num_attention_heads=heads, num_patches=side**2,
        patch_size=4,
    )  # fmt: skip
    oracle = transformers.Siglip2VisionModel(config)
    randomise(oracle, seed=width)
    oracle.save_pretrained(tmp_path / "weights")
    ours = Siglip2Encoder(
        embed_dim=width, depth=2, num_heads=heads, mlp_dim=40, patch_size=4, num_positions=side**2, merge_size=MERGE
    )
    load_encoder(ours, tmp_path / "weights")

    pictures = images(4, seed=1)
    raster = [to_raster_channels_last(image, 4) for image in pictures]
    longest = max(len(rows) for rows in raster)
    pixels = torch.zeros(len(raster), longest, 48)
    mask = torch.zeros(len(raster), longest, dtype=torch.int64)
    for index, rows in enumerate(raster):
        pixels[index, : len(rows)] = (rows / 255 - 0.5) / 0.5
        mask[index, : len(rows)] = 1
    out = oracle(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=torch.tensor(GRIDS))
    padded = out.last_hidden_state
    theirs = torch.cat([to_merge_order(padded[i, : r * c], (r, c)) for i, (r, c) in enumerate(GRIDS)])
    patches = {"siglip2": torch.cat([merge_rows(image, 4) for image in pictures])}
    out = ours(patches, {"siglip2": grids()})
    assert out.deepstack == ()
    assert relative_error(out.features, theirs) < 1e-5

    gradients(out.features, ours)
    reference = on_disk(gradients(theirs, oracle), oracle, tmp_path / "gradients")
    assert_gradients_agree(ours, reference)


def to_raster_channels_last(image: Tensor, p: int) -> Tensor:
    """Cut a picture as the SigLIP 2 processor does: raster order, (p, p, C) rows."""
    _, height, width = image.shape
    return image.view(3, height // p, p, width // p, p).permute(1, 3, 2, 4, 0).reshape(-1, 3 * p * p).float()


@pytest.mark.parametrize(("width", "heads", "swiglu", "side"), [(32, 2, False, 4), (48, 3, True, 3)])
def test_dinov2_equals_transformers(tmp_path: Path, width: int, heads: int, swiglu: bool, side: int) -> None:
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, image_size=7 * side, patch_size=7,
        mlp_ratio=2, use_swiglu_ffn=swiglu, qkv_bias=True,
    )  # fmt: skip
    oracle = transformers.Dinov2Model(config)
    randomise(oracle, seed=width)
    oracle.save_pretrained(tmp_path / "weights")
    ours = Dinov2Encoder(
        embed_dim=width, depth=2, num_heads=heads, mlp_ratio=2, swiglu=swiglu, patch_size=7, image_size=7 * side
    )
    load_encoder(ours, tmp_path / "weights")

    pictures = images(7, seed=2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = torch.cat(
        [
            to_merge_order(oracle(pixel_values=((image / 255 - mean) / std)[None]).last_hidden_state[0, 1:], grid)
            for image, grid in zip(pictures, GRIDS, strict=True)
        ]
    )
    patches = {"dinov2": torch.cat([merge_rows(image, 7) for image in pictures])}
    out = ours(patches, {"dinov2": grids()})
    assert relative_error(out.features, theirs) < 1e-5

    gradients(out.features, ours)
    reference = on_disk(gradients(theirs, oracle), oracle, tmp_path / "gradients")
    assert_gradients_agree(ours, reference)


@pytest.mark.parametrize("size", ["base", "large", "so400m"])
def test_siglip2_sizes_have_the_official_parameters(size: str) -> None:
    ours = Siglip2Encoder(**Siglip2Encoder.SIZES[size], device="meta")
    settings = Siglip2Encoder.SIZES[size]
    with torch.device("meta"):
        oracle = transformers.Siglip2Model(transformers.Siglip2Config(
            vision_config=dict(
                hidden_size=settings["embed_dim"], intermediate_size=settings["mlp_dim"],
                num_hidden_layers=settings["depth"], num_attention_heads=settings["num_heads"],
            ),
            text_config=dict(
                hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
            ),
        ))  # fmt: skip
    theirs = {ours.official_name(name): tuple(t.shape) for name, t in oracle.state_dict().items()}
    theirs.pop(None)
    assert theirs == {name: tuple(t.shape) for name, t in ours.state_dict().items()}


PUBLISHED_DINOV2 = {"small": 22_056_576, "base": 86_580_480, "large": 304_368_640, "giant": 1_136_480_768}


@pytest.mark.parametrize("size", list(PUBLISHED_DINOV2))
def test_dinov2_sizes_have_the_official_parameters(size: str) -> None:
    ours = Dinov2Encoder(**Dinov2Encoder.SIZES[size], device="meta")
    # The published counts include the mask token, which is not built here.
    assert sum(p.numel() for p in ours.parameters()) == PUBLISHED_DINOV2[size] - ours.embed_dim


def test_left_out_tensors_are_named_and_nothing_else_is(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, num_labels=3
    )
    classifier = transformers.Dinov2ForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    encoder = Dinov2Encoder(**Dinov2Encoder.SIZES["debug"])
    load_encoder(encoder, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name for name in stored if encoder.official_name(name) is None} == {
        "dinov2.embeddings.mask_token", "classifier.weight", "classifier.bias"
    }  # fmt: skip
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, stored[name]), name

    save_file({**stored, "dinov2.embeddings.register_tokens": torch.zeros(1, 4, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 unexpected: dinov2.embeddings.register_tokens"):
        load_encoder(encoder, tmp_path)


def test_a_fused_encoder_loads_tower_by_tower_and_concatenates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fused = FusedEncoder(**FusedEncoder.SIZES["debug"])
    other = Dinov2Encoder(**Dinov2Encoder.SIZES["debug"])
    bare = {name.removeprefix("dinov2."): tensor for name, tensor in other.state_dict().items()}
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    load_encoder(fused.towers["dinov2"], tmp_path)
    with pytest.raises(TypeError, match="one by one"):
        load_encoder(fused, tmp_path)

    grid = torch.tensor([[1, 4, 2]])
    patches = {"siglip2": torch.randint(0, 256, (8, 768)).byte(), "dinov2": torch.randint(0, 256, (8, 588)).byte()}
    features = fused(patches, {"siglip2": grid, "dinov2": grid}).features
    alone = other(patches, {"dinov2": grid}).features
    torch.testing.assert_close(features[:, 32:], nn.functional.layer_norm(alone, (32,), eps=1e-6))
    assert features.shape == (8, 64)


def test_fused_says_what_does_not_fit() -> None:
    fused = FusedEncoder(**FusedEncoder.SIZES["debug"])
    grid = torch.tensor([[1, 4, 2]])
    rows = {"siglip2": torch.zeros(8, 768), "dinov2": torch.zeros(8, 588)}
    with pytest.raises(ValueError, match=r"dinov2 and siglip2 see different grids: \[\[1, 2, 4\]\]"):
        fused(rows, {"siglip2": grid, "dinov2": torch.tensor([[1, 2, 4]])})
    with pytest.raises(ValueError, match="no patches for 'dinov2'; it has \\['siglip2'\\]"):
        fused({"siglip2": rows["siglip2"]}, {"siglip2": grid})
    with pytest.raises(ValueError, match="unknown tower 'clip'"):
        FusedEncoder(towers=("siglip2", "clip"))
    with pytest.raises(ValueError, match="merge sizes are {'siglip2': 2, 'dinov2': 1}"):
        FusedEncoder(tower_args={
            "siglip2": Siglip2Encoder.SIZES["debug"], "dinov2": {**Dinov2Encoder.SIZES["debug"], "merge_size": 1}
        })  # fmt: skip
