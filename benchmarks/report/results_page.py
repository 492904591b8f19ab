"""docs/results.md and the few figures of README.md: quickstart, seeds, suite and targets, all from committed results.

    python -m benchmarks.report.results_page --write     # after a new quickstart.json, study or suite result
    python -m benchmarks.report.results_page             # exit status 1 where a page says something else

`benchmarks/results/cpu/quickstart.json` is the metrics.json of one `make quickstart`: the median run of the study of
repeated runs, where that is committed (`python -m benchmarks.studies.quickstart_runs`).
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmo_core.durable import write_text
from medmo_core.notice import PAGE_NOTICE
from medmo_recipes.settings.run_config import STAGES

from ..studies.box_rewards.page import brackets
from ..studies.box_rewards.plan import FIGURES as REWARDS
from ..studies.box_rewards.plan import asks_for_one_box, settings_of, stored_rounds
from ..studies.quickstart_runs.publishing import FIGURES as STUDY
from ..studies.quickstart_runs.records import FILE, StudyRecord, read_study
from ..studies.quickstart_runs.spread import MEDIAN_BY, median_run, summarise
from . import page as suite_page
from . import tables, targets
from .markdown import table
from .page import Stored
from .page_section import settle

ROOT = Path(__file__).resolve().parents[2]

TOOL = "benchmarks.report.results_page"
PAGE = ROOT / "docs/results.md"
README = ROOT / "README.md"
QUICKSTART = ROOT / "benchmarks/results/cpu/quickstart.json"
RUNS = "quickstart*.json"
"""Stored runs of the quickstart, each on another machine; the one without a date is shown."""
METRICS = {
    "vqa_accuracy": "VQA accuracy",
    "grounding_iou": "Grounding mean IoU",
    "grounding_f1": "Grounding F1 at IoU 0.5",
    "report_fact_f1": "Report fact F1",
    "retrieval_recall1": "Caption retrieval recall@1",
}
IN_README = ("vqa_accuracy", "grounding_iou", "report_fact_f1")
COLUMNS = ("random", *STAGES)
BASELINES = (
    "Baselines are fitted on training data: the commonest answer per kind of question, the best constant box per "
    "label, a constant report, chance."
)
INTERVAL = re.compile(r"\[([+-][\d.]+), ([+-][\d.]+)\]")
"""The interval of a gain, as the quickstart writes it."""

Values = Mapping[str, Any]


def scores(run: Values) -> str:
    """Return the table of held-out scores, the last stage with intervals."""
    stages = run["stages"]
    rows = []
    for metric, name in METRICS.items():
        values = [f"{stages[stage][metric]['value']:.3f}" for stage in COLUMNS]
        last = stages[COLUMNS[-1]][metric]
        values[-1] = f"**{values[-1]}** {brackets(last)}"
        rows.append([name, *values, f"{last['baseline']:.3f}"])
    return table(["held-out, fixed random crops", *COLUMNS, "baseline"], rows)


def verdicts(run: Values, study: StudyRecord | None) -> str:
    """Return what the run claims and whether it holds: within noise where the interval of a gain holds 0.

    Beside the gain in IoU stands what F1 and VQA did. Where there is a study, each says how often it held there.
    """
    lines = []
    summary = None if study is None else summarise(study)
    before, after = run["stages"]["instruct"], run["stages"]["reinforce"]
    for one in run["verdicts"]:
        measured = one["measured"]
        if one["claim"].startswith("After reinforce"):
            changes = (f"{name} {after[metric]['value'] - before[metric]['value']:+.3f}"
                       for name, metric in (("F1", "grounding_f1"), ("VQA", "vqa_accuracy")))  # fmt: skip
            measured += f"; meanwhile {' and '.join(changes)}"
        gain = INTERVAL.search(measured)
        noise = ", within noise" if gain and float(gain[1]) <= 0 <= float(gain[2]) else ""
        repeated = f"; {said}" if summary is not None and (said := summary.told(one["claim"])) else ""
        lines.append(f"- {one['claim']}: **{'yes' if one['holds'] else 'no'}{noise}** ({measured}){repeated}.")
    return "\n".join(lines)


def seeds(rounds: Mapping[str, Values]) -> str:
    """Say what several seeds gave over the instruct checkpoint, with the settings of the last round and with others."""

    def gained(figures: Values) -> str:
        rows = figures["against"]["instruct"]
        return ", ".join(
            f"{rows[key]['difference']:+.3f} {brackets(rows[key], '+.3f')} {name}"
            for key, name in (("iou", "IoU"), ("f1", "F1"), ("vqa", "VQA"))
        )

    def described(figures: Values) -> str:
        plan = figures["plan"]
        return ", ".join([f"{plan['steps']} steps", *(f"`{setting}`" for setting in settings_of(plan))])

    rounds = {name: figures for name, figures in rounds.items() if asks_for_one_box(figures["plan"])}
    shipped = [figures for figures in rounds.values() if not figures["plan"]["settings"]][-1]
    others = "; ".join(f"{described(f)}: {gained(f)}" for f in rounds.values() if f is not shipped)
    beside = [figures["against"]["medmo_box"]["f1"] for figures in rounds.values()]
    wins = sum(is_above_zero(row["low"]) for row in beside)
    return (
        "Reinforce at this size is noisy: its column is one run from that instruct checkpoint. The comparison of box "
        "rewards, from checkpoints of an earlier recipe and with settings chosen on these same questions, gave over "
        f"{len(shipped['plan']['seeds'])} seeds {gained(shipped)}; other rounds gave less or more "
        f"({others}). Beside MedMO's published formula the "
        f"default box reward wins F1 beyond noise in {wins} of {len(beside)} rounds "
        f"({', '.join(format(row['difference'], '+.3f') for row in beside)}); "
        "[box_reward_comparison.md](box_reward_comparison.md) has every round."
    )


def reading(run: Values) -> str:
    """Say what the brackets mean, what the figures speak of, and where the model loses."""
    last = run["stages"]["reinforce"]
    full, reports = last["grounding_iou_full"], last["report_fact_f1"]
    on_full = "is level with the constant box"
    if is_above_zero(full["gain_low"]):
        on_full = "is better than the constant box"
    elif full["gain_high"] is not None and full["gain_high"] < 0:
        on_full = "is worse than the constant box"
    beaten = "beat" if is_above_zero(reports["gain_low"]) else "do not beat"
    return (
        "Brackets are 95 % intervals over slices: the held-out questions are about "
        f"{_slices(last['grounding_iou'])} (grounding) and {_slices(last['vqa_accuracy'])} (VQA), and the figures "
        f"speak of these scans only. {BASELINES} On **full slices**, which training hardly ever shows, grounding "
        f"{on_full} ({full['value']:.3f} against {full['baseline']:.3f}): all of these slices are nearly one picture. "
        f"Reports {beaten} the constant report at this size."
    )


def is_above_zero(low: float | None) -> bool:
    """Say whether a gain is beyond noise, by the lower end of its interval."""
    return low is not None and low > 0


def _slices(score: Values) -> str:
    return f"{score['num_images']} slices of {score['num_scans']} scans"


def about(run: Values, study: StudyRecord | None) -> str:
    """Say which run it was and how long it took."""
    minutes = sum(run["seconds"].values()) / 60
    return (
        f"The run below: {run['num_parameters'] / 1e6:.1f} million parameters, seed {run['seed']}, two CPU cores "
        f"(torch {run['torch']}), {minutes:.0f} minutes with all evaluations. `metrics.json` and "
        f"`report.html` of your run show yours. {spread(run) if study is None else spread_of_study(study)}"
    )


def spread_of_study(study: StudyRecord) -> str:
    """Say which of the study's runs is shown and how all of them ended."""
    low, high = summarise(study).ranges[COLUMNS[-1]]["grounding_iou"]
    return (
        "Machines round differently, and so small a model shows it. The run is the median one, by grounding mean IoU "
        f"after instruct, of the {len(study.runs)} of [quickstart_runs.md](quickstart_runs.md), with several seeds, "
        f"which ended with a grounding mean IoU from {low:.3f} to {high:.3f}."
    )


