"""Stage 3, reinforce: let the model answer, reward what is right, make it likelier (GRPO).

    python -m medmo_recipes.reinforce --config tiny_reinforce
    torchrun --nproc-per-node 8 -m medmo_recipes.reinforce --config medmo_8b_reinforce

Each step draws prompts from the mixture, samples a group of completions for each with the model itself, rewards them,
and moves the policy towards those that beat their group's mean (a prompt and its images run once per group, in sampling
and in learning; the images only once per step where the vision tower is frozen):

    advantage = (reward - group mean) / group standard deviation                  grpo.advantage has the variants
    loss      = -sum over tokens of min(ratio * advantage, clip(ratio) * advantage) * token weight      grpo.loss

`ratio` compares the policy with the one that sampled. With one update per batch (grpo.num_updates=1) it is exactly 1,
no second pass is made for it, and the gradient is the plain policy gradient. Token weights carry the denominators of
`grpo.loss`, counted over all processes before the first backward pass.

Left out: a value network, an inference server beside the trainer, tensor parallelism, and the length penalty that
MedMO's released script adds. Groups whose rewards are all equal are skipped, which saves their backward pass and
changes no gradient, or replaced by new prompts (grpo.resample_rounds). The KL term is off unless grpo.beta > 0, as in
that script.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from medmo_core.data.sources.mixture import Mixture
from medmo_core.errors import BadStep

from .pages.rollout_page import rollout_template, write_page
from .reinforcement.alarms import Alarms
from .reinforcement.completions import PolicyBatch, divide, silent, to_completions
from .reinforcement.engine import InPlaceEngine, RolloutEngine
from .reinforcement.figures import answer_figures, step_figures
from .reinforcement.groups import Group, draw_prompts, reward_completions, sample_completions
from .reinforcement.image_features import encode_images, keeps_features
from .reinforcement.reference_policy import Reference, make_reference
from .reinforcement.reward_calls.reward_set import RewardSet
from .reinforcement.reward_figures import log_histograms, reward_figures
from .reinforcement.update import Update
from .settings.run_config import RunConfig
from .training.distributed.shards import sum_gradients
from .training.distributed.torchrun import leave
from .training.distributed.world import say
from .training.loading.sources import load_mixtures
from .training.loop.launch import launch
from .training.loop.run import Run, open_run
from .training.loop.start import begin
from .training.model.kit import load_kit
from .training.model.trainable import choose_trainable
from .training.monitoring.meter import Meter, Tally
from .training.monitoring.phases import Phases
from .training.monitoring.profiling import profiled
from .training.monitoring.summary import summarise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage as the command line says; returns the exit status."""
    return launch(argv, stage="reinforce", run=run, about=__doc__)


def run(config: RunConfig) -> bool:
    """Train; returns whether the last step was reached (False: asked to stop, and saved)."""
    with begin(config) as world:
        # What feeds: prompts; the answers are the model's own. What judges them.
        mixture, _ = load_mixtures(config)
        rewards = RewardSet.from_config(config.rewards)
        say(world, "rewards " + ", ".join(f"{name} x {weight:g}" for name, weight in config.rewards.weights.items()))

        # The policy, usually from instruct's final/ folder, what trains of it, and what it must not stray from.
        kit = load_kit(config, world.device)
        say(world, choose_trainable(config, kit.model).describe())
        reference = make_reference(kit.model, config, world)

        with open_run(config, world, kit) as opened:
            stage = PolicyTraining(opened, mixture, InPlaceEngine(kit.model), rewards, reference)
            finished = fit_policy(stage)
            if finished:
                opened.finish()
            return finished


class PolicyTraining:
    """Equipment of a reinforcement run beside that of every run, with the state that its checkpoints hold."""

    def __init__(
        self, run: Run, mixture: Mixture, engine: RolloutEngine, rewards: RewardSet, reference: Reference | None
    ) -> None:
        self.run, self.mixture, self.engine, self.rewards, self.reference = run, mixture, engine, rewards, reference
        self.meter, self.alarms = Meter(run.world), Alarms(run.config.watching)
        self.pages = Path(run.config.train.out_dir) / "rollouts"
        if run.config.watching.page_every:
            rollout_template("rollout_page.html.j2")  # a missing library is reported now, not after many steps
        self.next_draw = 0  # of the mixture; the same on all processes
        if run.shared:
            self.next_draw = run.shared["next_draw"]
            self.meter.restore(run.shared["meter"])
            self.alarms.restore(run.shared["alarms"])

    def state(self) -> dict[str, object]:
        """Return JSON values for a checkpoint, the same on all processes."""
        return {"next_draw": self.next_draw, "meter": self.meter.state(), "alarms": self.alarms.state()}


