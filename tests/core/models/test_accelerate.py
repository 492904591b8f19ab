"""Our modules inside transformers' Qwen3-VL: the same function, the same state, and a way back."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import medmo_core
from medmo_core.accelerate import KINDS, Accelerated, accelerate, restore

transformers = pytest.importorskip("transformers")
modelling = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")

IMAGE, VIDEO, START, END, PAD = 186, 187, 183, 184, 0
PATCH = 4
Document = list[tuple[Any, ...]]
CASES: dict[str, list[Document]] = {
    "text": [[("text", 13)], [("text", 7)]],
    "one image": [[("text", 3), ("image", 4, 6), ("text", 7)]],
    "padded": [
        [("text", 3), ("image", 4, 4), ("text", 6)],
        [("text", 5)],
        [("image", 6, 2), ("text", 4), ("image", 2, 2), ("text", 9)],
    ],
    "several images": [[("image", 4, 6), ("text", 1), ("image", 2, 2), ("text", 2), ("image", 8, 4), ("text", 5)]],
    "video": [[("text", 2), ("video", 3, 4, 4), ("text", 6)], [("image", 4, 4), ("text", 3)]],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(head_dim: int = 64, vision_head_dim: int = 72, attention: str = "sdpa") -> nn.Module:
    """A tiny model whose every parameter is random, norms and biases too."""
    torch.manual_seed(0)
    sections = [head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6]
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 200,
            "hidden_size": 80,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": head_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections},
            "pad_token_id": PAD,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 2 * vision_head_dim,
            "intermediate_size": 96,
            "num_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": 80,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
            if parameter.dim() == 1:
                parameter += 1.0
    return model.eval()


def make_inputs(documents: list[Document], padding: str = "right") -> dict[str, Tensor]:
    """What transformers' processor would emit: padded rows, normalised patches with every still's frame twice."""
    generator = torch.Generator().manual_seed(1)
    rows: list[list[int]] = []
    pixels: dict[str, list[Tensor]] = {"image": [], "video": []}
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    for document in documents:
        ids: list[int] = []
        for kind, *size in document:
            if kind == "text":
                ids += torch.randint(1, 170, (size[0],), generator=generator).tolist()
                continue
            frames, height, width = size if kind == "video" else (1, *size)
            token = IMAGE if kind == "image" else VIDEO
            for _ in range(frames):
                ids += [START, *[token] * (height * width // 4), END]
            patches = torch.rand(frames * height * width, 3, 2, PATCH, PATCH, generator=generator) * 2 - 1
            if kind == "image":
                patches[:, :, 1] = patches[:, :, 0]
            pixels[kind].append(patches.flatten(1))
            grids[kind].append([frames, height, width])
        rows.append(ids)
    length = max(map(len, rows))
    filled = [[PAD] * (length - len(ids)) for ids in rows]
    joined = [fill + ids if padding == "left" else ids + fill for ids, fill in zip(rows, filled, strict=True)]
    input_ids = torch.tensor(joined)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int(),
    }
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels[kind]:
            inputs |= {name: torch.cat(pixels[kind]), f"{kind}_grid_thw": torch.tensor(grids[kind])}
    return inputs


def outcome(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits at real tokens, and the gradient of the loss for every parameter."""
    model.zero_grad(set_to_none=True)
    model.model.rope_deltas = None
    logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    targets = torch.arange(len(logits)) * 7 % 200
    F.cross_entropy(logits.double(), targets).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free the published code of its casts to fp32, so that a float64 model is float64 throughout."""

    def norm(self: Any, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()).to(x.dtype)

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        cos, sin = cos.unsqueeze(-2).to(wide), sin.unsqueeze(-2).to(wide)
        q_wide, k_wide = q.to(wide), k.to(wide)
        half = modelling.rotate_half
        return (q_wide * cos + half(q_wide) * sin).to(q.dtype), (k_wide * cos + half(k_wide) * sin).to(k.dtype)

    monkeypatch.setattr(modelling.Qwen3VLTextRMSNorm, "forward", norm)
    monkeypatch.setattr(modelling, "apply_rotary_pos_emb_vision", rotate)


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("vision_head_dim", [16, 72])
def test_logits_and_gradients_in_float64(case: str, vision_head_dim: int) -> None:
    model, inputs = make_model(vision_head_dim=vision_head_dim).double(), cast(make_inputs(CASES[case]), torch.float64)
    before = outcome(model, inputs)
    accelerate(model)
    after = outcome(model, inputs)
    assert after.keys() == before.keys()
    for name, truth in before.items():
        assert largest(after[name] - truth) <= 1e-9 * max(1.0, largest(truth)), name


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["padded", "video"])
def test_errors_are_no_larger_than_before(case: str, dtype: torch.dtype) -> None:
    """Against float64: at most twice the error of the published code in the same dtype, plus rounding."""
    model, inputs = make_model().to(dtype), cast(make_inputs(CASES[case]), dtype)
    truth = outcome(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    plain = outcome(model, inputs)
    accelerate(model)
    ours = outcome(model, inputs)
    for name, value in truth.items():
        bound = 2 * largest(plain[name] - value) + torch.finfo(dtype).eps * max(1.0, largest(value))
        assert largest(ours[name] - value) <= bound, name


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_batches_under_both_attention_functions(padding: str, attention: str) -> None:
    model, inputs = make_model(attention=attention), make_inputs(CASES["padded"], padding)
    before = outcome(model, inputs)
    accelerate(model)
    after = outcome(model, inputs)
    for name, value in before.items():
        assert largest(after[name] - value) <= 1e-4 * max(1.0, largest(value)), name


@pytest.mark.parametrize("case", ["text", "padded", "video"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generates_the_same_tokens(case: str, use_cache: bool) -> None:
    model, inputs = make_model(), make_inputs(CASES[case], "left")
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
    settings["suppress_tokens"] = [IMAGE, VIDEO, START]
    before = model.generate(**inputs, **settings)
    accelerate(model)
    assert torch.equal(model.generate(**inputs, **settings), before)
    assert len({tuple(row) for row in before[:, -12:].tolist()}) == len(before), "every row should say its own"


def test_under_autocast_with_fp32_weights() -> None:
    model, inputs = make_model(), make_inputs(CASES["padded"])
    truth = outcome(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        plain = outcome(model, inputs)
    accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        ours = outcome(model, inputs)
    for name, value in truth.items():
        bound = 2 * largest(plain[name] - value) + 2**-8 * max(1.0, largest(value))
        assert largest(ours[name] - value) <= bound, name


def test_gradient_checkpointing_changes_nothing() -> None:
    model, inputs = make_model(), make_inputs(CASES["padded"])
    accelerate(model)
    plain = outcome(model, inputs)
    model.train()
    model.gradient_checkpointing_enable()
    for name, value in outcome(model, inputs).items():
        assert torch.equal(value, plain[name]), name


def test_attention_weights_and_hidden_states_are_still_recorded() -> None:
    model, inputs = make_model(attention="eager"), make_inputs(CASES["one image"])
    wanted = {"output_attentions": True, "output_hidden_states": True}
    before = model(**inputs, **wanted)
    accelerate(model)
    after = model(**inputs, **wanted)
    assert len(after.attentions) == 3 and len(after.hidden_states) == len(before.hidden_states)
    for what in ("attentions", "hidden_states"):
        for ours, theirs in zip(after[what], before[what], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4), what


@pytest.mark.parametrize("frames", [1, 2])
def test_the_tower_takes_raw_pixels(frames: int) -> None:
    """uint8 rows of one or two frames, straight into the tower, are what the processor's normalised rows are."""
    model = make_model()
    pixels = torch.randint(0, 256, (24, 3, frames, PATCH, PATCH), generator=torch.Generator().manual_seed(2))
    both = pixels.expand(-1, -1, 2, -1, -1).flatten(1)
    grid = torch.tensor([[1, 4, 6]])
    before = model.model.visual(both / 127.5 - 1, grid_thw=grid).pooler_output
    accelerate(model)
    after = model.model.visual(pixels.flatten(1).to(torch.uint8), grid_thw=grid).pooler_output
    assert torch.allclose(after, before, atol=1e-4)


