"""The loader by tokens: a plan that does not depend on the processes, a state that goes on without drawing again."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_core.batch import Batch, PatchSpec
from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Answer, Sample
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.datasets.embedded.dialogues import Dialogues
from medmo_core.profile import QWEN3_VL
from medmo_recipes import instruct
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.documents import DocumentMaker
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.loading.plan import TokenBudget
from medmo_recipes.training.loading.skipped import BadData, SkippedSample, SkippedSamples

BUDGET = 400
embedded = cache(Tokenizer.embedded)


class Texts:
    """A source of texts of many lengths that counts what is asked of it; one in `bad_every` cannot be read."""

    def __init__(self, size: int = 300, bad_every: int = 0) -> None:
        self.name, self.root, self.size, self.bad_every = "texts", None, size, bad_every
        self.gets = 0

    def __len__(self) -> int:
        return self.size

    def get(self, index: int, rng: random.Random) -> Sample:
        self.gets += 1
        if self.bad_every and index % self.bad_every == 1:
            raise ValueError(f"texts:{index}: torn out")
        words = "scan " * (1 + index * 7 % 60)
        message = {"role": "user", "content": words}
        return Sample(f"texts:{index}", "text", messages=(message,), answer=Answer("open", "CT"))


def processor(**options: Any) -> Processor:
    sizes = {"min_pixels": 32 * 32, "max_pixels": 96 * 96, **options}
    return Processor(embedded(), {"qwen3_vl": PatchSpec(16, 2, 2)}, QWEN3_VL, **sizes)


def loader(
    source: Texts | None = None, rank: int = 0, size: int = 1, *, packs: int | None = 4, **options: Any
) -> Loader:
    mixture = Mixture({"texts": (source or Texts(), 1.0)}, seed=3)
    settings: dict[str, Any] = {"skipped": SkippedSamples(None), "docs_per_step": 12, "micro_batch": 3, **options}
    return Loader(
        mixture.draw,
        settings.pop("processor", None) or processor(),
        world=World(rank, size, torch.device("cpu")),
        by_tokens=TokenBudget(BUDGET, packs, 32),
        **settings,
    )


def names(batches: Sequence[Batch]) -> list[tuple[str, ...]]:
    return [batch.sample_ids for batch in batches]


def test_batches_are_full_and_never_over_the_budget() -> None:
    feed = loader()
    steps = [feed.step(step) for step in range(8)]
    tokens = [batch.num_tokens for batches in steps for batch in batches]
    assert [len(batches) for batches in steps] == [4] * 8
    assert max(tokens) <= BUDGET
    assert feed.figures() == {"pack_efficiency": sum(tokens) / (32 * BUDGET)}
    assert feed.figures()["pack_efficiency"] > 0.97
    feed.close()


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_plan_is_the_same_for_any_number_of_processes(size: int) -> None:
    alone, ranks = loader(), [loader(rank=rank, size=size) for rank in range(size)]
    for step in range(3):
        whole, parts = names(alone.step(step)), [names(rank.step(step)) for rank in ranks]
        assert [parts[i % size][i // size] for i in range(4)] == whole
        assert sum(len(part) for part in parts) == 4  # of eight processes, four have nothing to do
        assert {json.dumps(rank.state()) for rank in ranks} == {json.dumps(alone.state())}
    for feed in (alone, *ranks):
        feed.close()


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_run_goes_on_exactly_with_another_number_of_processes(stop: int) -> None:
    """Through JSON, into new processes; what was made ahead is made again."""
    whole = loader()
    expected = [names(whole.step(step)) for step in range(8)]
    first = [loader(rank=rank, size=2) for rank in range(2)]
    for step in range(stop):
        for feed in first:
            feed.step(step)
    state = json.loads(json.dumps(first[1].state()))
    second = [loader(rank=rank, size=4) for rank in range(4)]
    for feed in second:
        feed.restore(state)
    for step in range(stop, 8):
        parts = [names(feed.step(step)) for feed in second]
        assert [part[0] for part in parts] == expected[step]
    assert second[0].state() == whole.state()
    for feed in (whole, *first, *second):
        feed.close()


def test_resuming_draws_nothing_again() -> None:
    """However far the run has come, the first step costs the draws it takes up and the ones it decodes."""
    costs = []
    for done in (1, 40):
        first = loader()
        for step in range(done):
            first.step(step)
        source = Texts()
        second = loader(source)
        second.restore(first.state())
        assert source.gets == 0
        second.step(done, look_ahead=False)
        costs.append(source.gets)
        first.close()
        second.close()
    assert max(costs) < 150, costs


def test_steps_by_tokens_go_in_order_and_their_state_fits_its_kind() -> None:
    feed = loader()
    feed.step(0, look_ahead=False)
    with pytest.raises(ValueError, match="goes in order: the next step is 1, not 5"):
        feed.step(5)
    assert len(feed.step(1, look_ahead=False)) == 4
    by_documents = Loader(
        Mixture({"texts": (Texts(), 1.0)}, seed=3).draw,
        processor(),
        world=World(0, 1, torch.device("cpu")),
        docs_per_step=12,
        micro_batch=3,
        skipped=SkippedSamples(None),
    )
    assert by_documents.figures() == {}
    with pytest.raises(ConfigError, match="the run packed by tokens so far"):
        by_documents.restore(feed.state())
    with pytest.raises(ConfigError, match="the run packed by documents so far"):
        feed.restore(by_documents.state())
    smaller = loader()
    smaller._plan._packer.budget = 20  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"train\.tokens_per_batch: document .* tokens; a pack holds 1 to 20, as the"):
        smaller.restore(feed.state())
    for each in (feed, by_documents, smaller):
        each.close()


def test_by_documents_a_changed_number_per_step_loses_no_draw() -> None:
    def make(count: int) -> Loader:
        draw = Mixture({"texts": (Texts(), 1.0)}, seed=3).draw
        world = World(0, 1, torch.device("cpu"))
        return Loader(
            draw, processor(), world=world, docs_per_step=count, micro_batch=100, skipped=SkippedSamples(None)
        )

    first, second, whole = make(6), make(10), make(32)
    seen = [name for step in range(2) for name in first.step(step)[0].sample_ids]
    second.restore(json.loads(json.dumps(first.state())))
    seen += [name for step in range(2, 4) for name in second.step(step)[0].sample_ids]
    assert tuple(seen) == whole.step(0)[0].sample_ids
    for feed in (first, second, whole):
        feed.close()


def test_held_out_draws_are_packed_among_themselves() -> None:
    ranks = [loader(rank=rank, size=2, packs=None) for rank in range(2)]
    batches = [batch for feed in ranks for batch in feed.step(0, look_ahead=False)]
    alone = loader(packs=None)
    assert sorted(names(batches)) == sorted(names(alone.step(0, look_ahead=False)))
    assert sum(batch.num_documents for batch in batches) == 12
    assert max(batch.num_tokens for batch in batches) <= BUDGET
    for feed in (*ranks, alone):
        feed.close()


def test_sharded_processes_make_as_many_batches() -> None:
    ranks = [loader(rank=rank, size=3, equal=True) for rank in range(3)]
    batches = [feed.step(0, look_ahead=False) for feed in ranks]
    assert [len(own) for own in batches] == [2, 2, 2]
    fillers = [own[1] for own in batches[1:]]
    assert all(batch.labels is not None and bool((batch.labels == -100).all()) for batch in fillers)
    for feed in ranks:
        feed.close()


def test_what_cannot_be_read_is_counted_once_over_all_processes(tmp_path: Path) -> None:
    alone = SkippedSamples(tmp_path / "alone")
    feed = loader(Texts(bad_every=9), skipped=alone)
    ranks = [SkippedSamples(tmp_path / "two", rank=rank) for rank in range(2)]
    feeds = [loader(Texts(bad_every=9), rank, 2, skipped=skipped) for rank, skipped in enumerate(ranks)]
    for step in range(6):
        for each in (feed, *feeds):
            each.step(step)
    assert alone.total == sum(skipped.total for skipped in ranks) > 10
    assert alone.drawn == sum(skipped.drawn for skipped in ranks)
    written = [sorted(line for path in folder.iterdir() for line in path.read_text().splitlines())
               for folder in (tmp_path / "alone", tmp_path / "two")]  # fmt: skip
    assert written[0] == written[1] and len(written[0]) == alone.total
    assert all("torn out" in json.loads(line)["reason"] for line in written[0])
    for each in (feed, *feeds):
        each.close()


def test_a_draw_longer_than_a_batch_is_too_long() -> None:
    skipped = SkippedSamples(None)
    long = Texts()
    original = long.get

    def get(index: int, rng: random.Random) -> Sample:
        sample = original(index, rng)
        return sample if index % 10 else replace(sample, answer=Answer("open", "x " * 400))

    long.get = get  # type: ignore[method-assign]
    feed = loader(long, skipped=skipped)
    for step in range(4):
        feed.step(step)
    assert skipped.kinds.keys() == {"too long"}
    assert f"tokens, and a batch holds train.tokens_per_batch={BUDGET}" in skipped.examples[0].reason
    feed.close()


def test_a_sample_that_fails_after_it_was_planned_leaves_its_batch_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loader()
    expected = names(whole.step(0))
    lost = expected[1][0]
    original = Processor.encode

    def encode(self: Processor, sample: Sample, **options: Any) -> Any:
        if sample.id == lost and options.get("pixels", True):
            raise ValueError(f"{sample.id}: its picture is torn")
        return original(self, sample, **options)

    monkeypatch.setattr(Processor, "encode", encode)
    skipped = SkippedSamples(None)
    feed = loader(skipped=skipped)
    found = names(feed.step(0))
    assert found == [expected[0], expected[1][1:], *expected[2:]]
    assert (skipped.total, skipped.drawn) == (1, sum(len(batch) for batch in expected))
    assert skipped.summary().splitlines()[1] == f"  {lost}: its picture is torn"
    stopping = loader(skipped=SkippedSamples(None, stop=True))
    with pytest.raises(BadData, match=rf"sample {lost}: its picture is torn \(draw \d+; data\.on_bad_sample=skip"):
        stopping.step(0)
    for each in (whole, feed, stopping):
        each.close()


def test_a_source_with_nothing_to_give_stops_the_run() -> None:
    feed = loader(Texts(bad_every=1, size=1))
    assert len(feed.step(0)) == 4  # one text again and again
    source = Texts(size=1)
    source.get = lambda index, rng: (_ for _ in ()).throw(ValueError("gone"))  # type: ignore[method-assign]
    empty = loader(source)
    with pytest.raises(BadData, match="256 samples in a row could not be used, the last of them: draw 253: gone"):
        empty.step(0)
    for each in (feed, empty):
        each.close()


def test_the_summary_names_the_first_twenty_and_says_how_many_more() -> None:
    skipped = SkippedSamples(None)
    assert skipped.summary() == "no sample was left out of 0 drawn"
    skipped.add(50, [SkippedSample(i, f"s{i}", f"s{i}: cut short", "unreadable", (f"{i}.png",)) for i in range(30)])
    again = SkippedSamples(None)
    again.restore(json.loads(json.dumps(skipped.state())))
    for each in (skipped, again):
        lines = each.summary().splitlines()
        assert lines[0] == "30 of 50 samples drawn were left out: 30 unreadable"
        assert lines[1] == "  s0 (0.png): cut short"
        assert (len(lines), lines[-1]) == (22, "  and 10 more")


def test_too_long_samples_do_not_stop_a_run_that_stops_at_bad_ones() -> None:
    skipped = SkippedSamples(None, stop=True)
    skipped.add(1, [SkippedSample(0, "a", "900 tokens", "too long")])
    with pytest.raises(BadData, match=r"sample b \(b\.png\): cut short \(draw 1; "):
        skipped.add(1, [SkippedSample(1, "b", "cut short", "unreadable", ("b.png",))])


def test_a_run_packs_by_tokens_and_resumes_exactly(tmp_path: Path) -> None:
    """With a worker until it stops, without one afterwards: the same batches, so the same losses and weights."""
    shared = {"data": {"sources": {"embedded:vqa": 2.0, "embedded:dialogue": 1.0}, "independent_turns": True}}
    train = {"tokens_per_batch": 300, "batches_per_step": 2, "pack_buffer": 24, "save_every": 2, "device": "cpu"}

    def config(folder: str, **data: Any) -> RunConfig:
        base = CONFIGS["debug_instruct"]().change(data={**shared["data"], **data})
        return base.change(train={**train, "steps": 4, "out_dir": str(tmp_path / folder)})

    assert instruct.run(config("whole"))
    assert instruct.run(config("parts", num_workers=1).change(train={"steps": 2}))
    assert instruct.run(config("parts").change(train={"resume": True}))
    lines = {
        folder: [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("whole", "parts")
    }
    seen = {f: [(v["loss"], v["tokens"], v["pack_efficiency"]) for v in ls if "loss" in v] for f, ls in lines.items()}
    # Half as many steps planned is another learning rate: the losses of the first two steps, the tokens of all.
    assert [values[1:] for values in seen["parts"]] == [values[1:] for values in seen["whole"]]
    assert seen["parts"][0][0] == seen["whole"][0][0]
    assert all(500 < tokens <= 600 and efficiency > 0.85 for _, tokens, efficiency in seen["whole"])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_the_length_of_a_draw_is_what_it_takes_in_a_batch(share: bool, turns: bool) -> None:
    """Dialogues about one view: apart, or with what the turns have in common once."""
    mixture = Mixture({"dialogue": (Dialogues("train"), 1.0)}, seed=0)
    documents = DocumentMaker(mixture.draw, processor(), independent_turns=turns, share_prefixes=share)
    for number in range(12):
        length = documents.length(number)
        batch, faults = documents.batch([number])
        assert batch is not None and not faults
        assert length == batch.num_tokens
    both, _ = documents.batch([0, 1])
    assert both is not None
    assert both.num_tokens == sum(n for n in documents.lengths([0, 1]) if isinstance(n, int))
    if turns and share:
        apart, _ = DocumentMaker(mixture.draw, processor(), independent_turns=True).batch([0, 1])
        assert apart is not None and both.num_tokens < apart.num_tokens