def fit_policy(stage: PolicyTraining) -> bool:
    """Sample and update from the run's first step to train.steps; returns False when asked to stop, after saving."""
    run, train = stage.run, stage.run.config.train
    try:
        for step in range(run.start_step, train.steps):
            with profiled(Path(train.out_dir) / "profile", run.world, wanted=step + 1 == train.profile_step):
                take_step(stage, step)
            if run.close_step(step, shared=stage.state()):
                summarise(run.log, stage.meter)
                return False
    except BadStep:
        summarise(run.log, stage.meter)
        raise
    summarise(run.log, stage.meter)
    return True


def take_step(stage: PolicyTraining, step: int) -> None:
    """Sample, learn, and log one step (0-based)."""
    run, train = stage.run, stage.run.config.train
    phases, started, number = Phases(run.world), time.perf_counter(), step + 1
    rollouts = sample_step(stage, step, phases)
    with phases("update_s"):
        update = learn_from(run, rollouts, stage.reference, step)
    grpo, world, sampled = run.config.grpo, run.world, [*rollouts.groups, *rollouts.discarded]
    values = step_figures(rollouts.groups, rollouts.discarded, update, grpo, world)
    values |= reward_figures(sampled, world, stage.rewards) | answer_figures(sampled, world)
    values["skipped"] = world.sum(torch.tensor([run.skipped.total])).item()
    seconds = time.perf_counter() - started
    stage.meter.add(Tally(1, int(values["tokens"]), int(values.pop("completions")), 0.0, seconds), phases.own["wait_s"])
    stage.alarms.log(run.log, number, values)
    if number == train.steps or number % train.log_every == 0:
        run.log.metrics(number, values | stage.meter.line() | phases.slowest())
        log_histograms(run.log, number, sampled, world, stage.rewards)
    watching = run.config.watching
    if watching.page_every and number % watching.page_every == 0:
        with world.together("writing a page of rollouts"):
            if world.is_main:
                text, root, prompts = run.kit.processor.text, run.kit.processor.root, watching.page_prompts
                write_page(stage.pages, number, sampled, stage.rewards, text, root=root, max_prompts=prompts)


@dataclass
class Rollouts:
    """Groups that this process sampled in a step."""

    groups: list[Group] = field(default_factory=list)
    discarded: list[Group] = field(default_factory=list)
    """Groups from which nothing could be learned; others were drawn in their place."""


def sample_step(stage: PolicyTraining, step: int, phases: Phases) -> Rollouts:
    """Draw this process's prompts of a step, sample their completions and reward them; every process calls this.

    With grpo.resample_rounds as many prompts are drawn again as groups were flat, over all processes, until none is or
    the rounds are over. Which prompts those are depends on no number of processes: the draws go on where they stopped.
    """
    world, grpo = stage.run.world, stage.run.config.grpo
    rollouts, wanted = Rollouts(), stage.run.config.train.docs_per_step
    for _ in range(grpo.resample_rounds):
        groups = sample_groups(stage, wanted, step, phases)
        flat = [group for group in groups if group.is_flat]
        rollouts.groups += [group for group in groups if not group.is_flat]
        rollouts.discarded += flat
        wanted = int(world.sum(torch.tensor([len(flat)])).item())
        if not wanted:
            return rollouts
    rollouts.groups += sample_groups(stage, wanted, step, phases)
    return rollouts


