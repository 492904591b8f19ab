"""Log and summary of a run: losses by task, spikes with their samples, held-out figures, rates, a profile."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from medmo_core.data.packing import pack
from medmo_core.losses import TokenLosses
from medmo_core.models.medmo import MedMO
from medmo_core.models.targets import learned_positions
from medmo_recipes import align, instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.sources import load_mixture
from medmo_recipes.training.loop.loss_sums import LossSums
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.monitoring import summary as summary_module
from medmo_recipes.training.monitoring.log import RunLog
from medmo_recipes.training.monitoring.spikes import NEEDED, LossSpike, SpikeGuard
from medmo_recipes.training.monitoring.summary import describe

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def config(tmp_path: Path, **changes: dict[str, object]) -> RunConfig:
    train = {"steps": 3, "save_every": 100, "out_dir": str(tmp_path / "run"), "device": "cpu"}
    return CONFIGS["debug_instruct"]().change(**{**changes, "train": {**train, **changes.get("train", {})}})


def lines(folder: Path, key: str = "loss") -> list[dict[str, float]]:
    values = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in values if key in line]


@pytest.mark.parametrize("shared", [False, True], ids=["rows", "shared-prompts"])
def test_losses_by_task_are_means_over_that_tasks_tokens(shared: bool) -> None:
    run = CONFIGS["debug_instruct"]().change(model={"dtype": "float64"})
    kit, mixture = load_kit(run, "cpu"), load_mixture(run.data, seed=3)
    drawn = [kit.processor.encode(mixture.draw(number)) for number in range(6)]
    items = [item for item in drawn for _ in range(2)]  # the second of each can hang on the same prompt
    batch, sums = pack(items, share_prefixes=shared), LossSums()
    assert (batch.prompt_of is not None) == shared
    with torch.no_grad():
        sums.add(batch, kit.model.token_losses(batch, z_loss=0.1, accuracy=True))
        expected: dict[str, list[torch.Tensor]] = {}
        right, squares = [], []
        for item in items:  # each by itself, from whole logits
            single = pack([item])
            logits, labels = kit.model(single)[:-1], single.labels[1:]
            learned = labels != -100
            losses = F.cross_entropy(logits[learned], labels[learned], reduction="none")
            expected.setdefault(item.sample.task, []).append(losses)
            right.append(logits[learned].argmax(-1) == labels[learned])
            squares.append(logits[learned].logsumexp(-1).square())
    means = sums.means(ALONE)
    assert len(expected) > 2
    assert means.tasks == {task: pytest.approx(torch.cat(parts).mean().item()) for task, parts in expected.items()}
    everything = torch.cat([losses for parts in expected.values() for losses in parts])
    assert means.loss == pytest.approx(everything.mean().item())
    assert means.accuracy == pytest.approx(torch.cat(right).double().mean().item())
    assert means.z_loss == pytest.approx(0.1 * torch.cat(squares).mean().item())
    assert means.minimised == pytest.approx(means.loss + means.z_loss)
    # A task logged wrongly would be noticed.
    moved, other = LossSums(), replace(batch, tasks=(*batch.tasks[1:], batch.tasks[0]))
    with torch.no_grad():
        moved.add(other, kit.model.token_losses(other))
    with pytest.raises(AssertionError):
        assert moved.means(ALONE).tasks == pytest.approx(means.tasks)


def test_a_run_logs_losses_by_task_that_add_up_to_the_whole(tmp_path: Path) -> None:
    both = {"sources": {"embedded:vqa": 1.0, "embedded:grounding": 1.0}}
    run = config(tmp_path, data=both, train={"docs_per_step": 6, "z_loss": 1e-2, "eval_every": 3, "eval_split": "test"})
    assert instruct.run(run)
    seen = lines(tmp_path / "run")
    parts = {name for line in seen for name in line if name.startswith("loss/")}
    assert parts == {"loss/vqa", "loss/grounding"}
    for line in seen:
        shown = [line[name] for name in parts if name in line]
        assert min(shown) <= line["loss"] * (1 + 1e-9) and line["loss"] <= max(shown) * (1 + 1e-9)
        assert line["z_loss"] > 0
    last = seen[-1]
    assert {"val_loss/vqa", "val_loss/grounding", "val_accuracy/vqa", "val_accuracy/grounding"} <= last.keys()
    assert 0 <= last["val_accuracy"] <= 1 and "val_loss" not in seen[0]


def test_a_watch_judges_by_the_median_of_the_last_64() -> None:
    watch = SpikeGuard(2.0)
    for number in range(NEEDED):
        assert watch.limit() == float("inf")
        watch.finished(1.0 + number)
    assert watch.limit() == 2.0 * statistics.median(range(1, NEEDED + 1))
    for _ in range(64):
        watch.finished(3.0)
    assert watch.limit() == 6.0
    again = SpikeGuard(2.0)
    again.restore(json.loads(json.dumps(watch.state())))
    assert again.limit() == 6.0
    silent = SpikeGuard(0.0)
    for _ in range(64):
        silent.finished(1.0)
    assert silent.limit() == float("inf")


def spiking(after: int, spiked: list[str]):
    """Make the second document of the batch dear from a step on, step by step of one batch each."""
    honest, calls = MedMO.token_losses, []

    def token_losses(self: MedMO, batch, **options) -> TokenLosses:
        value = honest(self, batch, **options)
        calls.append(batch.sample_ids)
        if len(calls) != after + 1:
            return value
        spiked.append(batch.sample_ids[1])
        position = learned_positions(batch)
        dear = (position >= batch.cu_seqlens[1]) & (position < batch.cu_seqlens[2])
        return value._replace(cross_entropy=torch.where(dear, 1e4, value.cross_entropy))

    return token_losses


def test_a_spike_stops_before_the_weights_change_and_names_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The history survives a resume: the run is cut after step 12, and the judgement needs 16."""
    train = {"steps": 20, "save_every": 6, "micro_batch": 4, "spike_ratio": 3.0, "log_every": 1}
    calm = config(tmp_path, train=train)
    spiked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(MedMO, "token_losses", spiking(17, spiked))
        assert instruct.run(calm.change(train={"steps": 12}))
        with pytest.raises(LossSpike) as error:
            instruct.run(calm.change(train={"resume": True}))
    message = str(error.value)
    assert message.startswith("step 18: the loss is ") and "times the median of the last steps" in message
    assert len(spiked) == 1 and f"with samples {spiked[0]}. No weight was changed" in message
    assert "step-000012" in message and "train.spike_ratio=3 higher (0: never stop)" in message
    folder = tmp_path / "run"
    assert [line["step"] for line in lines(folder)][-1] == 17
    (event,) = [line for line in lines(folder, "event") if line["event"] == "spike"]
    assert event == {"event": "spike", "step": 18, "samples": spiked}
    assert f"- refused (spike): step 18, with samples {spiked[0]}" in (folder / "summary.md").read_text()
    # Without the dear document the same step is taken.
    assert instruct.run(calm.change(train={"resume": True}))
    assert [line["step"] for line in lines(folder)][-1] == 20
    capsys.readouterr()


