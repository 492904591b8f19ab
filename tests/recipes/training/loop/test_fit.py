"""The supervised loop: what is reduced, what trains, what stops it, what is left behind."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from medmo_core.models.medmo import MedMO
from medmo_core.models.targets import learned_positions
from medmo_recipes import align, instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.loading.skipped import BadData, SkippedSample, SkippedSamples
from medmo_recipes.training.loading.sources import load_mixture
from medmo_recipes.training.loop import fit as fit_module
from medmo_recipes.training.model import bfloat16_products
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.parts import parameter_parts
from medmo_recipes.training.model.trainable import make_trainable
from medmo_recipes.training.monitoring.spikes import NonFiniteLoss


def config(tmp_path: Path, **changes: dict[str, object]) -> RunConfig:
    """debug_align for two steps, in its own folder."""
    train = {"steps": 2, "save_every": 2, "out_dir": str(tmp_path / "run"), "device": "cpu"}
    return CONFIGS["debug_align"]().change(**{**changes, "train": {**train, **changes.get("train", {})}})


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [values for values in map(json.loads, lines) if "step" in values and "loss" in values]


def events(folder: Path, name: str) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [values for values in map(json.loads, lines) if values.get("event") == name]


def final(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def test_a_run_learns_and_leaves_the_promised_files(tmp_path: Path) -> None:
    run = config(
        tmp_path,
        optim={"lr": 1e-2},
        train={"steps": 6, "save_every": 3, "eval_every": 3, "eval_docs": 4, "eval_split": "test"},
    )
    assert align.run(run)
    folder = tmp_path / "run"
    seen = metrics(folder)
    assert [values["step"] for values in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1]["loss"] < seen[0]["loss"] - 0.5
    assert [values["step"] for values in seen if "val_loss" in values] == [3, 6]
    assert {"lr", "grad_norm", "tokens", "tokens_per_s", "skipped"} <= seen[0].keys()
    assert RunConfig.from_dict(json.loads((folder / "config.json").read_text())) == run
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000003", "step-000006"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "medmo_profile.json"} <= {
        path.name for path in (folder / "final").iterdir()
    }
    assert list((folder / "tensorboard").iterdir())
    # The next stage starts from it.
    kit = load_kit(run.change(model={"init": str(folder / "final")}), "cpu")
    weights = final(folder)
    for name, parameter in kit.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_micro_batches_only_add_up(tmp_path: Path) -> None:
    """One pack of four documents, four packs of one: the same step, because all divide by the step's target tokens."""
    results = []
    for micro_batch in (4, 1):
        run = config(tmp_path / str(micro_batch), model={"dtype": "float64"}, train={"micro_batch": micro_batch})
        assert align.run(run)
        results.append((metrics(tmp_path / str(micro_batch) / "run"), final(tmp_path / str(micro_batch) / "run")))
    (packed, packed_weights), (single, single_weights) = results
    for a, b in zip(packed, single, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-6)
    for name in packed_weights:
        assert torch.allclose(packed_weights[name], single_weights[name], rtol=1e-6, atol=1e-9), name


def test_supervised_attention_is_learned_where_it_has_a_weight(tmp_path: Path) -> None:
    losses = {}
    for weight in (0.0, 20.0):
        run = config(
            tmp_path / str(weight),
            data={"sources": {"embedded:dialogue": 1.0}, "independent_turns": True},
            optim={"lr": 1e-2},
            train={"steps": 8, "save_every": 8, "attention_weight": weight},
        )
        assert instruct.run(run.change(stage="instruct"))
        losses[weight] = [values.get("attention_loss") for values in metrics(tmp_path / str(weight) / "run")]
    assert losses[0.0] == [None] * 8
    first, last = losses[20.0][0], losses[20.0][-1]
    assert first is not None and last is not None and last < 0.8 * first


