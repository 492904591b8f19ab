"""The embedded images and their facts tables: complete, licensed, honestly split, and drawn on the right structures."""

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from random import Random

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.records.sample import SPLITS, TASKS
from medmo_core.datasets.embedded import tasks as sample
from medmo_core.datasets.embedded.contact_sheet import contact_sheet, pick
from medmo_core.datasets.embedded.dialogues import Dialogues
from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT, ImageFacts, load_counted, load_facts, look, mask_of

MAX_BYTES = 6_000_000
SEGMENT = 24  # pixels of a row that identify a picture
VOLUMES = ("ct-abdomen", "ct-contrast", "mr-abdomen")


def pixels_of(record: ImageFacts) -> np.ndarray:
    """Stored picture as grey (H, W)."""
    return np.asarray(Image.open(EMBEDDED_ROOT / record.path).convert("L"))


def row_hashes(pixels: np.ndarray) -> set[int]:
    """A hash of every run of 24 pixels in a row that shows something: few of them black or white, not all alike."""
    rows = np.lib.stride_tricks.sliding_window_view(pixels, SEGMENT, axis=1).reshape(-1, SEGMENT)
    rows = rows[((rows > 0) & (rows < 255)).sum(1) >= SEGMENT - 4]
    rows = rows[rows.max(1) - rows.min(1) > 20]
    powers = np.uint64(1_000_003) ** np.arange(SEGMENT, dtype=np.uint64)
    return set((rows.astype(np.uint64) * powers).sum(1, dtype=np.uint64).tolist())


def thumbnail(record: ImageFacts) -> np.ndarray:
    """The picture at 32 x 32, mean 0, length 1."""
    small = Image.fromarray(pixels_of(record)).resize((32, 32), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64).ravel()
    values = values - values.mean()
    return values / np.linalg.norm(values)


def test_every_file_is_listed_with_its_hash_and_the_set_is_small() -> None:
    listed = json.loads((EMBEDDED_ROOT / "manifest.json").read_text())["files"]
    files = {p.relative_to(EMBEDDED_ROOT).as_posix(): p for p in EMBEDDED_ROOT.rglob("*") if p.is_file()}
    assert set(files) == {*listed, "manifest.json"}
    for name, digest in listed.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest, name
    assert sum(p.stat().st_size for p in files.values()) <= MAX_BYTES


def test_notice_names_every_source_as_the_manifest_does() -> None:
    notice = (EMBEDDED_ROOT.parents[3] / "NOTICE").read_text(encoding="utf-8")
    for name, source in json.loads((EMBEDDED_ROOT / "manifest.json").read_text())["sources"].items():
        assert source["sha256"] in notice, name
    for group_source in {r.source for r in load_facts()}:
        assert group_source in notice, group_source


def test_the_set_holds_what_it_promises() -> None:
    count: dict[tuple[str, str], int] = defaultdict(int)
    for record in load_facts():
        count[record.source, record.split] += 1
        assert record.licence
    assert count["ct-abdomen", "train"] == 112
    assert count["ct-contrast", "test"] == 20
    assert count["mr-abdomen", "train"] == 20
    assert count["nuclei", "train"] == 8 and count["nuclei-held-out", "test"] == 8
    assert {r.group for r in load_facts() if r.source == "lesion" and r.split == "test"} == {
        "pyradiomics/brain2",
        "pyradiomics/lung2",
    }


@pytest.mark.parametrize("source", sorted({r.source for r in load_facts()}))
def test_boxes_lie_inside_the_image_and_tight_round_the_mask(source: str) -> None:
    for record in (r for r in load_facts() if r.source == source):
        with Image.open(EMBEDDED_ROOT / record.path) as image:
            assert image.size == (record.width, record.height)
        mask = mask_of(record)
        for structure in record.structures:
            x1, y1, x2, y2 = structure.xyxy_px
            assert 0 <= x1 < x2 <= record.width and 0 <= y1 < y2 <= record.height, record.id
            assert structure.origin in ("silver", "expert", "derived", "curated")
            assert structure.code is None or structure.code.startswith("SCT:")
            if structure.mask_value is None:
                continue
            assert mask is not None
            rows, columns = np.nonzero(mask == structure.mask_value)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == structure.xyxy_px, record.id
            if record.spacing_mm and structure.area_mm2:
                assert structure.area_mm2 == pytest.approx(len(rows) * np.prod(record.spacing_mm), abs=0.06)


