"""The three stages on the embedded images, measured before and after each: the work of `medmo quickstart`.

The stages' budgets are steps in the `tiny_*` configs, so that one seed gives one result.
"""

import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from medmo_core.durable import write_text
from medmo_core.errors import UserError
from medmo_core.inference.kit import Kit
from medmo_core.inference.load import load
from medmo_core.notice import SHORT_NOTICE

from ..configs import CONFIGS
from ..evaluation.ask import Asking
from ..evaluation.suites import evaluate_embedded
from ..pages import quickstart_page as pages
from ..pages.quickstart_page import Outcome
from ..pages.study_summary import summary_for
from ..reinforcement.sharpening import SampledRewards, sampled_box_reward
from ..settings.command_line import format_config
from ..settings.run_config import STAGES, ConfigError, RunConfig
from ..training.distributed.torchrun import torchrun
from ..training.model.kit import load_kit
from .time_left import Whole


@dataclass(frozen=True)
class Layout:
    """Processes of a stage on this machine, and threads of each.

    Attributes:
        processes: number of processes; one is this process itself.
        threads: number of threads of each.
    """

    processes: int
    threads: int

    @property
    def cores(self) -> int:
        """Cores that all of it keeps busy."""
        return self.processes * self.threads


LAYOUTS = {"tiny": Layout(2, 1), "demo": Layout(2, 1), "debug": Layout(1, 1)}
"""Size -> layout, the same on every machine, so that one seed gives one result.

Two processes of one thread each: in matrices as small as these, two threads of one process mostly wait."""
SIZES = {
    "tiny": {"num_samples": 320, "num_reports": 30, "num_captions": 20},
    "demo": {"num_samples": 320, "num_reports": 30, "num_captions": 20},
    "debug": {"num_samples": 6, "num_reports": 2, "num_captions": 3},
}


COSTS = {"evaluate random": 17, "align": 15, "evaluate align": 12, "instruct": 485, "evaluate instruct": 8,
         "sample instruct": 3, "reinforce": 59, "evaluate reinforce": 9, "sample reinforce": 1}  # fmt: skip
"""Seconds of each part in one run of the tiny size on two cores: what the whole is reckoned from."""
NUM_SUITES = 8
"""Parts of an evaluation that report their progress, `evaluate_embedded`'s."""


class StageFailed(UserError, RuntimeError):
    """A stage that did not reach its end."""


def run(out: Path, *, size: str = "tiny", seed: int = 0, layout: Layout | None = None) -> Outcome:
    """Train, measure and write the report.

    Args:
        out: folder; one that holds a run already is refused.
        size: which configs: "tiny", "debug", or "demo", which trains the tiny model longer.
        seed: number that fixes weights, data and sampling.
        layout: processes and threads of every stage; evaluation has a process for each of these threads. None: the
            size's own.

    Raises:
        ConfigError: `out` holds an earlier run, or is a file.
        StageFailed: a stage did not reach its end.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, expected a folder to write into")
    if any((out / stage).exists() for stage in STAGES):
        raise ConfigError(f"{out} already holds a quickstart; choose another --out or remove it")
    out.mkdir(parents=True, exist_ok=True)
    layout = layout or LAYOUTS[size]
    outcome, configs = Outcome(study=summary_for(recipe_digest(size))), stage_configs(out, size, seed)
    whole = Whole(costs_of(configs))
    outcome.commands = [command_line(stage, size, config, layout) for stage, config in configs.items()]

    with timed(outcome, whole, "evaluate random"):
        kit = load_kit(configs["align"], "cpu")
        outcome.num_parameters = sum(p.numel() for p in kit.model.parameters())
        measure(outcome, "random", kit, size, whole, layout)
    for stage, config in configs.items():
        with timed(outcome, whole, stage), whole.watching(out / stage / "metrics.jsonl", config.train.steps):
            launch_stage(stage, size, config, layout)
        with timed(outcome, whole, f"evaluate {stage}"):
            kit = load(out / stage / "final", device="cpu")
            measure(outcome, stage, kit, size, whole, layout)
        prompts = SIZES[size]["num_samples"] // 4
        if stage == "instruct":
            with timed(outcome, whole, "sample instruct"):
                outcome.sampled = sampled_box_reward(kit, num_prompts=prompts, seed=seed, num_processes=layout.cores)
        elif stage == "reinforce":
            with timed(outcome, whole, "sample reinforce"):
                outcome.sampled_after = sampled_box_reward(
                    kit, num_prompts=prompts, temperatures=(1.0,), seed=seed, num_processes=layout.cores
                )
        write_metrics(out, outcome, seed)
    pages.write(out, outcome, configs, seed)
    return outcome


def costs_of(configs: Mapping[str, RunConfig]) -> dict[str, float]:
    """Return part -> its cost beside the others: that of `COSTS`, of a stage in proportion to its steps."""
    steps = {stage: config.train.steps / CONFIGS[f"tiny_{stage}"]().train.steps for stage, config in configs.items()}
    return {part: seconds * steps.get(part, 1.0) for part, seconds in COSTS.items()}


def stage_configs(out: Path, size: str, seed: int) -> dict[str, RunConfig]:
    """Return each stage's config, every one starting from the weights of the one before."""
    configs: dict[str, RunConfig] = {}
    for index, stage in enumerate(STAGES):
        config = CONFIGS[f"{size}_{stage}"]().change(train={"out_dir": str(out / stage), "seed": seed, "device": "cpu"})
        if index:
            config = config.change(model={"init": str(out / STAGES[index - 1] / "final")})
        configs[stage] = config
    return configs