def test_a_spike_early_in_a_run_is_no_spike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MedMO, "token_losses", spiking(2, []))
    assert instruct.run(config(tmp_path, train={"micro_batch": 4, "spike_ratio": 3.0}))


def test_every_line_has_rates_and_the_cpu_no_mfu(tmp_path: Path) -> None:
    run = config(tmp_path, optim={"lr_scale": {"encoder": 0.5}}, train={"steps": 5, "log_every": 2})
    assert align.run(run.change(stage="align"))
    seen = lines(tmp_path / "run")
    assert [line["step"] for line in seen] == [2, 4, 5]
    for line in seen:
        wanted = {"tokens_per_s", "samples_per_s", "step_s", "wait_s", "memory_gib", "grad_norm", "lr", "lr/encoder"}
        assert wanted <= line.keys() and "mfu" not in line
        assert line["lr/encoder"] == pytest.approx(0.5 * line["lr"])
        assert 0 <= line["wait_s"] <= line["step_s"] and 0.05 < line["memory_gib"] < 20
    (totals,) = [line for line in lines(tmp_path / "run", "event") if line["event"] == "totals"]
    assert totals["steps"] == 5 and totals["samples"] == 5 * run.train.docs_per_step


def test_packing_by_tokens_tells_how_full_the_batches_are(tmp_path: Path) -> None:
    assert instruct.run(config(tmp_path, train={"steps": 2, "tokens_per_batch": 200, "batches_per_step": 2}))
    for line in lines(tmp_path / "run"):
        assert 0.4 < line["pack_efficiency"] <= 1
        assert line["tokens"] <= 2 * 200


