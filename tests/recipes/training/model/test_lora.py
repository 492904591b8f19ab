"""Adapters: where they go, that they begin as nothing, train alone, merge exactly, and are read by peft again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from medmo_core.batch import Batch, PatchSpec
from medmo_core.encoders import ENCODERS
from medmo_core.models.medmo import MedMO
from medmo_recipes import instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, Lora, RunConfig
from medmo_recipes.training.distributed.sharding import prepare
from medmo_recipes.training.distributed.shards import whole_tensors
from medmo_recipes.training.distributed.world import connect
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.lora import ADAPTER, adapted_layers, is_adapter, merged_tensors, save_adapter
from medmo_recipes.training.model.trainable import choose_trainable, make_trainable
from medmo_recipes.training.sizing.dry_run import estimate_memory

EVERYWHERE = ("encoder", "projector", "decoder")


def make(lora: Lora, dtype: torch.dtype = torch.float64, encoder: str = "qwen3_vl") -> tuple[MedMO, MedMO]:
    """Return the same model without and with adapters."""
    kwargs = {} if encoder == "qwen3_vl" else {"encoder": encoder, "encoder_kwargs": ENCODERS[encoder].SIZES["debug"]}  # type: ignore[attr-defined]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(MedMO.from_config("debug", dtype=dtype, initializer_range=0.1, **kwargs).train())
    make_trainable(models[1], ["all"], lora)
    return models[0], models[1]


def batch_for(model: MedMO) -> Batch:
    """One document with one image of 4 x 4 patches of every encoder."""
    generator = torch.Generator().manual_seed(0)
    specs: dict[str, PatchSpec] = model.encoder.specs
    tokens = 16 // next(iter(specs.values())).merge_size ** 2
    ids = torch.randint(0, 400, (12 + tokens,), generator=generator)
    ids[2 : 2 + tokens] = model.config.image_token_id
    return Batch(
        input_ids=ids,
        labels=torch.where(torch.arange(len(ids)) > 6, ids, -100),
        position_ids=torch.arange(len(ids)).expand(3, -1).contiguous(),
        cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
        patches={
            name: torch.randint(0, 256, (16, spec.still_width), generator=generator, dtype=torch.uint8)
            for name, spec in specs.items()
        },
        image_grid_thw={name: torch.tensor([[1, 4, 4]]) for name in specs},
    )


def disturb(model: MedMO, scale: float = 0.2) -> None:
    """Give adapters values as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(scale * noise.to(parameter.dtype))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_adapters_begin_as_nothing_and_every_one_is_used(encoder: str) -> None:
    """A layer whose weight is read directly would give its adapter no gradient."""
    plain, adapted = make(Lora(rank=2, targets=EVERYWHERE), encoder=encoder)
    batch = batch_for(plain)
    assert torch.equal(plain(batch), adapted(batch))
    disturb(adapted)
    adapted.loss(batch).backward()
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == is_adapter(name)
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == is_adapter(name), name


def test_adapters_have_the_type_of_their_weights() -> None:
    _, adapted = make(Lora(rank=2, dora=True), torch.bfloat16)
    assert {p.dtype for p in adapted.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lm_head", "unknown part in lora.targets 'lm_head'"),  # tied: there is none
        ("model.visual.patch_embed", "no linear layer that can carry an adapter; expected one of encoder, projector"),
        ("model.language_model.embed_tokens", "or a prefix of layers named down_proj, gate_proj"),
        ("model.language_model.norm", "no linear layer that can carry an adapter"),
    ],
)
def test_what_cannot_carry_an_adapter_is_refused(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(Lora(rank=2, targets=("decoder", target)))


def test_targets_choose_layers() -> None:
    _, adapted = make(Lora(rank=2, targets=("model.language_model.layers.1.self_attn", "projector")))
    names = set(adapted_layers(adapted))
    assert {n for n in names if "language_model" in n} == {
        f"model.language_model.layers.1.self_attn.{letter}_proj" for letter in "qkvo"
    }
    assert {n.rsplit(".", 1)[-1] for n in names if "merger" in n} == {"linear_fc1", "linear_fc2"}


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_are_base_and_adapter(dora: bool) -> None:
    plain, adapted = make(Lora(rank=3, alpha=6.0, targets=EVERYWHERE, dora=dora))
    batch = batch_for(plain)
    before = plain(batch)
    disturb(adapted)
    wanted = adapted(batch)
    merged = merged_tensors(adapted)
    assert list(merged) == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(batch), wanted, rtol=1e-11, atol=1e-11)
    assert (wanted - before).abs().max() > 0.1
    for name, layer in adapted_layers(adapted).items():  # peft's own way, in place
        layer.merge()
        torch.testing.assert_close(merged[f"{name}.weight"], layer.base_layer.weight.detach(), rtol=1e-12, atol=1e-13)


