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

from ..training.monitoring.summary import running_median
from .page_templates import page_template


@dataclass(frozen=True)
class Verdict:
    """One claim, the figure that decides it, and whether it holds."""

    claim: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Cell:
    """A table cell: its main text and a smaller second line."""

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
    """An image with a caption."""

    image: Image.Image
    caption: str


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

    def write(self, path: Path) -> None:
        """Render the page to `path`.

        Raises:
            ImportError: jinja2 or matplotlib is missing; the message names the extra.
        """
        html = page_template("report.html.j2", "the report").render(
            title=self.title,
            subtitle=self.subtitle,
            verdicts=self.verdicts,
            tables=self.tables,
            curves=base64_png(curves_png(self.curves)),
            gallery=[{"png": base64_png(png_bytes(p.image)), "caption": p.caption} for p in self.gallery],
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
    """Plot each stage's loss, or its reward where it has one, side by side, with legends."""
    matplotlib = import_optional("matplotlib.figure", "demo", "the report")
    figure = matplotlib.Figure(figsize=(4.2 * max(1, len(curves)), 3.2), layout="constrained")
    for index, (stage, lines) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), index + 1)
        key = "reward" if any("reward" in line for line in lines) else "loss"
        points = [(line["step"], line[key]) for line in lines if key in line]
        steps, values = [p[0] for p in points], [p[1] for p in points]
        middles = running_median(values)
        if middles is not None:
            axes.plot(steps, values, color="#9db4c8", linewidth=0.8, label="each step")
            axes.plot(steps, middles, color="#12507b", linewidth=1.8, label="running median")
        elif points:
            axes.plot(steps, values, color="#12507b", linewidth=1.8, label="each step")
        if points:
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(f"{stage}: {key}")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return figure


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def base64_png(data: bytes) -> str:
    """Return a file's content as a page holds it."""
    return base64.b64encode(data).decode("ascii")
