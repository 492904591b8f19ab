"""Slices of the contrast-enhanced chest CT: the labelled aorta, lungs by threshold, and organs boxed by hand.

The package labels only vessels of this scan. It shows liver, spleen and kidneys under contrast agent, which no other
training scan does; their boxes were drawn by hand on the written slices, to about 2 px, by somebody who is no
radiologist. Where an outline was in doubt there is neither a box nor the statement that nothing is there.
"""

from dataclasses import replace

import numpy as np

from medmo_core.datasets.embedded.facts import Structure, Window

from .organs import REFERENCE
from .tables import Table, Writer, connected_parts, mask_structures, side_of
from .volumes import Archive, affine_of, open_nifti, read_nifti, to_lps, window

LAST_ABDOMINAL = 36  # the dome of the diaphragm is near slice 40
LUNG_SLICES = range(48, 101)  # below them a lung is in several parts, above them the airways join the two
AIR = 25  # grey level below which a pixel of the window 40/400 is air
MIN_LUNG_PX, MAX_LUNG_WIDTH = 900, 130
BOXES: dict[int, dict[str, Window]] = {
    0: {"liver": (31, 25, 141, 132), "right kidney": (79, 96, 101, 126), "vertebra": (104, 97, 142, 137)},
    4: {
        "liver": (30, 22, 141, 133),
        "right kidney": (82, 98, 102, 126),
        "spleen": (141, 90, 190, 124),
        "vertebra": (102, 97, 133, 148),
    },
    8: {"liver": (27, 20, 145, 132), "spleen": (139, 85, 200, 130), "vertebra": (101, 99, 135, 148)},
    12: {"liver": (26, 18, 143, 133), "spleen": (139, 80, 206, 130), "vertebra": (102, 100, 133, 141)},
    16: {"liver": (24, 16, 143, 130), "spleen": (139, 74, 208, 129), "vertebra": (100, 101, 140, 135)},
    20: {"liver": (24, 16, 141, 128), "spleen": (141, 69, 208, 127), "vertebra": (102, 102, 135, 139)},
    24: {"liver": (23, 14, 142, 124), "spleen": (141, 66, 208, 122), "vertebra": (102, 103, 132, 149)},
    28: {"liver": (25, 16, 147, 119), "spleen": (143, 64, 205, 118), "vertebra": (103, 103, 132, 143)},
    32: {"spleen": (148, 62, 203, 113), "vertebra": (101, 104, 137, 141)},
    36: {"spleen": (154, 65, 197, 105), "vertebra": (101, 105, 138, 142)},
    40: {"vertebra": (104, 105, 131, 153)},
}
"""Slice -> name -> box drawn by hand, in px of the slice."""
PELVIC = (
    "left femur",
    "left gluteal muscle",
    "left hip bone",
    "prostate",
    "right femur",
    "right gluteal muscle",
    "right hip bone",
    "sacrum",
    "urinary bladder",
)
ABSENT_FROM = {"right kidney": 20, "left kidney": 20, "gallbladder": 24, "spleen": 52, "liver": 64}
"""Name -> slice from which on, upwards, nothing of it is left."""


def add_chest(writer: Writer, archive: Archive, codes: dict[str, str]) -> None:
    """Add every fourth slice of the scan."""
    folder = REFERENCE + "aorta_report/"
    data = archive.read(folder + "example_ct.nii.gz")
    image = read_nifti(data)
    aorta = crop_onto(data, archive.read(folder + "test_result/models/organ_aorta_T264.nii.gz"))
    millilitres = round(float(aorta.sum()) * float(np.prod(image.spacing_mm)) / 1000, 1)
    x, y, _ = (round(v, 4) for v in image.spacing_mm)
    grey = window(image.array, 40, 400)
    for z in range(0, 164, 4):
        table = Table(f"ct-aorta-{z:03d}", "ct-aorta", "train", "totalsegmentator/aorta_report", "CT", "chest", "")
        table.region = "abdomen" if z <= LAST_ABDOMINAL else "chest"
        table.package, table.plane, table.contrast, table.window = "totalsegmentator", "axial", "given", (40, 400)
        table.slice_index, table.spacing_mm = z, (x, y)
        pixels, mask = np.ascontiguousarray(grey[:, :, z].T), aorta[:, :, z].T.copy()
        names = {1: "aorta", **(add_lungs(pixels, mask) if z in LUNG_SLICES else {})}
        found, table.traces = mask_structures(mask, names, (x, y))
        table.structures = [
            replace(s, volume_ml=millilitres) if s.name == "aorta" else replace(s, origin="derived") for s in found
        ]
        table.structures += [Structure(n, box, "curated", side_of(n)) for n, box in BOXES.get(z, {}).items()]
        table.structures = [replace(s, code=codes.get(s.name)) for s in table.structures]
        gone = [name for name, first in ABSENT_FROM.items() if z >= first]
        table.labelled = sorted({"aorta", *PELVIC, *gone, *(s.name for s in table.structures)})
        writer.add(table, pixels, mask)


def add_lungs(pixels: np.ndarray, mask: np.ndarray) -> dict[int, str]:
    """Mark in the mask (H, W) the two largest areas of air inside the body; return value -> name."""
    parts = connected_parts(pixels < AIR)
    edges = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    sizes = np.bincount(parts.ravel())
    sizes[np.append(np.unique(edges), 0)] = 0
    names = {}
    for value, part in enumerate(np.argsort(sizes)[::-1][:2], start=2):
        columns = np.nonzero((parts == part).any(0))[0]
        if sizes[part] < MIN_LUNG_PX or columns[-1] - columns[0] >= MAX_LUNG_WIDTH:
            continue
        name = "right lung" if columns.mean() < pixels.shape[1] / 2 else "left lung"
        if name not in names.values():
            mask[parts == part] = value
            names[value] = name
    return names


def crop_onto(whole: bytes, part: bytes) -> np.ndarray:
    """Return the label map of a cropped volume on the grid of the whole one, in LPS order."""
    big, small = open_nifti(whole), open_nifti(part)
    big_affine, small_affine = affine_of(big), affine_of(small)
    offset = np.rint(np.linalg.solve(big_affine, small_affine @ [0, 0, 0, 1]))[:3].astype(int)
    assert np.allclose(big_affine[:3, :3], small_affine[:3, :3])
    grid = np.zeros(big.shape, np.uint8)
    x, y, z = (slice(o, o + n) for o, n in zip(offset, small.shape, strict=True))
    grid[x, y, z] = np.asarray(small.dataobj) > 0
    return to_lps(grid, big_affine)[0]