@pytest.mark.parametrize(
    "change",
    [{"train": {"coordinate_spread": 40.0}}, {"model": {"bfloat16_products": True}}],
    ids=["spread", "products"],
)
@pytest.mark.parametrize("stage", [align, instruct])
def test_a_setting_of_the_loss_or_its_products_reaches_the_first_gradient(
    stage: Any, change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16_products, "multiplies_bfloat16", lambda device: True)
    norms = []
    for name, changed in (("plain", {}), ("changed", change)):
        run = config(tmp_path / name, data={"sources": {"embedded:dialogue": 1.0}}, train={"steps": 1, "save_every": 1})
        run = run.change(stage=stage.__name__.rsplit(".", 1)[-1], **changed)
        assert stage.run(run)
        norms.append(metrics(tmp_path / name / "run")[0]["grad_norm"])
    assert norms[0] != norms[1]


def test_projector_only_is_checked_and_the_rest_keeps_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = config(tmp_path, model={"trainable": ("projector",)}, optim={"lr": 1e-2})
    before = {name: p.detach().clone() for name, p in load_kit(run, "cpu").model.named_parameters()}
    assert align.run(run)
    assert "projector" in capsys.readouterr().err
    after, parts = final(tmp_path / "run"), parameter_parts(load_kit(run, "meta").model)
    for name, old in before.items():
        assert torch.equal(old, after[name]) == (parts[name] != "projector"), name


def test_what_trains_is_chosen_by_name() -> None:
    model = load_kit(CONFIGS["debug_align"](), "meta").model
    counts = {part: make_trainable(model, [part]).num_parameters for part in ("encoder", "projector", "decoder")}
    assert sum(counts.values()) == make_trainable(model, ["all"]).num_parameters
    chosen = make_trainable(model, ["projector", "model.language_model.layers.1"])
    assert {name.split(".")[2] for name in chosen.names} == {"merger", "deepstack_merger_list", "layers"}
    assert not any("layers.0" in name for name in chosen.names)
    with pytest.raises(ConfigError, match=r"model\.trainable 'projektor': did you mean 'projector'"):
        make_trainable(model, ["projektor"])
    with pytest.raises(ConfigError, match=r"did you mean 'model\.language_model\.layers"):
        make_trainable(model, ["model.language_model.layer"])


@pytest.mark.parametrize("encoder", ["siglip2", "dinov2", "fused"])
def test_another_encoder_is_one_field(tmp_path: Path, encoder: str) -> None:
    """A new encoder on a decoder with trained weights: the decoder's come along, the projector alone trains."""
    start = config(tmp_path / "start", train={"steps": 1})
    assert align.run(start)
    source = tmp_path / "start" / "run" / "final"
    run = config(tmp_path, train={"steps": 1}, model={
        "init": str(source), "encoder": encoder, "encoder_size": "debug", "trainable": ("projector",),
    })  # fmt: skip
    assert align.run(run)
    old, new = load_file(source / "model.safetensors"), final(tmp_path / "run")
    decoder = [name for name in old if name.startswith("model.language_model.")]
    assert decoder and all(torch.equal(old[name], new[name]) for name in decoder)
    again = MedMO.from_pretrained(tmp_path / "run" / "final")
    assert again.config.encoder == encoder


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "debug_align", "train.steps=1", f"train.out_dir={tmp_path / 'run'}"]
    assert align.main(words) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert align.main(words) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: train.out_dir: ")
    assert "already holds a run; train.resume=true continues it" in message
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = config(tmp_path / "whole", train={"steps": 4, "save_every": 100})
    assert align.run(whole)
    asked = config(tmp_path, train={"steps": 4, "save_every": 100})
    original = fit_module.train_step

    def interrupted(run, batches, minimise, step, **options):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, batches, minimise, step, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "train_step", interrupted)
        assert not align.run(asked)
    folder = tmp_path / "run"
    assert not (folder / "final").exists()
    assert events(folder, "stopped") == [{"event": "stopped", "step": 2}]
    assert align.run(asked.change(train={"resume": True}))
    assert [values["step"] for values in metrics(folder)] == [1, 2, 3, 4]
    reference, resumed = final(tmp_path / "whole" / "run"), final(folder)
    assert all(torch.equal(reference[name], resumed[name]) for name in reference)


