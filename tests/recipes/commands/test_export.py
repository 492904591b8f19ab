"""Export: what a run wrote becomes an official folder, bit for bit, and what is missing is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medmo_core.inference.load import load, read_pixel_limits
from medmo_core.models.medmo import MedMO
from medmo_recipes import align
from medmo_recipes.commands import export, official_export
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import Lora, RunConfig
from medmo_recipes.training.model.kit import load_kit


@pytest.fixture
def finished(own_data: Path) -> RunConfig:
    """A debug run of two steps with unusual pixel limits."""
    run = CONFIGS["debug_align"]().change(
        data={"sources": {str(own_data): 1.0}, "min_pixels": 64 * 64, "max_pixels": 96 * 96},
        train={"steps": 2, "save_every": 1, "device": "cpu", "out_dir": str(own_data.parent / "run")},
    )
    assert align.run(run)
    return run


def test_final_and_checkpoints_export_bit_for_bit(finished: RunConfig, capsys: pytest.CaptureFixture) -> None:
    run = Path(finished.train.out_dir)
    wanted = load_file(run / "final" / "model.safetensors")
    for name, words in (("final", []), ("step", ["--step", "2"])):
        out = run.parent / name
        assert export.main(["--run", str(run), "--out", str(out), *words]) == 0
        written = load_file(out / "model.safetensors")
        assert written.keys() == wanted.keys()
        assert all(torch.equal(written[key], wanted[key]) for key in wanted)
        assert {"tokenizer.json", "medmo_profile.json", "generation_config.json"} <= {p.name for p in out.iterdir()}
        assert read_pixel_limits(out) == (64 * 64, 96 * 96)
    assert "every tensor is identical" in capsys.readouterr().out
    kit = load(run, device="cpu")  # a run's folder means its final/
    assert not kit.model.training
    assert (kit.processor.min_pixels, kit.processor.max_pixels) == (64 * 64, 96 * 96)
    earlier = load_file(run.parent / "final" / "model.safetensors")
    official_export.export(run / "checkpoints" / "step-000001", run.parent / "first")
    first = load_file(run.parent / "first" / "model.safetensors")
    assert any(not torch.equal(first[key], earlier[key]) for key in first)


def test_transformers_reads_it_whole(finished: RunConfig) -> None:
    transformers = pytest.importorskip("transformers")
    out = official_export.export(Path(finished.train.out_dir) / "final", Path(finished.train.out_dir).parent / "out")
    model, info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = MedMO.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())


def test_dtype_is_cast(finished: RunConfig) -> None:
    out = official_export.export(
        Path(finished.train.out_dir) / "final", Path(finished.train.out_dir).parent / "out", dtype="bfloat16"
    )
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_sharded_run_exports_like_one_process(
    finished: RunConfig, tmp_path: Path, run_processes: Callable[..., Any]
) -> None:
    """On the way, at the end and from a checkpoint: the same files as one process writes, up to the order of sums."""
    # In float64: AdamW's first steps make a rate's difference of a gradient's last bit where that is nearly zero.
    whole = finished.change(model={"dtype": "float64"}, train={"out_dir": str(tmp_path / "one")})
    sharded = whole.change(parallel={"shard": True}, train={"export_every": 1, "out_dir": str(tmp_path / "two")})
    assert align.run(whole)
    assert run_processes(lambda: align.run(sharded)) == [True, True]
    alone = Path(whole.train.out_dir) / "final"
    folders = [tmp_path / "two" / name for name in ("final", "exports/step-000001", "exports/step-000002")]
    step = tmp_path / "two" / "checkpoints" / "step-000002"
    folders.append(official_export.export(step, tmp_path / "from_checkpoint"))
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for name, tensor in load_file(alone / "model.safetensors").items():
        assert torch.allclose(weights[0][name], tensor, rtol=1e-7, atol=1e-9), name
        assert torch.equal(weights[2][name], weights[0][name]) and torch.equal(weights[3][name], weights[0][name])
    assert any(not torch.equal(weights[1][name], weights[0][name]) for name in weights[0])
    damaged = next(step.glob("tensors-1-*"))
    damaged.unlink()
    with pytest.raises(ValueError, match=f"{damaged.name} is missing; choose another step"):
        official_export.export(step, tmp_path / "again")


def test_adapters_are_merged(own_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = CONFIGS["debug_align"]().change(
        data={"sources": {str(own_data): 1.0}},
        lora=Lora(rank=2, targets=("decoder",)),
        train={"steps": 2, "save_every": 2, "export_every": 2, "device": "cpu", "out_dir": str(tmp_path / "run")},
    )
    assert align.run(run)
    final = load_file(tmp_path / "run" / "final" / "model.safetensors")
    begin = load_kit(run.change(lora={"rank": 0}), "cpu").model.state_dict()
    assert final.keys() <= begin.keys() and any(not torch.equal(final[name], begin[name]) for name in final)
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert adapter and all(".lora_" in name for name in adapter)
    official_export.export(tmp_path / "run" / "checkpoints" / "step-000002", tmp_path / "exported")
    for folder in (tmp_path / "exported", tmp_path / "run" / "exports" / "step-000002"):
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == final.keys() and all(torch.equal(weights[name], final[name]) for name in final)


def test_what_cannot_be_exported_is_explained(finished: RunConfig, tmp_path: Path) -> None:
    run = Path(finished.train.out_dir)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7; there are: 1, 2"):
        official_export.find_source(run, 7)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        official_export.find_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing has been saved there yet"):
        official_export.find_source(tmp_path / "empty")
    for stage in ("align", "instruct"):
        (tmp_path / "quickstart" / stage).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds the runs of align, instruct; name one of them, as .*/instruct"):
        official_export.find_source(tmp_path / "quickstart")
    with pytest.raises(ValueError, match="is not an empty folder"):
        official_export.export(run / "final", run)


def test_a_damaged_export_is_noticed(finished: RunConfig, tmp_path: Path) -> None:
    source = Path(finished.train.out_dir) / "final"
    tensors = load_file(source / "model.safetensors")
    official_export.verify(source, tensors)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    with pytest.raises(ValueError, match=f"{name} does not read back"):
        official_export.verify(source, tensors)


def test_an_unfinished_run_says_how_to_export(finished: RunConfig, tmp_path: Path) -> None:
    (Path(finished.train.out_dir) / "final").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="medmo export --run"):
        load(finished.train.out_dir, device="cpu")
    assert official_export.find_source(finished.train.out_dir).name == "step-000002"


def test_official_pixel_limits_are_read_in_both_spellings(tmp_path: Path) -> None:
    assert read_pixel_limits(tmp_path) == (65_536, 16_777_216)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12_845_056}))
    assert read_pixel_limits(tmp_path) == (3136, 12_845_056)
    path.write_text("{")
    with pytest.raises(ValueError, match="no readable image size"):
        read_pixel_limits(tmp_path)


def test_kit_on_meta_needs_no_weights(finished: RunConfig) -> None:
    assert load_kit(finished, "meta").model.head_weight.is_meta