def committed_study(run: Values) -> StudyRecord | None:
    """Return the committed study of repeated runs; None where there is none.

    Raises:
        ValueError: the run to show is not its median one.
    """
    if not (STUDY / FILE).exists():
        return None
    study = read_study(STUDY / FILE)
    stage, metric = MEDIAN_BY
    middle = median_run(study.runs)
    if (run["seed"], run["stages"][stage][metric]) != (middle.seed, middle.stages[stage][metric]):
        raise ValueError(
            f"{QUICKSTART.name} is not the median run of the study, {middle.name}: "
            "python -m benchmarks.studies.quickstart_runs --table DIR, with the folder of the runs, writes both"
        )
    return study


def spread(run: Values) -> str:
    """Say how the stored runs of one seed ended."""
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(QUICKSTART.parent.glob(RUNS))]
    ends = [one["stages"]["reinforce"]["grounding_iou"]["value"] for one in stored if one["seed"] == run["seed"]]
    if len(ends) == 1:
        return (
            "Machines round differently, and so small a model shows it: how far runs of this recipe differ from one "
            "another is not measured yet."
        )
    return (
        "Machines round differently, and so small a model shows it: the stored runs of this seed, each on another "
        f"machine, ended with a grounding mean IoU of {' and '.join(f'{value:.3f}' for value in sorted(ends))}."
    )


