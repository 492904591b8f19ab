"""Page `report.html`: verdicts, tables, curves and pictures in one self-contained file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from medmo_core.durable import write_text
from medmo_core.optional import import_optional

from ..training.monitoring.smoothing import running_median
from .page_templates import page_template


@dataclass(frozen=True)
class Verdict:
    """One claim, the figure that decides it, and whether it holds."""

    claim: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Cell:
    """A table cell: its main text and, smaller below it, further lines."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; every row has as many cells as the header."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """An image with what it shows.

    Attributes:
        image: picture, boxes drawn.
        caption: line below it.
        group: why it was chosen; empty where that goes without saying.
        question: what was asked; empty where the caption says it.
        answer: what was said, word for word.
    """

    image: Image.Image
    caption: str
    group: str = ""
    question: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Report:
    """Contents of the page, in the order of the page."""

    title: str
    subtitle: str
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    """Stage -> its metric lines in order; keys `step`, `loss` and, where the stage has one, `reward`."""
    gallery: Sequence[Picture]
    gallery_note: str
    provenance: Sequence[str] = field(default_factory=tuple)
    commands: Sequence[str] = field(default_factory=tuple)
    """Command lines that repeat the run."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Text -> page beside this one, relative to its folder."""
    repeated: Mapping[str, str] = field(default_factory=dict)
    """Claim of a verdict -> how often it held in repeated runs; empty or absent where nobody knows."""

    def write(self, path: Path) -> None:
        """Render the page to `path`.

        Raises:
            ImportError: jinja2 or matplotlib is missing; the message names the extra.
        """
        html = page_template("report.html.j2", "the report").render(
            title=self.title,
            subtitle=self.subtitle,
            verdicts=self.verdicts,
            repeated=self.repeated,
            tables=self.tables,
            curves=base64_png(curves_png(self.curves)),
            gallery=[
                {"png": base64_png(png_bytes(p.image)), "caption": p.caption, "group": p.group,
                 "question": p.question, "answer": p.answer}
                for p in self.gallery
            ],
            commands=self.commands,
            links=self.links,
            gallery_note=self.gallery_note,
            provenance=self.provenance,
        )
        write_text(path, html)


def curves_png(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Plot curves (`curves_figure`); return PNG bytes."""
    buffer = io.BytesIO()
    curves_figure(curves).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def curves_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Plot the losses of the stages one after the other, with borders, and beside them the rewards where there are any.

    A stage with rewards has no loss that says anything: it is in the second plot alone.
    """
    matplotlib = import_optional("matplotlib.figure", "demo", "the report")
    kinds: dict[str, list[str]] = {}
    for stage, lines in curves.items():
        kinds.setdefault("reward" if any("reward" in line for line in lines) else "loss", []).append(stage)
    figure = matplotlib.Figure(figsize=(4.2 * max(2, len(kinds)), 3.2), layout="constrained")
    for index, (key, stages) in enumerate(kinds.items()):
        axes = figure.add_subplot(1, len(kinds), index + 1)
        _plot_stages(axes, key, {stage: curves[stage] for stage in stages})
    return figure


def _plot_stages(axes: Any, key: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plot one figure of some stages over the steps of all of them, with a border and a name where each begins."""
    begin = 0
    for stage, lines in curves.items():
        points = [(begin + line["step"], line[key]) for line in lines if key in line]
        steps, values = [p[0] for p in points], [p[1] for p in points]
        middles = running_median(values)
        first = begin == 0  # one line in the legend for all stages
        if middles is not None:
            axes.plot(steps, values, color="#9db4c8", linewidth=0.8, label="each step" if first else None)
            axes.plot(steps, middles, color="#12507b", linewidth=1.8, label="running median" if first else None)
        elif points:
            axes.plot(steps, values, color="#12507b", linewidth=1.8, label="each step" if first else None)
        if begin:
            axes.axvline(begin, color="#5d6b78", linewidth=0.9, linestyle="--")
        axes.text(begin, 1.0, f" {stage}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
        begin += max((line["step"] for line in lines), default=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower right" if key == "reward" else "upper right")
    axes.set_title(key)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def base64_png(data: bytes) -> str:
    """Return a file's content as a page holds it."""
    return base64.b64encode(data).decode("ascii")