def test_parameters_and_state_dict_are_untouched() -> None:
    model = make_model()
    parameters, state = dict(model.named_parameters()), model.state_dict()
    for _ in range(2):
        now = model.state_dict()
        assert list(now) == list(state)
        assert all(now[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
        assert list(dict(model.named_parameters())) == list(parameters)
        assert all(p is parameters[name] for name, p in model.named_parameters())
        accelerated = accelerate(model)
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert list(model.state_dict()) == list(state)
        accelerated.restore()


def test_restore_puts_back_the_same_objects_and_bits() -> None:
    model, inputs = make_model(), make_inputs(CASES["padded"])
    modules, before = dict(model.named_modules()), outcome(model, inputs)
    accelerated = accelerate(model)
    changed = [name for name, module in model.named_modules() if module is not modules[name]]
    assert sorted(changed) == sorted(replacement.name for replacement in accelerated.replaced)
    outcome(model, inputs)
    assert accelerated.restore() is model
    assert list(dict(model.named_modules())) == list(modules)
    assert all(module is modules[name] for name, module in model.named_modules())
    for name, value in outcome(model, inputs).items():
        assert torch.equal(value, before[name]), name


def test_what_happens_in_between_survives_restoring() -> None:
    model = make_model()
    accelerated = accelerate(model)
    model.train()
    model.double()
    seen: list[str] = []
    model.model.visual.merger.register_forward_hook(lambda *_: seen.append("hook"))
    accelerated.restore()
    assert all(module.training for module in model.modules())
    model.model.visual.merger(torch.zeros(4, 144, dtype=torch.float64))
    assert seen == ["hook"]


def test_hooks_from_before_still_fire() -> None:
    model = make_model()
    seen: list[str] = []
    model.model.language_model.layers[1].self_attn.register_forward_hook(lambda *_: seen.append("attention"))
    accelerate(model)
    model(**make_inputs(CASES["text"]))
    assert seen == ["attention"]


def test_the_classes_of_transformers_are_untouched() -> None:
    classes = [getattr(modelling, name) for name in KINDS]
    before = [dict(vars(cls)) for cls in classes]
    names = set(vars(modelling))
    model, other = make_model(), make_model()
    accelerate(model)
    assert [dict(vars(cls)) for cls in classes] == before and set(vars(modelling)) == names
    for name in KINDS:
        assert any(type(module) is getattr(modelling, name) for module in other.modules())
        assert any(isinstance(module, getattr(modelling, name)) for module in model.modules())


def test_a_copy_of_an_accelerated_model_is_its_own() -> None:
    model, inputs = make_model(), make_inputs(CASES["one image"])
    accelerate(model)
    twin = copy.deepcopy(model)
    expected = model(**inputs).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(**inputs).logits, expected)


def test_an_accelerated_model_can_be_saved_whole(tmp_path: Path) -> None:
    """Its classes are made on the spot, under names that no module has."""
    model, inputs = make_model(), make_inputs(CASES["one image"])
    accelerate(model)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert [type(m).__name__ for m in again.modules()] == [type(m).__name__ for m in model.modules()]
    with pytest.raises(RuntimeError, match="accelerated already"):
        accelerate(again)


@pytest.mark.parametrize("part", ["language_model", "visual"])
def test_an_accelerated_model_can_be_exported(part: str) -> None:
    model = make_model().eval()
    accelerate(model)
    given: dict[str, dict[str, Any]] = {
        "language_model": {"inputs_embeds": torch.randn(1, 8, 80), "use_cache": False},
        "visual": {"hidden_states": torch.randn(24, 3 * 2 * PATCH**2), "grid_thw": torch.tensor([[1, 4, 6]])},
    }
    module: Any = model.model.get_submodule(part)
    with torch.no_grad():
        exported = torch.export.export(module, (), given[part], strict=False).module()
        assert torch.equal(exported(**given[part])[0], module(**given[part])[0])


def test_it_tells_what_it_replaced() -> None:
    accelerated = medmo_core.accelerate(make_model())
    assert isinstance(accelerated, Accelerated)
    assert accelerated.counts() == {"patch_embed": 1, "attention": 3, "projector": 3, "qk_norm_rope": 3}
    assert accelerated.kept == ()
    text = str(accelerated)
    assert "10 modules" in text and "model.visual.patch_embed" in text
    assert "model.language_model.layers.0.self_attn ... model.language_model.layers.2.self_attn" in text
    restore(accelerated)
    assert "restored" in str(accelerated)


TOWER, DECODER = {"patch_embed": 1, "attention": 3, "projector": 3}, {"qk_norm_rope": 3}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (lambda model: model.model, TOWER | DECODER),
        (lambda model: model.model.visual, TOWER),
        (lambda model: model.model.language_model, DECODER),
        (lambda model: nn.ModuleDict({"inner": model}), TOWER | DECODER),
    ],
    ids=["model", "tower", "decoder", "wrapped"],
)
def test_parts_and_wrapped_models(part: Callable[[Any], nn.Module], expected: dict[str, int]) -> None:
    assert accelerate(part(make_model())).counts() == expected


