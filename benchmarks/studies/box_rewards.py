"""Does the box reward teach? The project's own beside MedMO's formula and beside no box term, from one checkpoint.

    medmo quickstart                                   # its instruct/final is what every arm starts from
    python -m benchmarks.studies.box_rewards           # trains every arm with every seed, measures, writes the page
    python -m benchmarks.studies.box_rewards --page    # writes the page again from the stored figures

Rewards, seeds, steps and questions of each round stand in a file of box_reward_rounds/, which is committed before its
runs; the last round is run unless --plan names another. Every round stays on the page, whatever it showed. Answers are
greedy: sampling colder raises a sampled reward without any learning, so sampled figures stand beside, with those of the
untrained checkpoint at lower temperatures. Images are held-out scans under fixed random crops. Finished arms are kept
under --out; a stopped comparison goes on where it was. Research use only.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medmo_core.data.records.sample import Sample
from medmo_core.datasets.embedded.tasks import absent_samples, eval_samples
from medmo_core.datasets.names import EMBEDDED_PREFIX, FORMER_PREFIX
from medmo_core.durable import write_json, write_text
from medmo_core.inference.kit import Kit
from medmo_core.inference.load import load
from medmo_core.metrics import mean_interval, paired_interval
from medmo_core.notice import PAGE_NOTICE
from medmo_recipes import reinforce
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.ask import answer, answer_limit
from medmo_recipes.evaluation.results import interval
from medmo_recipes.evaluation.scores import image_key, score_answers
from medmo_recipes.reinforcement.advantages import combine, group_advantages
from medmo_recipes.reinforcement.engine import InPlaceEngine
from medmo_recipes.reinforcement.groups import reward_completions, sample_completions
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet
from medmo_recipes.reinforcement.sharpening import TEMPERATURES, sampled_box_reward
from medmo_recipes.settings.command_line import apply_overrides
from medmo_recipes.settings.run_config import Rewards, RunConfig

HERE = Path(__file__).resolve().parent
PLANS = HERE / "box_reward_rounds"
FIGURES = HERE.parent / "results/cpu/compare_box_rewards"
PAGE = HERE.parents[1] / "docs/box_reward_comparison.md"
START = "instruct"
METRICS = {"f1": "F1 at 0.5", "iou": "mean IoU", "false_positive": "boxes where there are none", "vqa": "VQA accuracy"}
"""Name -> heading. Each is a number per question."""


@dataclass(frozen=True)
class StudyPlan:
    """The runs of a round; the fields of its file.

    Attributes:
        about: what is special about it.
        config: name of the reinforce recipe.
        settings: `section.field=value`, on top of it.
        arms: name -> reward weights; the first is the one that must win.
        seeds: each arm is trained once with each.
        steps: steps of every run.
        questions: how many of each kind are asked.
    """

    about: str
    config: str
    settings: Sequence[str]
    arms: Mapping[str, Mapping[str, float]]
    seeds: Sequence[int]
    steps: int
    questions: Mapping[str, int]

    def run_config(self, arm: str, seed: int, init: Path, out: Path) -> RunConfig:
        """Return the run of one arm with one seed."""
        return apply_overrides(CONFIGS[self.config](), self.settings).change(
            model={"init": str(init)},
            rewards={"weights": self.arms[arm]},
            train={
                "steps": self.steps,
                "save_every": self.steps,
                "seed": seed,
                "out_dir": str(out),
                "device": "cpu",
                "num_threads": 1,
            },
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write figures and page; status 1 where the first arm does not win."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, default=Path("runs/quickstart/instruct/final"), help="starting checkpoint")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_box_rewards"), help="folder of the runs")
    parser.add_argument("--plan", type=Path, default=max(PLANS.glob("*.json")), help="what is run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--figures", type=Path, help="JSON to write; default: of the plan's name, among the page's")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args(argv)
    plan = StudyPlan(**json.loads(arguments.plan.read_text(encoding="utf-8")))
    path = arguments.figures or FIGURES / arguments.plan.name
    if not arguments.page:
        measured = run_all(plan, arguments.init, arguments.out, arguments.jobs)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(pool_seeds(plan, measured), indent=1) + "\n")
    rounds = stored_rounds(path.parent)
    text = page(rounds)
    if path.parent == FIGURES:
        write_text(PAGE, text)
    print(text)
    return 0 if all(row["f1"]["difference"] > 0 for row in rounds[path.stem]["against"].values()) else 1


def stored_rounds(folder: Path) -> dict[str, Any]:
    """Read the figures of every round: name -> figures."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def run_all(plan: StudyPlan, init: Path, out: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """Train and measure every arm with every seed, several at a time; "arm/seed" -> what `measure` returns."""
    tasks: list[tuple[str, int | None]] = [(START, None), *((arm, seed) for seed in plan.seeds for arm in plan.arms)]
    measured: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_one, plan, arm, seed, init, out): (arm, seed) for arm, seed in tasks}
        for number, future in enumerate(as_completed(futures), start=1):
            arm, seed = futures[future]
            name = arm if seed is None else f"{arm}/{seed}"
            measured[name] = future.result()
            means = {key: statistics.fmean(measured[name][key]) for key in METRICS}
            said = "  ".join(f"{key} {value:.3f}" for key, value in means.items())
            print(f"{number}/{len(tasks)} {name}: {said}", file=sys.stderr, flush=True)
    return measured


def run_one(plan: StudyPlan, arm: str, seed: int | None, init: Path, out: Path) -> dict[str, Any]:
    """Train one arm with one seed (None: the checkpoint as it is) and measure it; a stored result is returned as is."""
    torch.set_num_threads(1)
    folder = out / (START if seed is None else f"{arm.replace(' ', '_')}-{seed}")
    stored = folder / "measured.json"
    if stored.exists():
        return json.loads(stored.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = init
    if seed is not None:
        config = plan.run_config(arm, seed, init, folder / "run").change(train={"resume": True})
        reinforce.run(config)
        checkpoint = folder / "run/final"
    kit = load(str(checkpoint), device="cpu")
    result = measure(kit, plan.questions, TEMPERATURES if seed is None else (1.0,))
    if seed is None:
        result["agreement"] = agreement(plan, kit)
    write_json(stored, result)
    return result


def measure(kit: Kit, questions: Mapping[str, int], temperatures: Sequence[float]) -> dict[str, Any]:
    """Ask a model the held-out questions, greedily, and sample it.

    Returns:
        Metric -> one number per question; "NAME images" -> the image of each, numbered; "sampled" -> temperature ->
        mean overlap reward of samples.
    """

    def ask(samples: Sequence[Sample]) -> list[Any]:
        texts = answer(kit.model, kit.processor, samples, max_new_tokens=answer_limit(kit.processor, samples))
        return score_answers(samples, texts, kit.processor.text)

    pointing = eval_samples("grounding", n=questions["grounding"])
    nothing = absent_samples(n=questions["absent"])
    asking = eval_samples("vqa", n=questions["vqa"])
    boxes, empty, answers = ask(pointing), ask(nothing), ask(asking)
    values: dict[str, Any] = {
        "f1": [p.scores["grounding_f1"] for p in boxes],
        "iou": [p.scores["grounding_iou"] for p in boxes],
        "false_positive": [float(len(p.boxes_px) > 0) for p in empty],
        "vqa": [p.scores["vqa_accuracy"] for p in answers],
    }
    for name, samples in (("f1", pointing), ("iou", pointing), ("false_positive", nothing), ("vqa", asking)):
        numbers: dict[str, int] = {}
        values[f"{name} images"] = [numbers.setdefault(image_key(s, crop=False), len(numbers)) for s in samples]
    sampled = sampled_box_reward(kit, num_prompts=questions["sampled"], temperatures=temperatures)
    return values | {"sampled": {f"{t:g}": value for t, value in sampled.means().items()}}


def agreement(plan: StudyPlan, kit: Kit) -> dict[str, float]:
    """Say how similarly the first arm and each other one judge the same completions of training questions.

    Returns:
        Arm -> correlation of the advantages (1: the two teach the same).
    """
    config = plan.run_config(next(iter(plan.arms)), 0, Path(), Path())
    samples = eval_samples("grounding", "train", n=2 * plan.questions["sampled"])
    prompts = {number: kit.processor.encode(sample, for_generation=True) for number, sample in enumerate(samples)}
    answers = sample_completions(InPlaceEngine(kit.model), prompts, config.rollout, seed=0)
    every = {name: 1.0 for weights in plan.arms.values() for name in weights}
    rewards = RewardSet.from_config(Rewards(weights=every))
    groups = reward_completions(
        answers,
        rewards,
        every,
        kit.tokenizer,
        kit.processor.text,
        config.rollout,
        config.grpo,
        step=plan.steps,
        max_steps=plan.steps,
    )

    def advantages(weights: Mapping[str, float]) -> torch.Tensor:
        rewards_PG = torch.stack([combine(g.components, weights, normalise=False) for g in groups])
        return group_advantages(rewards_PG, config.grpo.advantage).flatten()

    own, *others = (advantages(weights) for weights in plan.arms.values())
    pairs = zip(list(plan.arms)[1:], others, strict=True)
    return {arm: float(own @ other / (own.norm() * other.norm()).clamp(min=1e-12)) for arm, other in pairs}


def pool_seeds(plan: StudyPlan, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Reduce the answers to means and intervals: over seeds per question first, then over images."""
    start = measured[START]
    images = {key: start[f"{key} images"] for key in METRICS}

    def over_seeds(arm: str, key: str) -> list[float]:
        runs = [measured[f"{arm}/{seed}"][key] for seed in plan.seeds]
        return [statistics.fmean(values) for values in zip(*runs, strict=True)]

    def described(values: Sequence[float], key: str) -> dict[str, Any]:
        low, high = mean_interval(values, images[key]) or (None, None)
        return {"mean": statistics.fmean(values), "low": low, "high": high}

    arms: dict[str, Any] = {START: {key: described(start[key], key) for key in METRICS}}
    arms[START]["sampled"] = start["sampled"]
    for arm in plan.arms:
        rows = {key: described(over_seeds(arm, key), key) for key in METRICS}
        for key, row in rows.items():
            row["seeds"] = [statistics.fmean(measured[f"{arm}/{seed}"][key]) for seed in plan.seeds]
        sampled = statistics.fmean(measured[f"{arm}/{seed}"]["sampled"]["1"] for seed in plan.seeds)
        arms[arm] = {**rows, "sampled": {"1": sampled}}
    ours, *others = plan.arms
    against: dict[str, Any] = {}
    for other in (START, *others):
        against[other] = {}
        for key in METRICS:
            theirs = list(start[key]) if other == START else over_seeds(other, key)
            own = over_seeds(ours, key)
            low, high = paired_interval(own, theirs, images[key]) or (None, None)
            difference = statistics.fmean(own) - statistics.fmean(theirs)
            against[other][key] = {"difference": difference, "low": low, "high": high}
    counts = {key: {"questions": len(start[key]), "images": len(set(images[key]))} for key in METRICS}
    where = {"machine": platform.machine(), "torch": torch.__version__, "device": "cpu"}
    measured_there = {"counts": counts, "arms": arms, "against": against, "agreement": start["agreement"]}
    return {"plan": vars(plan), "where": where, **measured_there}


