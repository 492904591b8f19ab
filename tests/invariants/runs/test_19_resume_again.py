"""A run that is resumed twice, once exactly where an epoch ends, takes the steps of one that was never stopped.

Each sample is then seen once per epoch, whether the epoch's steps lie before, across or after a resume; by documents,
and by tokens with documents that wait over the end of the epoch.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_core.batch import Batch
from medmo_recipes import instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.loop import fit as fit_module
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.loop.run import Run
from medmo_recipes.training.monitoring import summary as summary_module

NUM_SAMPLES = 8
BY_DOCUMENTS = {"docs_per_step": 4, "micro_batch": 2}
BY_TOKENS = {"tokens_per_batch": 70, "batches_per_step": 2, "pack_buffer": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions in text, an epoch of two steps of four."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    lines = [
        {"id": f"q{index}", "question": "What is it? " * (1 + index % 3), "answer": "this " * (1 + index % 4)}
        for index in range(NUM_SAMPLES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Diary:
    """What the steps of a run's attempts were made of, in order."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def train(self, config: RunConfig, *, until: int, **train: Any) -> None:
        """Start a run or continue it, and end it as SIGTERM does after `until` finished steps."""
        torch.manual_seed(len(self.seen))  # whatever happened in between
        train_step, close_step = fit_module.train_step, Run.close_step

        def noted(run: Run, batches: Sequence[Batch], *rest: Any, **named: Any) -> Any:
            self.seen.append([name for batch in batches for name in batch.sample_ids])
            return train_step(run, batches, *rest, **named)

        def stopped(run: Run, step: int, *rest: Any, **named: Any) -> bool:
            run.stop.received = step + 1 == until
            return close_step(run, step, *rest, **named)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(fit_module, "train_step", noted)
            patched.setattr(Run, "close_step", stopped)
            patched.setattr(summary_module, "write_summary", lambda out_dir: out_dir)
            assert instruct.run(config.change(train=train)) == (until == config.train.steps)


def config(data: Path, folder: Path, packing: dict[str, int]) -> RunConfig:
    return CONFIGS["debug_instruct"]().change(
        model={"dtype": "float64"},
        data={"sources": {str(data): 1.0}, "crops": False},
        train={"steps": 6, "save_every": 100, "device": "cpu", "out_dir": str(folder), **packing},
    )


def losses(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def check(data: Path, tmp_path: Path, packing: dict[str, int]) -> None:
    """Resume after step 2, where an epoch by documents ends, and after step 3 or 5; compare with the whole run."""
    whole = Diary()
    whole.train(config(data, tmp_path / "whole", packing), until=6)
    for second in (3, 5):
        parts, run = Diary(), config(data, tmp_path / f"parts {second}", packing)
        parts.train(run, until=2)
        parts.train(run, until=second, resume=True)
        parts.train(run, until=6, resume=True)
        assert parts.seen == whole.seen
        assert losses(Path(run.train.out_dir)) == losses(tmp_path / "whole")
    assert len(whole.seen) == 6
    drawn = Counter(name for step in whole.seen for name in step)
    if packing is BY_DOCUMENTS:
        for epoch in (0, 2, 4):
            assert Counter(name for step in whole.seen[epoch : epoch + 2] for name in step) == Counter(drawn.keys())
    else:  # every draw is in a step or waits, once
        state = json.loads((tmp_path / "whole/checkpoints/step-000006/state.json").read_text())["shared"]["loader"]
        assert drawn.total() + len(state["packer"]["waiting"]) == state["next_draw"]
    assert len(drawn) == NUM_SAMPLES


@pytest.mark.parametrize("packing", [BY_DOCUMENTS, BY_TOKENS], ids=["documents", "tokens"])
def test_resumed_twice_and_at_the_end_of_an_epoch(data: Path, tmp_path: Path, packing: dict[str, int]) -> None:
    check(data, tmp_path, packing)


def test_a_stream_that_begins_again_is_noticed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second resume goes on from where the first one did."""
    first: list[dict[str, Any]] = []
    restore = Loader.restore

    def forgetful(self: Loader, state: dict[str, Any]) -> None:
        first.append(state)
        restore(self, {**first[0], "step": state["step"]})

    monkeypatch.setattr(Loader, "restore", forgetful)
    with pytest.raises(AssertionError):
        check(data, tmp_path, BY_TOKENS)
