"""Results of the quickstart: tables on the terminal, verdicts, pictures, and the report's page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from PIL import Image

from medmo_core.metrics import paired_interval

from ..evaluation.results import Evaluation, counted, format_table, interval, paired_gain, told
from ..evaluation.scores import Prediction, Score, image_key
from ..reinforcement.sharpening import SampledRewards
from ..settings.run_config import RunConfig
from ..training.monitoring.log import read_metrics
from .gallery import RULE, ranked_pictures
from .report import Cell, Picture, Report, Table, Verdict
from .study_summary import StudySummary

METRIC_NAMES = {
    "vqa_accuracy": "VQA accuracy",
    "grounding_iou": "Grounding mean IoU",
    "grounding_f1": "Grounding F1 at IoU 0.5",
    "grounding_iou_said": "Grounding IoU, where boxes are said",
    "grounding_denied": "Said nothing where there is something",
    "grounding_invented": "Said boxes where there is nothing",
    "report_fact_f1": "Report fact F1",
    "retrieval_recall1": "Caption for an image, recall@1",
    "retrieval_median_rank": "Caption for an image, median rank",
    "retrieval_image_recall1": "Image for a caption, recall@1",
    "retrieval_image_median_rank": "Image for a caption, median rank",
}


def stage_table(result: Evaluation) -> str:
    """Return one stage's scores as text for the terminal."""
    return format_table(result.metrics)


def verdicts(outcome: "Outcome") -> list[Verdict]:
    """Judge the claims that the finished stages allow, each by a figure of this run."""
    found: list[Verdict] = []
    instruct = outcome.evaluations.get("instruct")
    if instruct is not None:
        claims = {
            "vqa_accuracy": "After instruct, VQA beats the majority answer per template",
            "grounding_iou": "After instruct, grounding beats the best constant box per label",
        }
        found += [_beats_baseline(claim, instruct.metrics[metric]) for metric, claim in claims.items()]
        found.append(_control(instruct))
    reinforce = outcome.evaluations.get("reinforce")
    if instruct is not None and reinforce is not None:
        found.append(_reinforce_gain(instruct.predictions["grounding"], reinforce.predictions["grounding"]))
        found.append(_sharpening(outcome))
    return found


def _beats_baseline(claim: str, score: Score) -> Verdict:
    if score.gain is None:
        return Verdict(claim, f"{score.value:.3f}, no baseline", False)
    gain = f"{score.gain:+.3f} {told(score.gain_low, score.gain_high, '+.3f')}"
    measured = f"{score.value:.3f} against {score.baseline:.3f}: {gain}, {_questions(score)}, {_these_scans(score)}"
    return Verdict(claim, measured, _is_gain(score.gain_low))


def _control(result: Evaluation) -> Verdict:
    """Judge whether grounding needs the picture: it must fall without it, and no further score than a constant box."""
    shuffled, constant = result.metrics["grounding_iou_shuffled"], result.metrics["grounding_iou"].baseline
    real, other = result.predictions["grounding"], result.predictions["grounding_shuffled"]
    fall, low, high = paired_gain(real, other, "grounding_iou")
    measured = (
        f"{result.metrics['grounding_iou'].value:.3f} falls by {fall:.3f} {told(low, high)} "
        f"to {shuffled.value:.3f} {told(shuffled.low, shuffled.high)}, {_questions(shuffled)}; "
        + ("no constant box" if constant is None else f"constant box {constant:.3f}")
    )
    holds = _is_gain(low) and constant is not None and shuffled.low is not None and shuffled.low <= constant
    return Verdict("With shuffled images, grounding falls to the constant box", measured, holds)


def _reinforce_gain(before: Sequence[Prediction], after: Sequence[Prediction]) -> Verdict:
    gain, low, high = paired_gain(after, before, "grounding_iou")
    compared = [p for p in before if "grounding_iou" in p.scores]
    slices = len({p.image for p in compared})
    measured = f"{gain:+.4f} {told(low, high, '+.4f')}, {len(compared)} questions about {slices} slices, paired"
    return Verdict("After reinforce, greedy held-out mean IoU is above instruct's", measured, _is_gain(low))


