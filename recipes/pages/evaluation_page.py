"""Page of an evaluation: scores with their intervals, pictures with boxes, every answer, and what was asked of whom."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medmo_core.boxes import Boxes
from medmo_core.data.images.load import load_image
from medmo_core.data.images.overlay import overlay_boxes
from medmo_core.data.records.sample import Sample
from medmo_core.durable import write_text
from medmo_core.metrics.intervals import MIN_GROUPS

from ..evaluation.results import FILES, Evaluation, counted, interval
from ..evaluation.scores import Prediction, Score
from .page_templates import page_template
from .report import Cell, Picture, Table, base64_png, png_bytes

MAX_PICTURES = 12
MAX_ROWS = 500  # answers of one set on the page; all are in predictions.jsonl
MAX_TEXT = 300  # characters of a question or an answer
GALLERY_NOTE = "Solid green: true box. Dashed orange: predicted box. The first question of every label, not the best."


def write_page(folder: Path, result: Evaluation, provenance: Mapping[str, Any]) -> None:
    """Write the page into a folder.

    Args:
        folder: folder of the evaluation's other files.
        result: scores, answers and the samples that they are about.
        provenance: what was scored and by what.

    Raises:
        ImportError: jinja2 is missing; names the extra.
    """
    html = page_template("evaluation.html.j2", "the evaluation's page").render(
        title=f"Evaluation of {provenance['checkpoint']}",
        subtitle=f"{provenance['data']}, split {provenance['split']}",
        metrics=metric_table(result),
        gallery=[
            {"png": base64_png(png_bytes(p.image)), "caption": f"{p.question} {p.caption}"} for p in pictures(result)
        ],
        gallery_note=GALLERY_NOTE,
        answers=[answer_table(key, result.predictions[key]) for key in result.predictions],
        provenance=list(_flat(provenance)),
    )
    write_text(folder / FILES[2], html)


def metric_table(result: Evaluation) -> Table:
    """Tabulate every metric with its interval, the groups that the interval is over, and its baseline."""
    rows = [
        [
            Cell(name),
            Cell(f"{score.value:.3f}", interval(score.low, score.high)),
            Cell(_groups(score)),
            Cell("" if score.baseline is None else f"{score.baseline:.3f}"),
            Cell("" if score.gain is None else f"{score.gain:+.3f}", interval(score.gain_low, score.gain_high, "+.3f")),
        ]
        for name, score in result.metrics.items()
    ]
    note = (
        "In brackets: 95 % intervals over images, whose questions go together. They speak of these scans only, however "
        f"many images there are. No interval: fewer than {MIN_GROUPS} images, too few for one, or a median rank."
    )
    return Table("Scores", note, ["metric", "value", "over", "baseline", "gain over it, paired"], rows)


def _groups(score: Score) -> str:
    images, scans = counted(score.num_images, "image"), counted(score.num_scans, "scan")
    return f"{images} of {scans}, {counted(score.n, 'answer')}"


def answer_table(key: str, predictions: list[Prediction]) -> Table:
    """Tabulate what was asked, said and true, with the scores of the answer and of the baseline's."""
    metrics = list(dict.fromkeys(metric for p in predictions for metric in p.scores))
    rows = [
        [
            Cell(_cut(p.sample_id)),
            *(Cell(_cut(text)) for text in (p.question, p.text, p.truth)),
            *(Cell(_number(p.scores, metric), _number(p.baseline, metric)) for metric in metrics),
        ]
        for p in predictions[:MAX_ROWS]
    ]
    left_out = len(predictions) - len(rows)
    note = "Below each score: the baseline's." + (f" {left_out} more in predictions.jsonl." if left_out else "")
    title = f"{key}: {counted(len(predictions), 'answer')}"
    return Table(title, note, ["sample", "question", "answer", "truth", *metrics], rows)


def _number(values: Mapping[str, float], metric: str) -> str:
    return f"{values[metric]:.3f}" if metric in values else ""


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ... ({len(text) - MAX_TEXT} characters more)"


def pictures(result: Evaluation, limit: int = MAX_PICTURES) -> list[Picture]:
    """Draw predicted and true boxes: of one-image grounding questions the first of every label, then any others."""
    first: list[Picture] = []
    pairs = zip(result.samples.get("grounding", ()), result.predictions.get("grounding", ()), strict=True)
    single = [(sample, said) for sample, said in pairs if len(sample.images) == 1]
    labels = [sample.boxes[0].label if sample.boxes else "" for sample, _ in single]
    order = sorted(range(len(single)), key=lambda i: labels.index(labels[i]) != i)  # stable: first ones first
    for index in order[:limit]:
        first.append(picture(*single[index]))
    return first


def picture(sample: Sample, prediction: Prediction) -> Picture:
    """Draw the true and the predicted boxes of a question about one image."""
    ref = sample.images[0]
    pixels = load_image(
        ref.path, root=sample.root, frame=ref.frame, slice_index=ref.slice_index, plane=ref.plane, window=ref.window,
        crop=ref.crop,
    ).pixels  # fmt: skip
    size = (pixels.shape[1], pixels.shape[0])
    where = sample.truth_boxes()
    if not isinstance(where, Boxes):
        raise ValueError(f"{sample.id}: a picture shows the boxes of one image, and the sample has another number")
    said = torch.tensor(prediction.boxes_px, dtype=torch.float64).reshape(-1, 4)
    predicted = Boxes(said, "pixel", where.size, tuple(prediction.box_labels)).resize(size)
    scored = prediction.scores.get("grounding_iou")
    verdict = "nothing is there" if scored is None else f"IoU {scored:.2f}"
    drawn = overlay_boxes(pixels, predicted, where.resize(size))
    return Picture(drawn, verdict, question=_cut(prediction.question), answer=_cut(prediction.text))


def _flat(provenance: Mapping[str, Any]) -> list[str]:
    """Return provenance as lines; nested values beside their name."""
    lines = []
    for name, value in provenance.items():
        nested = value.items() if isinstance(value, Mapping) else [("", value)]
        lines += [f"{name} {key}: {shown}".replace(" :", ":") for key, shown in nested if shown is not None]
    return lines
