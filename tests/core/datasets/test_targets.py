"""Questions with several, small or no targets: every target in view is a box, and nothing is asked where unsure."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.records.sample import Sample
from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT, load_counted, load_facts, mask_of
from medmo_core.datasets.embedded.targets import KINDS, MAX_BOXES, Targets, records_for, target_samples
from medmo_core.datasets.embedded.uptake import outlines_of


def values_in_view(sample: Sample) -> dict[int, str]:
    """Mask value -> name of every structure of the kind that has a pixel in the sample's window."""
    kind = KINDS[str(sample.provenance["about"])]
    counted = sample.provenance["about"] in ("ribs", "vertebrae")
    tables = load_counted() if counted else load_facts()
    record = next(r for r in tables if r.path == sample.images[0].path)
    mask = mask_of(record)
    assert mask is not None
    x0, y0, x1, y1 = sample.images[0].crop or (0, 0, record.width, record.height)
    shown = set(np.unique(mask[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]).tolist())
    names = {s.mask_value: s.name for s in record.structures if s.mask_value is not None}
    return {value: name for value, name in names.items() if value in shown and kind.matches(name)}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", ["find_all", "find_none", "count"])
def test_the_answer_is_every_target_whose_pixels_are_in_view(split: str, form: str) -> None:
    samples = target_samples(split, 60, form=form)
    assert len(samples) >= 35
    for sample in samples:
        there = values_in_view(sample)
        assert sample.split == split and sample.provenance["template"] == form
        if form == "count":
            assert sample.task == "vqa" and sample.answer is not None and sample.answer.value == str(len(there))
        else:
            assert sample.task == "grounding" and sorted(b.label for b in sample.boxes) == sorted(there.values())
        assert len(there) <= MAX_BOXES and (form != "find_none" or not there)


def test_held_out_questions_cover_every_kind_and_many_boxes() -> None:
    samples = target_samples("test", 200, form="find_all")
    most = {k: max((len(s.boxes) for s in samples if s.provenance["about"] == k), default=0) for k in KINDS}
    assert most["nuclei"] >= 8 and most["organs"] >= 5 and most["ribs"] >= 5 and most["vertebrae"] == 2
    assert most["lesions"] == 1 and most["kidneys"] == most["lungs"] == 0  # the held-out scan shows none of these
    assert {s.provenance["about"] for s in target_samples("test", 60, form="find_none")} >= {
        "kidneys",
        "lungs",
        "nuclei",
    }
    assert samples == target_samples("test", 200, form="find_all")


def test_tone_curves_know_all_structures_of_a_picture_and_not_the_targets_alone() -> None:
    whole = {r.path: outlines_of(r) for r in load_facts()}
    for sample in target_samples("train", 40):
        assert sample.images[0].outlines == whole[sample.images[0].path], sample.id


def test_no_picture_of_a_question_is_in_two_splits() -> None:
    paths = [{r.path for name in KINDS for r in records_for(name, split)} for split in ("train", "test")]
    assert not paths[0] & paths[1] and any("nuclei-held-out" in path for path in paths[1])


def test_the_pictures_of_nuclei_do_not_continue_one_another() -> None:
    """A strip is missing between the tiles that train and those that do not: rows on both sides are not neighbours."""

    def rows(first: str, last: str) -> float:
        above, below = (np.asarray(Image.open(EMBEDDED_ROOT / f"images/{n}.png"), dtype=float) for n in (first, last))
        return float(np.abs(above[-1] - below[0]).mean())

    neighbours = [rows(f"nuclei-0{c}", f"nuclei-1{c}") for c in range(4)]
    apart = [rows(f"nuclei-1{c}", f"nuclei-held-out-0{c}") for c in range(4)]
    assert max(neighbours) < min(apart)


def test_a_source_draws_every_kind_by_its_weight_and_repeats_itself() -> None:
    source = Targets("train")
    drawn = [source.get(i, Random(i)) for i in range(200)]
    assert drawn[:5] == [source.get(i, Random(i)) for i in range(5)]
    shares = {k: sum(s.provenance["about"] == k for s in drawn) / len(drawn) for k in KINDS}
    assert all(abs(shares[k] - kind.weight) < 0.1 for k, kind in KINDS.items()), shares
    forms = [s.provenance["template"] for s in drawn]
    assert 0.08 < forms.count("find_none") / len(forms) < 0.3 and 0.02 < forms.count("count") / len(forms) < 0.2


def test_whole_pictures_can_be_asked_too() -> None:
    sample = Targets("test", crops=False).get(0, Random(2))
    assert sample.images[0].crop is None