def test_no_volume_is_in_two_splits() -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for record in load_facts():
        splits[record.group].add(record.split)
    assert all(len(found) == 1 for found in splits.values())


def test_no_pixels_of_a_held_out_picture_are_in_training() -> None:
    training: set[int] = set()
    for record in load_facts():
        if record.split == "train":
            training |= row_hashes(pixels_of(record))
    for record in load_facts():
        if record.split == "test":
            assert not training & row_hashes(pixels_of(record)), record.id
    # The check sees a copy: a corner cut out of a training slice.
    copied = pixels_of(next(r for r in load_facts() if r.id == "ct-abdomen-090"))[20:80, 15:90]
    assert len(training & row_hashes(copied)) > 100


def test_no_held_out_picture_resembles_a_training_picture_as_neighbouring_slices_do() -> None:
    train = np.stack([thumbnail(r) for r in load_facts() if r.split == "train"])
    test = np.stack([thumbnail(r) for r in load_facts() if r.split == "test"])
    assert (test @ train.T).max() < 0.95
    contrast = np.stack([thumbnail(r) for r in load_facts() if r.source == "ct-contrast"])
    assert (contrast[:-1] * contrast[1:]).sum(1).min() > 0.97  # what a leak would look like


def test_held_out_nuclei_are_no_part_of_the_tasks_that_were_there_before_them() -> None:
    for task in sample.EMBEDDED_TASKS:
        assert not any("nuclei" in s.images[0].path for s in sample.eval_samples(task, n=40)), task
    assert {r.source for r in sample.records_of("test")} >= {"nuclei-held-out"}


def test_what_is_counted_lies_within_the_merged_masks_and_in_the_same_pictures() -> None:
    whole = {r.path: r for r in load_facts()}
    most = {"rib": 0, "vertebra": 0}
    for counted in load_counted():
        record, single = whole[counted.path], mask_of(counted)
        assert (record.split, record.group, record.width) == (counted.split, counted.group, counted.width)
        assert single is not None
        for name in most:
            found = [s for s in counted.structures if s.name == name]
            most[name] = max(most[name], len(found))
            assert len({s.mask_value for s in found}) == len(found), counted.id
        merged, bones = mask_of(record), [s for s in record.structures if s.name == "vertebra"]
        if bones and record.source == "ct-abdomen":  # halving rounds the contrast series' edges in its own way
            assert merged is not None
            values = [s.mask_value for s in counted.structures if s.name == "vertebra"]
            assert np.array_equal(np.isin(single, values), merged == bones[0].mask_value), counted.id
    assert most == {"rib": 12, "vertebra": 2}


def centre_of(record: ImageFacts, name: str) -> float | None:
    """Mean column of a structure's mask."""
    found = [s for s in record.structures if s.name == name]
    mask = mask_of(record)
    if not found or mask is None:
        return None
    return float(np.nonzero(mask == found[0].mask_value)[1].mean())


@pytest.mark.parametrize(
    ("right", "left"),
    [("liver", "spleen"), ("right kidney", "left kidney"), ("right back muscle", "left back muscle")],
)
def test_the_patients_right_is_on_image_left(right: str, left: str) -> None:
    seen = 0
    for record in load_facts():
        if record.source in VOLUMES:
            a, b = centre_of(record, right), centre_of(record, left)
            if a is not None and b is not None:
                seen += 1
                assert a < b, record.id
    assert seen >= 20


def test_the_front_is_up() -> None:
    for record in load_facts():
        boxes = {s.name: s.xyxy_px for s in record.structures}
        if record.source in VOLUMES and {"vertebra", "left back muscle"} <= set(boxes):
            assert boxes["vertebra"][1] < boxes["left back muscle"][1], record.id
        if record.source in VOLUMES and {"aorta", "vertebra"} <= set(boxes):
            assert boxes["aorta"][1] < boxes["vertebra"][3], record.id


def test_ct_masks_cover_tissue_of_the_right_density() -> None:
    """Grey values of the 40/400 window: air 0, water 102, soft tissue about 130, bone near 255."""
    limits = {
        "liver": (115, 180),
        "spleen": (115, 190),
        "vertebra": (150, 255),
        "left lung": (0, 60),
        "aorta": (110, 255),
    }
    checked = defaultdict(int)
    for record in load_facts():
        if record.modality != "CT" or record.source.startswith("lesion"):
            continue
        pixels, mask = pixels_of(record), mask_of(record)
        assert mask is not None
        for structure in record.structures:
            if structure.mask_value is not None and structure.name in limits and (structure.area_mm2 or 0) > 300:
                low, high = limits[structure.name]
                value = float(np.median(pixels[mask == structure.mask_value]))
                assert low <= value <= high, (record.id, structure.name, value)
                checked[structure.name] += 1
    assert set(checked) == set(limits)