def _sharpening(outcome: "Outcome") -> Verdict:
    """Compare the sampled reward after reinforce with what the instruct model gives for free by sampling colder.

    Prompt by prompt, over slices; the gain must be sure over every temperature, so that the best one does too.
    """
    claim = "Sampled reward rises by more than colder sampling gives"
    before, after = outcome.sampled, outcome.sampled_after
    if before is None or after is None:
        return Verdict(claim, "not sampled", False)
    images = [image_key(sample, crop=False) for sample in before.samples]
    ((_, raised),) = after.rewards.items()
    gains = {t: paired_interval(raised, values, images) or (None, None) for t, values in before.rewards.items()}
    sure = {t: _is_gain(low) for t, (low, _) in gains.items()}
    less = "sharpening" if sure[max(sure)] else "no gain to be sure of"
    word = "more than sharpening" if all(sure.values()) else less
    means = before.means()
    best = max(means, key=lambda t: means[t])
    gain = f"{fmean(raised) - means[best]:+.3f} {told(*gains[best], '+.3f')}"
    by_temperature = ", ".join(f"T={t:g}: {mean:.3f}" for t, mean in means.items())
    measured = (
        f"reinforce at T=1: {fmean(raised):.3f}; instruct at {by_temperature}; over its best {gain}, "
        f"{counted(len(raised), 'prompt')} about {counted(len(set(images)), 'slice')}, paired: {word}"
    )
    return Verdict(claim, measured, all(sure.values()))


def _is_gain(low: float | None) -> bool:
    return low is not None and low > 0


def _questions(score: Score) -> str:
    return f"{score.n} questions about {score.num_images} slices"


def _these_scans(score: Score) -> str:
    return "this scan only" if score.num_scans == 1 else f"these {score.num_scans} scans only"


def format_verdicts(outcome: "Outcome") -> str:
    """Return the verdicts as text for the terminal."""
    lines = []
    for verdict in verdicts(outcome):
        below = filter(None, [verdict.measured, repetition(outcome, verdict.claim)])
        lines += [f"[{'yes' if verdict.holds else ' no'}] {verdict.claim}", *(f"      {line}" for line in below)]
    return "\n".join(lines)


def repetition(outcome: "Outcome", claim: str) -> str:
    """Say how often a verdict held in the study of this recipe; nothing without one."""
    return "" if outcome.study is None else outcome.study.told(claim)


def write(out: Path, outcome: "Outcome", configs: Mapping[str, RunConfig], seed: int) -> None:
    """Write held_out.png and report.html."""
    shown = ranked_pictures(outcome.evaluations["reinforce"])
    contact(shown).save(out / "held_out.png")
    minutes, judged = sum(outcome.seconds.values()) / 60, verdicts(outcome)
    Report(
        title="MedMO quickstart",
        subtitle=(
            f"{outcome.num_parameters / 1e6:.1f} million parameters, three stages and four evaluations "
            f"in {minutes:.1f} minutes on the CPU."
        ),
        verdicts=judged,
        repeated={verdict.claim: repetition(outcome, verdict.claim) for verdict in judged},
        tables=[
            score_table(outcome, "", "Held-out scans, fixed random crops (the bar)"),
            structure_table(outcome),
            score_table(outcome, "_full", "Held-out scans, full slices (shown beside)"),
            score_table(outcome, "_shuffled", "Control: every question with another image"),
            sampling_table(outcome),
        ],
        curves={stage: read_metrics(out / stage / "metrics.jsonl")[0] for stage in configs},
        gallery=shown,
        gallery_note=f"{RULE} Solid green: true box. Dashed orange: predicted box, after reinforce, greedy decoding. "
        "A click, or the space bar, enlarges a picture.",
        provenance=[
            f"seed {seed}",
            *(f"{stage}: {c.train.steps} steps of {c.train.docs_per_step}" for stage, c in configs.items()),
            *(f"{name}: {seconds:.0f} s" for name, seconds in outcome.seconds.items()),
            "Organ boxes are silver labels (TotalSegmentator's own predictions). Sources and licences: NOTICE.",
        ],
        commands=outcome.commands,
        links={
            f"{stage}: {what}": page
            for stage in configs
            for what, page in (("curves", f"{stage}/summary.png"), ("completions", f"{stage}/rollouts/index.html"))
            if (out / page).exists()
        },
    ).write(out / "report.html")