@pytest.mark.parametrize("guilty", ["one", "unknown"])
def test_nan_loss_stops_with_the_sample_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guilty: str) -> None:
    run = config(tmp_path, train={"steps": 4, "save_every": 1, "docs_per_step": 4, "micro_batch": 2})
    honest, calls, poisoned = MedMO.token_losses, [], []

    def token_losses(self: MedMO, batch, **options):
        calls.append(batch.sample_ids)
        value = honest(self, batch, **options)
        if len(calls) != 6:
            return value
        # The second batch of the third step: its second document alone goes wrong, or nothing says which.
        second = learned_positions(batch) >= batch.cu_seqlens[1] if guilty == "one" else torch.tensor([])
        poisoned.extend(batch.sample_ids if guilty == "unknown" else batch.sample_ids[1:])
        rows = value.cross_entropy.masked_fill(second, math.nan) if guilty == "one" else value.cross_entropy
        return value._replace(total=value.total * math.nan, cross_entropy=rows)

    monkeypatch.setattr(MedMO, "token_losses", token_losses)
    with pytest.raises(NonFiniteLoss) as error:
        align.run(run)
    message, folder = str(error.value), tmp_path / "run"
    assert "step 3: the loss is nan" in message and "step-000002" in message
    assert len(poisoned) == (1 if guilty == "one" else 2) and all(name in message for name in poisoned)
    assert not any(name in message for name in set(calls[4]) - set(poisoned))
    assert [values["step"] for values in metrics(folder)] == [1, 2]
    assert events(folder, "not_finite")[0]["samples"] == poisoned
    monkeypatch.undo()
    assert align.run(run.change(train={"resume": True}))  # what was saved is whole


def test_samples_left_out_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Over-long samples are dropped whole: the loss sees fewer documents, and every one left out has a reason."""
    lengths = sorted(batch.num_tokens for batch in sample_batches(tmp_path, 16))
    limit = lengths[len(lengths) // 2]
    run = config(tmp_path, data={"max_tokens": limit, "max_bad_ratio": 1.0}, train={"steps": 4})
    assert align.run(run)
    dropped = sum(length > limit for length in lengths)
    assert 0 < dropped < 16
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(listed) == dropped
    assert all(line["kind"] == "too long" and line["id"] and str(limit) in line["reason"] for line in listed)
    assert f"{dropped} of 16 samples drawn were left out: {dropped} too long" in capsys.readouterr().err
    assert metrics(tmp_path / "run")[-1]["skipped"] == dropped
    assert sum(values["documents"] for values in metrics(tmp_path / "run")) == 16 - dropped


def sample_batches(tmp_path: Path, count: int) -> list:
    loader = make_loader(config(tmp_path), count)
    return loader.step(0, look_ahead=False)


def make_loader(run: RunConfig, count: int, world: World | None = None, *, equal: bool = False) -> Loader:
    """A loader of one document per batch over the config's mixture."""
    kit = load_kit(run, "meta")
    return Loader(
        load_mixture(run.data, seed=run.train.seed).draw,
        kit.processor,
        world=world or World(rank=0, size=1, device=torch.device("cpu")),
        docs_per_step=count,
        micro_batch=1,
        skipped=SkippedSamples(None),
        equal=equal,
    )