def test_merging_rounds_once() -> None:
    plain, adapted = make(Lora(rank=2), torch.bfloat16)
    disturb(adapted, 0.02)
    name, layer = next(iter(adapted_layers(adapted).items()))
    first, second = (getattr(layer, f"lora_{x}")[ADAPTER].weight.detach().double() for x in "AB")
    exact = layer.base_layer.weight.detach().double() + layer.scaling[ADAPTER] * second @ first
    assert (merged_tensors(adapted)[f"{name}.weight"].double() - exact).abs().le(2**-8 * exact.abs()).all()


@pytest.mark.parametrize("dora", [False, True])
def test_peft_reads_the_adapter(tmp_path: Path, dora: bool) -> None:
    import peft

    plain, adapted = make(Lora(rank=3, alpha=6.0, targets=EVERYWHERE, dora=dora))
    disturb(adapted)
    batch = batch_for(plain)
    save_adapter(tmp_path / "adapter", adapted, "MBZUAI/MedMO-4B")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "MBZUAI/MedMO-4B" and config["r"] == 3 and config["use_dora"] == dora
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(stored[key], adapted.decoder.layers[0].self_attn.q_proj.lora_A[ADAPTER].weight)
    wrapped: Any = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter", autocast_adapter_dtype=False)
    assert torch.equal(wrapped.base_model.model(batch), adapted(batch))


@pytest.mark.parametrize("dora", [False, True])
def test_peft_puts_a_runs_adapter_on_the_transformers_model(tmp_path: Path, dora: bool) -> None:
    """What a run from a run's folder leaves in adapter/: transformers' own model with it speaks as final/ does."""
    import peft

    transformers = pytest.importorskip("transformers")
    lora = Lora(rank=2, targets=("decoder", "projector"), dora=dora)
    train = {"steps": 1, "out_dir": str(tmp_path / "a")}
    begun = CONFIGS["debug_instruct"]().change(model={"dtype": "float64"}, train=train)
    assert instruct.run(begun)
    adapted = begun.change(model={"init": str(tmp_path / "a")}, lora=lora, train={"out_dir": str(tmp_path / "b")})
    assert instruct.run(adapted)
    adapter = tmp_path / "b" / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tmp_path / "a" / "final")  # where others find it
    load = transformers.Qwen3VLForConditionalGeneration.from_pretrained
    theirs = peft.PeftModel.from_pretrained(load(base, dtype=torch.float64), adapter, autocast_adapter_dtype=False)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        found = theirs(input_ids=ids).logits
        final = load(tmp_path / "b" / "final", dtype=torch.float64)(input_ids=ids).logits
        plain = load(base, dtype=torch.float64)(input_ids=ids).logits
    torch.testing.assert_close(found, final, rtol=1e-9, atol=1e-9)
    assert (final - plain).abs().max() > 1e-4


