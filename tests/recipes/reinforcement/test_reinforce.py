"""Reinforce: the gradient against a plain reference, a reward that rises, and what must not change anything."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medmo_core.data.packing import pack
from medmo_core.models.medmo import MedMO
from medmo_core.rewards import REWARDS
from medmo_recipes import reinforce
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement import groups
from medmo_recipes.reinforcement.completions import join
from medmo_recipes.reinforcement.groups import sampled_tokens
from medmo_recipes.reinforcement.reward_calls.reward_call import RewardError
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.distributed.world import ProcessFailed
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.monitoring.spikes import NonFiniteLoss
from medmo_recipes.training.optim.optimizer import Optimizer


def toy(completions: list[str], **_: object) -> list[float]:
    """Reward the share of letters e."""
    return [text.count("e") / max(1, len(text)) for text in completions]


@pytest.fixture(autouse=True)
def toy_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "toy", toy)
    monkeypatch.setitem(REWARDS, "silent", lambda completions, **_: [None] * len(completions))


def config(own_data: Path, name: str, **changes: dict[str, object]) -> RunConfig:
    """A float64 debug run on our own data with the toy reward, two steps of three prompts."""
    base = CONFIGS["debug_reinforce"]().change(
        model={"dtype": "float64"},
        data={"sources": {str(own_data): 1.0}, "crops": False},
        optim={"schedule": "constant", "warmup_ratio": 0.0, "clip_norm": 0.0},
        train={
            "steps": 2,
            "docs_per_step": 3,
            "save_every": 1,
            "device": "cpu",
            "out_dir": str(own_data.parent / name),
        },
        rollout={"num_generations": 4, "max_new_tokens": 5},
        rewards={"weights": {"toy": 1.0, "silent": 1.0}},
    )
    return base.change(**changes)


def metrics(run: RunConfig) -> list[dict[str, float]]:
    lines = (Path(run.train.out_dir) / "metrics.jsonl").read_text().splitlines()
    return [values for values in map(json.loads, lines) if "step" in values and "loss" in values]


def final(run: RunConfig) -> dict[str, Tensor]:
    return load_file(Path(run.train.out_dir) / "final" / "model.safetensors")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "gspo", "cispo"])
@pytest.mark.parametrize("mask_truncated", [False, True])
def test_gradient_equals_a_plain_reference(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, loss: str, mask_truncated: bool
) -> None:
    """One step's gradient, with packing, micro-batches and skipped flat groups, against one document at a time."""
    run = config(
        own_data,
        "run",
        train={"steps": 1, "micro_batch": 3},
        rollout={"temperature": 0.8},
        grpo={"loss": loss, "mask_truncated": mask_truncated},
    )
    caught: dict[str, Tensor] = {}
    groups = []
    original_step, original_sample = Optimizer.step, reinforce.sample_groups

    def keep_gradients(self: object, step: int) -> tuple[float, float]:
        caught.update({name: p.grad.clone() for name, p in self.named.items() if p.grad is not None})  # type: ignore[attr-defined]
        return original_step(self, step)

    def keep_groups(*arguments: object) -> list[object]:
        groups.extend(original_sample(*arguments))  # type: ignore[arg-type]
        # The stop token is rare in a random model: end two completions by hand, so that lengths differ.
        for generation in (groups[0].generations[0], groups[1].generations[1]):
            generation.tokens, generation.logps = generation.tokens[:2], generation.logps[:3]
            generation.finished, generation.stop_token = True, 7
        return groups

    monkeypatch.setattr(Optimizer, "step", keep_gradients)
    monkeypatch.setattr(reinforce, "sample_groups", keep_groups)
    assert reinforce.run(run)

    model = load_kit(run, "cpu").model
    kept = [
        (group, i, sampled_tokens(g))
        for group in groups
        for i, g in enumerate(group.generations)
        if g.finished or not mask_truncated
    ]
    num_tokens = sum(len(tokens) for _, _, tokens in kept)
    total = torch.zeros((), dtype=torch.float64)
    for group, index, tokens in kept:
        r = torch.tensor(toy(list(group.texts)), dtype=torch.float64)
        advantage = (r[index] - r.mean()) / (r.std() + 1e-4)
        batch = pack([join(group.prompt, tokens)])
        logits = model(batch)[-len(tokens) - 1 : -1] / 0.8
        logps = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
        divisor = {"dr_grpo": len(kept) * 5, "dapo": num_tokens, "cispo": num_tokens}.get(loss, len(kept) * len(tokens))
        total = total - advantage * logps.sum() / divisor
    total.backward()
    assert kept and caught
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(caught[name], parameter.grad, rtol=1e-6, atol=1e-12, msg=name)


