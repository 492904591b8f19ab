"""Rollouts: rewards become advantages, completions become documents, and neighbours change nothing."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.generation.decoding import Generation
from medmo_core.inference.kit import Kit
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement.completions import Completion, divide, join, pack_completions, to_completions
from medmo_recipes.reinforcement.engine import InPlaceEngine
from medmo_recipes.reinforcement.groups import (
    Completions,
    draw_prompts,
    reward_completions,
    sample_completions,
    sampled_tokens,
)
from medmo_recipes.reinforcement.image_features import encode_images, keeps_features
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet
from medmo_recipes.settings.run_config import Grpo, Rollout
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.model.kit import load_kit

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(CONFIGS["debug_reinforce"]().change(model={"dtype": "float64"}), "cpu")


def letters(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
    """The share of letters e."""
    texts = [turns[-1]["content"] for turns in completions]
    return [text.count("e") / max(1, len(text)) for text in texts]


def test_groups_are_rewarded_and_compared(kit: Kit, own_data: Path) -> None:
    """Each group gets the scores of its own completions, under a reward that sees prompt, sample and text."""
    samples = load_jsonl(own_data, own_data.parent)[:2]
    seen: dict[str, Any] = {}

    def length(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        seen.update(columns)
        return [float(len(ids)) for ids in completion_ids]

    def first_only(sample_id: list[str], **_: object) -> list[float | None]:
        return [1.0 if name == samples[0].id else None for name in sample_id]

    generations = [Generation([5] * n, [-1.0] * n) for n in (1, 2, 3, 4, 4, 4)]
    answers = [
        Completions(f"{s.id}#{i}", kit.processor.encode(s, for_generation=True), generations[3 * i : 3 * i + 3])
        for i, s in enumerate(samples)
    ]
    rewards = RewardSet({"length": length, "first": first_only})
    rollout, grpo = Rollout(num_generations=3, max_new_tokens=4), Grpo(advantage="centred", overlong_tokens=2)
    weights = {"length": 1.0, "first": 3.0}
    one, two = reward_completions(
        answers, rewards, weights, kit.tokenizer, kit.processor.text, rollout, grpo, step=3, max_steps=9
    )
    assert one.components == {"length": [1.0, 2.0, 3.0], "first": [1.0] * 3, "overlong": [0.0, 0.0, -0.5]}
    assert one.rewards.tolist() == [1.0, 1.25, 1.0] and two.rewards.tolist() == [3.0, 3.0, 3.0]
    assert one.advantages.tolist() == pytest.approx([-1 / 12, 1 / 6, -1 / 12]) and two.is_flat
    assert seen["trainer_state"].global_step == 3 and seen["trainer_state"].max_steps == 9
    asked = [kit.processor.text.question_text(s) for s in samples for _ in range(3)]
    assert [turns[-1]["content"] for turns in seen["prompts"]] == asked
    apart = Grpo(advantage="centred", normalise_components=True)
    one, _ = reward_completions(
        answers, rewards, weights, kit.tokenizer, kit.processor.text, rollout, apart, step=3, max_steps=9
    )
    assert one.rewards.tolist() == [1.0, 1.25, 1.5]  # what is logged is not normalised
    assert one.advantages.tolist() == pytest.approx([-0.25, 0.0, 0.25], rel=1e-3)  # deviations
    assert (
        reward_completions([], rewards, weights, kit.tokenizer, kit.processor.text, rollout, grpo, step=3, max_steps=9)
        == []
    )


def test_denominators_count_what_is_learned(kit: Kit, own_data: Path) -> None:
    """Cut completions by policy, tokens that the sampler could not tell always."""
    samples = load_jsonl(own_data, own_data.parent)[:1]
    generations = [
        Generation([5, 6, 7], [-1.0, math.nan, -1.0]),
        Generation([5], [-1.0, -2.0], finished=True, stop_token=3),
        Generation([5, 6], [-math.inf, math.nan]),
    ]
    answers = [Completions("a", kit.processor.encode(samples[0], for_generation=True), generations)]
    rollout = Rollout(num_generations=3, max_new_tokens=10)

    def weights(**settings: Any) -> list[list[float]]:
        grpo = Grpo(**settings)
        rewards = RewardSet({"letters": letters})
        groups = reward_completions(
            answers, rewards, {"letters": 1.0}, kit.tokenizer, kit.processor.text, rollout, grpo, step=0, max_steps=1
        )
        completions = to_completions(groups, rollout, grpo, ALONE)
        batch = pack_completions(completions)
        assert batch.token_weights.shape == batch.sampled_logps.shape
        lengths = [len(c.sampled_logps) for c in completions]
        return [part.tolist() for part in batch.token_weights.split(lengths)]

    assert weights(loss="dapo") == weights(loss="cispo") == [[0.25, 0.0, 0.25], [0.25, 0.25]]
    assert weights(loss="grpo") == weights(loss="gspo") == [[0.25, 0.0, 0.25], [0.25, 0.25]]
    assert weights(loss="dr_grpo") == [[0.05, 0.0, 0.05], [0.05, 0.05]]
    assert weights(loss="dapo", mask_truncated=True) == weights(loss="grpo", mask_truncated=True) == [[0.5, 0.5]]


def test_samples_of_one_prompt_do_not_depend_on_its_neighbours(kit: Kit, own_data: Path) -> None:
    samples = load_jsonl(own_data, own_data.parent)
    rollout = Rollout(num_generations=3, max_new_tokens=6, rows_per_pass=6)  # two prompts per pass

    def run(numbers: list[int], seed: int = 5) -> dict[str, list[list[int]]]:
        prompts, faults = draw_prompts(lambda n: samples[n % len(samples)], kit.processor, numbers)
        assert not faults
        answers = sample_completions(InPlaceEngine(kit.model), prompts, rollout, seed=seed)
        return {a.name: [generation.tokens for generation in a.generations] for a in answers}

    together, apart = run([0, 1, 2, 16]), run([2])
    assert together["r0#2"] == apart["r0#2"]
    assert len({tuple(tokens) for tokens in together["r0#2"]}) == 3  # the group differs within
    assert together["q0#0"] != together["q0#16"]  # the same sample drawn twice is sampled anew
    assert run([2], seed=6) != apart


def test_a_prompt_that_cannot_be_read_is_a_fault(kit: Kit, own_data: Path) -> None:
    samples = load_jsonl(own_data, own_data.parent)
    (own_data.parent / "red.png").unlink()
    prompts, faults = draw_prompts(lambda n: samples[n], kit.processor, range(8))
    assert list(prompts) == [4, 5, 6, 7]
    assert [(fault.sample_id, fault.kind) for fault in faults][0] == ("q0", "unreadable")
    assert "red.png" in faults[0].reason


def test_completion_log_probabilities_equal_the_samplers(kit: Kit, own_data: Path) -> None:
    """Prompt and completion run again as one document, packed with others: the same probabilities."""
    samples = load_jsonl(own_data, own_data.parent)
    prompts, _ = draw_prompts(lambda n: samples[n], kit.processor, range(3))
    rollout = Rollout(num_generations=2, max_new_tokens=5, temperature=0.7)
    answers = sample_completions(InPlaceEngine(kit.model), prompts, rollout, seed=0)
    completions = [
        Completion(join(a.prompt, sampled_tokens(r)), 0.0, 1.0, r.logps) for a in answers for r in a.generations
    ]
    batch = pack_completions(completions)
    again = kit.model.token_logprobs(batch.batch, temperature=0.7)
    torch.testing.assert_close(again.detach(), batch.sampled_logps, rtol=1e-9, atol=1e-9)


def test_equal_division_fills_up_without_weight(kit: Kit, own_data: Path) -> None:
    """Sharded processes run the same number of passes, each with an image."""
    samples = load_jsonl(own_data, own_data.parent)

    class TwoWorlds(World):
        def gather(self, item: object) -> list[object]:
            return [item, 3 if isinstance(item, int) and not isinstance(item, bool) else item]

    world = TwoWorlds(rank=0, size=2, device=torch.device("cpu"))
    document = Completion(join(kit.processor.encode(samples[0], for_generation=True), [3, 4]), 1.0, 0.5, [-1.0, -2.0])
    silent = dataclasses.replace(document, token_weight=0.0)
    assert divide([], [silent], 4, ALONE, equal=False) == []
    batches = divide([document], [silent], 4, world, equal=True)
    assert [b.token_weights.tolist() for b in batches] == [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]
    assert all(b.batch.patches for b in batches)
    with pytest.raises(ValueError, match="no usable prompt"):
        divide([], [], 4, world, equal=True)


def test_joined_positions_continue_after_the_image(kit: Kit, own_data: Path) -> None:
    samples = load_jsonl(own_data, own_data.parent)
    prompt = kit.processor.encode(samples[0], for_generation=True)
    whole = join(prompt, [5, 6, 7])
    end = int(prompt.position_ids.max())
    assert whole.position_ids[:, -3:].tolist() == [[end + 1, end + 2, end + 3]] * 3
    assert whole.labels is not None and whole.labels.tolist() == [-100] * len(prompt.input_ids) + [5, 6, 7]
    assert pack([whole]).num_tokens == len(prompt.input_ids) + 3


def completions_of(kit: Kit, own_data: Path, lengths: list[int]) -> list[Completion]:
    """Return so many completions of the first prompts, each of three tokens of its own."""
    samples = load_jsonl(own_data, own_data.parent)
    found: list[Completion] = []
    for sample, count in zip(samples, lengths, strict=False):
        prompt = kit.processor.encode(sample, for_generation=True)
        for number in range(count):
            found.append(Completion(join(prompt, [5, 6 + number, 7]), float(len(found)), 1.0, [-1.0, -2.0, -3.0]))
    return found


def test_a_group_stays_in_one_micro_batch(kit: Kit, own_data: Path) -> None:
    """Only a group that is larger than a micro-batch is cut; nothing is lost or reordered."""
    completions = completions_of(kit, own_data, [3, 2, 2, 6])
    batches = divide(completions, completions, 4, ALONE, equal=False)
    assert [b.batch.num_examples for b in batches] == [3, 4, 4, 2]
    assert [b.batch.num_documents for b in batches] == [4, 6, 5, 3]  # one prompt a group and micro-batch
    assert torch.cat([b.advantages for b in batches])[::3].tolist() == list(range(13))
    apart = divide(completions, completions, 4, ALONE, equal=False, share_prefixes=False)
    assert [b.batch.num_documents for b in apart] == [3, 4, 4, 2]
    assert sum(b.batch.num_tokens for b in batches) < sum(b.batch.num_tokens for b in apart)


def test_a_shared_prompt_changes_no_log_probability(kit: Kit, own_data: Path) -> None:
    completions = completions_of(kit, own_data, [4, 1, 3])
    shared, apart = (pack_completions(completions, share_prefixes=share) for share in (True, False))
    assert shared.batch.prompt_of is not None and apart.batch.prompt_of is None
    assert len(shared.batch.image_grid_thw["qwen3_vl"]) == 3
    with torch.no_grad():
        logps, expected = (kit.model.token_logprobs(b.batch, 0.7) for b in (shared, apart))
    torch.testing.assert_close(logps, expected, rtol=0.0, atol=1e-12)


def test_features_of_a_frozen_tower_stand_for_the_images(own_data: Path) -> None:
    """Each prompt's images are encoded once; sampling and all passes, shared prompts and not, give what they gave."""
    kit = load_kit(CONFIGS["debug_reinforce"]().change(model={"dtype": "float64"}), "cpu")
    assert not keeps_features(kit.model)
    kit.model.model.visual.requires_grad_(False)
    assert keeps_features(kit.model)
    samples = load_jsonl(own_data, own_data.parent)
    prompts, _ = draw_prompts(lambda n: samples[n], kit.processor, range(8))
    text = next(n for n, s in enumerate(samples) if not s.images) if any(not s.images for s in samples) else None
    rollout = Rollout(num_generations=2, max_new_tokens=4)
    encoded: list[int] = []
    kit.model.model.visual.register_forward_hook(lambda _, given, __: encoded.append(len(given[1]["qwen3_vl"])))

    def run(given: dict[int, Document]) -> list[torch.Tensor]:
        answers = sample_completions(InPlaceEngine(kit.model), given, rollout, seed=0)
        pairs = [(a.prompt, g) for a in answers for g in a.generations]
        rows = [Completion(join(prompt, sampled_tokens(g)), 0.0, 1.0, g.logps) for prompt, g in pairs]
        batches = [pack_completions(rows, share_prefixes=share).batch for share in (True, False)]
        with torch.no_grad():
            return [kit.model.token_logprobs(batch) for batch in batches]

    with_features = encode_images(kit.model, prompts, per_pass=3)
    num_images = sum(len(item.sample.images) for item in prompts.values())
    assert sum(encoded) == num_images
    assert text is None or with_features[text].features is None
    known = run(with_features)
    assert sum(encoded) == num_images  # the tower did not run again
    torch.testing.assert_close(known, run(prompts), rtol=0.0, atol=1e-10)
    assert sum(encoded) > num_images
    wrong = {n: i if i.features is None else dataclasses.replace(i, features=i.features.flip(1)) for n, i in
             with_features.items()}  # fmt: skip
    with pytest.raises(AssertionError):
        torch.testing.assert_close(run(wrong), known, rtol=0.0, atol=1e-10)