def test_boxes_drawn_by_hand_lie_on_what_they_name() -> None:
    """Under contrast agent the spleen is brighter than the liver, and bone brighter than both."""
    medians: dict[str, list[float]] = defaultdict(list)
    for record in (r for r in load_facts() if r.source == "ct-aorta"):
        pixels = pixels_of(record)
        for s in (s for s in record.structures if s.origin == "curated"):
            x1, y1, x2, y2 = s.xyxy_px
            width, height = (x2 - x1) // 4, (y2 - y1) // 4  # the middle: corners show what lies beside the organ
            medians[s.name].append(float(np.median(pixels[y1 + height : y2 - height, x1 + width : x2 - width])))
        assert {s.name for s in record.structures} <= set(record.labelled)
    assert {name: len(found) for name, found in medians.items()} == {
        "liver": 8, "spleen": 9, "right kidney": 2, "vertebra": 11,
    }  # fmt: skip
    assert min(medians["liver"]) > 120 and max(medians["liver"]) < 170
    assert min(medians["spleen"]) > max(medians["liver"]) and min(medians["right kidney"]) > 150


def test_pasted_lesions_lie_in_the_lungs_of_training_pictures_alone() -> None:
    pasted = [r for r in load_facts() if r.source == "lesion-pasted"]
    assert len(pasted) == 20 and {(r.split, r.group) for r in pasted} == {("train", "pyradiomics/lung1")}
    sides = set()
    for record in pasted:
        (lesion,) = record.structures
        assert lesion.origin == "derived" and lesion.name == "lung lesion" and 8 < (lesion.diameter_mm or 0) < 60
        x1, _, x2, _ = lesion.xyxy_px
        assert lesion.side == ("right" if (x1 + x2) / 2 < record.width / 2 else "left")
        sides.add(lesion.side)
        mask, pixels = mask_of(record), pixels_of(record)
        assert mask is not None
        inside, ring = mask == lesion.mask_value, grown(mask == lesion.mask_value) & (mask == 0)
        assert np.median(pixels[inside]) > 140 and np.median(pixels[inside]) > np.median(pixels[ring]), record.id
    assert sides == {"left", "right"}


def grown(mask: np.ndarray, by: int = 6) -> np.ndarray:
    """A mask with all that lies within some pixels of it, on the axes' sides."""
    rows = np.any([np.roll(mask, shift, 0) for shift in range(-by, by + 1)], axis=0)
    return np.any([np.roll(rows, shift, 1) for shift in range(-by, by + 1)], axis=0)


def test_a_window_cuts_boxes_without_a_mask_too() -> None:
    record = next(r for r in load_facts() if r.id == "ct-aorta-004")
    liver = next(s for s in record.structures if s.name == "liver")
    whole = look(record).with_name("liver")[0]
    assert whole.xyxy_px == liver.xyxy_px and whole.share == 1
    cut = look(record, (60, 0, 233, 167)).with_name("liver")[0]
    assert cut.xyxy_px == (0, 22, 81, 133) and cut.share == pytest.approx(81 / 111)
    assert look(record).is_absent("urinary bladder") and not look(record).is_absent("left kidney")


def test_lesions_match_the_published_measurements() -> None:
    by_id = {r.id: r for r in load_facts()}
    assert by_id["lesion-brain1-016"].structures[0].xyxy_px == (162, 140, 207, 172)
    assert by_id["lesion-brain2-008"].structures[0].xyxy_px == (205, 87, 225, 101)
    assert by_id["mr-liver-overlay"].structures[0].xyxy_px == (46, 139, 81, 174)
    volumes = {r.group: s.volume_ml for r in load_facts() for s in r.structures if r.source == "lesion"}
    assert volumes["pyradiomics/lung2"] == pytest.approx(48.4, abs=0.1)
    assert volumes["pyradiomics/brain1"] == pytest.approx(16.4, abs=0.1)