def test_a_toy_reward_rises_and_the_log_says_everything(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A source's name orders its samples: without a folder in it, every run draws the same.
    monkeypatch.chdir(own_data.parent)
    run = config(
        own_data,
        "run",
        model={"dtype": "float32"},
        data={"sources": {own_data.name: 1.0}},
        optim={"lr": 4e-2, "clip_norm": 1.0},
        train={"steps": 20, "docs_per_step": 4, "micro_batch": 32, "save_every": 20},
        rollout={"num_generations": 16, "max_new_tokens": 8},
        watching={"page_every": 10, "page_prompts": 2},
    )
    assert reinforce.run(run)
    seen = metrics(run)
    rewards = [values["reward"] for values in seen]
    # It rises by 0.39 or more with every one of 24 seeds; three steps of an untrained model differ by 0.03.
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    first = seen[0]
    assert first["reward/toy"] == pytest.approx(first["reward"])
    assert "reward/silent" not in first  # applies to nothing
    assert first["clip_ratio"] == 0.0 and first["sampler_gap"] < 1e-4
    assert 1 <= first["completion_tokens"] <= 8 and 0 <= first["zero_variance_ratio"] <= 1
    named = {"reward_std", "truncated_ratio", "tokens_per_s", "grad_norm", "lr", "skipped", "entropy", "step_s",
             "rollout_s", "reward_s", "update_s", "memory_gib"}  # fmt: skip
    assert named <= first.keys()
    # The phases are the step but for bookkeeping; an untrained model is about as unsure as can be.
    assert 0.8 * first["step_s"] < sum(first[f"{name}_s"] for name in ("wait", "rollout", "reward", "update"))
    assert first["entropy"] > 0.8 * math.log(load_kit(run, "cpu").model.config.text.vocab_size)
    assert seen[-1]["entropy"] < first["entropy"]
    out_dir = Path(run.train.out_dir)
    assert "reward" in (out_dir / "summary.md").read_text()
    pages = sorted(path.name for path in (out_dir / "rollouts").glob("*.html"))
    assert pages == ["index.html", "step-000010.html", "step-000020.html"]


def test_micro_batches_and_passes_only_add_up(own_data: Path) -> None:
    """Memory settings change no weight."""
    one = config(own_data, "one", train={"micro_batch": 12}, rollout={"rows_per_pass": 64})
    many = config(own_data, "many", train={"micro_batch": 1}, rollout={"rows_per_pass": 1})
    assert reinforce.run(one) and reinforce.run(many)
    assert [v["reward"] for v in metrics(one)] == [v["reward"] for v in metrics(many)]
    assert_same(final(one), final(many))


def test_several_updates_leave_the_sampler_behind_and_resume(own_data: Path) -> None:
    """With two updates per batch the second one sees a ratio; a KL term keeps its reference through a resume."""
    shape = {"num_updates": 2, "beta": 0.05}
    whole = config(own_data, "whole", optim={"lr": 0.05}, grpo=shape)
    assert reinforce.run(whole)
    assert metrics(whole)[0]["clip_ratio"] > 0
    assert metrics(whole)[1]["kl"] > 0
    parts = whole.change(train={"steps": 1, "out_dir": str(own_data.parent / "parts")})
    assert reinforce.run(parts)
    assert reinforce.run(parts.change(train={"steps": 2, "resume": True}))
    resumed = final(parts)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in final(whole).items())