def score_table(outcome: "Outcome", suffix: str, title: str) -> Table:
    """Tabulate stages against metrics: value, interval, baseline."""
    stages = list(outcome.evaluations)
    rows = []
    for metric, name in METRIC_NAMES.items():
        scores = [outcome.evaluations[stage].metrics.get(metric + suffix) for stage in stages]
        if not any(scores):
            continue
        known = next(s for s in scores if s is not None)
        baseline = "" if known.baseline is None else f"{known.baseline:.3f}"
        detail = f"{_questions(known)}, {_these_scans(known)}"
        ranges = [outcome.study.range_of(stage, metric + suffix) if outcome.study else "" for stage in stages]
        cells = [_score_cell(s, of_study) for s, of_study in zip(scores, ranges, strict=True)]
        rows.append([Cell(name, detail), *cells, Cell(baseline)])
    note = "In brackets: 95 % intervals over slices. Baselines are fitted on training data."
    if outcome.study is not None and not suffix:
        note += f" Study: lowest and highest of {outcome.study.num_runs} runs of this recipe."
    return Table(title, note, ["metric", *stages, "baseline"], rows)


def _score_cell(score: Score | None, of_study: str) -> Cell:
    if score is None:
        return Cell("")
    return Cell(f"{score.value:.3f}", "\n".join(filter(None, [interval(score.low, score.high), of_study])))


def structure_table(outcome: "Outcome") -> Table:
    """Tabulate, structure by structure, how well the boxes of what is there lie, stage by stage."""
    found: dict[str, dict[str, list[Prediction]]] = {}
    for stage, evaluation in outcome.evaluations.items():
        pairs = zip(evaluation.samples.get("grounding", ()), evaluation.predictions.get("grounding", ()), strict=True)
        for sample, prediction in pairs:
            if "grounding_iou" in prediction.scores:
                names = ", ".join(sorted({sample.boxes[index].label for index in sample.sought}))
                found.setdefault(names, {}).setdefault(stage, []).append(prediction)
    rows = []
    for name, stages in sorted(found.items()):
        known = next(iter(stages.values()))
        detail = f"{counted(len(known), 'question')}, {counted(len({p.image for p in known}), 'slice')}"
        constant = fmean(p.baseline.get("grounding_iou", 0.0) for p in known)
        cells = [_structure_cell(stages.get(stage, ())) for stage in outcome.evaluations]
        rows.append([Cell(name, detail), *cells, Cell(f"{constant:.3f}")])
    note = "Mean IoU; below it how many of the answers said that nothing is there. So few questions have no interval."
    return Table("Structure by structure", note, ["structure", *outcome.evaluations, "constant box"], rows)


def _structure_cell(predictions: Sequence[Prediction]) -> Cell:
    if not predictions:
        return Cell("")
    denied = sum(p.scores["grounding_denied"] for p in predictions)
    return Cell(f"{fmean(p.scores['grounding_iou'] for p in predictions):.3f}", f"{denied:.0f} said nothing")


def sampling_table(outcome: "Outcome") -> Table:
    """Show what colder sampling alone gives the instruct model."""
    columns = [("instruct", outcome.sampled), ("reinforce", outcome.sampled_after)]
    means = {f"{name}, T = {t:g}": mean for name, sampled in columns if sampled for t, mean in sampled.means().items()}
    note = (
        "Mean box reward of samples on held-out prompts. A gain that a lower temperature also gives is sharpening; "
        "judge reinforce by greedy decoding."
    )
    return Table("Sampled reward", note, list(means), [[Cell(f"{mean:.3f}") for mean in means.values()]])


def contact(pictures: Sequence[Picture], columns: int = 3) -> Image.Image:
    """Lay pictures on one sheet, all at the width of the narrowest."""
    width = min(p.image.width for p in pictures)
    images = [p.image.resize((width, round(p.image.height * width / p.image.width))) for p in pictures]
    height = max(image.height for image in images)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(images)), height * rows), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


@dataclass
class Outcome:
    """Results of a quickstart.

    Attributes:
        evaluations: "random" and each stage -> its scores.
        sampled: box rewards of the instruct model's samples on held-out prompts, at several temperatures.
        sampled_after: the same of the reinforced model, at temperature 1.
        seconds: part of the run -> wall clock.
        num_parameters: number of parameters of the model.
        commands: command lines that started the stages.
        cpu_seconds: part of the run -> CPU time of all processes.
        study: spread of this recipe over the runs of a study; None where there is none.
    """

    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    sampled: SampledRewards | None = None
    sampled_after: SampledRewards | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    num_parameters: int = 0
    commands: list[str] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    study: StudySummary | None = None