def recipe_digest(size: str) -> str:
    """Name a size's recipe by what its configs change of the default settings: 12 hexadecimal digits."""
    default = set(format_config(RunConfig(stage="align"), docs=False).splitlines())
    lines = [
        line
        for stage in STAGES
        for line in format_config(CONFIGS[f"{size}_{stage}"](), docs=False).splitlines()
        if line not in default
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def stage_words(stage: str, size: str, config: RunConfig, layout: Layout) -> list[str]:
    """Return the command line of a stage, behind its module."""
    train = config.train
    words = ["--config", f"{size}_{stage}", f"model.init={config.model.init}", "train.device=cpu"]
    threads = f"train.num_threads={layout.threads}"
    return [*words, threads, f"train.out_dir={train.out_dir}", f"train.seed={train.seed}"]


def command_line(stage: str, size: str, config: RunConfig, layout: Layout) -> str:
    """Return what a user types to run a stage as it was run."""
    count = layout.processes
    launcher = ["python"] if count == 1 else ["torchrun", "--standalone", f"--nproc-per-node={count}"]
    return shlex.join([*launcher, "-m", f"medmo_recipes.{stage}", *stage_words(stage, size, config, layout)])


def launch_stage(stage: str, size: str, config: RunConfig, layout: Layout) -> None:
    """Run a stage under torchrun, as a user would; in this process where one is enough.

    Raises:
        StageFailed: the stage failed; it has said why.
    """
    words, module = stage_words(stage, size, config, layout), f"medmo_recipes.{stage}"
    if layout.processes == 1:
        status = import_module(module).main(words)
    else:
        status = torchrun(module, words, num_processes=layout.processes)
    if status:
        raise StageFailed(f"{stage} ended with status {status}; its own message stands above")


def measure(outcome: Outcome, name: str, kit: Kit, size: str, whole: Whole, layout: Layout) -> None:
    """Score a model on the held-out scans and print its table. The questions never change with the seed."""
    counts, reached = SIZES[size], dict[str, float]()

    def hear(part: str, done: int, total: int) -> None:
        reached[part] = done / total  # parts are asked side by side
        whole.reach(sum(reached.values()) / NUM_SUITES)

    result = evaluate_embedded(
        kit.model,
        kit.processor,
        num_samples=counts["num_samples"],
        num_reports=counts["num_reports"],
        num_captions=counts["num_captions"],
        asking=Asking(on_progress=hear, num_processes=layout.cores),
    )
    outcome.evaluations[name] = result
    print(pages.stage_table(result), flush=True)


def write_metrics(out: Path, outcome: Outcome, seed: int) -> None:
    """Write metrics.json with what is known so far."""
    values: dict[str, Any] = {
        "notice": f"{SHORT_NOTICE}; intervals speak of these scans only",
        "seed": seed,
        "num_parameters": outcome.num_parameters,
        "torch": torch.__version__,
        "stages": {name: result.to_json() for name, result in outcome.evaluations.items()},
        "sampled_box_reward_of_instruct": mean_rewards(outcome.sampled),
        "sampled_box_reward_of_reinforce": mean_rewards(outcome.sampled_after),
        "seconds": {name: round(value, 1) for name, value in outcome.seconds.items()},
        "cpu_seconds": {name: round(value, 1) for name, value in outcome.cpu_seconds.items()},
        "verdicts": [vars(verdict) for verdict in pages.verdicts(outcome)],
    }
    write_text(out / "metrics.json", json.dumps(values, indent=2) + "\n")


def mean_rewards(sampled: SampledRewards | None) -> dict[str, float]:
    """Return temperature, as text, -> mean reward; nothing where nothing was sampled yet."""
    return {} if sampled is None else {f"{t:g}": mean for t, mean in sampled.means().items()}


@contextmanager
def timed(outcome: Outcome, whole: Whole, name: str) -> Iterator[None]:
    """Say that a part of the run begins, and record how long it took and how much CPU time."""
    started, before = time.perf_counter(), cpu_seconds()
    with whole.part(name):
        yield
    outcome.seconds[name], outcome.cpu_seconds[name] = time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all child processes that it has waited for."""
    return sum(os.times()[:4])