def test_one_step_is_profiled_on_request(own_data: Path) -> None:
    run = config(own_data, "run", train={"steps": 1, "profile_step": 1})
    assert reinforce.run(run)
    assert "aten::mm" in (Path(run.train.out_dir) / "profile/top_ops.txt").read_text()


@pytest.mark.parametrize("name", ["eval_every", "z_loss", "attention_weight", "spike_ratio"])
def test_what_this_stage_lacks_is_refused(own_data: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"train.{name} = 1.*align and instruct alone"):
        config(own_data, "run", train={name: 1})


def test_nothing_to_compare_changes_nothing(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups flat: the step is logged, no weight moves, the run goes on."""
    monkeypatch.setitem(REWARDS, "toy", lambda completions, **_: [0.5] * len(completions))
    run = config(own_data, "run", optim={"weight_decay": 0.1})
    before = {name: p.detach().clone() for name, p in load_kit(run, "cpu").model.named_parameters()}
    assert reinforce.run(run)
    assert [v["zero_variance_ratio"] for v in metrics(run)] == [1.0, 1.0]
    after = final(run)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name in after)


@pytest.mark.parametrize("where", ["sampling", "loss"])
def test_not_a_number_stops_with_the_sample_ids(own_data: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    run = config(own_data, "run")
    loss = MedMO.policy_loss
    calls = []

    def break_weights(stage: Any, *arguments: object) -> object:
        with torch.no_grad():
            stage.run.kit.model.head_weight.fill_(float("nan"))
        return sample_step(stage, *arguments)  # type: ignore[arg-type]

    def break_loss(*arguments: Any, **options: Any) -> object:
        calls.append(1)
        policy = loss(*arguments, **options)
        return policy._replace(total=policy.total * float("nan")) if len(calls) > 2 else policy

    sample_step = reinforce.sample_step
    if where == "sampling":
        monkeypatch.setattr(reinforce, "sample_step", break_weights)
    else:
        monkeypatch.setattr(MedMO, "policy_loss", break_loss)
        run = run.change(train={"micro_batch": 8, "steps": 3})  # two passes for three groups of four
    with pytest.raises(NonFiniteLoss, match=r"step \d: .*with samples [qgrc]\d.*No weight was changed"):
        reinforce.run(run)
    steps = [path.name for path in (Path(run.train.out_dir) / "checkpoints").glob("step-*")]
    assert steps == ([] if where == "sampling" else ["step-000001"])


@pytest.mark.parametrize("value", [float("inf"), 1e308])
def test_rewards_that_cannot_be_averaged_stop_with_the_sample_ids(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Equal rewards make no loss at all, so that no loss would be seen to be infinite."""
    combine = groups.combine
    monkeypatch.setattr(groups, "combine", lambda *a, **named: torch.full_like(combine(*a, **named), value))
    run = config(own_data, "run")
    with pytest.raises(NonFiniteLoss, match=r"step 1: rewards are not finite numbers.*with samples [qgrc]\d"):
        reinforce.run(run)
    assert not (Path(run.train.out_dir) / "final").exists()


def test_a_gradient_that_is_not_finite_stops_with_the_sample_ids(
    own_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Optimizer, step: int) -> None:
        raise FloatingPointError("the gradient norm is nan")

    monkeypatch.setattr(Optimizer, "step", refuse)
    with pytest.raises(NonFiniteLoss, match=r"step 1: the gradient norm is nan, with samples [qgrc]\d"):
        reinforce.run(config(own_data, "run"))


@pytest.mark.parametrize(
    ("shard", "trainable", "loss"),
    [(False, "all", "dapo"), (True, "all", "dapo"), (True, "decoder", "gspo")],
    ids=["copies", "shards", "shards beside a frozen tower"],
)
def test_two_processes_equal_one(
    own_data: Path, shard: bool, trainable: str, loss: str, run_processes: Callable[..., list[bool]]
) -> None:
    """Three prompts do not divide by two, so one process has more to decode and more to learn from."""
    grpo = {"beta": 0.01, "num_updates": 2, "loss": loss, "resample_rounds": 1}
    alone = config(own_data, "alone", model={"trainable": (trainable,)}, optim={"lr": 0.01}, grpo=grpo)
    assert reinforce.run(alone)
    pair = alone.change(train={"out_dir": str(own_data.parent / "pair")}, parallel={"shard": shard})
    assert run_processes(lambda: reinforce.run(pair)) == [True, True]
    one, two = metrics(alone), metrics(pair)
    assert one[0]["grad_norm"] > 0
    for key in ("reward", "reward/toy", "loss", "kl", "completion_tokens", "clip_ratio", "grad_norm", "tokens"):
        assert [v[key] for v in two] == pytest.approx([v[key] for v in one], rel=1e-6, abs=1e-12), key
    assert_same(final(alone), final(pair))


def coarse(completions: list[str], **_: object) -> list[float]:
    """Reward an e at all, so that many groups are flat."""
    return [float("e" in text) for text in completions]


def test_flat_groups_are_replaced_by_further_draws(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, run_processes: Callable[..., list[bool]]
) -> None:
    """As many as were flat, at most so many times; the draws go on where they stopped, also after a resume."""
    monkeypatch.setitem(REWARDS, "toy", coarse)
    sampled: list[list[str]] = []
    original = reinforce.sample_groups

    def keep(*arguments: Any) -> list[Any]:
        groups = original(*arguments)
        sampled.append([group.name for group in groups])
        flat.extend(group.is_flat for group in groups)
        return groups

    flat: list[bool] = []
    monkeypatch.setattr(reinforce, "sample_groups", keep)
    shape = {"resample_rounds": 2}
    whole = config(own_data, "whole", optim={"lr": 0.01}, rollout={"num_generations": 2}, grpo=shape)
    assert reinforce.run(whole)
    names = [name for round_ in sampled for name in round_]
    assert [int(name.partition("#")[2]) for name in names] == list(range(len(names)))  # without gaps or repeats
    assert sum(flat) > 0 and len(names) > 6
    first = metrics(whole)[0]
    assert len(sampled[0]) == 3 and len(sampled[1]) == sum(flat[:3]) > 0
    assert first["discarded_ratio"] > 0

    parts = whole.change(train={"steps": 1, "out_dir": str(own_data.parent / "parts")})
    assert reinforce.run(parts)
    assert reinforce.run(parts.change(train={"steps": 2, "resume": True}))
    resumed = final(parts)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in final(whole).items())

    # Sharded: a process without a prompt in a later round must gather what the others gather.
    pair = whole.change(train={"out_dir": str(own_data.parent / "pair")}, parallel={"shard": True})
    assert run_processes(lambda: reinforce.run(pair)) == [True, True]
    for key in ("reward", "loss", "grad_norm", "discarded_ratio", "zero_variance_ratio", "tokens"):
        expected = [v[key] for v in metrics(whole)]
        assert [v[key] for v in metrics(pair)] == pytest.approx(expected, rel=1e-6, abs=1e-12), key
    assert_same(final(whole), final(pair))


