"""Lesions of the pyradiomics cases, the outlined liver lesion, nuclei, and single pictures with curated boxes."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pydicom
import tifffile
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import pdist

from medmo_core.datasets.embedded.facts import MIN_AREA_PX, Structure

from .pasted import add_pasted
from .tables import CORNERS_TOUCH, Table, Writer, connected_parts
from .volumes import Archive, halve, halve_labels, percentile_window, read_nrrd, window

# case -> split, modality, region, contrast, patient's side (None: unknown), lesion-free slices to add
LESIONS: dict[str, tuple[str, str, str, str | None, str | None, int]] = {
    "brain1": ("train", "MR", "brain", "given", "left", 4),
    "brain2": ("test", "MR", "brain", "given", "left", 3),
    "breast1": ("train", "MR", "breast", None, None, 3),
    "lung1": ("train", "CT", "chest", None, "right", 4),
    "lung2": ("test", "CT", "chest", None, "left", 4),
}
PASTED = {"lung1": 20}
"""Case -> pictures with its lesion pasted elsewhere."""
SITES = {"brain": "brain", "breast": "breast", "chest": "lung"}
FREE_GAP = 3  # slices between a lesion-free slice and the lesion
TILE = 128  # width of a tile of nuclei, and its height in the part that trains
TRAINING_HEIGHT, NUCLEI_MARGIN, HELD_OUT_TILE = 256, 40, 108  # rows of the image of nuclei, from the top
FLUORESCENCE, FUNDUS = "fluorescence microscopy", "fundus photograph"


def lesion_structures(mask: np.ndarray, side: str | None, spacing: tuple[float, float], site: str) -> list[Structure]:
    """Return one structure per connected lesion of a slice (H, W), with its largest in-plane diameter."""
    parts = connected_parts(mask, CORNERS_TOUCH)
    found = []
    for value in range(1, int(parts.max()) + 1):
        rows, columns = np.nonzero(parts == value)
        if len(rows) < MIN_AREA_PX:
            continue
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        # Corners of the pixels, so that a single pixel has a diameter.
        corners = np.concatenate([np.stack([columns + dx, rows + dy], 1) for dx in (0, 1) for dy in (0, 1)])
        diameter = float(pdist(np.unique(corners, axis=0) * np.array(spacing)).max())
        found.append(
            Structure(
                f"{site} lesion",
                box,
                "expert",
                side,
                area_mm2=round(len(rows) * spacing[0] * spacing[1], 1),
                diameter_mm=round(diameter, 1),
                mask_value=value,
            )
        )
    return found


def free_slices(has_lesion: np.ndarray, number: int) -> list[int]:
    """Return slices well away from the lesion, spread evenly over the middle four fifths of the volume."""
    near = np.asarray(ndimage.binary_dilation(has_lesion, iterations=FREE_GAP))
    depth = len(has_lesion)
    candidates = [z for z in range(depth // 10, depth - depth // 10) if not near[z]]
    picks = np.linspace(0, len(candidates) - 1, number + 2)[1:-1]
    return [candidates[round(float(p))] for p in picks]


def slice_of(pixels: np.ndarray, lesion: np.ndarray, z: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice (H, W) of a volume (x, y, z) and its lesion mask; `factor` 2 halves both."""
    plane, mask = pixels[:, :, z].T, lesion[:, :, z].T.astype(np.int32)
    return (halve(plane), halve_labels(mask)) if factor == 2 else (plane, mask)


def add_lesions(writer: Writer, archive: Archive) -> None:
    """Add the slices with a lesion and some without; the chest slices at half size."""
    for case, (split, modality, region, contrast, side, free) in LESIONS.items():
        image = read_nrrd(archive.read(f"data/{case}_image.nrrd"))
        lesion = read_nrrd(archive.read(f"data/{case}_label.nrrd")).array > 0
        assert image.array.shape == lesion.shape, case
        is_ct = modality == "CT"
        pixels = window(image.array, -600, 1500) if is_ct else percentile_window(image.array)
        has_lesion = np.asarray(lesion.any((0, 1)))
        x, y, z_mm = image.spacing_mm
        millilitres = round(float(lesion.sum()) * x * y * z_mm / 1000, 2)
        factor = 2 if is_ct else 1
        spacing = (round(x * factor, 4), round(y * factor, 4))
        site = SITES[region]
        base = Table("", "lesion", split, f"pyradiomics/{case}", modality, region, "pyradiomics", "axial", contrast)
        base.spacing_mm, base.labelled = spacing, [f"{site} lesion"]
        base.window = (-600, 1500) if is_ct else None
        planes = [slice_of(pixels, lesion, z, factor) for z in range(lesion.shape[2])]
        for z in sorted([*np.nonzero(has_lesion)[0].tolist(), *free_slices(has_lesion, free)]):
            plane, mask = planes[z]
            structures = lesion_structures(mask, side, spacing, site)
            if has_lesion[z] and not structures:
                continue  # a rim of the lesion below the smallest box: neither a lesion nor lesion-free
            structures = [replace(structure, volume_ml=millilitres) for structure in structures]
            parts = connected_parts(mask, CORNERS_TOUCH)
            table = replace(base, id=f"lesion-{case}-{z:03d}", slice_index=z, structures=structures)
            writer.add(table, np.ascontiguousarray(plane), parts)
        if case in PASTED:
            donors = [planes[z] for z in np.nonzero(has_lesion)[0].tolist()]
            hosts = [planes[z][0] for z in free_slices(has_lesion, 2 * PASTED[case])]
            describe = partial(lesion_structures, spacing=spacing, site=site)
            add_pasted(writer, replace(base, source="lesion-pasted"), donors, hosts, describe, PASTED[case])


