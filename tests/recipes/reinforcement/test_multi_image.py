"""Several images through rollout, reward, update and evaluation: each on its place, exchanged ones noticed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medmo_core.boxes import ImageBoxes
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.records.sample import Sample
from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT
from medmo_core.datasets.embedded.pairs import eval_pairs
from medmo_core.generation.decoding import Generation
from medmo_core.inference.kit import Kit
from medmo_core.metrics.matching import box_problems
from medmo_core.rewards import REWARDS
from medmo_recipes import reinforce
from medmo_recipes.commands import evaluate as evaluate_module
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation import suites
from medmo_recipes.evaluation.ask import Asking
from medmo_recipes.evaluation.controls import shuffle_images
from medmo_recipes.evaluation.scores import score_answers
from medmo_recipes.evaluation.suites import evaluate, evaluate_data
from medmo_recipes.reinforcement.completions import join, pack_completions, to_completions
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request
from medmo_recipes.reinforcement.groups import (
    Group,
    draw_prompts,
    reward_completions,
    sample_completions,
    sampled_tokens,
)
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet
from medmo_recipes.settings.run_config import Grpo, Rewards, Rollout, RunConfig
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.model.kit import load_kit

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
WEIGHTS = {"box": 1.0}


def config(folder: Path, name: str, **changes: dict[str, object]) -> RunConfig:
    """A float64 debug run on pairs of views."""
    base = CONFIGS["debug_reinforce"]().change(
        model={"dtype": "float64"},
        data={"sources": {"embedded:pair": 1.0}, "crops": True},
        optim={"schedule": "constant", "warmup_ratio": 0.0, "lr": 0.01},
        train={"steps": 1, "docs_per_step": 3, "save_every": 1, "device": "cpu", "out_dir": str(folder / name)},
        rollout={"num_generations": 4, "max_new_tokens": 6},
        rewards={"weights": {"box": 1.0, "format": 1.0, "letters": 1.0}},
    )
    return base.change(**changes)


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random model earns sometimes: the share of letters e."""

    def share(completions: Sequence[str], **_: object) -> list[float]:
        return [text.count("e") / max(1, len(text)) for text in completions]

    monkeypatch.setitem(REWARDS, "letters", share)


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(CONFIGS["debug_reinforce"]().change(model={"dtype": "float64"}), "cpu")


@pytest.fixture(scope="module")
def pairs() -> list[Sample]:
    return eval_pairs("test", 40)


def tracked(pairs: Sequence[Sample]) -> Sample:
    """A question that gives a box in the first image and asks for one in the second."""
    return next(s for s in pairs if s.provenance["template"] == "pair/track")


def logps(kit: Kit, item: Document, text: str) -> torch.Tensor:
    with torch.no_grad():
        return kit.model.token_logprobs(pack([join(item, kit.tokenizer.encode(text))]))