def newest_on_cpu(results: Path = suite_page.RESULTS) -> list[Stored]:
    """Return the newest result of each CPU.

    Raises:
        ValueError: ours is wrong in one of them, so that no figure may be quoted.
    """
    newest = suite_page.newest(suite_page.stored_results(results))
    shown = [stored for stored in newest if stored.result.machine.kind == "cpu"]
    if faults := suite_page.refused(shown):
        raise ValueError(f"no figure is quoted: {'; '.join(faults)}")
    return shown


def measured_on(stored: Stored) -> str:
    """Return the machine and commit of a result."""
    machine = stored.result.machine
    return f"{machine.device}, {machine.threads} torch thread{'s' * (machine.threads > 1)}, commit {stored.commit}"


def suite(shown: Sequence[Stored]) -> str:
    """Return how ours stands beside others in these results, and the project's targets beside what was measured."""
    parts = [
        "## Speed",
        "`make bench` times every op, module and recipe beside the best peers on your machine, each way checked in the "
        "same run before it is timed: [benchmarks/RESULTS.md](../benchmarks/RESULTS.md) shows all of it, losses first.",
        *(f"{measured_on(stored)}: {tables.summary(stored.contests)[0]}" for stored in shown),
        "## Targets",
        "What the project asks of itself; those of a GPU are against the best peer on an H200 in bf16.",
    ]
    for stored in shown:
        judgements = suite_page.judged([stored], targets.read())
        parts += [f"{measured_on(stored)}:", tables.targets_table(judgements, brief=True)]
    return "\n\n".join(parts)


def page(run: Values, rounds: Mapping[str, Values], shown: Sequence[Stored], study: StudyRecord | None) -> str:
    """Return docs/results.md."""
    parts = [
        f"<!-- generated by `python -m {TOOL} --write`; do not edit -->",
        "# Results",
        "## The quickstart",
        about(run, study),
        scores(run),
        verdicts(run, study),
        seeds(rounds),
        reading(run),
        suite(shown),
        PAGE_NOTICE,
    ]
    return "\n\n".join(parts) + "\n"


def readme_block(run: Values, shown: Sequence[Stored], study: StudyRecord | None) -> str:
    """Return the few lines of figures that README shows: the last stage beside the baseline, and one line on speed.

    Where there is a study, its lowest and highest value stand behind a figure, else the figure's interval.
    """
    rows = []
    heading = "after three stages"
    if study is not None:
        heading += f", median run of {len(study.runs)} (lowest to highest)"
    for metric in IN_README:
        last = run["stages"][COLUMNS[-1]][metric]
        behind = brackets(last)
        if study is not None:
            low, high = summarise(study).ranges[COLUMNS[-1]][metric]
            behind = f"({low:.3f} to {high:.3f})"
        rows.append([METRICS[metric], f"**{last['value']:.3f}** {behind}", f"{last['baseline']:.3f}"])
    lines = [table(["quickstart, held-out questions", heading, "baseline"], rows), ""]
    for stored in shown:
        counts = {standing: len(found) for standing, found in tables.standings(stored.contests).items()}
        lines.append(
            f"Speed against the best peer ({measured_on(stored)}): faster in {counts['faster']} of "
            f"{sum(counts.values())} comparisons, level in {counts['level']}, slower in {counts['slower']}."
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare or write both pages; returns 1 where one says something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/results.md and the figures of README.md")
    arguments = parser.parse_args(argv)
    command = f"python -m {TOOL} --write"
    run, rounds = json.loads(QUICKSTART.read_text(encoding="utf-8")), stored_rounds(REWARDS)
    shown, study = newest_on_cpu(), committed_study(run)
    text = page(run, rounds, shown, study)
    status = 0
    if arguments.write:
        write_text(PAGE, text)
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name} is out of date: {command}", file=sys.stderr)
        status = 1
    return max(status, settle(README, TOOL, readme_block(run, shown, study), write=arguments.write, fix=command))


if __name__ == "__main__":
    raise SystemExit(main())
