"""The model card of the checkpoint in the repository, written from the file of its held-out figures alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.markdown import table
from medmo_core.demo.checkpoint import DEMO_NAME, HELD_OUT, WEIGHTS
from medmo_core.notice import RESEARCH_ONLY
from medmo_recipes.evaluation.results import interval
from medmo_recipes.pages.quickstart_page import METRIC_NAMES

LIMITS = """\
- So small a model is often wrong and never says that it is unsure. It knows the structures and the phrasings of its few
  training images; about other images it makes up boxes and answers.
- Organ boxes are silver labels, predictions of TotalSegmentator which no reader has confirmed, or were drawn by laymen.
- Twenty of its training images are slices of lungs with a pasted lesion.
- The held-out figures describe very few scans, and the intervals speak of those scans only. Whole slices,
  which training hardly ever shows, have rows for themselves: a constant box per label is a strong answer there.
- Images are shown to it at 192 x 192 px; answers are in English.
- It is no start for a medical model. It exists so that the commands and the documentation have something to ask."""


ON_WHOLE_IMAGES = ("vqa_accuracy", "grounding_iou", "grounding_f1")
COUNTS = ("n", "num_images", "num_scans")


def card_of(values: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        values: content of held_out.json.
    """
    parts = (
        "---\nlicense: apache-2.0\ntags: [medical, toy, research-use-only]\n---",
        f"# {DEMO_NAME}",
        f"**A toy. {RESEARCH_ONLY}**",
        summary(values),
        "## Held-out figures",
        "In brackets: 95 % intervals over images. Questions are asked under fixed random crops, but where whole images "
        "are named. Baselines, fitted on training data: the commonest answer per kind of question, the best constant "
        "box per label, chance. `medmo evaluate --device cpu` repeats these figures; all of them, and their "
        f"provenance, are in `{HELD_OUT}`.",
        figures_table(values["metrics"]),
        rounding_line(values["rounding"], values["dtype"]),
        f"Measured on {machine_line(values['machine'])}, torch {values['provenance']['torch']}.",
        "## Training",
        f"    {values['command']}",
        training_line(values["stages"]),
        "## Data",
        data_table(values["data"]),
        "Images, boxes and texts are those of the embedded set, `medmo_core/datasets/embedded/files/`; authors and "
        "terms stand in NOTICE. A volume is in one split only.",
        "## Limits",
        LIMITS,
        "## Licence",
        "Apache-2.0, as the toolkit.",
    )
    return "\n\n".join(parts) + "\n"


def summary(values: Mapping[str, Any]) -> str:
    """Say what the checkpoint is, what it weighs and what it was trained on."""
    return (
        f"A model of the Qwen3-VL architecture with {values['num_parameters']:,} parameters, trained on "
        f"{values['num_training_images']} images; {values['num_bytes'] / 1e6:.2f} MB, safetensors of {values['dtype']} "
        f"in `{WEIGHTS}/`. `medmo generate` and `medmo evaluate` use it where no `--checkpoint` is named; in Python it "
        f'is `load("{DEMO_NAME}")`.'
    )


def figures_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Tabulate the held-out figures beside their baselines."""
    whole = {f"{metric}_full": f"{METRIC_NAMES[metric]}, whole images" for metric in ON_WHOLE_IMAGES}
    named = {**METRIC_NAMES, **whole}
    return table(
        ["metric", "value", "baseline", "answers", "images", "scans"],
        [
            [name, score_cell(score), number(score["baseline"]), *(str(score[count]) for count in COUNTS)]
            for metric, name in named.items()
            if (score := metrics.get(metric)) is not None
        ],
    )


def score_cell(score: Mapping[str, Any]) -> str:
    """Write a figure with its interval."""
    return f"{number(score['value'])} {interval(score['low'], score['high'])}".rstrip()


def number(value: float | None) -> str:
    """Write a figure; nothing where there is none."""
    return "" if value is None else f"{value:.3f}"


def rounding_line(found: Mapping[str, Any], dtype: str) -> str:
    """Say what storing the weights in fewer bits changed."""
    changes = [
        f"{METRIC_NAMES[metric]} by {change['difference']:+.3f} {interval(change['low'], change['high'], '+.3f')}"
        for metric, change in found["changes"].items()
    ]
    return (
        f"The figures are those of the weights as stored. Rounding them from float32 to {dtype} left "
        f"{found['same_answers']:.1%} of the answers as they were and changed {', '.join(changes)}."
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """Name processor and commit."""
    changed = " with changed files" if machine["changed"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit']}{changed}"


def training_line(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what each stage did."""
    done = [
        f"{name}: {stage['steps']:,} steps of {stage['samples_per_step']} samples, seed {stage['seed']}"
        for name, stage in stages.items()
    ]
    return f"{'; '.join(done)}. All weights were random before; all of them train in every stage."


def data_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the sources of the images."""
    return table(
        ["package", "file", "licence", "images trained on", "images held out"],
        [
            [
                row["package"],
                f"`{row['file']}`",
                ", ".join(row["licences"]),
                str(row["num_training_images"]),
                str(row["num_held_out_images"]),
            ]
            for row in rows
        ],
    )