def test_processes_divide_the_same_global_batch(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    alone = [b.sample_ids[0] for b in make_loader(config(tmp_path), 5).step(3, look_ahead=False)]
    pair = [
        [b.sample_ids[0] for b in make_loader(config(tmp_path), 5, World(rank, 2, cpu)).step(3, look_ahead=False)]
        for rank in (0, 1)
    ]
    assert [pair[i % 2][i // 2] for i in range(5)] == alone


def test_sharded_processes_get_equal_numbers_of_batches_with_images(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    own = [make_loader(config(tmp_path), 5, World(r, 2, cpu), equal=True).step(0, look_ahead=False) for r in (0, 1)]
    assert [len(batches) for batches in own] == [3, 3]
    assert all(batch.patches for batches in own for batch in batches)
    assert not any(len(learned_positions(batch)) for batch in own[1][2:])  # the filler teaches nothing
    assert all(len(learned_positions(batch)) for batch in own[1][:2])


def test_too_many_bad_samples_stop_the_run() -> None:
    skipped = SkippedSamples(None, max_ratio=0.1)
    skipped.add(60, [SkippedSample(1, "a", "file not found", "unreadable")] * 6)
    with pytest.raises(BadData, match=r"7 of 64 samples could not be used .*a: file not found"):
        skipped.add(4, [SkippedSample(2, "b", "truncated", "unreadable")])


def test_instruct_mixes_tasks_by_weight(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = CONFIGS["debug_instruct"]().change(
        data={"sources": {"embedded:vqa": 3.0, "embedded:grounding": 1.0}},
        train={"steps": 1, "out_dir": str(tmp_path / "run"), "device": "cpu"},
    )
    assert instruct.run(run)
    said = capsys.readouterr().err
    assert "feeds 75% embedded:vqa" in said and "feeds 25% embedded:grounding" in said


def test_unknown_source_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'embedded:caption'"):
        align.run(config(tmp_path, data={"sources": {"embedded:captoin": 1.0}}))
    with pytest.raises(ConfigError, match=r"nothing\.jsonl is no file"):
        align.run(config(tmp_path, data={"sources": {"nothing.jsonl": 1.0}}))
    assert not (tmp_path / "run").exists()


def write_own_data(folder: Path, count: int = 16) -> Path:
    """A JSONL file of pictures with one bright square each; the last picture is cut short on disk."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(count):
        x, y = (int(v) for v in rng.integers(0, 32, 2))
        pixels = rng.integers(0, 60, (64, 64), dtype=np.uint8)
        pixels[y : y + 32, x : x + 32] += 150
        Image.fromarray(pixels).save(folder / f"{index}.png")
        box = {"label": "lesion", "xyxy": [x, y, x + 32, y + 32]}
        image = {"path": f"{index}.png", "width": 64, "height": 64}  # a stated size: files are opened when drawn
        record = {"images": [image], "question": "Where is the lesion?", "boxes": [box]}
        lines.append(json.dumps({**record, "id": f"case-{index}", "split": "val" if index == 0 else "train"}))
    last = folder / f"{count - 1}.png"
    last.write_bytes(last.read_bytes()[:-400])
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "own.jsonl"


def test_own_data_trains_and_an_unreadable_picture_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_own_data(tmp_path)
    words = ["--config", "debug_instruct", "--data", str(path), f"train.out_dir={tmp_path / 'run'}"]
    assert instruct.main(words) == 0
    drawn = sum(values["documents"] for values in metrics(tmp_path / "run"))
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert drawn + len(listed) == 16  # four steps of four: one epoch of the fifteen training records, and one more draw
    assert {line["id"] for line in listed} == {"case-15"}
    assert all(line["kind"] == "unreadable" and "15.png" in line["reason"] for line in listed)
    assert "samples drawn were left out" in capsys.readouterr().err
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_a_malformed_line_stops_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_own_data(tmp_path)
    path.write_text(path.read_text() + '{"image": "0.png", "question": \n')
    words = ["--config", "debug_instruct", "--data", str(path), f"train.out_dir={tmp_path / 'run'}"]
    assert instruct.main(words) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "own.jsonl:17" in message
    assert not (tmp_path / "run").exists()
