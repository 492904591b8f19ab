"""Sizes of a model: frozen dataclasses that read and write the official Qwen3-VL `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import InputError
from ..nearest import nearest_name
from .config_values import as_object, checked, checked_part, is_square, require

ENCODER_KEY = "medmo_encoder"
"""Our own key in config.json, present only when the encoder is not Qwen3-VL's tower."""

OWN_MODEL_TYPE = "medmo"
"""The `model_type` of such a model; with Qwen3-VL's tower it is "qwen3_vl"."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of Qwen3-VL's vision tower, under their official names."""

    depth: int = 24
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_heads: int = 16
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (5, 11, 17)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the Qwen3 decoder, under their official names."""

    vocab_size: int = 151_936
    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    max_position_embeddings: int = 262_144
    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a model's shape.

    Attributes:
        vision: sizes of Qwen3-VL's tower; unused by other encoders.
        text: sizes of the decoder.
        encoder: key in `medmo_core.encoders.ENCODERS`.
        encoder_kwargs: constructor arguments of an encoder other than "qwen3_vl".
        tie_word_embeddings: the head is the embedding.
        image_token_id: placeholder of one visual token of an image.
        video_token_id: placeholder of one visual token of a video.
        vision_start_token_id: id of the token that opens a vision block.
        vision_end_token_id: id of the token that closes it.
        bos_token_id: `<|endoftext|>`.
        eos_token_id: `<|im_end|>`.
        initializer_range: standard deviation of random weights.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    encoder: str = "qwen3_vl"
    encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = True
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    bos_token_id: int = 151_643
    eos_token_id: int = 151_645
    initializer_range: float = 0.02

    @property
    def placeholder_token_ids(self) -> tuple[int, ...]:
        """Ids that stand for images in the text and are never sampled, `<|vision_pad|>` among them."""
        ids = {self.image_token_id, self.video_token_id, self.vision_start_token_id, self.vision_end_token_id}
        if self.image_token_id == self.vision_end_token_id + 2:
            ids.add(self.vision_end_token_id + 1)
        return tuple(sorted(ids))

    def override(self, **overrides: Any) -> ModelConfig:
        """Return a copy with some fields changed.

        A name is a field of this class, or of the text or vision part where only one of them has it (`vocab_size`,
        `depth`); `text={...}` and `vision={...}` change fields of that part.

        Raises:
            ValueError: no such field (the nearest name is suggested), or the name is in both parts.
        """
        own = {entry.name for entry in fields(self)} - {"text", "vision"}
        parts = {part: {entry.name for entry in fields(getattr(self, part))} for part in ("text", "vision")}
        changes: dict[str, dict[str, Any]] = {"": {}, "text": {}, "vision": {}}
        for name, value in overrides.items():
            if name in parts:
                changes[name].update(asdict(value) if isinstance(value, (TextConfig, VisionConfig)) else value)
            elif name in own:
                changes[""][name] = value
            else:
                owners = [part for part, names in parts.items() if name in names]
                if len(owners) != 1:
                    _unknown(name, own | parts["text"] | parts["vision"], ambiguous=bool(owners))
                changes[owners[0]][name] = value
        for part, names in parts.items():
            for name in changes[part].keys() - names:
                _unknown(f"{part}.{name}", {f"{part}.{known}" for known in names})
            changes[""][part] = replace(getattr(self, part), **changes[part])
        return replace(self, **changes[""])

    def to_dict(self) -> dict[str, Any]:
        """Return the official `config.json`."""
        text = asdict(self.text)
        sections, theta = list(text.pop("mrope_section")), text.pop("rope_theta")
        rope = {"mrope_interleaved": True, "mrope_section": sections, "rope_type": "default"}
        vision = asdict(self.vision)
        vision["deepstack_visual_indexes"] = list(self.vision.deepstack_visual_indexes)
        config: dict[str, Any] = {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "text_config": {
                **text,
                "model_type": "qwen3_vl_text",
                "hidden_act": "silu",
                "attention_dropout": 0.0,
                "bos_token_id": self.bos_token_id,
                "eos_token_id": self.eos_token_id,
                "initializer_range": self.initializer_range,
                "rope_scaling": rope,
                "rope_theta": theta,
                "tie_word_embeddings": self.tie_word_embeddings,
                "use_cache": True,
            },
            "vision_config": {
                **vision,
                "model_type": "qwen3_vl",
                "hidden_act": "gelu_pytorch_tanh",
                "in_channels": 3,
                "initializer_range": self.initializer_range,
                "out_hidden_size": self.text.hidden_size,
            },
        }
        if self.encoder != "qwen3_vl":
            # A name of our own, so that transformers refuses the file instead of inventing the missing tower.
            config |= {"architectures": ["MedMO"], "model_type": OWN_MODEL_TYPE}
            config[ENCODER_KEY] = {"name": self.encoder, "kwargs": self.encoder_kwargs}
        return config

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ModelConfig:
        """Read an official `config.json`, in the spelling of transformers 4 or 5.

        Raises:
            ValueError: the file describes another architecture, or a value is missing, of a wrong type or too large.
        """
        if config.get("model_type") not in ("qwen3_vl", OWN_MODEL_TYPE):
            raise InputError(f"model_type is {config.get('model_type')!r}, expected 'qwen3_vl'")
        vision, text = (as_object(config.get(name), name) for name in ("vision_config", "text_config"))
        ropes = (as_object(text.get(key), f"text_config.{key}") for key in ("rope_scaling", "rope_parameters"))
        rope = {key: value for values in ropes for key, value in values.items()}
        if rope.get("rope_type", "default") != "default" or rope.get("mrope_interleaved", True) is not True:
            raise InputError(f"rope of kind {rope} is not supported, only interleaved default M-RoPE is")
        text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta"))
        text["mrope_section"] = rope.get("mrope_section", TextConfig.mrope_section)
        own = {name: config[name] for name in (*_TOP_LEVEL, "tie_word_embeddings") if config.get(name) is not None}
        optional = ("bos_token_id", "eos_token_id", "initializer_range")
        own = {name: text[name] for name in optional if text.get(name) is not None} | own
        encoder = as_object(config.get(ENCODER_KEY), ENCODER_KEY)
        name = checked(encoder.get("name", "qwen3_vl"), "", f"{ENCODER_KEY}.name")
        read = cls(
            vision=VisionConfig(
                **checked_part(vision, VisionConfig(), _VISION_SIZES if name == "qwen3_vl" else (), "vision_config")
            ),
            text=TextConfig(**checked_part(text, TextConfig(), _TEXT_SIZES, "text_config")),
            encoder=name,
            encoder_kwargs=as_object(encoder.get("kwargs"), f"{ENCODER_KEY}.kwargs"),
            **{"tie_word_embeddings": False, **{n: checked(value, getattr(cls, n), n) for n, value in own.items()}},
        )
        read.check_fit()
        return read

    def check_fit(self) -> None:
        """Check that the sizes fit together.

        Raises:
            InputError: they do not; names the field.
        """
        text, vision = self.text, self.vision
        heads, groups, pairs = text.num_attention_heads, text.num_key_value_heads, text.mrope_section
        division = f"a divisor of num_attention_heads, {heads}"
        require(heads % groups == 0, "text_config.num_key_value_heads", groups, division)
        rotated = f"three numbers of pairs that add up to half of head_dim, {text.head_dim}"
        fits = len(pairs) == 3 and 2 * sum(pairs) == text.head_dim
        require(fits, "text_config.rope_parameters.mrope_section", list(pairs), rotated)
        for name in (*_TOP_LEVEL, "bos_token_id", "eos_token_id"):
            number = getattr(self, name)
            require(number < text.vocab_size, name, number, f"an id of the vocabulary, below {text.vocab_size}")
        if self.encoder != "qwen3_vl":
            return
        width, taps = vision.hidden_size, vision.deepstack_visual_indexes
        division = f"a multiple of four times num_heads, {vision.num_heads}"
        require(width % (4 * vision.num_heads) == 0, "vision_config.hidden_size", width, division)
        places = vision.num_position_embeddings
        require(is_square(places), "vision_config.num_position_embeddings", places, "the square of a whole number")
        layers = f"different layers from 0 to {vision.depth - 1}"
        fits = len(set(taps)) == len(taps) and all(tap < vision.depth for tap in taps)
        require(fits, "vision_config.deepstack_visual_indexes", list(taps), layers)


_TOP_LEVEL = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


_TEXT_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rope_theta",
)  # fmt: skip
_VISION_SIZES = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "num_position_embeddings", "deepstack_visual_indexes",
)  # fmt: skip
"""Fields of a config.json that must be there: what stands in for them differs between versions of transformers."""


def _unknown(name: str, known: set[str], ambiguous: bool = False) -> None:
    if ambiguous:
        raise InputError(f"{name!r} is a field of both parts: write text={{{name!r}: ...}} or vision={{{name!r}: ...}}")
    near = nearest_name(name, known)
    hint = f"; did you mean {near!r}?" if near else f"; known fields: {', '.join(sorted(known))}"
    raise InputError(f"unknown model field {name!r}{hint}")


def _special_ids(vocab_size: int) -> dict[str, Any]:
    """Return the ids of a vocabulary that ends with the 26 added tokens of Qwen, in their order."""
    base = vocab_size - 26
    return {
        "bos_token_id": base,
        "eos_token_id": base + 2,
        "vision_start_token_id": base + 9,
        "vision_end_token_id": base + 10,
        "image_token_id": base + 12,
        "video_token_id": base + 13,
    }


PRESETS: dict[str, ModelConfig] = {
    "medmo-4b": ModelConfig(),
    "medmo-8b": ModelConfig(
        vision=VisionConfig(depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=(8, 16, 24)),
        text=TextConfig(hidden_size=4096, intermediate_size=12_288),
        tie_word_embeddings=False,
    ),
    "tiny": ModelConfig(
        vision=VisionConfig(
            depth=4,
            hidden_size=128,
            intermediate_size=512,
            num_heads=2,
            num_position_embeddings=256,
            deepstack_visual_indexes=(1, 2),
        ),
        text=TextConfig(
            vocab_size=2048,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            rope_theta=10_000.0,
            mrope_section=(6, 5, 5),
            max_position_embeddings=8192,
        ),
        **_special_ids(2048),
    ),
    "debug": ModelConfig(
        vision=VisionConfig(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            num_position_embeddings=36,
            deepstack_visual_indexes=(0,),
        ),
        text=TextConfig(
            vocab_size=512,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rope_theta=10_000.0,
            mrope_section=(4, 2, 2),
            max_position_embeddings=2048,
        ),
        **_special_ids(512),
    ),
}
"""`tiny` learns on two CPU cores in minutes, `debug` is for tests; give both a tokenizer's `vocab_size` and ids."""

ENCODER_SIZES = {"medmo-4b": "large", "medmo-8b": "large", "tiny": "tiny", "debug": "debug"}
"""The size (a key of an encoder's `SIZES`) that each preset gives an encoder other than its own."""
