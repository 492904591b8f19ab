"""Stage 3, reinforce: let the model answer, reward what is right, make it likelier (GRPO).

    python -m medmo_recipes.reinforce --config tiny_reinforce
    torchrun --nproc-per-node 8 -m medmo_recipes.reinforce --config medmo_8b_reinforce

Each step draws prompts from the mixture, samples a group of completions for each with the model itself, rewards them,
and moves the policy towards those that beat their group's mean (a prompt and its images run once per group, in sampling
and in learning):

    advantage = (reward - group mean) / group standard deviation          the division is rollout.scale_rewards
    loss      = -sum over tokens of min(ratio * advantage, clip(ratio) * advantage) * token weight

`ratio` compares the policy with the one that sampled. With one update per batch (rollout.num_updates=1) it is exactly
1, no second pass is made for it, and the gradient is the plain policy gradient. Token weights carry the denominators of
`rollout.loss_type`, counted over all processes before the first backward pass.

Left out: a value network, an inference server beside the trainer, tensor parallelism, dynamic resampling of flat groups
(they are skipped, which saves their backward pass and changes no gradient), and the length penalty that MedMO's
released script adds. The KL term is off unless rollout.beta > 0, as in that script.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from medmo_core.data.mixture import Mixture
from medmo_core.models.medmo import MedMO

from .training.build import choose_trainable, load_kit, load_mixture
from .training.config import Rollout, RunConfig
from .training.distributed import connect, leave, say, sum_gradients
from .training.launch import launch
from .training.rollout import (
    Completion,
    Group,
    PolicyBatch,
    divide,
    draw_prompts,
    join,
    sample_groups,
    sampled_tokens,
)
from .training.run import Run, open_run
from .training.sharding import prepare, whole_weights
from .training.watch import not_finite


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage as the command line says; returns the exit status."""
    return launch(argv, stage="reinforce", run=run, about=__doc__)


def run(config: RunConfig) -> bool:
    """Train; returns whether the last step was reached (False: asked to stop, and saved)."""
    train, parallel = config.train, config.parallel
    with connect(
        train.device, num_threads=train.num_threads, shard=parallel.shard, timeout_s=parallel.timeout_s
    ) as world:
        # The policy, usually from instruct's final/ folder, and what it must not stray from.
        kit = load_kit(config, world.device)
        reference = copy.deepcopy(kit.model).requires_grad_(False) if config.rollout.beta > 0 else None
        if reference is not None:
            prepare(reference, config, world)

        # What trains.
        say(world, choose_trainable(kit.model, config.model.trainable, config.lora).describe())

        # What feeds: prompts; the answers are the model's own.
        mixture = load_mixture(config.data, seed=train.seed, index_folder=Path(train.out_dir) / "index")
        say(world, "rewards " + ", ".join(f"{name} x {weight:g}" for name, weight in config.rewards.weights.items()))

        with open_run(config, world, kit) as opened:
            finished = fit_policy(opened, mixture, reference)
            if finished:
                opened.finish()
            return finished


def fit_policy(run: Run, mixture: Mixture, reference: MedMO | None) -> bool:
    """Sample and update from `run.start_step` to train.steps; returns False when asked to stop, after saving."""
    train = run.config.train
    for step in range(run.start_step, train.steps):
        started = time.perf_counter()
        groups = sample_step(run, mixture, step)
        sampled_s = time.perf_counter() - started
        update = learn_from(run, groups, reference, step)
        values = summarise(run, groups, update)
        seconds = time.perf_counter() - started
        values |= {"tokens_per_s": values["tokens"] / seconds, "step_s": seconds, "rollout_s": sampled_s}
        last = step + 1 == train.steps
        if last or (step + 1) % train.log_every == 0:
            run.log.metrics(step + 1, values)
        if run.close_step(step):
            return False
    return True


