"""Rollouts: rewards become advantages, completions become documents, and neighbours change nothing."""

import math
from pathlib import Path

import pytest
import torch

from medmo_core.data.jsonl import load_jsonl
from medmo_core.data.packing import pack
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training import rollout as rollout_module
from medmo_recipes.training.build import Kit, load_kit
from medmo_recipes.training.config import ConfigError, Rollout
from medmo_recipes.training.distributed import World
from medmo_recipes.training.rollout import (
    Completion,
    combine_rewards,
    divide,
    draw_prompts,
    group_advantages,
    join,
    pack_completions,
    reward_components,
    sample_groups,
    sampled_tokens,
)

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(CONFIGS["debug_reinforce"]().change(model={"dtype": "float64"}), "cpu")


@pytest.fixture
def toy_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward the share of letters e."""
    monkeypatch.setitem(
        rollout_module.REWARDS, "toy", lambda completions, **_: [t.count("e") / max(1, len(t)) for t in completions]
    )


def test_advantages_compare_within_the_group() -> None:
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3]], dtype=torch.float64)
    centred = group_advantages(rewards, scale=False)
    assert centred[0].tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert not centred[1].any()  # exactly, although the mean of four 0.3 may differ from 0.3
    scaled = group_advantages(rewards, scale=True)
    deviation = math.sqrt((0.25 + 0.25) / 3)
    assert scaled[0, 1].item() == pytest.approx(0.5 / (deviation + 1e-4))
    assert not scaled[1].any()


def test_rewards_are_averaged_over_those_that_apply() -> None:
    components = {"answer": [1.0, None, None], "box": [0.0, 0.6, None]}
    assert combine_rewards(components, {"answer": 3.0, "box": 1.0}) == [0.75, 0.6, 0.0]
    with pytest.raises(ConfigError, match="at least one weight above 0"):
        combine_rewards(components, {"answer": 0.0, "box": 0.0})


def test_unknown_reward_names_the_nearest(kit: Kit, own_data: Path) -> None:
    sample = load_jsonl(own_data, own_data.parent)[0]
    with pytest.raises(ConfigError, match="reward in rewards.weights 'anwser': did you mean 'answer'"):
        reward_components(["anwser"], [sample], ["yes"], kit.profile)


def test_samples_of_one_prompt_do_not_depend_on_its_neighbours(kit: Kit, own_data: Path, toy_reward: None) -> None:
    samples = load_jsonl(own_data, own_data.parent)
    rollout = Rollout(num_generations=3, max_new_tokens=6, rows_per_pass=6)  # two prompts per pass

    def run(numbers: list[int], seed: int = 5) -> dict[str, list[list[int]]]:
        prompts, faults = draw_prompts(lambda n: samples[n % len(samples)], kit.processor, numbers)
        assert not faults
        groups = sample_groups(kit.model, kit.processor, prompts, {"toy": 1.0}, rollout, seed=seed)
        return {group.name: [generation.tokens for generation in group.generations] for group in groups}

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


def test_completion_log_probabilities_equal_the_samplers(kit: Kit, own_data: Path, toy_reward: None) -> None:
    """Prompt and completion run again as one document, packed with others: the same probabilities."""
    samples = load_jsonl(own_data, own_data.parent)
    prompts, _ = draw_prompts(lambda n: samples[n], kit.processor, range(3))
    rollout = Rollout(num_generations=2, max_new_tokens=5, temperature=0.7)
    groups = sample_groups(kit.model, kit.processor, prompts, {"toy": 1.0}, rollout, seed=0)
    completions = [
        Completion(join(g.prompt, sampled_tokens(r)), 0.0, 1.0, r.logps) for g in groups for r in g.generations
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
    assert divide([], [document], 4, ALONE, equal=False) == []
    batches = divide([document], [document], 4, world, equal=True)
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