def test_features_land_on_the_placeholders_of_their_image(kit: Kit, pairs: list[Sample]) -> None:
    """Pixels of the second image change nothing before its placeholders, and something on them."""
    item = kit.processor.encode(tracked(pairs), for_generation=True)
    first, second = (int(grid.prod()) for grid in item.image_grid_thw["qwen3_vl"])
    changed = item.patches["qwen3_vl"].copy()
    assert len(changed) == first + second
    changed[first:] = 255 - changed[first:]
    other = replace(item, patches={"qwen3_vl": changed})
    with torch.no_grad():
        before, after = (kit.model.hidden_states(pack([document])) for document in (item, other))
    pads = torch.from_numpy(item.input_ids == kit.tokenizer.image_token_id).nonzero().flatten()
    start = int(pads[first // 4])  # four patches are one token
    assert int(pads[first // 4 - 1]) + 1 < start  # the two images stand apart
    assert torch.equal(before[:start], after[:start])
    assert (before[start:] != after[start:]).any(dim=1).all()


def test_encoded_together_or_alone_the_features_are_the_same_and_in_order(kit: Kit, pairs: list[Sample]) -> None:
    sample = tracked(pairs)
    item = kit.processor.encode(sample, for_generation=True)
    with torch.no_grad():
        both = kit.model.encode_images(pack([item]))
        alone = []
        for image in sample.images:
            content = [{"type": "image"}, {"type": "text", "text": "?"}]
            single = replace(sample, images=(image,), messages=({"role": "user", "content": content},), boxes=())
            alone.append(kit.model.encode_images(pack([kit.processor.encode(single, for_generation=True)])))
    torch.testing.assert_close(both, torch.cat(alone, dim=1), rtol=0, atol=1e-12)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_exchanged_images_are_noticed_by_the_model(kit: Kit, pairs: list[Sample]) -> None:
    sample = tracked(pairs)
    turned = replace(sample, images=sample.images[::-1])
    items = [kit.processor.encode(s, for_generation=True) for s in (sample, turned)]
    one, other = (logps(kit, item, "yes") for item in items)
    assert (one - other).abs().max() > 1e-6


def answers_about(kit: Kit, sample: Sample) -> dict[str, str]:
    """Four answers: right, of the right place in the other image, of half of what is right, and nothing."""
    truth = sample.truth_boxes()
    assert isinstance(truth, ImageBoxes)
    right = kit.profile.write_boxes(truth)
    other = {"1": "2", "2": "1"}
    start, *rest = right.split('"image": ')
    wrong_image = '"image": '.join([start, *(other[piece[0]] + piece[1:] for piece in rest)])
    return {"right": right, "wrong image": wrong_image, "too many": right[:-1] + ", " + wrong_image[1:], "none": "[]"}


class Scripted:
    """An engine that says what it is told to."""

    def __init__(self, kit: Kit, texts: Sequence[str]) -> None:
        self.kit, self.texts = kit, texts

    def sample(self, requests: Sequence[Request], rollout: Rollout, *, seed: int) -> list[list[Generation]]:
        """Return the script for each request, with the policy's own log-probabilities."""
        return [[self._said(request.prompt, text) for text in self.texts] for request in requests]

    def _said(self, prompt: Document, text: str) -> Generation:
        tokens = self.kit.tokenizer.encode(text)
        with torch.no_grad():
            chances = self.kit.model.token_logprobs(pack([join(prompt, tokens)]))
        return Generation(tokens, chances.tolist(), finished=False)


def rewarded(kit: Kit, sample: Sample, texts: Sequence[str]) -> Group:
    """One group of the sample with the given completions, through the recipe's own functions."""
    rollout = Rollout(num_generations=len(texts), max_new_tokens=200)
    prompts, faults = draw_prompts(lambda _: sample, kit.processor, [0])
    assert not faults
    answers = sample_completions(Scripted(kit, texts), prompts, rollout, seed=0)
    rewards = RewardSet.from_config(Rewards(weights=WEIGHTS))
    (group,) = reward_completions(
        answers, rewards, WEIGHTS, kit.tokenizer, kit.processor.text, rollout, Grpo(), step=1, max_steps=1
    )
    return group


def test_the_right_image_is_rewarded_and_made_likelier(kit: Kit, pairs: list[Sample]) -> None:
    """One step along the gradient raises the answer in the right image and lowers the same box in the other one."""
    sample = tracked(pairs)
    texts = answers_about(kit, sample)
    group = rewarded(kit, sample, list(texts.values()))
    scores = dict(zip(texts, group.rewards.tolist(), strict=True))
    assert scores["right"] == pytest.approx(1.0, abs=0.02)
    assert 0.0 == scores["wrong image"] == scores["none"] < scores["too many"] < 0.7
    policy = load_kit(CONFIGS["debug_reinforce"]().change(model={"dtype": "float64"}), "cpu")
    rollout = Rollout(num_generations=len(texts), max_new_tokens=200)
    batch = pack_completions(to_completions([group], rollout, Grpo(), ALONE))
    before = [logps(policy, group.prompt, text).sum().item() for text in texts.values()]
    loss = policy.model.policy_loss(
        batch.batch, batch.advantages, batch.token_weights, sampled_logps=batch.sampled_logps
    )
    loss.total.backward()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    after = [logps(policy, group.prompt, text).sum().item() for text in texts.values()]
    gained = dict(zip(texts, (a - b for a, b in zip(after, before, strict=True)), strict=True))
    assert gained["right"] > gained["wrong image"] and gained["right"] > 0.0


def test_exchanged_truth_exchanges_the_score(kit: Kit, pairs: list[Sample]) -> None:
    """With the boxes moved to the other image the two answers change places."""
    sample = tracked(pairs)
    side = min(*sample.images[0].size, *sample.images[1].size)  # type: ignore[misc]
    images = tuple(replace(i, width=side, height=side, crop=(0, 0, side, side)) for i in sample.images)
    square = replace(sample.boxes[0], xyxy_px=(0.2 * side, 0.2 * side, 0.6 * side, 0.7 * side), image=1)
    plain = ({"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]},)
    second = replace(sample, images=images, boxes=(square,), messages=plain)
    first = replace(second, boxes=(replace(square, image=0),))
    texts = answers_about(kit, second)
    scores = [rewarded(kit, s, [texts["right"], texts["wrong image"]]).rewards.tolist() for s in (second, first)]
    assert scores == [[1.0, 0.0], [0.0, 1.0]]


def test_shared_prefixes_change_no_log_probability(kit: Kit, pairs: list[Sample]) -> None:
    groups = [rewarded(kit, s, list(answers_about(kit, s).values())) for s in (tracked(pairs), tracked(pairs[::-1]))]
    completions = to_completions(groups, Rollout(num_generations=4, max_new_tokens=200), Grpo(), ALONE)
    shared, apart = (pack_completions(completions, share_prefixes=share) for share in (True, False))
    assert shared.batch.num_tokens < 0.6 * apart.batch.num_tokens
    with torch.no_grad():
        one, other = (kit.model.token_logprobs(b.batch) for b in (shared, apart))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    torch.testing.assert_close(one, shared.sampled_logps, rtol=0, atol=1e-10)


def test_sampled_probabilities_are_the_trainers(kit: Kit, pairs: list[Sample]) -> None:
    """Rollouts of prompts of two images, beside one another and in few rows, tell the trainer's log-probabilities."""
    rollout = Rollout(num_generations=3, max_new_tokens=6, rows_per_pass=4)
    chosen = pairs[:3]
    prompts, _ = draw_prompts(lambda n: chosen[n], kit.processor, range(3))
    for answer in sample_completions(InPlaceEngine(kit.model), prompts, rollout, seed=3):
        for generation in answer.generations:
            batch = pack([join(answer.prompt, sampled_tokens(generation))])
            with torch.no_grad():
                expected = kit.model.token_logprobs(batch)
            torch.testing.assert_close(torch.tensor(generation.logps, dtype=torch.float64), expected, rtol=0, atol=1e-8)


def metrics(run: RunConfig) -> list[dict[str, float]]:
    lines = (Path(run.train.out_dir) / "metrics.jsonl").read_text().splitlines()
    return [values for values in map(json.loads, lines) if "step" in values and "loss" in values]


def assert_same_run(one: RunConfig, other: RunConfig) -> None:
    for key in ("reward", "loss", "grad_norm", "tokens", "completion_tokens"):
        expected = [values[key] for values in metrics(one)]
        assert [values[key] for values in metrics(other)] == pytest.approx(expected, rel=1e-6, abs=1e-12), key
    weights, others = (load_file(Path(run.train.out_dir) / "final" / "model.safetensors") for run in (one, other))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_a_run_on_pairs_is_the_same_with_one_process_and_two(
    tmp_path: Path, shard: bool, run_processes: Callable[..., list[bool]]
) -> None:
    alone = config(tmp_path, "alone")
    assert reinforce.run(alone)
    first = metrics(alone)[0]
    assert first["grad_norm"] > 0 and first["sampler_gap"] < 1e-8 and first["skipped"] == 0
    pair = alone.change(train={"out_dir": str(tmp_path / "pair")}, parallel={"shard": shard})
    assert run_processes(lambda: reinforce.run(pair)) == [True, True]
    assert_same_run(alone, pair)


def test_features_kept_over_a_step_are_those_of_a_tower_that_runs_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = config(tmp_path, "kept", model={"trainable": ("decoder",)}, grpo={"num_updates": 2})
    assert reinforce.run(kept)
    monkeypatch.setattr(reinforce, "keeps_features", lambda model: False)
    every_time = kept.change(train={"out_dir": str(tmp_path / "every")})
    assert reinforce.run(every_time)
    assert metrics(kept)[0]["grad_norm"] > 0
    assert_same_run(kept, every_time)


def test_answers_are_scored_in_the_image_they_name(kit: Kit, pairs: list[Sample]) -> None:
    sample = next(s for s in pairs if {s.boxes[i].image for i in s.sought} == {0, 1})
    texts = answers_about(kit, sample)
    found = score_answers([sample] * 2, [texts["right"], texts["wrong image"]], kit.processor.text)
    assert [p.scores["grounding_iou"] for p in found] == [pytest.approx(1.0, abs=0.1), pytest.approx(0.0, abs=0.3)]
    values = json.loads(json.dumps(found[0].to_json()))
    assert values["truth_images"] == values["box_images"] and set(values["box_images"]) == {0, 1}
    torch.testing.assert_close(torch.tensor(values["boxes_px"]), torch.tensor(values["truth_px"]), rtol=0, atol=1.0)


def test_the_control_asks_the_same_question_of_as_many_other_images(kit: Kit, pairs: list[Sample]) -> None:
    single = replace(pairs[0], id="single", images=pairs[0].images[:1])
    shuffled = shuffle_images([single, *pairs])
    assert [len(s.images) for s in shuffled] == [1] + [2] * len(pairs)
    assert shuffled[0].images == single.images  # no other sample of one image
    shown = [[{image.path for image in s.images} for s in samples] for samples in (shuffled[1:], pairs)]
    assert not any(one & other for one, other in zip(*shown, strict=True))
    questions = [[kit.processor.text.question_text(s) for s in samples] for samples in (shuffled[1:], pairs)]
    assert questions[0] == questions[1]  # given boxes are written for the images they were drawn on


def test_evaluate_scores_pairs_and_files_of_several_images(kit: Kit, tmp_path: Path) -> None:
    samples = eval_pairs("test", 6)
    result = evaluate(kit.model, kit.processor, {"grounding": samples}, asking=Asking(max_new_tokens=4))
    assert set(result.metrics) >= {"grounding_iou", "grounding_f1", "grounding_iou_shuffled"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(s.to_json()) for s in samples), encoding="utf-8")
    asking = Asking(max_new_tokens=4)
    from_file = evaluate_data(kit.model, kit.processor, str(path), root=EMBEDDED_ROOT, asking=asking)
    assert from_file.metrics["grounding_iou"].value == pytest.approx(result.metrics["grounding_iou"].value)


def test_the_command_scores_pairs_of_the_embedded_set_beside_their_baseline(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("medmo_core.models.official.folder.find_folder", lambda name: tmp_path)
    monkeypatch.setattr("medmo_core.inference.load", lambda *_, **__: kit)
    monkeypatch.setattr(suites, "NUM_BASELINE_SAMPLES", 40)
    words = ["--checkpoint", "x", "--data", "embedded:pair", "--num-samples", "8", "--max-new-tokens", "3"]
    assert evaluate_module.main([*words, "--out", str(tmp_path / "scores")]) == 0
    assert "embedded:pair, split test" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores/metrics.json").read_text())["metrics"]
    assert 0.0 < scores["grounding_iou"]["baseline"] < 0.6
    lines = [json.loads(line) for line in (tmp_path / "scores/predictions.jsonl").read_text().splitlines()]
    kinds = [line["set"] for line in lines]
    assert kinds.count("grounding") == 8 and all("truth_images" in line for line in lines)
    present = sum(bool(line["truth_px"]) for line in lines if line["set"] == "grounding")
    assert kinds.count("grounding_shuffled") == present, "what is not there needs no control"


def test_a_reward_that_reads_one_image_only_is_noticed(
    kit: Kit, pairs: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in code that forces every sample to its first image."""
    from medmo_core.rewards import box_answers

    def first_image_only(pred: Sequence[ImageBoxes], truth: Sequence[ImageBoxes]) -> Any:
        return box_problems([p.per_image[0] for p in pred], [t.per_image[0] for t in truth])

    monkeypatch.setattr(box_answers, "box_problems", first_image_only)
    with pytest.raises(AssertionError):
        test_the_right_image_is_rewarded_and_made_likelier(kit, pairs)


def test_exchanged_features_are_noticed(kit: Kit, pairs: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of order fails when the pictures of a prompt change places on their way."""
    encode = kit.model.encode_images

    def turned(batch: Any) -> torch.Tensor:
        features = encode(batch)
        return features.roll(features.shape[1] // 2, dims=1)

    monkeypatch.setattr(kit.model, "encode_images", turned)
    with pytest.raises(AssertionError):
        test_encoded_together_or_alone_the_features_are_the_same_and_in_order(kit, pairs)