def page(rounds: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the comparison as Markdown, round by round."""
    lines = [
        "# Box rewards compared",
        "",
        f"Generated by `python -m benchmarks.studies.box_rewards`; do not edit. {PAGE_NOTICE}",
        "",
        "Each round was planned in a file of `benchmarks/studies/box_reward_rounds/` and committed before its "
        "runs; all are here. Every arm of a round starts from the same instruct checkpoint. Primary: F1 at IoU "
        "0.5, mean over seeds, paired by question. Answers are greedy, about held-out scans under fixed random "
        "crops. Brackets: 95 % intervals, over images, of the mean over seeds; they speak of these few scans only. "
        "Those of rounds 1 to 3 are percentile bootstraps, which cover about 93 % with so few images. Behind the bar: "
        "each seed.",
    ]
    for name, figures in rounds.items():
        lines += ["", f"## {name.replace('_', ' ').capitalize()}", "", *_round(figures)]
    return "\n".join(lines) + "\n"


def settings_of(plan: Mapping[str, Any]) -> list[str]:
    """Return the settings of a stored plan, data sets by the names that they have now."""
    former, current = (f"data.sources.{prefix}" for prefix in (FORMER_PREFIX, EMBEDDED_PREFIX))
    return [setting.replace(former, current) for setting in plan["settings"]]


def _round(figures: Mapping[str, Any]) -> list[str]:
    """Write one round."""
    plan, counts = figures["plan"], figures["counts"]
    ours = next(iter(plan["arms"]))
    settings = ", ".join(f"`{setting}`" for setting in settings_of(plan)) or "none besides"
    lines = [
        f"`{plan['config']}`, {plan['steps']} steps, seeds {', '.join(map(str, plan['seeds']))}; settings: {settings}. "
        f"{plan['about']}",
        "",
        ", ".join(f"{counts[k]['questions']} questions about {counts[k]['images']} images ({METRICS[k]})"
                  for k in ("f1", "false_positive", "vqa")) + ".",
        "",
        "| reward | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "---|" * len(METRICS),
    ]  # fmt: skip
    for arm, rows in figures["arms"].items():
        cells = [_cell(rows[key]) for key in METRICS]
        name = "before (instruct)" if arm == START else f"`{arm}`" if arm in plan["arms"] and " " not in arm else arm
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Difference of `{ours}` to the others, paired by question:",
        "",
        "| to | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "---|" * len(METRICS),
    ]
    for other, rows in figures["against"].items():
        cells = [f"{rows[k]['difference']:+.3f} {brackets(rows[k], '+.3f')}" for k in METRICS]
        lines.append(f"| {other} | " + " | ".join(cells) + " |")
    cold = figures["arms"][START]["sampled"]
    lines += [
        "",
        "Mean `box` reward of samples, for what colder sampling alone gives: before, at temperature "
        + ", ".join(f"{t}: {value:.3f}" for t, value in cold.items())
        + "; after, at temperature 1: "
        + ", ".join(f"{arm} {figures['arms'][arm]['sampled']['1']:.3f}" for arm in plan["arms"])
        + ".",
        "",
        "How similarly the rewards judge the same completions of the checkpoint they all start from (correlation of "
        f"the advantages with those of `{ours}`): "
        + ", ".join(f"{arm} {value:.2f}" for arm, value in figures["agreement"].items())
        + ". After division by a group's deviation, two rewards that order its completions in the same way "
        "teach the same, however differently they are scaled.",
        "",
        f"torch {figures['where']['torch']}, {figures['where']['device']}, one thread a run.",
    ]
    return lines


def brackets(row: Mapping[str, Any], form: str = ".3f") -> str:
    """Write the interval of a stored figure; nothing where it has none."""
    return interval(row["low"], row["high"], form)


def _cell(row: Mapping[str, Any]) -> str:
    seeds = " \\| " + " ".join(f"{value:.3f}" for value in row["seeds"]) if "seeds" in row else ""
    return f"{row['mean']:.3f} {brackets(row)}{seeds}"


if __name__ == "__main__":
    raise SystemExit(main())