@pytest.mark.parametrize("updates", [1, 2])
def test_a_frozen_tower_sees_each_image_once_a_step(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """In rollouts, updates and the reference pass; weights and figures are those of the tower run every time."""
    from medmo_core.models.vision_tower import VisionTower

    images: list[int] = []
    forward = VisionTower.forward

    def counting(self: VisionTower, patches: Any, image_grid_thw: dict[str, Tensor]) -> Any:
        images.append(len(image_grid_thw["qwen3_vl"]))
        return forward(self, patches, image_grid_thw)

    monkeypatch.setattr(VisionTower, "forward", counting)
    once = config(
        own_data,
        "once",
        model={"trainable": ("decoder",)},
        optim={"lr": 0.01},
        train={"micro_batch": 2},
        grpo={"num_updates": updates, "beta": 0.01},
    )
    shown: list[int] = []
    original = reinforce.draw_prompts

    def drawing(*arguments: Any) -> Any:
        prompts, faults = original(*arguments)
        shown.extend(len(prompt.sample.images) for prompt in prompts.values())
        return prompts, faults

    monkeypatch.setattr(reinforce, "draw_prompts", drawing)
    assert reinforce.run(once)
    assert sum(images) == sum(shown) > 0
    monkeypatch.setattr(reinforce, "keeps_features", lambda model: False)
    again = once.change(train={"out_dir": str(own_data.parent / "again")})
    assert reinforce.run(again)
    assert sum(images) > 2 * sum(shown)
    assert_same(final(once), final(again))
    assert [v["reward"] for v in metrics(once)] == [v["reward"] for v in metrics(again)]


def test_adapters_hold_on_to_their_base_without_a_copy(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of a model with adapters is the model without them, and stays that while they learn."""
    pytest.importorskip("peft")
    from medmo_recipes.reinforcement import reference_policy as reference_module
    from medmo_recipes.training.model.lora import without_adapters

    def refuse(model: object) -> None:
        raise AssertionError("the model was copied")

    run = config(own_data, "run", optim={"lr": 0.05}, grpo={"beta": 0.1}, lora={"rank": 2}, train={"steps": 3})
    seen = []
    original = reinforce.learn_from

    def compare(opened: Any, rollouts: Any, reference: Any, step: int) -> Any:
        update = original(opened, rollouts, reference, step)
        model, base = opened.kit.model, load_kit(run, "cpu").model
        batch = pack([rollouts.groups[0].prompt])
        with torch.no_grad(), without_adapters(model):
            bare = model(batch)
        with torch.no_grad():
            seen.append((torch.equal(bare, base(batch)), torch.equal(model(batch), bare)))
        return update

    monkeypatch.setattr(reinforce, "learn_from", compare)
    monkeypatch.setattr(reference_module, "copy", SimpleNamespace(deepcopy=refuse))
    assert reinforce.run(run)
    assert seen == [(True, False)] * 3
    assert metrics(run)[0]["kl"] == 0.0 and metrics(run)[2]["kl"] > 0.0


def test_a_reward_that_fails_ends_all_processes(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, run_processes: Callable[..., list[str]]
) -> None:
    def broken(completions: list[str], **_: object) -> list[float]:
        if os.environ["RANK"] == "1":
            raise ZeroDivisionError("oops")
        return [0.0] * len(completions)

    monkeypatch.setitem(REWARDS, "toy", broken)
    run = config(own_data, "run")

    def attempt() -> str:
        try:
            reinforce.run(run)
        except (RewardError, ProcessFailed) as error:
            return f"{type(error).__name__}: {error}"
        return "finished"

    told = run_processes(attempt)
    assert all("toy" in text and "oops" in text for text in told), told


def test_importance_is_counted_where_the_sampler_is_another(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that tells half the probability: every weight is 2 without a cap, and the cap limits all of them."""
    from medmo_recipes.reinforcement.engine import InPlaceEngine

    honest = InPlaceEngine.sample

    def shifted(self: InPlaceEngine, *arguments: Any, **options: Any) -> Any:
        groups = honest(self, *arguments, **options)
        for generation in (g for group in groups for g in group):
            generation.logps = [logp - math.log(2.0) for logp in generation.logps]
        return groups

    monkeypatch.setattr(InPlaceEngine, "sample", shifted)
    for name, cap, mean, limited in (("wide", 3.0, 2.0, 0.0), ("narrow", 1.5, 1.5, 1.0)):
        grpo = {"importance": "token_truncate", "importance_cap": cap}
        run = config(own_data, name, train={"steps": 1}, grpo=grpo)
        assert reinforce.run(run)
        (values,) = metrics(run)
        assert values["importance_mean"] == pytest.approx(mean) and values["importance_limited_ratio"] == limited
        assert values["sampler_gap"] == pytest.approx(math.log(2.0))