def add_overlay(writer: Writer, archive: Archive) -> None:
    """Add the abdominal MR whose overlay plane holds an outline drawn round a liver lesion."""
    dataset = pydicom.dcmread(io.BytesIO(archive.read("pydicom/data/test_files/examples_overlay.dcm")))
    outline = dataset.overlay_array(0x6000) > 0
    parts = connected_parts(outline, CORNERS_TOUCH)
    # The other component is a text: only the outline encloses anything.
    filled = {v: np.asarray(ndimage.binary_fill_holes(parts == v)) for v in range(1, int(parts.max()) + 1)}
    mask = filled[max(filled, key=lambda v: int((filled[v] & (parts != v)).sum()))]
    row_mm, column_mm = (float(v) for v in dataset.PixelSpacing)
    spacing = (round(column_mm, 4), round(row_mm, 4))
    structures = lesion_structures(mask, "right", spacing, "liver")
    assert len(structures) == 1
    name = "mr-liver-overlay"
    table = Table(name, name, "train", "pydicom/examples_overlay", "MR", "abdomen", "pydicom")
    table.plane, table.contrast, table.spacing_mm = "axial", "given", spacing
    table.labelled, table.structures = ["liver lesion"], structures
    center, width = float(dataset.WindowCenter[0]), float(dataset.WindowWidth[0])
    writer.add(table, window(dataset.pixel_array.astype(np.float64), center, width), mask.astype(np.uint8))


def add_nuclei(writer: Writer, archive: Archive) -> None:
    """Add tiles of one fluorescence image with its nuclei: its upper part trains, its lower part is held out.

    The strip between the two is higher than any nucleus, so none reaches both; what it holds belongs to neither.
    """
    pixels = percentile_window(tifffile.imread(io.BytesIO(archive.read("stardist/data/images/img2d.tif"))))
    labels = tifffile.imread(io.BytesIO(archive.read("stardist/data/images/mask2d.tif")))
    held_out_from = TRAINING_HEIGHT + NUCLEI_MARGIN
    assert max(part[0].stop - part[0].start for part in ndimage.find_objects(labels) if part) < NUCLEI_MARGIN
    regions = (
        ("nuclei", "train", "stardist/img2d", range(0, TRAINING_HEIGHT, TILE), TILE),
        ("nuclei-held-out", "test", "stardist/img2d-lower", range(held_out_from, 512, HELD_OUT_TILE), HELD_OUT_TILE),
    )
    for source, split, group, tops, height in regions:
        for row, top in enumerate(tops):
            for column in range(4):
                area = np.s_[top : top + height, column * TILE : (column + 1) * TILE]
                mask, structures = nuclei_of(labels[area])
                name = f"{source}-{row}{column}"
                table = Table(name, source, split, group, FLUORESCENCE, "cells", "stardist")
                table.labelled, table.structures = ["nucleus"], structures
                writer.add(table, np.ascontiguousarray(pixels[area]), mask)


def nuclei_of(labels: np.ndarray) -> tuple[np.ndarray, list[Structure]]:
    """Return the mask of a tile, numbered from 1, and its nuclei of at least 16 px, as far as the tile shows them."""
    mask = np.zeros(labels.shape, np.uint8)
    structures: list[Structure] = []
    for value in np.unique(labels[labels > 0]):
        ys, xs = np.nonzero(labels == value)
        if len(ys) < MIN_AREA_PX:
            continue
        mask[labels == value] = len(structures) + 1
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        structures.append(Structure("nucleus", box, "expert", mask_value=len(structures) + 1))
    return mask, structures


def add_pictures(writer: Writer, archive: Archive) -> None:
    """Add a fundus photograph, retinal microaneurysms, immunohistochemistry and a cell, with curated boxes."""

    def read(name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(archive.read(f"skimage/data/{name}"))))

    def curated(name: str, box: tuple[int, int, int, int], side: str | None = None) -> Structure:
        return Structure(name, box, "curated", side)

    retina = Image.fromarray(read("retina.jpg"))
    scale = 448 / retina.width
    small = np.asarray(retina.resize((448, 448), Image.Resampling.LANCZOS))
    disc = tuple(round(v * scale) for v in (140, 570, 320, 770))
    table = Table("fundus", "fundus", "train", "scikit-image/retina", FUNDUS, "eye", "scikit-image")
    table.labelled = ["optic disc"]
    table.structures = [curated("optic disc", (disc[0], disc[1], disc[2], disc[3]), "left")]
    writer.add(table, small)

    name = "microaneurysms"
    table = Table(name, "fundus", "train", "scikit-image/microaneurysms", FUNDUS, "eye", "scikit-image")
    table.labelled = ["microaneurysm"]
    table.structures = [curated("microaneurysm", (14, 19, 19, 25)), curated("microaneurysm", (47, 70, 51, 73))]
    writer.add(table, read("microaneurysms.png"))

    ihc = Image.fromarray(read("ihc.png")).resize((256, 256), Image.Resampling.LANCZOS)
    table = Table("ihc", "ihc", "train", "scikit-image/ihc", "histology", "colon", "scikit-image")
    table.licence = "no known copyright restrictions"
    table.structures = [curated("gland", (125, 154, 192, 256))]
    writer.add(table, np.asarray(ihc))

    table = Table("phase-cell", "phase-cell", "train", "scikit-image/cell", "phase microscopy", "cells", "scikit-image")
    table.labelled = ["cell"]
    table.structures = [curated("cell", (367, 315, 490, 435))]
    writer.add(table, read("cell.png"))
