"""Tables of the study as Markdown: a row a run with mean and ends below, verdicts, costs, machines."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from medmo_recipes.evaluation.results import counted, interval

from ...report.markdown import table
from .records import RunRecord, StudyRecord
from .spread import median_run, score_of, spread, verdict_counts


@dataclass(frozen=True)
class Column:
    """A figure of every run.

    Attributes:
        head: heading.
        value: function from a run to the figure; None where the run has none.
        beside: function from a run to what stands behind the figure in its row.
        form: format of the figure.
    """

    head: str
    value: Callable[[RunRecord], float | None]
    beside: Callable[[RunRecord], str] = lambda run: ""
    form: str = ".3f"

    def cell(self, run: RunRecord) -> str:
        """Write the figure of a run."""
        value = self.value(run)
        return "" if value is None else f"{value:{self.form}} {self.beside(run)}".rstrip()


def score_column(head: str, stage: str, metric: str, *, ends: bool = False) -> Column:
    """Return the column of a score, with its interval where `ends` asks for it."""

    def beside(run: RunRecord) -> str:
        return interval(score_of(run, stage, metric, "low"), score_of(run, stage, metric, "high")) if ends else ""

    return Column(head, lambda run: score_of(run, stage, metric), beside)


def baseline_column(head: str, metric: str) -> Column:
    """Return the column of what a score gains over its baseline after instruct, and whether its interval holds 0."""

    def beside(run: RunRecord) -> str:
        return judged_interval(*(score_of(run, "instruct", metric, end) for end in ("gain_low", "gain_high")))

    return Column(head, lambda run: score_of(run, "instruct", metric, "gain"), beside, "+.3f")


def change_column(head: str, metric: str) -> Column:
    """Return the column of what reinforce changes in a metric, paired, and whether its interval holds 0."""

    def beside(run: RunRecord) -> str:
        return judged_interval(run.changes[metric]["low"], run.changes[metric]["high"])

    return Column(head, lambda run: run.changes[metric]["difference"], beside, "+.3f")


def judged_interval(low: float | None, high: float | None) -> str:
    """Write the interval of a difference and what it says: above, below, or within noise, where it holds 0."""
    if low is None or high is None:
        return ""
    said = "above" if low > 0 else "below" if high < 0 else "within noise"
    return f"{interval(low, high, '+.3f')} {said}"


AFTER_INSTRUCT = (
    score_column("IoU", "instruct", "grounding_iou", ends=True),
    Column("constant box", lambda run: score_of(run, "instruct", "grounding_iou", "baseline")),
    baseline_column("over the constant box", "grounding_iou"),
    Column("IoU on training images", lambda run: run.training_iou["value"]),
    score_column("IoU where boxes are said", "instruct", "grounding_iou_said"),
    score_column("denied", "instruct", "grounding_denied"),
    score_column("invented", "instruct", "grounding_invented"),
    score_column("VQA accuracy", "instruct", "vqa_accuracy"),
)
AFTER_REINFORCE = (
    score_column("IoU", "reinforce", "grounding_iou", ends=True),
    change_column("change of IoU", "grounding_iou"),
    score_column("VQA accuracy", "reinforce", "vqa_accuracy"),
    change_column("change of VQA accuracy", "vqa_accuracy"),
    Column("minutes", lambda run: run.wall_s / 60, form=".1f"),
    Column("CPU minutes", lambda run: run.cpu_s / 60, form=".1f"),
)


def runs_table(runs: Sequence[RunRecord], columns: Sequence[Column]) -> str:
    """Tabulate figures: a row a run, then mean, lowest and highest of each column; the median run is in bold."""
    middle = median_run(runs)
    rows = [[told(run), *(column.cell(run) for column in columns)] for run in runs]
    rows[list(runs).index(middle)][0] = f"**{told(middle)}**"
    found = [spread(runs, column.value) for column in columns]
    for name in ("mean", "low", "high"):
        cells = ["" if one is None else f"{getattr(one, name):{c.form}}" for one, c in zip(found, columns, strict=True)]
        rows.append([{"mean": "mean", "low": "lowest", "high": "highest"}[name], *cells])
    return table(["seed, layout", *(column.head for column in columns)], rows)


def told(run: RunRecord) -> str:
    """Name a run in a row."""
    return f"{run.seed}, {run.layout}" + (f", {run.isa}" if run.isa != "machine" else "")


def verdicts_table(runs: Sequence[RunRecord]) -> str:
    """Tabulate how often each verdict of the quickstart's report held, and where it did not."""
    rows = []
    for claim, count in verdict_counts(runs).items():
        missed = "; ".join(told(run) for run in runs if not run.verdicts[claim])
        rows.append([claim, f"{count} of {len(runs)}", missed])
    return table(["verdict", "held in", "not in (seed, layout)"], rows)


def costs_table(runs: Sequence[RunRecord]) -> str:
    """Tabulate the mean wall clock and CPU time of every part, layout by layout, in seconds."""
    layouts = list(dict.fromkeys(run.layout for run in runs))
    rows = []
    for part in dict.fromkeys(part for run in runs for part in run.seconds):
        cells = []
        for layout in layouts:
            chosen = [run for run in runs if run.layout == layout and part in run.seconds]
            cells += [_mean([run.seconds[part] for run in chosen]), _mean([run.cpu_seconds[part] for run in chosen])]
        rows.append([part, *cells])
    heads = [f"{layout}, {kind}" for layout in layouts for kind in ("s", "CPU s")]
    return table(["part", *heads], rows)


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.0f}" if values else ""


def machine_lines(runs: Sequence[RunRecord]) -> str:
    """List the machines, with what ran on each."""
    counts = Counter(_machine_line(run.machine) for run in runs)
    return "\n".join(f"- {line}: {counted(number, 'run')}." for line, number in counts.items())


def _machine_line(machine: Any) -> str:
    changed = " with changed files" if machine["changed"] else ""
    cores = counted(machine["cores"], "core")
    instructions = f"{machine['instructions']} instructions"
    return f"{machine['cpu']}, {cores}, {instructions}, torch {machine['torch']}, commit {machine['commit']}{changed}"


def section(study: StudyRecord) -> str:
    """Return the generated part of docs/quickstart_runs.md."""
    runs = study.runs
    seeds = len({run.seed for run in runs})
    parts = [
        f"{counted(len(runs), 'run')} with {counted(seeds, 'seed')}, recipe `{study.recipe}`. Bold: the median run by "
        "IoU after instruct, whose figures README shows.",
        "## After instruct",
        runs_table(runs, AFTER_INSTRUCT),
        "## After reinforce",
        runs_table(runs, AFTER_REINFORCE),
        "## Verdicts",
        verdicts_table(runs),
        "## Costs",
        costs_table(runs),
        "## Machines",
        machine_lines(runs),
    ]
    return "\n\n".join(parts)