def test_a_known_device_has_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmo_recipes.training.monitoring.meter.peak_flops", lambda device: 1e12)
    assert instruct.run(config(tmp_path, train={"steps": 1}))
    (line,) = lines(tmp_path / "run")
    assert 0 < line["mfu"] < 1  # this machine is slower than that
    assert "MFU (useful operations of the bf16 peak)" in (tmp_path / "run/summary.md").read_text()


def test_one_step_is_profiled_on_request(tmp_path: Path) -> None:
    assert instruct.run(config(tmp_path, train={"steps": 2, "profile_step": 2}))
    folder = tmp_path / "run/profile"
    trace = json.loads((folder / "trace.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert "aten::mm" in (folder / "top_ops.txt").read_text()
    assert {path.name for path in folder.iterdir()} == {"trace.json", "top_ops.txt"}  # the snapshot is CUDA's
    with pytest.raises(ConfigError, match="train.profile_step = 9: expected one of 2 steps"):
        instruct.run(config(tmp_path / "late", train={"steps": 2, "profile_step": 9}))


def test_a_full_disk_names_the_file_of_metrics(tmp_path: Path) -> None:
    log = RunLog(tmp_path, World(rank=0, size=1, device=torch.device("cpu")), steps=2, title="t")
    log._metrics = Path("/dev/full").open("w")  # noqa: SIM115
    for write in (lambda: log.event("resumed"), lambda: log.metrics(1, {"loss": 1.0})):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write()
        assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_a_run_leaves_a_page_with_curves(tmp_path: Path) -> None:
    run = config(tmp_path, data={"max_tokens": 40, "max_bad_ratio": 1.0}, train={
        "steps": 6, "docs_per_step": 8, "eval_every": 2, "eval_split": "test", "save_every": 100,
    })  # fmt: skip
    assert instruct.run(run)
    folder = tmp_path / "run"
    page = (folder / "summary.md").read_text()
    best = min(lines(folder, "val_loss"), key=lambda line: line["val_loss"])
    kept = f"checkpoints/step-{best['step']:06d}"
    for words in ("# debug_instruct (instruct)", "| steps | 6 of 6 |", "research use only", "summary.png", kept,
                  "Samples left out: ", "| tokens/s |", "peak memory", "val_loss/"):  # fmt: skip
        assert words in page, words
    assert (folder / kept).is_dir()
    assert (folder / "summary.png").read_bytes()[:4] == b"\x89PNG"
    skipped = json.loads((folder / "skipped.jsonl").read_text().splitlines()[0])
    assert f"| {skipped['id']} | too long |" in page


def test_a_page_tells_resumes_and_counts_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(tmp_path, train={"steps": 2})
    assert instruct.run(run)
    monkeypatch.setattr(summary_module, "plot_curves", lambda *_: (_ for _ in ()).throw(ImportError))
    assert instruct.run(run.change(train={"steps": 3, "resume": True}))
    page = (tmp_path / "run/summary.md").read_text()
    assert "- resumed after step 2" in page and "| steps | 3 of 3 |" in page
    assert f"| samples | {3 * run.train.docs_per_step} |" in page  # the first part is in the totals
    assert 'summary.png needs matplotlib: pip install "medmo[demo]"' in page


def test_ids_of_others_do_nothing_to_the_page(tmp_path: Path) -> None:
    config = {"name": "run | <b>", "stage": "align", "train": {"steps": 1}}
    skipped = [{"id": "a|b\n![x](http://y)", "kind": "too long", "reason": "<img src=x>\x1b[2J"}]
    events = [{"event": "spike", "step": 1, "samples": ["*s*"]}]
    page = describe(config, [{"step": 1, "loss": 1.0}], events, skipped, "no plot", tmp_path)
    assert "# run \\| \\<b\\> (align)" in page and "with samples \\*s\\*" in page
    assert "| a\\|b \\!\\[x\\](http\\://y) | too long | \\<img src=x\\>\\\\x1b\\[2J |" in page