def test_an_adapter_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, adapted = make(Lora(rank=2, targets=EVERYWHERE))
    folder = tmp_path / "adapter"
    save_adapter(folder, adapted, "first")
    (folder / "README.md").write_text("mine")
    save_adapter(folder, adapted, "second")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(kept) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert b'"second"' in kept["adapter_config.json"]

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("medmo_recipes.training.model.lora.write_text", full)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(folder, adapted, "third")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_recomputed_blocks_have_the_same_gradients() -> None:
    found: list[dict[str, Tensor]] = []
    for recompute in ("nothing", "all", "selected"):
        _, model = make(Lora(rank=2, targets=EVERYWHERE))
        disturb(model)
        model.checkpoint_activations(text=recompute, vision=recompute)
        model.loss(batch_for(model)).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("dora", [False, True])
def test_sharded_adapters_are_those_of_one_process(run_processes: Callable[..., Any], dora: bool) -> None:
    """Frozen and trained weights in one unit of FSDP2, recomputed; two processes with the same batch count it twice."""
    lora = Lora(rank=3, targets=EVERYWHERE, dora=dora)
    _, alone = make(lora)
    disturb(alone)
    batch = batch_for(alone)
    alone.loss(batch, reduction="sum").backward()
    expected = merged_tensors(alone)

    def sharded() -> None:
        with connect("cpu", shard=True) as world:
            _, model = make(lora)
            disturb(model)
            settings = {"model": {"recompute_text": "all"}, "parallel": {"shard": True}}
            prepare(model, RunConfig(stage="align").change(**settings), world)
            model.loss(batch, reduction="sum").backward()
            for (name, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
                assert (mine.grad is None) == (theirs.grad is None) == (not is_adapter(name)), name
                if isinstance(mine.grad, DTensor):
                    torch.testing.assert_close(mine.grad.full_tensor(), 2 * theirs.grad, rtol=1e-10, atol=1e-12)
            tensors = whole_tensors(model, world)
            if world.is_main:
                for name, tensor in merged_tensors(model, tensors).items():
                    assert torch.equal(tensor, expected[name]), name

    run_processes(sharded)


def test_a_run_trains_resumes_and_leaves_model_and_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, **train: Any) -> dict[str, Tensor]:
        config = CONFIGS["debug_instruct"]().change(
            model={"dtype": "bfloat16", "recompute_text": "all"},
            optim={"lr": 1e-2},
            lora={"rank": 2},
            train={"steps": 4, "save_every": 2, "device": "cpu", "out_dir": str(folder), **train},
        )
        assert instruct.run(config)
        kit = load_kit(config.change(model={"init": str(folder / "final")}), "cpu")  # as any checkpoint
        return dict(kit.model.named_parameters())

    whole = run(tmp_path / "whole")
    adapter = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    assert all("language_model" in name for name in adapter) and len(adapter) == 2 * 7 * 2
    settings = json.loads((tmp_path / "whole" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None  # random weights are no model that peft could look for
    assert "names no base model: the random weights of the preset debug are kept nowhere" in capsys.readouterr().err
    begun = load_kit(CONFIGS["debug_instruct"]().change(model={"dtype": "bfloat16"}), "cpu").model
    before = dict(begun.named_parameters())
    moved = {name for name, tensor in whole.items() if not torch.equal(tensor, before[name])}
    assert moved and all(".self_attn." in name or ".mlp." in name for name in moved)
    (tmp_path / "whole" / "checkpoints" / "step-000004").rename(tmp_path / "set aside")
    resumed = run(tmp_path / "whole", resume=True)
    assert all(torch.equal(resumed[name], whole[name].detach()) for name in whole)


def test_the_4b_run_fits_24_gb() -> None:
    """10^9 bytes, with 2 of them left for the device's own libraries and the allocator's gaps."""
    config = CONFIGS["medmo_4b_lora"]()
    kit = load_kit(config.change(model={"init": "medmo-4b"}), "meta")
    trainable = choose_trainable(config, kit.model)
    assert trainable.parts == {"decoder": 33_030_144}
    memory, shape = estimate_memory(config, kit, None, 1)
    assert shape.tokens == 8192 and memory.device == "cuda"
    assert 11.0e9 < memory.total < 13e9 and memory.total + 2e9 < 24e9