def sample_step(run: Run, mixture: Mixture, step: int) -> list[Group]:
    """Draw this process's prompts of a step, sample their completions and reward them."""
    config, world, kit = run.config, run.world, run.kit
    per_step = config.train.docs_per_step
    numbers = [step * per_step + i for i in world.share(per_step)]
    prompts, faults = draw_prompts(mixture.draw, kit.processor, numbers)
    run.skipped.record(len(numbers), faults)
    try:
        with whole_weights(kit.model):
            groups = sample_groups(
                kit.model, kit.processor, prompts, config.rewards.weights, config.rollout, seed=config.train.seed
            )
        problem = None
    except FloatingPointError as error:
        groups, problem = [], str(error)
    problems = [p for p in world.gather(problem) if p is not None]  # every process stops, or none
    if problems:
        names = [prompt.sample.id for prompt in prompts.values()]
        raise not_finite(run, step, "; ".join(problems), names)
    return groups


@dataclass
class Update:
    """Sums of one step over this process's tokens (`loss` and the rest become global in `summarise`)."""

    loss: float = 0.0
    num_tokens: int = 0
    num_clipped: float = 0.0
    kl: float = 0.0
    sampler_gap: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0
    losses: list[Tensor] = field(default_factory=list)


def learn_from(run: Run, groups: Sequence[Group], reference: MedMO | None, step: int) -> Update:
    """Take the optimiser steps of one sampled batch; every process calls this.

    Raises:
        NonFiniteLoss: the loss or a gradient is not finite; names the samples.
    """
    config, world = run.config, run.world
    completions = to_completions(run, groups)
    # A flat group has no policy gradient; with a KL term it still has one of that.
    active = [c for c in completions if c.token_weight > 0 and (c.advantage != 0.0 or reference is not None)]
    update = Update()
    if world.sum(torch.tensor([len(active)])).item() == 0:
        return update
    batches = divide(
        active,
        completions,
        config.train.micro_batch,
        world,
        equal=config.parallel.shard,
        share_prefixes=config.data.share_prefixes,
    )
    old: list[Tensor] = []  # log-probabilities of the policy that sampled, kept from the first of several updates
    for index in range(config.rollout.num_updates):
        update = Update()
        for number, host_batch in enumerate(batches):
            batch = host_batch.to(world.device)
            logps = run.kit.model.token_logprobs(batch.batch, config.rollout.temperature)
            if index == 0:
                old.append(logps.detach())
            ref_logps = reference_logprobs(reference, batch, config.rollout)
            loss = policy_loss(logps, old[number], batch, config.rollout, ref_logps, update)
            loss.backward()
            update.losses.append(loss.detach().double().cpu())
        check_finite(run, batches, update, step)
        sum_gradients(run.optimizer.named.values(), world)
        try:
            update.grad_norm, update.lr = run.optimizer.step(step * config.rollout.num_updates + index)
        except FloatingPointError as error:
            names = [c.item.sample.id for c in active]
            raise not_finite(run, step, str(error), names) from error
    return update


def to_completions(run: Run, groups: Sequence[Group]) -> list[Completion]:
    """Turn groups into documents whose token weights carry the global denominators; every process calls this."""
    rollout = run.config.rollout
    kept = [
        (group, index, sampled_tokens(generation))
        for group in groups
        for index, generation in enumerate(group.generations)
        if generation.finished or not rollout.mask_truncated
    ]
    own = torch.tensor([len(kept), sum(len(tokens) for _, _, tokens in kept)], dtype=torch.int64)
    num_completions, num_tokens = run.world.sum(own).tolist()
    completions = []
    for group, index, tokens in kept:
        match rollout.loss_type:
            case "token":  # DAPO: every token of the step weighs the same
                weight = 1.0 / num_tokens
            case "sequence":  # GRPO: every completion weighs the same
                weight = 1.0 / (num_completions * len(tokens))
            case "constant":  # Dr. GRPO: a divisor that no length can change
                weight = 1.0 / (num_completions * rollout.max_new_tokens)
        item = join(group.prompt, tokens)
        logps = group.generations[index].logps
        completions.append(Completion(item, float(group.advantages[index]), weight, logps))
    return completions


