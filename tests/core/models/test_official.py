"""Checkpoints: what transformers writes we read, what we write transformers reads, and what is refused and how."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medmo_core.models import MedMO
from medmo_core.models.official import write as saving
from medmo_core.models.official.folder import find_folder, names_folder, open_checkpoint
from medmo_core.models.official.read import load_weights
from medmo_core.profile import MEDMO, CheckpointProfile
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

Qwen3VL = transformers.Qwen3VLForConditionalGeneration
SHARD = 60_000  # bytes: cuts the debug model into several files


class FakeTokenizer:
    """Writes one file, as a tokenizer would."""

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def debug_model(tied: bool = True, seed: int = 0, **overrides: object) -> MedMO:
    torch.manual_seed(seed)
    model = MedMO.from_config("debug", tie_word_embeddings=tied, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert sorted(a) == sorted(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sharded checkpoint of the debug model."""
    return debug_model().save_pretrained(tmp_path / "checkpoint", max_shard_bytes=SHARD)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("limit", [SHARD, 10**9], ids=["sharded", "single"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_reads_what_we_write(tmp_path: Path, tied: bool, limit: int, dtype: torch.dtype) -> None:
    model = debug_model(tied).to(dtype)
    model.save_pretrained(tmp_path / "out", max_shard_bytes=limit)
    theirs, info = Qwen3VL.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = theirs.state_dict()
    if tied:
        assert torch.equal(state.pop("lm_head.weight"), state["model.language_model.embed_tokens.weight"])
    assert_same_tensors(model.state_dict(), state)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 2) == (limit == SHARD)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("limit", [SHARD, 10**9], ids=["sharded", "single"])
def test_we_read_what_transformers_writes(tmp_path: Path, tied: bool, limit: int) -> None:
    ours = debug_model(tied, seed=1)
    config = transformers.Qwen3VLConfig(**ours.config.to_dict())
    theirs = Qwen3VL(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path, max_shard_size=limit)
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit == SHARD)
    model = MedMO.from_pretrained(tmp_path)
    assert model.config == ours.config
    assert not model.training
    state = theirs.state_dict()
    if tied:
        state.pop("lm_head.weight")
    assert_same_tensors(model.state_dict(), state)
    cast = MedMO.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_tensors(cast.state_dict(), {name: tensor.bfloat16() for name, tensor in state.items()})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_was_frozen_is_frozen_after_loading(tmp_path: Path, device: str) -> None:
    debug_model().save_pretrained(tmp_path)
    model = MedMO(debug_model().config, device=device)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    load_weights(model, open_checkpoint(tmp_path))
    after = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert after == before and set(before.values()) == {True, False}
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_headless_checkpoint_of_the_base_model_loads(tmp_path: Path) -> None:
    config = transformers.Qwen3VLConfig(**debug_model().config.to_dict())
    theirs = transformers.Qwen3VLModel(config)
    theirs.save_pretrained(tmp_path)
    assert any(name.startswith("visual.") for name in load_file(tmp_path / "model.safetensors"))
    model = MedMO.from_pretrained(tmp_path)
    assert_same_tensors(model.model.state_dict(), theirs.state_dict())


def test_a_tied_head_that_was_stored_too_must_equal_the_embedding(tmp_path: Path) -> None:
    model = debug_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.language_model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    assert_same_tensors(MedMO.from_pretrained(tmp_path).state_dict(), model.state_dict())
    save_file({**tensors, "lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lm_head.weight differs from .*set tie_word_embeddings to false"):
        MedMO.from_pretrained(tmp_path)


def test_a_whole_checkpoint_folder(tmp_path: Path) -> None:
    """Everything beside the weights: transformers' own classes read it."""
    debug_model().save_pretrained(tmp_path, tokenizer=FakeTokenizer(), profile=MEDMO)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "video_preprocessor_config.json", "medmo_profile.json", "tokenizer.json",
    }  # fmt: skip
    assert CheckpointProfile.load(tmp_path) == MEDMO
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "some files are less readable than others"
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == [512 - 26 + 2, 512 - 26]
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    out = processor(images=torch.zeros(3, 320, 480, dtype=torch.uint8).numpy(), return_tensors="pt")
    assert out["image_grid_thw"].tolist() == [[1, 20, 30]]
    assert out["pixel_values"].shape == (600, 3 * 2 * 16 * 16)
    assert out["pixel_values"].unique().tolist() == [-1.0]