def test_a_foreign_model_is_refused() -> None:
    with pytest.raises(TypeError, match="Sequential holds no Qwen3VLVisionModel"):
        accelerate(nn.Sequential(nn.Linear(3, 3)))


def test_twice_is_refused() -> None:
    model = make_model()
    accelerated = accelerate(model)
    with pytest.raises(RuntimeError, match=r"accelerated already \(model.visual.patch_embed"):
        accelerate(model)
    accelerated.restore()
    with pytest.raises(RuntimeError, match="restored already"):
        restore(accelerated)
    accelerate(model)


def test_another_version_is_refused_by_name() -> None:
    model = make_model()
    del model.model.visual.merger.linear_fc1
    with pytest.raises(AttributeError, match=r"model.visual.merger .*PatchMerger of transformers .* no `linear_fc1`"):
        accelerate(model)
    assert not any("Accelerated" in type(module).__name__ for module in model.modules())
    model = make_model()
    model.model.visual.blocks = nn.ModuleList()
    with pytest.raises(AttributeError, match="holds no Qwen3VLVisionAttention"):
        accelerate(model)


def test_a_module_exchanged_by_somebody_else_stops_restoring() -> None:
    model = make_model()
    accelerated = accelerate(model)
    model.model.visual.merger = nn.Identity()
    with pytest.raises(RuntimeError, match="model.visual.merger was exchanged again"):
        accelerated.restore()