def reference_logprobs(reference: MedMO | None, batch: PolicyBatch, rollout: Rollout) -> Tensor | None:
    """Return the starting policy's log-probability of every completion token, where there is a KL term."""
    if reference is None:
        return None
    with torch.no_grad():
        return reference.token_logprobs(batch.batch, rollout.temperature)


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    batch: PolicyBatch,
    rollout: Rollout,
    ref_logps: Tensor | None = None,
    update: Update | None = None,
) -> Tensor:
    """Return the clipped policy-gradient loss of packed completions, summed with the token weights.

    Shapes: L completion tokens.

    Args:
        logps: (L,) under the policy, with a graph.
        old_logps: (L,) under the policy that sampled; equal to `logps` in the first update.
        batch: advantages and token weights, (L,) each.
        rollout: epsilon_low, epsilon_high, beta.
        ref_logps: (L,) under the starting policy; None: no KL term.
        update: receives the sums that are logged.

    Returns:
        A scalar; summed over micro-batches and processes it is the loss of the step.

    Reference: Shao et al., arXiv 2402.03300, eq. 3 and 4 (KL: exp(d) - d - 1 with d = ref - policy);
        Yu et al., DAPO, arXiv 2503.14476 (two clip widths, token-level sum).
    """
    advantages, weights = batch.advantages.to(logps.dtype), batch.token_weights.to(logps.dtype)
    ratio = (logps - old_logps).exp()
    clipped = ratio.clamp(1.0 - rollout.epsilon_low, 1.0 + rollout.epsilon_high)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    kl = torch.zeros_like(logps)
    if ref_logps is not None:
        away = ref_logps - logps
        kl = away.exp() - away - 1.0
        per_token = per_token + rollout.beta * kl
    if update is not None:
        counted = weights > 0
        update.num_tokens += int(counted.sum())
        update.num_clipped += float(((clipped * advantages < ratio * advantages) & counted).sum())
        update.kl += float(kl.detach()[counted].sum())
        update.sampler_gap += float((old_logps - batch.sampled_logps)[counted].abs().sum())
    return (per_token * weights).sum()


def check_finite(run: Run, batches: Sequence[PolicyBatch], update: Update, step: int) -> None:
    """Stop every process when the loss of any is not a number, before a weight changes."""
    own = torch.stack(update.losses).sum() if update.losses else torch.zeros((), dtype=torch.float64)
    update.loss = run.world.sum(own.reshape(1)).item()
    if not math.isfinite(update.loss):
        names = [name for b, loss in zip(batches, update.losses, strict=True) if not loss.isfinite()
                 for name in dict.fromkeys(b.batch.sample_ids)]  # fmt: skip
        raise not_finite(run, step, f"the loss is {update.loss}", names)


def summarise(run: Run, groups: Sequence[Group], update: Update) -> dict[str, float]:
    """Return the global numbers of a step by name; every process calls this."""
    names = list(run.config.rewards.weights)
    generations = [generation for group in groups for generation in group.generations]
    lengths = [len(sampled_tokens(generation)) for generation in generations]
    applying = {n: [v for g in groups for v in g.components[n] if v is not None] for n in names}
    own = [
        len(groups),
        len(generations),
        sum(float(group.rewards.sum()) for group in groups),
        sum(float(group.rewards.std()) for group in groups),
        sum(group.is_flat for group in groups),
        sum(lengths),
        sum(not generation.finished for generation in generations),
        sum(len(group.prompt.input_ids) for group in groups),
        update.num_tokens,
        update.num_clipped,
        update.kl,
        update.sampler_gap,
        *(total for n in names for total in (sum(applying[n]), len(applying[n]))),
        run.skipped.total,
    ]
    (num_groups, num_completions, reward, spread, flat, tokens, truncated, prompt_tokens, learned, clipped, kl, gap,
     *components, skipped) = run.world.sum(torch.tensor(own, dtype=torch.float64)).tolist()  # fmt: skip
    num_groups, num_completions, learned = (max(1.0, n) for n in (num_groups, num_completions, learned))
    values = {
        "loss": update.loss,
        "reward": reward / num_completions,
        "reward_std": spread / num_groups,
        "zero_variance_ratio": flat / num_groups,
        "completion_tokens": tokens / num_completions,
        "truncated_ratio": truncated / num_completions,
        "clip_ratio": clipped / learned,
        "sampler_gap": gap / learned,
        "lr": update.lr,
        "grad_norm": update.grad_norm,
        "tokens": tokens + prompt_tokens,
        "skipped": skipped,
    }
    if run.config.rollout.beta > 0:
        values["kl"] = kl / learned
    for name, total, count in zip(names, components[::2], components[1::2], strict=True):
        if count:
            values[f"reward_{name}"] = total / count
    return values


if __name__ == "__main__":
    leave(main())