def test_transformers_refuses_a_foreign_tower_instead_of_inventing_one(tmp_path: Path) -> None:
    MedMO.from_config("debug", encoder="siglip2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="medmo"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_saving_again_replaces_the_checkpoint_and_nothing_else(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "tokenizer.json").write_text("{}")
    shards = set(saved.glob("*.safetensors"))
    assert len(shards) > 2
    other = debug_model(seed=5)
    other.save_pretrained(saved)
    assert [path.name for path in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert not (saved / "model.safetensors.index.json").exists()
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "tokenizer.json").exists()
    assert_same_tensors(MedMO.from_pretrained(saved).state_dict(), other.state_dict())


def test_a_folder_with_other_things_in_it_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    debug_model().save_pretrained(tmp_path)
    assert (tmp_path / "metrics.jsonl").exists()
    MedMO.from_pretrained(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")], ids=["ctrl-c", "disk-full"])
@pytest.mark.parametrize("before", ["none", "checkpoint"])
def test_an_interrupted_save_leaves_the_old_checkpoint_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, before: str
) -> None:
    folder = tmp_path / "checkpoint"
    if before == "checkpoint":
        debug_model(seed=1).save_pretrained(folder)
    calls = []

    def fail_at_second(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise error
        save_file(*args, **kwargs)

    monkeypatch.setattr(saving, "save_file", fail_at_second)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        debug_model(seed=2).save_pretrained(folder, max_shard_bytes=SHARD)
    assert len(calls) == 2
    if before == "none":
        assert list(tmp_path.iterdir()) == []
    else:
        assert list(tmp_path.iterdir()) == [folder]
        assert_same_tensors(MedMO.from_pretrained(folder).state_dict(), debug_model(seed=1).state_dict())


def test_shards_hold_no_more_than_the_limit(saved: Path) -> None:
    biggest = max(p.nbytes for p in debug_model().parameters())
    assert biggest > SHARD  # so one tensor is a shard of its own
    for path in saved.glob("*.safetensors"):
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= SHARD
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in debug_model().parameters())


def test_wrong_shapes_name_tensor_shapes_and_file_and_write_nothing(saved: Path) -> None:
    wider = debug_model(text={"intermediate_size": 72})
    before = {name: tensor.clone() for name, tensor in wider.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(wider, open_checkpoint(saved))
    message = str(caught.value)
    assert "mlp.down_proj.weight is [48, 64]" in message
    assert "is [48, 72]" in message
    assert ".safetensors" in message
    assert_same_tensors(wider.state_dict(), before)


def test_a_missing_shard_is_named(saved: Path) -> None:
    shard = sorted(saved.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name} is missing.*puts \d+ of the \d+ tensors there"):
        MedMO.from_pretrained(saved)


def test_a_truncated_shard_is_named(saved: Path) -> None:
    shard = sorted(saved.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{shard.name}: not a complete safetensors file"):
        MedMO.from_pretrained(saved)


def test_index_and_shards_of_different_checkpoints(saved: Path) -> None:
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.visual.pos_embed.weight"] = index["weight_map"]["model.language_model.norm.weight"]
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks model.visual.pos_embed.weight.*not of one checkpoint"):
        MedMO.from_pretrained(saved)
    index["weight_map"]["model.visual.pos_embed.weight"] = "../elsewhere.safetensors"
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="shard '../elsewhere.safetensors' is a path"):
        MedMO.from_pretrained(saved)


def test_missing_and_unexpected_names_come_with_their_nearest(tmp_path: Path) -> None:
    debug_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.language_model.normm.weight"] = tensors.pop("model.language_model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        MedMO.from_pretrained(tmp_path)
    message = str(caught.value)
    assert "1 missing: model.language_model.norm.weight" in message
    assert "nearest to model.language_model.norm.weight is model.language_model.normm.weight in the file" in message
    assert "1 unexpected: model.language_model.normm.weight" in message


def test_an_untied_config_with_a_tied_file_asks_for_the_head(tmp_path: Path) -> None:
    debug_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="1 missing: lm_head.weight"):
        MedMO.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    debug_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(ValueError, match=rf"pickles \({name}\).*only safetensors are read"):
        MedMO.from_pretrained(tmp_path)


def test_folders_that_are_not_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        MedMO.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{half")
    with pytest.raises(ValueError, match="config.json: not valid JSON"):
        MedMO.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FileNotFoundError, match="has neither model.safetensors nor"):
        MedMO.from_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="config.json.*model_type is 'llama'"):
        MedMO.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        MedMO.from_pretrained(tmp_path / "model.safetensors")
    with pytest.raises(FileExistsError, match="is a file; a checkpoint is a folder"):
        debug_model().save_pretrained(tmp_path / "model.safetensors")


MISTYPED = ["runs/nope", "./nope", "../nope/x", "/nope", "~/nope", "a/b/c", "nope", "runs/", "a//"]


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_path_never_asks_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **named: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert names_folder(name) and names_folder(Path("owner/name")) and not names_folder("owner/name")
    message = "runs holds no checkpoint" if name == "runs/" else "no such checkpoint"
    with pytest.raises(FileNotFoundError, match=message):
        find_folder(name)
    with pytest.raises(FileNotFoundError):
        load_kit(CONFIGS["debug_align"]().change(model={"init": name}), "cpu")


def test_a_hub_id_is_downloaded_or_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    debug_model().save_pretrained(tmp_path)
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", ".pt")) for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    MedMO.from_pretrained("owner/name", revision="v1")
    assert "owner/name is no folder here: looking for it on the Hugging Face hub" in capsys.readouterr().err
    assert asked == [("owner/name", "v1")]

    def offline(name: str, **_: object) -> str:
        raise hub.errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="owner/name is neither a local folder nor.*Cannot find.*Offline: copy"):
        MedMO.from_pretrained("owner/name")
    for name in ("no-such-folder", "/abs/missing", "./a/missing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
            find_folder(name)