class Adapter(nn.Module):
    """A low-rank adapter around a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def wrap(model: nn.Module) -> None:
    """Put adapters everywhere they are usual: attention projections, and one merger."""
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
        layer.self_attn.o_proj = Adapter(layer.self_attn.o_proj)
    for block in model.model.visual.blocks:
        block.attn.qkv, block.attn.proj = Adapter(block.attn.qkv), Adapter(block.attn.proj)
    model.model.visual.merger.linear_fc1 = Adapter(model.model.visual.merger.linear_fc1)


def test_adapters_are_never_passed_by() -> None:
    model, inputs = make_model(), make_inputs(CASES["padded"])
    wrap(model)
    before = outcome(model, inputs)
    accelerated = accelerate(model)
    assert [name for name, _ in accelerated.kept] == ["model.visual.merger"]
    assert "left alone      1  model.visual.merger: linear_fc1 is a" in str(accelerated)
    for name, value in outcome(model, inputs).items():
        assert largest(value - before[name]) <= 1e-4 * max(1.0, largest(before[name])), name


def test_where_nothing_can_be_replaced_it_says_why() -> None:
    decoder = make_model().model.language_model
    for layer in decoder.layers:
        layer.self_attn.forward = layer.self_attn.forward
    with pytest.raises(RuntimeError, match=r"3  layers.0.self_attn ... layers.2.self_attn: its forward was exchanged"):
        accelerate(decoder)


def test_adapters_put_in_later_are_told() -> None:
    model, inputs = make_model(), make_inputs(CASES["one image"])
    accelerated = accelerate(model)
    wrap(model)
    with pytest.raises(RuntimeError, match=r"linear_fc1 is a .*Adapter since accelerate\(\)"):
        model(**inputs)
    expected = restore(accelerated)(**inputs).logits
    accelerate(model)
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)
