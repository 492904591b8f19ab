"""Mixtures and loaders that stages make from a config: for training, and of the held-out split where it is measured."""

from pathlib import Path

import pytest
import torch

from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.loader import held_out_loader, train_loader
from medmo_recipes.training.loading.skipped import SkippedSamples
from medmo_recipes.training.loading.sources import load_mixture, load_mixtures
from medmo_recipes.training.model.kit import load_kit

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def config(tmp_path: Path, **train: int) -> RunConfig:
    """A debug run; the embedded set calls its held-out split "test"."""
    return CONFIGS["debug_align"]().change(train={"out_dir": str(tmp_path), "eval_split": "test", **train})


def test_a_held_out_mixture_is_made_only_where_it_is_measured(tmp_path: Path) -> None:
    run = config(tmp_path, eval_every=0)
    mixture, held_out = load_mixtures(run)
    assert held_out is None
    assert mixture.draw(3).id == load_mixture(run.data, seed=run.train.seed).draw(3).id
    _, held_out = load_mixtures(config(tmp_path, eval_every=5))
    assert held_out is not None
    assert {held_out.draw(n).split for n in range(4)} == {"test"}


@pytest.mark.parametrize("tokens_per_batch", [None, 2048])
def test_the_loaders_take_their_own_numbers_of_documents(tmp_path: Path, tokens_per_batch: int | None) -> None:
    run = config(tmp_path, eval_every=1, eval_docs=3, docs_per_step=2, batches_per_step=1)
    run = run.change(train={"tokens_per_batch": tokens_per_batch})
    kit, skipped = load_kit(run, "meta"), SkippedSamples(None)
    mixture, held_out = load_mixtures(run)
    assert held_out is not None
    loaders = (
        train_loader(run, mixture.draw, kit.processor, ALONE, skipped),
        held_out_loader(run, held_out.draw, kit.processor, ALONE),
    )
    counts = []
    for loader in loaders:
        counts.append(sum(batch.num_examples for batch in loader.step(0, look_ahead=False)))
        loader.close()
    assert counts[1] == 3  # eval_docs, however they are packed
    assert counts[0] == 2 if tokens_per_batch is None else counts[0] > 3  # or as many as fill one pack
    assert skipped.drawn >= counts[0]  # the held-out documents are not among them