def sample_groups(stage: PolicyTraining, count: int, step: int, phases: Phases) -> list[Group]:
    """Sample and reward the next `count` prompts of the mixture, shared among the processes."""
    run = stage.run
    config, world, kit = run.config, run.world, run.kit
    numbers = [stage.next_draw + i for i in world.share(count)]
    stage.next_draw += count
    with phases("wait_s"):
        prompts, faults = draw_prompts(stage.mixture.draw, kit.processor, numbers)
        run.skipped.add(len(numbers), faults)
    with phases("rollout_s"):
        try:
            if keeps_features(kit.model):  # a frozen tower is whole on every process
                per_pass = max(1, config.rollout.rows_per_pass // config.rollout.num_generations)
                prompts = encode_images(kit.model, prompts, per_pass=per_pass)
            answers = sample_completions(stage.engine, prompts, config.rollout, seed=config.train.seed)
            problem = None
        except FloatingPointError as error:
            answers, problem = [], str(error)
        problems = [p for p in world.gather(problem) if p is not None]  # every process stops, or none
        if problems:
            names = [prompt.sample.id for prompt in prompts.values()]
            raise run.not_finite(step, "; ".join(problems), names)
    with phases("reward_s"), world.together("rewarding"):
        groups = reward_completions(
            answers, stage.rewards, config.rewards.weights, kit.tokenizer, kit.processor.text,
            config.rollout, config.grpo, step=step, max_steps=config.train.steps,
        )  # fmt: skip
    names = [group.prompt.sample.id for group in groups if not group.is_finite]
    if any(world.gather(bool(names))):
        raise run.not_finite(step, "rewards are not finite numbers, or too large to be compared", names)
    return groups


def learn_from(run: Run, rollouts: Rollouts, reference: Reference | None, step: int) -> Update:
    """Take the optimiser steps of one sampled batch; every process calls this.

    Returns:
        What the last of them saw.

    Raises:
        NonFiniteLoss: the loss or a gradient is not finite; names the samples.
    """
    config, world, grpo = run.config, run.world, run.config.grpo
    completions = to_completions(rollouts.groups, config.rollout, grpo, world)
    # A flat group has no policy gradient; with a KL term it still has one of that.
    active = [c for c in completions if c.advantage != 0.0 or reference is not None]
    update = Update()
    if world.sum(torch.tensor([len(active)])).item() == 0:
        return update
    batches = divide(
        active,
        [silent(group) for group in [*rollouts.groups, *rollouts.discarded][:1]],
        config.train.micro_batch,
        world,
        equal=config.parallel.shard,
        share_prefixes=config.data.share_prefixes,
    )
    objective = grpo.objective()
    old: list[Tensor] = []  # log-probabilities of the policy that sampled, kept from the first of several updates
    start: list[Tensor | None] = []  # and of the one that the run began with
    for index in range(grpo.num_updates):
        update = Update()
        for number, host_batch in enumerate(batches):
            batch = host_batch.to(world.device)
            if index == 0:
                start.append(None if reference is None else reference(batch))
            policy = run.kit.model.policy_loss(
                batch.batch, batch.advantages, batch.token_weights,
                old_logps=old[number] if index else None, ref_logps=start[number], sampled_logps=batch.sampled_logps,
                objective=objective, temperature=config.rollout.temperature,
            )  # fmt: skip
            if index == 0:
                old.append(policy.logps)
            policy.total.backward()
            update.add(policy, batch, old[number], grpo)
        check_finite(run, batches, update, step)
        sum_gradients(run.optimizer.named.values(), world)
        try:
            update.grad_norm, update.lr = run.optimizer.step(step * grpo.num_updates + index)
        except FloatingPointError as error:
            names = [c.document.sample.id for c in active]
            raise run.not_finite(step, str(error), names) from error
    return update


def check_finite(run: Run, batches: Sequence[PolicyBatch], update: Update, step: int) -> None:
    """Stop every process when the loss of any is not a number, before a weight changes."""
    own = torch.stack(update.losses).sum() if update.losses else torch.zeros((), dtype=torch.float64)
    update.loss = run.world.sum(own.reshape(1)).item()
    if not math.isfinite(update.loss):
        names = [name for b, loss in zip(batches, update.losses, strict=True) if not loss.isfinite()
                 for name in dict.fromkeys(b.batch.sample_ids)]  # fmt: skip
        raise run.not_finite(step, f"the loss is {update.loss}", names)


if __name__ == "__main__":
    leave(main())
