"""Organ boxes of the TotalSegmentator volumes that are labelled whole: CT, contrast-enhanced CT and MR."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np

from .tables import Table, Writer, connected_parts, mask_structures
from .volumes import (
    Archive,
    Volume,
    halve,
    halve_labels,
    percentile_window,
    read_dicom_series,
    read_nifti,
    window,
)

BODY_HU = -300
REFERENCE = "tests/reference_files/"
# Not boxes worth asking for by name: many thin parts, or hard to distinguish one from the next.
LEFT_OUT = re.compile(r"rib_|costal_cartilages|iliac_|intervertebral_discs")
COUNTED = re.compile(r"vertebrae_|rib_")
MERGED = (
    (re.compile(r"vertebrae(_\w+)?"), "vertebra"),
    (re.compile(r"lung_(?:\w+_lobe_)?(left|right)"), "{0} lung"),
    (re.compile(r"gluteus_\w+_(left|right)"), "{0} gluteal muscle"),
    (re.compile(r"autochthon_(left|right)"), "{0} back muscle"),
    (re.compile(r"iliopsoas_(left|right)"), "{0} psoas muscle"),
    (re.compile(r"hip_(left|right)"), "{0} hip bone"),
    (re.compile(r"portal_vein_and_splenic_vein"), "portal vein"),
    (re.compile(r"(\w+?)_(left|right)"), "{1} {0}"),
)
# SNOMED CT name in TotalSegmentator's table where ours covers several of its classes.
CODED_AS = {"vertebra": "vertebrae_L1", "back muscle": "autochthon_left", "hip bone": "hip_left"}


def human_name(label: str) -> str:
    """Return the words of a TotalSegmentator class: `kidney_left` -> `left kidney`."""
    for pattern, words in MERGED:
        match = pattern.fullmatch(label)
        if match:
            return words.format(*match.groups()).replace("_", " ")
    return label.replace("_", " ")


def merged_labels(volume: Volume) -> tuple[np.ndarray, dict[int, str]]:
    """Return the label map with merged classes, and our value -> name; values follow the sorted names."""
    ours = {value: human_name(name) for value, name in volume.names.items() if not LEFT_OUT.match(name)}
    present = sorted({ours[int(v)] for v in np.unique(volume.array) if int(v) in ours})
    values = {name: index + 1 for index, name in enumerate(present)}
    merged = np.zeros(volume.array.shape, np.uint8)
    for value, name in ours.items():
        if name in values:
            merged[volume.array == value] = values[name]
    return merged, {index: name for name, index in values.items()}


def vocabulary(volume: Volume) -> list[str]:
    """Return every structure name the labelling model looks for."""
    return sorted({human_name(name) for name in volume.names.values() if not LEFT_OUT.match(name)})


def snomed_codes(archive: Archive) -> dict[str, str]:
    """Return our name -> SNOMED CT code (the side is said by the name)."""
    text = archive.read("totalsegmentator/resources/totalsegmentator_snomed_mapping.csv").decode()
    key = "SegmentedPropertyTypeCodeSequence.CodeValue"
    rows = {row["Structure"]: row[key] for row in csv.DictReader(io.StringIO(text)) if row[key]}
    lungs = ("left lung", "right lung")  # the table codes their lobes only
    codes = {human_name(name): code for name, code in rows.items() if human_name(name) not in lungs}
    for ours, theirs in CODED_AS.items():
        for prefix in ("", "left ", "right "):
            codes[prefix + ours] = rows[theirs]
    codes["vertebra"] = "51282000"  # vertebra, whichever
    return {name: f"SCT:{code}" for name, code in codes.items()}


def add_organs(
    writer: Writer,
    image: np.ndarray,
    labels: Volume,
    base: Table,
    codes: dict[str, str],
    *,
    factor: int = 1,
) -> None:
    """Add every slice of a labelled volume. `image` is uint8 (x, y, z); `factor` 2 halves the slices."""
    merged, names = merged_labels(labels)
    sx, sy, sz = labels.spacing_mm
    millilitres = {n: round(float((merged == v).sum()) * sx * sy * sz / 1000, 1) for v, n in names.items()}
    base.labelled = base.labelled or vocabulary(labels)
    base.spacing_mm = (round(sx * factor, 4), round(sy * factor, 4))
    for z in range(image.shape[2]):
        pixels, mask = image[:, :, z].T, merged[:, :, z].T
        if factor == 2:
            pixels, mask = halve(pixels), halve_labels(mask)
        structures, traces = mask_structures(mask, names, base.spacing_mm)
        structures = [replace(s, volume_ml=millilitres[s.name], code=codes.get(s.name)) for s in structures]
        table = replace(base, id=f"{base.source}-{z:03d}", slice_index=z, structures=structures, traces=traces)
        writer.add(table, np.ascontiguousarray(pixels), mask)


def add_counted(writer: Writer, labels: Volume, base: Table, *, factor: int = 1) -> None:
    """Add the vertebrae and ribs of every slice one by one, for questions that count them; `factor` as in `add_organs`.

    A slice that shows the sacrum is not asked for vertebrae it lacks: the sacrum is grown together of vertebrae.
    """
    values = {v: name for v, name in labels.names.items() if COUNTED.match(name) and (labels.array == v).any()}
    names = {i + 1: "rib" if values[v].startswith("rib") else "vertebra" for i, v in enumerate(sorted(values))}
    single = np.zeros(labels.array.shape, np.uint8)
    for number, value in enumerate(sorted(values), start=1):
        single[labels.array == value] = number
    sacrum = np.isin(labels.array, [v for v, name in labels.names.items() if name == "sacrum"])
    for z in range(labels.array.shape[2]):
        mask = single[:, :, z].T
        if factor == 2:
            mask = halve_labels(mask)
        structures, _ = mask_structures(mask, names, base.spacing_mm or (1, 1), min_area_px=1)
        is_told = not sacrum[:, :, z].any() or any(s.name == "vertebra" for s in structures)
        labelled = ["rib", "vertebra"] if is_told else ["rib"]
        table = replace(base, id=f"{base.source}-{z:03d}", slice_index=z, structures=structures, labelled=labelled)
        writer.count(table, mask)


def add_totalsegmentator(writer: Writer, archive: Archive) -> None:
    """Add the abdominal CT (train), the contrast-enhanced DICOM series (held out) and the abdominal MR (train)."""
    codes = snomed_codes(archive)
    abdomen: dict[str, Any] = {"region": "abdomen", "package": "totalsegmentator", "plane": "axial"}

    image = read_nifti(archive.read(REFERENCE + "example_ct.nii.gz"))
    labels = read_nifti(archive.read(REFERENCE + "example_seg_fast_force_split.nii.gz"))
    phase = json.loads(archive.read(REFERENCE + "phase_prediction.json"))["phase"]
    assert phase == "native", phase
    base = Table("", "ct-abdomen", "train", "totalsegmentator/example_ct", "CT", **abdomen)
    base.contrast, base.window = "none", (40, 400)
    add_organs(writer, window(image.array, 40, 400), labels, base, codes)
    add_counted(writer, labels, base)

    folder = REFERENCE + "example_ct_dicom/CT."
    files = [archive.read(name) for name in archive.names() if name.startswith(folder)]
    image, labels = read_dicom_series(files, archive.read(REFERENCE + "example_seg_dicom.nii.gz"))
    body = body_area(image.array)
    image, labels = replace(image, array=image.array[body]), replace(labels, array=labels.array[body])
    base = Table("", "ct-contrast", "test", "totalsegmentator/example_ct_dicom", "CT", **abdomen)
    base.contrast, base.window = "given", (40, 400)
    add_organs(writer, window(image.array, 40, 400), labels, base, codes, factor=2)
    add_counted(writer, labels, base, factor=2)

    image = read_nifti(archive.read(REFERENCE + "example_mr_sm.nii.gz"))
    labels = read_nifti(archive.read(REFERENCE + "example_seg_mr.nii.gz"))
    base = Table("", "mr-abdomen", "train", "totalsegmentator/example_mr_sm", "MR", **abdomen)
    add_organs(writer, percentile_window(image.array), labels, base, codes)


def body_area(hounsfield: np.ndarray, margin: int = 16) -> tuple[slice, slice]:
    """Return the x and y range, of even sizes, that the body takes up in any slice: without the air and the table."""
    parts = connected_parts(hounsfield > BODY_HU)
    body = np.asarray((parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))).any(2))
    ranges = []
    for axis in (0, 1):
        taken = np.nonzero(body.any(1 - axis))[0]
        start, stop = max(int(taken[0]) - margin, 0), min(int(taken[-1]) + 1 + margin, body.shape[axis])
        ranges.append(slice(start, stop - (stop - start) % 2))
    return ranges[0], ranges[1]
