"""The making of the embedded set: boxes of masks, names, lesions, orders of axes, pinned archives, whole tables."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medmo_core.datasets.embedded.facts import Structure
from tools.embedded_set.organs import human_name
from tools.embedded_set.pictures import lesion_structures
from tools.embedded_set.tables import SOURCES, Table, Writer, mask_structures, side_of
from tools.embedded_set.volumes import Archive, to_lps

COMMITTED = Path(__file__).resolve().parents[3] / "medmo_core/datasets/embedded/files"


def test_boxes_are_half_open_and_small_parts_are_traces() -> None:
    labels = np.zeros((40, 30), np.uint8)
    labels[5:15, 10:20] = 1
    labels[30:35, 0:5] = 1  # a second part, a quarter of the first
    labels[0:3, 0:3] = 2  # 9 px are too few
    found, traces = mask_structures(labels, {1: "left kidney", 2: "spleen", 3: "liver"}, (0.5, 2.0))
    assert [(s.name, s.xyxy_px, s.side, s.area_mm2, s.parts) for s in found] == [
        ("left kidney", (0, 5, 20, 35), "left", 125.0, 2)
    ]
    assert traces == ["spleen"]


def test_a_lesion_is_as_long_as_its_outer_corners_are_apart() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[4:8, 2:14] = 1
    (lesion,) = lesion_structures(mask, None, (0.5, 2.0), "brain")
    assert lesion.xyxy_px == (2, 4, 14, 8) and lesion.area_mm2 == 48.0
    assert lesion.diameter_mm == 10.0  # 12 columns of 0.5 mm by 4 rows of 2 mm


@pytest.mark.parametrize(
    ("label", "words", "side"),
    [
        ("kidney_left", "left kidney", "left"),
        ("vertebrae_T12", "vertebra", None),
        ("lung_upper_lobe_right", "right lung", "right"),
        ("portal_vein_and_splenic_vein", "portal vein", None),
        ("liver", "liver", "right"),
    ],
)
def test_names_are_those_of_people(label: str, words: str, side: str | None) -> None:
    assert human_name(label) == words and side_of(words) == side


def test_the_first_axis_runs_to_the_patients_left() -> None:
    """An array in RAS order, x to the right, of voxels of 1 x 2 x 3 mm."""
    array = np.arange(24).reshape(2, 3, 4)
    turned, spacing = to_lps(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    assert np.array_equal(turned, array[::-1, ::-1]) and spacing == (1.0, 2.0, 3.0)
    codes = nib.orientations.axcodes2ornt(("S", "L", "A"))
    swapped = nib.orientations.apply_orientation(turned, nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(("L", "P", "S")), codes))  # fmt: skip
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3.0, -1.0, 2.0, 1.0
    again, spacing = to_lps(swapped, affine)
    assert np.array_equal(again, turned) and spacing == (1.0, 2.0, 3.0)


def test_an_archive_is_the_pinned_one(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("b/c.txt", "here")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = Archive(path, digest, "pip download a")
    assert archive.names() == ["b/c.txt"] and archive.read("b/c.txt") == b"here"
    for other, sha256 in ((path, "0" * 64), (tmp_path / "b.whl", digest)):
        with pytest.raises(SystemExit, match="pip download a"):
            Archive(other, sha256, "pip download a")


def test_what_is_written_is_listed_with_its_digest(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "set")
    mask = np.zeros((20, 30), np.uint8)
    mask[2:12, 3:13], mask[0, 0] = 1, 7  # no structure uses 7
    table = Table("ct", "a case", "train", "g", "CT", "abdomen", next(iter(SOURCES)))
    table.structures.append(Structure("liver", (3, 2, 13, 12), "silver", "right", mask_value=1))
    table.labelled += ["liver", "spleen"]
    writer.add(table, np.full((20, 30, 3), 9, np.uint8), mask)
    size = writer.finish()
    (record,) = [json.loads(line) for line in (tmp_path / "set/facts.jsonl").read_text().splitlines()]
    assert (record["width"], record["height"], record["labelled"]) == (30, 20, ["liver"])
    assert record["structures"][0]["xyxy_px"] == [3, 2, 13, 12]
    kept = np.asarray(Image.open(io.BytesIO((tmp_path / "set/masks/ct.png").read_bytes())))
    assert set(np.unique(kept)) == {0, 1}
    listed = json.loads((tmp_path / "set/manifest.json").read_text())["files"]
    assert set(listed) == {"images/ct.png", "masks/ct.png", "facts.jsonl", "counted.jsonl"}
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest() == digest
    assert size == sum(p.stat().st_size for p in (tmp_path / "set").rglob("*") if p.is_file())


def test_the_committed_set_comes_from_these_sources() -> None:
    assert json.loads((COMMITTED / "manifest.json").read_text())["sources"] == SOURCES
