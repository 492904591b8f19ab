"""Reinforce: the gradient against a plain reference, a reward that rises, and what must not change anything."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medmo_core.data.packing import pack
from medmo_recipes import reinforce
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training import rollout as rollout_module
from medmo_recipes.training.build import load_kit
from medmo_recipes.training.config import Rollout, RunConfig
from medmo_recipes.training.optim import Optimizer
from medmo_recipes.training.rollout import PolicyBatch, join, sampled_tokens
from medmo_recipes.training.watch import NonFiniteLoss


def toy(completions: list[str], **_: object) -> list[float]:
    """Reward the share of letters e."""
    return [text.count("e") / max(1, len(text)) for text in completions]


@pytest.fixture(autouse=True)
def toy_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rollout_module.REWARDS, "toy", toy)
    monkeypatch.setitem(rollout_module.REWARDS, "silent", lambda completions, **_: [None] * len(completions))


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


@pytest.mark.parametrize("loss_type", ["token", "sequence", "constant"])
@pytest.mark.parametrize("mask_truncated", [False, True])
def test_gradient_equals_a_plain_reference(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str, mask_truncated: bool
) -> None:
    """One step's gradient, with packing, micro-batches and skipped flat groups, against one document at a time."""
    shape = {"loss_type": loss_type, "mask_truncated": mask_truncated, "temperature": 0.8}
    run = config(own_data, "run", train={"steps": 1, "micro_batch": 3}, rollout=shape)
    caught: dict[str, Tensor] = {}
    groups = []
    original_step, original_sample = Optimizer.step, reinforce.sample_step

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
    monkeypatch.setattr(reinforce, "sample_step", keep_groups)
    assert reinforce.run(run)

    model = load_kit(run, "cpu").model
    kept = [
        (group, i, sampled_tokens(g))
        for group in groups
        for i, g in enumerate(group.generations)
        if g.finished or not mask_truncated
    ]
    num_tokens = sum(len(tokens) for _, _, tokens in kept)
    loss = torch.zeros((), dtype=torch.float64)
    for group, index, tokens in kept:
        r = torch.tensor(toy(list(group.texts)), dtype=torch.float64)
        advantage = (r[index] - r.mean()) / (r.std() + 1e-4)
        batch = pack([join(group.prompt, tokens)])
        logits = model(batch)[-len(tokens) - 1 : -1] / 0.8
        logps = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
        divisor = {"token": num_tokens, "sequence": len(kept) * len(tokens), "constant": len(kept) * 5}[loss_type]
        loss = loss - advantage * logps.sum() / divisor
    loss.backward()
    assert kept and caught
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(caught[name], parameter.grad, rtol=1e-6, atol=1e-12, msg=name)


def test_ratio_is_clipped_on_the_side_that_gains() -> None:
    """Above 1 + epsilon_high a gain earns nothing more, below 1 - epsilon_low a loss loses nothing more."""
    logps = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    batch = PolicyBatch(pack_nothing(), advantages, torch.ones(4, dtype=torch.float64), torch.zeros(4))
    update = reinforce.Update()
    rollout = Rollout(epsilon_low=0.1, epsilon_high=0.3)
    loss = reinforce.policy_loss(logps, torch.zeros(4, dtype=torch.float64), batch, rollout, update=update)
    up, down = torch.tensor([0.5, -0.5], dtype=torch.float64).exp().tolist()
    assert loss.item() == pytest.approx(-1.3 + up - down + 0.9)
    loss.backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([0.0, up, -down, 0.0])
    assert (update.num_clipped, update.num_tokens) == (2.0, 4)


def pack_nothing() -> object:
    """The loss reads no document."""
    return None


