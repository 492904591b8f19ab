"""A config.json that makes no model: one error that names file and field, before anything is built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmo_core.errors import InputError
from medmo_core.models import medmo as medmo_module
from medmo_core.models.checkpoint_config import read_config
from medmo_core.models.config import PRESETS, ModelConfig
from medmo_core.models.medmo import MedMO
from medmo_core.models.official.folder import open_checkpoint

WRONG: list[Any] = ["12", [], {}, True, 1.5, -1, 0, float("nan"), float("inf"), 10**400, 2**50]
SIZES = {
    "text_config": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim",
    ),
    "vision_config": (
        "depth", "hidden_size", "intermediate_size", "num_heads", "num_position_embeddings", "patch_size",
        "temporal_patch_size", "spatial_merge_size",
    ),
}  # fmt: skip
OTHERS: dict[str, tuple[str, list[Any]]] = {
    "text_config.rms_norm_eps": ("text_config", ["1e-6", True, -1e-6, 2, float("nan"), [1e-6]]),
    "text_config.rope_theta": ("text_config", ["5e6", False, 0, -1.0, float("inf")]),
    "text_config.attention_bias": ("text_config", ["false", 0, 1, []]),
    "text_config.hidden_act": ("text_config", ["gelu", 3]),
    "text_config.rope_scaling": ("text_config", ["default", 3, [24, 20, 20]]),
    "vision_config.hidden_act": ("vision_config", ["gelu"]),
    "vision_config.deepstack_visual_indexes": ("vision_config", [1, "0", [True], ["0"], [-1], [2], [0, 0]]),
    "tie_word_embeddings": ("", ["yes", 1]),
    "image_token_id": ("", ["7", -1, 512, 1.0]),
    "text_config": ("", [5, "x", [1]]),
    "vision_config": ("", [5, "x"]),
    "medmo_encoder": ("", ["dinov2", 3]),
    "model_type": ("", ["llama", 5, None]),
}


def debug_config() -> dict[str, Any]:
    return json.loads(json.dumps(PRESETS["debug"].to_dict()))


def cases() -> list[tuple[str, str, Any]]:
    sizes = [(part, f"{part}.{name}", value) for part, names in SIZES.items() for name in names for value in WRONG]
    return sizes + [(part, field, value) for field, (part, values) in OTHERS.items() for value in values]


def test_every_wrong_value_is_one_error_that_names_the_field() -> None:
    ModelConfig.from_dict(debug_config())
    for part, field, value in cases():
        config = debug_config()
        name = field.rpartition(".")[2]
        (config[part] if part else config)[name] = value
        if name == "rope_theta":
            config["text_config"].pop("rope_parameters", None)
        with pytest.raises(InputError) as caught:
            ModelConfig.from_dict(config)
        assert str(caught.value).startswith(field), (field, value, str(caught.value))


@pytest.mark.parametrize(
    ("part", "name"),
    [("text_config", "hidden_size"), ("text_config", "rope_theta"), ("vision_config", "depth"),
     ("vision_config", "deepstack_visual_indexes")],
)  # fmt: skip
def test_a_size_that_is_missing_is_not_guessed(part: str, name: str) -> None:
    config = debug_config()
    del config[part][name]
    with pytest.raises(InputError, match=rf"{part}\.{name} is missing"):
        ModelConfig.from_dict(config)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("text_config", "num_key_value_heads", 3), ("text_config", "head_dim", 18), ("vision_config", "num_heads", 3),
     ("vision_config", "num_position_embeddings", 35)],
)  # fmt: skip
def test_sizes_that_do_not_fit_together_are_refused(part: str, name: str, value: int) -> None:
    config = debug_config()
    config[part][name] = value
    with pytest.raises(InputError, match="expected"):
        ModelConfig.from_dict(config)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"depht": 2}, "depht: unknown; did you mean 'depth'"), ({"depth": "2"}, "depth is '2', expected a whole number"),
     ({"depth": 100_000}, "depth is 100000, expected a whole number from 1 to 1,000")],
)  # fmt: skip
def test_arguments_of_another_encoder_are_checked(kwargs: dict[str, Any], message: str) -> None:
    config = PRESETS["debug"].override(encoder="dinov2", encoder_kwargs=kwargs)
    with pytest.raises(InputError, match=message):
        MedMO(config, device="meta")


def edit(values: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda config: [config[part].update(fields) for part, fields in values.items()] and None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_config": {"num_hidden_layers": 100_000}}, "num_hidden_layers is 100000, expected a whole number"),
        ({"text_config": {"num_hidden_layers": 900}}, "num_hidden_layers is 900, but the weights beside it have 2 of"),
        ({"vision_config": {"depth": 3}}, "vision_config.depth is 3, but the weights beside it have 2 of these layers"),
    ],
)
def test_layers_are_compared_before_a_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], message: str
) -> None:
    MedMO.from_config("debug").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    edit(values)(config)
    path.write_text(json.dumps(config))
    monkeypatch.setattr(medmo_module, "build_decoder", lambda *args: pytest.fail("a model was built first"))
    with pytest.raises(InputError, match=rf"config\.json: .*{message}"):
        MedMO.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", "\x00", "[]"])
def test_a_file_that_is_no_config_names_itself(tmp_path: Path, text: str) -> None:
    MedMO.from_config("debug").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: "):
        read_config(open_checkpoint(tmp_path))