def test_a_view_is_what_cutting_the_mask_gives() -> None:
    record = next(r for r in load_facts() if r.id == "ct-abdomen-085")
    mask = mask_of(record)
    assert mask is not None
    window = (-10, 30, 70, 110)  # reaches beyond the left and the lower edge
    padded = np.pad(mask, 20)[window[1] + 20 : window[3] + 20, window[0] + 20 : window[2] + 20]
    view = look(record, window)
    assert {s.name for s in view.seen} & {"liver", "right kidney"} == {"liver", "right kidney"}
    for seen in view.seen:
        rows, columns = np.nonzero(padded == seen.structure.mask_value)
        assert seen.area_px == len(rows)
        assert seen.xyxy_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert seen.share == pytest.approx(len(rows) / (mask == seen.structure.mask_value).sum())
    for structure in record.structures:
        pixels = int((padded == structure.mask_value).sum())
        assert view.is_absent(structure.name) == (pixels == 0)
    assert not view.is_absent("brain lesion")  # never looked for


def test_the_contact_sheet_shows_every_volume(tmp_path: object) -> None:
    chosen = pick(load_facts())
    assert {r.group for r in chosen} == {r.group for r in load_facts()}
    path = contact_sheet(f"{tmp_path}/sheet.png", records=[r for r in chosen if r.source in ("fundus", "mr-abdomen")])
    colours = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert (colours == (255, 77, 77)).all(1).sum() > 100  # lines of the first box colour


def test_the_set_needs_none_of_the_optional_libraries() -> None:
    code = (
        "import sys\n"
        "absent = ('nibabel', 'pydicom', 'tifffile', 'scipy', 'matplotlib', 'transformers')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "import random\n"
        "from medmo_core.datasets.embedded.tasks import EmbeddedTasks\n"
        "print(EmbeddedTasks('grounding').get(3, random.Random(0)).id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("grounding/")


def test_how_often_images_are_drawn_does_not_depend_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of texts have another order in every process: summed so, one process in ninety had 16 slots more."""
    asked: list[str] = []

    class Weights(dict[str, float]):
        def __getitem__(self, key: str) -> float:
            asked.append(key)
            return super().__getitem__(key)

    monkeypatch.setattr(sample, "SOURCE_WEIGHTS", Weights(sample.SOURCE_WEIGHTS))
    slots = sample._slots.__wrapped__("caption", "train")
    names = sorted({record.source for record in slots})
    assert len(names) > 5 and asked[: len(names)] == names


def test_tasks_and_splits_are_those_of_the_record_format() -> None:
    assert set(sample.EMBEDDED_TASKS) < set(TASKS) and set(SPLITS) < set(sample.EMBEDDED_SPLITS)


def test_only_unenhanced_ct_takes_up_agent_and_no_text_about_it_is_belied() -> None:
    by_path = {r.path: r for r in load_facts()}
    source, spoken = Dialogues("train"), 0
    for index in range(150):
        made = source.get(index * 13, Random(index))
        record, outlines = by_path[made.images[0].path], made.images[0].outlines
        speaks = any("contrast" in str(m["content"]) or "enhanced" in str(m["content"]) for m in made.messages)
        assert (outlines is None) == (speaks or record.mask is None or "caption" in made.id), made.id
        spoken += speaks
        if outlines is None:
            continue
        assert outlines.path == record.mask
        rises = {s.name: rise for s in record.structures for v, *rise in outlines.uptake if v == s.mask_value}
        if record.source != "ct-abdomen":
            assert not outlines.uptake, "a scan with contrast agent does not get more of it"
        elif {"aorta", "left kidney"} <= {s.name for s in record.structures}:
            assert rises["aorta"] == pytest.approx((250 * 255 / 400, 110 * 255 / 400))
            assert rises["left kidney"] == pytest.approx((110 * 255 / 400, 140 * 255 / 400))
            assert "vertebra" not in rises and "left lung" not in rises
    assert spoken > 10


def test_fit_and_val_share_the_training_images_out_in_blocks() -> None:
    parts = {split: {r.id for r in sample.records_of(split)} for split in ("train", "fit", "val", "val_scans")}
    train = parts.pop("train")
    assert set.union(*parts.values()) == train and sum(map(len, parts.values())) == len(train)
    assert {r.source for r in sample.records_of("val_scans")} == {"ct-aorta", "mr-abdomen"}
    places = sorted(r.slice_index or 0 for r in sample.records_of("val"))
    assert {r.source for r in sample.records_of("val")} == {"ct-abdomen"}
    assert places == [*range(24, 32), *range(72, 80)]