def test_kl_is_zero_at_the_start_and_pulls_back() -> None:
    batch = PolicyBatch(pack_nothing(), torch.zeros(2), torch.ones(2, dtype=torch.float64), torch.zeros(2))
    reference = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    for offset, sign in ((0.0, 0), (0.5, 1), (-0.5, -1)):
        logps = (reference + offset).requires_grad_()
        loss = reinforce.policy_loss(logps, logps.detach(), batch, Rollout(beta=0.1), ref_logps=reference)
        loss.backward()
        assert logps.grad is not None
        assert logps.grad.sign().tolist() == [sign, sign]
        assert loss.item() == pytest.approx(0.2 * (pow(2.718281828459045, -offset) + offset - 1))


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
    )
    assert reinforce.run(run)
    seen = metrics(run)
    rewards = [values["reward"] for values in seen]
    # It rises by 0.39 or more with every one of 24 seeds; three steps of an untrained model differ by 0.03.
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    first = seen[0]
    assert first["reward_toy"] == pytest.approx(first["reward"])
    assert "reward_silent" not in first  # applies to nothing
    assert first["clip_ratio"] == 0.0 and first["sampler_gap"] < 1e-4
    assert 1 <= first["completion_tokens"] <= 8 and 0 <= first["zero_variance_ratio"] <= 1
    assert {"reward_std", "truncated_ratio", "tokens_per_s", "rollout_s", "grad_norm", "lr", "skipped"} <= first.keys()


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
    whole = config(own_data, "whole", optim={"lr": 0.05}, rollout=shape)
    assert reinforce.run(whole)
    assert metrics(whole)[0]["clip_ratio"] > 0
    assert metrics(whole)[1]["kl"] > 0
    parts = whole.change(train={"steps": 1, "out_dir": str(own_data.parent / "parts")})
    assert reinforce.run(parts)
    assert reinforce.run(parts.change(train={"steps": 2, "resume": True}))
    resumed = final(parts)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in final(whole).items())


def test_nothing_to_compare_changes_nothing(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups flat: the step is logged, no weight moves, the run goes on."""
    monkeypatch.setitem(rollout_module.REWARDS, "toy", lambda completions, **_: [0.5] * len(completions))
    run = config(own_data, "run", optim={"weight_decay": 0.1})
    before = {name: p.detach().clone() for name, p in load_kit(run, "cpu").model.named_parameters()}
    assert reinforce.run(run)
    assert [v["zero_variance_ratio"] for v in metrics(run)] == [1.0, 1.0]
    after = final(run)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name in after)


@pytest.mark.parametrize("where", ["sampling", "loss"])
def test_not_a_number_stops_with_the_sample_ids(own_data: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    run = config(own_data, "run")
    loss = reinforce.policy_loss
    calls = []

    def break_weights(opened: object, *arguments: object) -> object:
        with torch.no_grad():
            opened.kit.model.head_weight.fill_(float("nan"))  # type: ignore[attr-defined]
        return sample_step(opened, *arguments)

    def break_loss(*arguments: object, **options: object) -> Tensor:
        calls.append(1)
        value = loss(*arguments, **options)  # type: ignore[arg-type]
        return value * float("nan") if len(calls) > 2 else value

    sample_step = reinforce.sample_step
    if where == "sampling":
        monkeypatch.setattr(reinforce, "sample_step", break_weights)
    else:
        monkeypatch.setattr(reinforce, "policy_loss", break_loss)
        run = run.change(train={"micro_batch": 8, "steps": 3})  # two passes for three groups of four
    with pytest.raises(NonFiniteLoss, match=r"step \d: .*with samples [qgrc]\d.*No weight was changed"):
        reinforce.run(run)
    steps = [path.name for path in (Path(run.train.out_dir) / "checkpoints").glob("step-*")]
    assert steps == ([] if where == "sampling" else ["step-000001"])


@pytest.mark.parametrize("shard", [False, True], ids=["copies", "shards"])
def test_two_processes_equal_one(own_data: Path, shard: bool, run_processes: Callable[..., list[bool]]) -> None:
    """Three prompts do not divide by two, so one process has more to decode and more to learn from."""
    alone = config(own_data, "alone", optim={"lr": 0.01}, rollout={"beta": 0.01, "num_updates": 2})
    assert reinforce.run(alone)
    pair = alone.change(train={"out_dir": str(own_data.parent / "pair")}, parallel={"shard": shard})
    assert run_processes(lambda: reinforce.run(pair)) == [True, True]
    one, two = metrics(alone), metrics(pair)
    assert one[0]["grad_norm"] > 0
    for key in ("reward", "reward_toy", "loss", "kl", "completion_tokens", "clip_ratio", "grad_norm", "tokens"):
        assert [v[key] for v in two] == pytest.approx([v[key] for v in one], rel=1e-6, abs=1e-12), key
    assert_same(final(alone), final(pair))
