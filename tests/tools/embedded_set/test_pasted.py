"""Pasted lesions: in the lungs alone, blended, and nothing else of the picture changes."""

import numpy as np

from tools.embedded_set.chest import add_lungs
from tools.embedded_set.pasted import BLEND_PX, SCALES, lungs_of, paste, turned


def chest(air: int, tissue: int) -> np.ndarray:
    """A slice (H, W) of a body with two lungs, in air."""
    plane = np.full((120, 160), air, dtype=np.uint8)
    plane[10:110, 10:150] = tissue
    plane[30:90, 25:65] = plane[30:90, 90:135] = air
    return plane


def test_air_round_the_body_is_no_lung() -> None:
    plane = chest(60, 230)
    plane[50:54, 40:44] = 230  # a vessel is part of the lung
    lungs = lungs_of(plane)
    expected = np.zeros(plane.shape, dtype=bool)
    expected[30:90, 25:65] = expected[30:90, 90:135] = True
    assert (lungs == expected).all()


def test_a_patch_changes_what_it_covers_and_its_rim() -> None:
    host = chest(60, 230)
    shown, covered = paste(host, np.full((21, 21), 200.0), np.ones((21, 21)), 60, 45)
    expected = np.zeros(host.shape, dtype=bool)
    expected[50:71, 35:56] = True
    assert (covered == expected).all() and shown[60, 45] == 200
    reach = int(np.ceil(4 * BLEND_PX)) + 1
    far = np.ones(host.shape, dtype=bool)
    far[50 - reach : 71 + reach, 35 - reach : 56 + reach] = False
    assert (shown[far] == host[far]).all()


def test_a_patch_over_an_edge_is_cut() -> None:
    host = chest(60, 230)
    shown, covered = paste(host, np.full((30, 30), 0.0), np.ones((30, 30)), 2, 158)
    assert shown.shape == covered.shape == host.shape and covered[:10, 150:].any() and not covered[40:].any()


def test_turned_lesions_keep_their_brightness_within_the_sizes_allowed() -> None:
    plane, mask = np.full((64, 64), 70, dtype=np.uint8), np.zeros((64, 64), dtype=np.int32)
    mask[20:34, 30:44], plane[20:34, 30:44] = 1, 220
    ratios = []
    for seed in range(60):
        patch, alpha = turned(plane, mask, np.random.default_rng(seed))
        assert np.median(patch[alpha > 0.9]) == 220
        ratios.append(np.sqrt((alpha > 0.5).sum() / mask.sum()))
    assert SCALES[0] * 0.85 < min(ratios) < 1.1 and 2.3 < max(ratios) < SCALES[1] * 1.15


def test_lungs_are_named_by_the_patients_side_and_marked_in_the_mask() -> None:
    mask = np.zeros((120, 160), dtype=np.uint8)
    mask[60, 80] = 1
    plane = chest(0, 130)
    names = add_lungs(plane, mask)
    values = {name: value for value, name in names.items()}
    assert set(values) == {"left lung", "right lung"} and mask[60, 80] == 1
    assert mask[40, 40] == values["right lung"] and mask[40, 110] == values["left lung"], "the right is on image left"
    joined = plane.copy()
    joined[58:62, 12:148] = 0
    assert add_lungs(joined, np.zeros_like(mask)) == {}, "one area from side to side is neither lung"
