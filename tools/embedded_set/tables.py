"""The facts table of one image, and the writer of the embedded set."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy import ndimage

from medmo_core.datasets.embedded.facts import MIN_AREA_PX, Structure

CORNERS_TOUCH = np.ones((3, 3))
"""Neighbours of a pixel for `connected_parts`: those that share an edge or a corner."""
SIDES = {"liver": "right", "gallbladder": "right", "spleen": "left", "stomach": "left"}
SDIST = "pip download --no-deps --no-binary :all: "
WHEEL = "pip download --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 "
SOURCES: dict[str, dict[str, str]] = {
    "totalsegmentator": {
        "file": "totalsegmentator-2.18.0.tar.gz",
        "sha256": "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
        "licence": "Apache-2.0",
        "fetch": SDIST + "totalsegmentator==2.18.0",
    },
    "pyradiomics": {
        "file": "pyradiomics-3.0.1.tar.gz",
        "sha256": "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        "licence": "BSD-3-Clause",
        "fetch": SDIST + "--no-build-isolation pyradiomics==3.0.1",
    },
    "stardist": {
        "file": "stardist-0.9.2-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "sha256": "2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
        "licence": "BSD-3-Clause",
        "fetch": WHEEL + "stardist==0.9.2",
    },
    "scikit-image": {
        "file": "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "sha256": "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        "licence": "CC0-1.0",
        "fetch": WHEEL + "scikit-image==0.26.0",
    },
    "pydicom": {
        "file": "pydicom-3.0.2-py3-none-any.whl",
        "sha256": "abf971a5440f84dbaf42c4b6758e30e62480902584f8b270b9a5d146e278a07b",
        "licence": "MIT",
        "fetch": WHEEL + "pydicom==3.0.2",
    },
}


@dataclass
class Table:
    """The facts table of one image.

    `labelled` names what would have been annotated had it been there; `traces` what is there but smaller than 16 px:
    neither a box nor absent.
    """

    id: str
    source: str
    split: str
    group: str
    modality: str
    region: str
    package: str
    plane: str | None = None
    contrast: str | None = None
    window: tuple[float, float] | None = None
    slice_index: int | None = None
    spacing_mm: tuple[float, float] | None = None
    licence: str | None = None  # None: the package's
    labelled: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    structures: list[Structure] = field(default_factory=list)


def side_of(name: str) -> str | None:
    """Return the patient's side a structure lies on by its name or its anatomy."""
    first = name.split()[0]
    return first if first in ("left", "right") else SIDES.get(name)


def connected_parts(mask: np.ndarray, neighbours: np.ndarray | None = None) -> np.ndarray:
    """Return the connected parts of a mask, numbered from 1.

    Args:
        mask: area to divide, of any number of axes.
        neighbours: elements that count as neighbours of the middle one; None: those that share a face.
    """
    return cast(tuple[np.ndarray, int], ndimage.label(mask, neighbours))[0]


def mask_structures(
    labels: np.ndarray, names: dict[int, str], spacing: tuple[float, float], min_area_px: int = MIN_AREA_PX
) -> tuple[list[Structure], list[str]]:
    """Return the structures of a label slice (H, W) with at least `min_area_px`, and the names of smaller ones."""
    found, traces = [], []
    for value, name in names.items():
        mask = labels == value
        if mask.sum() < min_area_px:
            if mask.any():
                traces.append(name)
            continue
        rows, columns = np.nonzero(mask)
        parts = connected_parts(mask, CORNERS_TOUCH)
        sizes = np.bincount(parts.ravel())[1:]
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        area_mm2 = round(float(mask.sum()) * spacing[0] * spacing[1], 1)
        num_parts = int((sizes >= 0.1 * sizes.max()).sum())
        side = side_of(name)
        found.append(Structure(name, box, "silver", side, area_mm2, mask_value=value, parts=num_parts))
    return found, traces


class Writer:
    """Writer of images, masks and tables."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.tables: list[dict[str, Any]] = []
        self.counted: list[dict[str, Any]] = []
        if out.exists():
            shutil.rmtree(out)
        (out / "images").mkdir(parents=True)
        (out / "masks").mkdir()
        (out / "counted").mkdir()

    def add(self, table: Table, pixels: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Write one image; values of the mask that no structure uses are cleared."""
        path = f"images/{table.id}.png"
        Image.fromarray(pixels).save(self.out / path, optimize=True)
        self.tables.append(self._record(table, path, pixels.shape[:2], "masks", mask))

    def count(self, table: Table, mask: np.ndarray) -> None:
        """Write a second table of an image that was added: structures of one name, each with another value."""
        path = f"images/{table.id}.png"
        assert any(record["path"] == path for record in self.tables), path
        self.counted.append(self._record(table, path, mask.shape, "counted", mask))

    def _record(
        self, table: Table, path: str, shape: tuple[int, ...], folder: str, mask: np.ndarray | None
    ) -> dict[str, Any]:
        """Write the mask into a folder of the set and return the row of a table; `shape` is (H, W) of the image."""
        height, width = shape
        record: dict[str, Any] = {"id": table.id, "path": path, "mask": None}
        if mask is not None:
            used = [s.mask_value for s in table.structures if s.mask_value is not None]
            kept = np.where(np.isin(mask, used), mask, 0).astype(np.uint8)
            record["mask"] = f"{folder}/{table.id}.png"
            Image.fromarray(kept).save(self.out / record["mask"], optimize=True)
        record |= {"width": width, "height": height}
        record |= {k: v for k, v in vars(table).items() if k not in ("id", "structures")}
        record["licence"] = table.licence or SOURCES[table.package]["licence"]
        record["structures"] = [
            {k: v for k, v in vars(s).items() if v is not None} for s in sorted(table.structures, key=lambda s: s.name)
        ]
        for structure in table.structures:
            x1, y1, x2, y2 = structure.xyxy_px
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height, (table.id, structure)
        return record

    def finish(self) -> int:
        """Write both files of tables and the manifest; return the bytes of the whole set."""
        seen = {s["name"] for t in self.tables for s in t["structures"]}
        for table in self.tables:  # names that no image shows are of no use to anyone
            table["labelled"] = [name for name in table["labelled"] if name in seen]
        for name, tables in (("facts", self.tables), ("counted", self.counted)):
            lines = [json.dumps(t, ensure_ascii=False) for t in sorted(tables, key=lambda t: t["id"])]
            (self.out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files = sorted(p for p in self.out.rglob("*") if p.is_file())
        digests = {p.relative_to(self.out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        manifest = {"sources": SOURCES, "files": digests}
        (self.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return sum(p.stat().st_size for p in self.out.rglob("*") if p.is_file())
