"""Sizes and names of the presets, and the config file."""

import json

import pytest
import torch

from medmo_core.models import PRESETS, MedMO, ModelConfig

SIZES = {"medmo-4b": (4_437_815_808, 713), "medmo-8b": (8_767_123_696, 750)}


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_official_names_and_counts(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = MedMO.from_config(name, device="meta")
    parameters = dict(model.named_parameters())
    assert (sum(p.numel() for p in parameters.values()), len(parameters)) == SIZES[name]
    assert list(model.state_dict()) == list(parameters), "no buffers, no second names"
    with torch.device("meta"):
        theirs = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**model.config.to_dict()))
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert {key: value.shape for key, value in parameters.items()} == expected


def test_tiny_is_small_and_fast_to_build() -> None:
    model = MedMO.from_config("tiny")
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 5e6


@pytest.mark.parametrize("name", PRESETS)
def test_config_file_round_trips(name: str) -> None:
    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ["medmo-4b", "medmo-8b", "tiny"])
def test_transformers_reads_the_same_sizes_and_we_read_what_it_writes(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name]
    theirs = transformers.Qwen3VLConfig(**config.to_dict())
    assert theirs.text_config.rope_parameters["rope_theta"] == config.text.rope_theta
    assert tuple(theirs.text_config.rope_parameters["mrope_section"]) == config.text.mrope_section
    assert theirs.vision_config.depth == config.vision.depth
    assert ModelConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False))) == config


def test_other_encoders_stand_under_our_own_key() -> None:
    config = PRESETS["tiny"].override(encoder="dinov2", encoder_kwargs={"embed_dim": 96})
    assert config.to_dict()["medmo_encoder"] == {"name": "dinov2", "kwargs": {"embed_dim": 96}}
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "medmo_encoder" not in PRESETS["tiny"].to_dict()


def test_overrides_reach_the_part_that_owns_the_field() -> None:
    config = PRESETS["tiny"].override(
        vocab_size=300, depth=2, deepstack_visual_indexes=(0,), image_token_id=7, text={"hidden_size": 96}
    )
    assert (config.text.vocab_size, config.vision.depth, config.image_token_id) == (300, 2, 7)
    assert (config.text.hidden_size, config.vision.hidden_size) == (96, 128)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_siz": 3}, "unknown model field 'vocab_siz'; did you mean 'vocab_size'"),
        ({"hidden_size": 3}, "'hidden_size' is a field of both parts"),
        ({"text": {"num_layers": 3}}, "unknown model field 'text.num_layers'"),
    ],
)
def test_unknown_overrides_name_the_nearest_field(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MedMO.from_config("tiny", **overrides)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown model 'medmo-5b'; known: medmo-4b"):
        MedMO.from_config("medmo-5b")
    with pytest.raises(ValueError, match="unknown encoder 'clip'; known: qwen3_vl"):
        MedMO.from_config("debug", encoder="clip")
    with pytest.raises(ValueError, match="model_type is 'llava'"):
        ModelConfig.from_dict({"model_type": "llava"})


def test_views_share_the_parameters() -> None:
    """Encoder and projector are views: training, moving and casting the model reaches them under one name."""
    model = MedMO.from_config("debug").to(torch.float64)
    tower = dict(model.model.visual.named_parameters())
    views = dict(model.encoder.named_parameters()) | dict(model.projector.named_parameters())
    assert {name: id(p) for name, p in tower.items()} == {name: id(p) for name, p in views.items()}
    assert all(p.dtype == torch.float64 for p in model.encoder.parameters())
    assert model.head_weight is model.decoder.embed_tokens.weight


def test_weights_follow_the_seed_and_norms_start_at_one() -> None:
    torch.manual_seed(3)
    first = MedMO.from_config("debug", initializer_range=0.1)
    torch.manual_seed(3)
    second = MedMO.from_config("debug", initializer_range=0.1)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
        if "norm" in name and name.endswith("weight"):
            assert torch.equal(a, torch.ones_like(a)), name
        elif name.endswith("bias"):
            assert not a.any(), name
        elif name.endswith("embed_tokens.weight"):
            assert abs(a.std().item() - 0.1) < 0.01, name
        elif a.numel() > 1000 and "pos_embed" not in name:
            expected = 0.7 * a[0].numel() ** -0.5  # by fan-in
            assert abs(a.std().item() / expected - 1) < 0.1, name


def test_a_new_position_table_tells_rows_from_columns() -> None:
    table = MedMO.from_config("tiny").model.visual.pos_embed.weight
    grid = table.detach().view(16, 16, -1)
    half = grid.shape[-1] // 2
    assert torch.equal(grid[3, :, :half], grid[3, :1, :half].expand(16, half))  # a row's waves do not see its columns
    assert torch.equal(grid[:, 5, half:], grid[:1, 5, half:].expand(16, half))
    distances = torch.cdist(table, table) + 10 * torch.eye(256)
    assert distances.min() > 0.3
    nearest = distances.argmin(dim=1)
    steps = (nearest // 16 - torch.arange(256) // 16).abs() + (nearest % 16 - torch.arange(256) % 16).abs()
    assert steps.max() == 1  # what looks most alike lies next to it
