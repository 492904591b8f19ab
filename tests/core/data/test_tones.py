"""Tone curves: what they change, what they leave, and that held-out pictures never meet them."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.records.sample import BoxAnnotation, ImageRef, Sample
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.tones import AGENT_RATIO, BRIGHTEST, DARKEST, DOSE_SPREAD, DOSES, MAX_NOISE, random_tone
from medmo_recipes.settings.run_config import ConfigError, Data
from medmo_recipes.training.loading import sources

SEEDS = range(300)


class Pictures:
    """A source of one picture."""

    def __init__(self, root: Path) -> None:
        self.name, self.root = "pictures", root
        Image.fromarray(np.arange(64 * 64, dtype=np.uint32).astype(np.uint8).reshape(64, 64)).save(root / "a.png")

    def __len__(self) -> int:
        return 1

    def get(self, index: int, rng: random.Random) -> Sample:
        return Sample(
            "a", "grounding", (ImageRef("a.png", 64, 64),), ({"role": "user", "content": [{"type": "image"}]},),
            boxes=(BoxAnnotation("square", (1, 2, 30, 40)),),
        )  # fmt: skip


def test_a_curve_is_its_seeds_and_no_two_are_alike() -> None:
    first, again, other = random_tone(1), random_tone(1), random_tone(2)
    assert (first.levels == again.levels).all() and (first.noise, first.seed) == (again.noise, again.seed)
    assert len({random_tone(seed).levels.tobytes() for seed in SEEDS}) == len(SEEDS)
    pixels = np.full((5, 7, 3), 100, dtype=np.uint8)
    assert (first.apply(pixels) == again.apply(pixels)).all() and (first.apply(pixels) != other.apply(pixels)).any()


def test_curves_keep_to_their_ranges_and_mostly_rise() -> None:
    """Dark stays darker than bright in nearly all: the curves are those of scanners, not noise."""
    curves = np.stack([random_tone(seed).levels.astype(int) for seed in SEEDS])
    assert curves.min() >= 0 and curves.max() <= 255
    assert (curves[:, :32].mean(1) < curves[:, -32:].mean(1)).mean() > 0.97
    assert (curves.min(1) <= 255 * DARKEST + 1).all() and (curves.max(1) <= 255).all()
    assert np.mean(np.abs(curves - np.arange(256)).max(1) > 40) > 0.5 and (curves.max(1) >= 255 * BRIGHTEST - 1).all()
    assert all(0 <= random_tone(seed).noise <= MAX_NOISE for seed in SEEDS)


def test_channels_share_curve_and_noise() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 11, 1), dtype=np.uint8).repeat(3, 2)
    shown = random_tone(5).apply(grey)
    assert shown.dtype == np.uint8 and shown.shape == grey.shape
    assert (shown == shown[..., :1]).all(), "grey stays grey"
    quiet = replace(random_tone(5), noise=0.0)
    assert (quiet.apply(grey) == quiet.levels[grey]).all()


def test_structures_of_one_grey_are_told_apart_where_their_outlines_are_known() -> None:
    """No curve can: it has one new level for each old one."""
    pixels = np.full((12, 12, 3), 120, dtype=np.uint8)
    outlines = np.zeros((12, 12), dtype=np.uint8)
    outlines[:, :6], outlines[:, 6:] = 1, 2
    levels = np.arange(256, dtype=np.uint8)
    apart = 0
    for seed in SEEDS:
        tone = replace(random_tone(seed), levels=levels, noise=0.0)
        shown = tone.apply(pixels, outlines).astype(int)
        assert tone.shifts[0] == 0 and (tone.apply(pixels) == pixels).all(), "nothing moves without outlines"
        left, right = shown[0, 0, 0], shown[0, -1, 0]
        expected = np.clip(120 + tone.shifts[1:3], 0, 255).round()
        assert (left, right) == tuple(expected)
        middle = shown[5, 5:7, 0]
        assert min(left, right) <= middle.min() and middle.max() <= max(left, right), "the edge is soft, not beyond"
        apart += left != right
    assert 0.4 < apart / len(SEEDS) < 0.9


def test_contrast_agent_brightens_what_takes_it_up_by_phase_and_dose() -> None:
    outlines = np.full((4, 4), 7, dtype=np.uint8)
    pixels = np.full((4, 4, 3), 40, dtype=np.uint8)
    without = 0
    for seed in SEEDS:
        tone = random_tone(seed)
        still = replace(tone, levels=np.arange(256, dtype=np.uint8), noise=0.0, shifts=np.zeros(256, dtype=np.float32))
        gain = tone.doses[7] * (100 + tone.phase * (60 - 100))
        assert (still.apply(pixels, outlines, ((7, 100.0, 60.0), (8, 250.0, 250.0))) == round(40 + gain)).all()
        assert (still.apply(pixels, outlines) == pixels).all(), "what takes up nothing stays"
        assert 0 <= tone.phase <= 1 and tone.doses.max() <= DOSES[1] * (1 + DOSE_SPREAD)
        without += not tone.doses.any()
    assert without / len(SEEDS) == pytest.approx(1 - AGENT_RATIO, abs=0.08)


def test_soft_edges_are_the_binomial_mean_of_the_neighbours() -> None:
    outlines = np.zeros((5, 5), dtype=np.uint8)
    outlines[2, 2] = 9
    shifts = np.zeros(256, dtype=np.float32)
    shifts[9] = 16.0
    tone = replace(random_tone(1), levels=np.arange(256, dtype=np.uint8), noise=0.0, shifts=shifts)
    shown = tone.apply(np.full((5, 5, 3), 100, dtype=np.uint8), outlines)[..., 0].astype(int) - 100
    assert (shown[1:4, 1:4] == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]).all() and shown.sum() == 16


def test_a_share_of_the_draws_has_a_curve_and_everything_else_stays(tmp_path: Path) -> None:
    source = Pictures(tmp_path)
    plain, toned = Mixture({"a": (source, 1.0)}, 3), Mixture({"a": (source, 1.0)}, 3, tones=0.7)
    drawn = [toned.draw(n) for n in range(400)]
    assert all(plain.draw(n) == sample for n, sample in enumerate(drawn)), "boxes and words are those without"
    assert all(plain.draw(n).tone is None for n in range(20))
    share = np.mean([sample.tone is not None for sample in drawn])
    assert share == pytest.approx(0.7, abs=0.06)
    assert max(Counter(sample.tone for sample in drawn if sample.tone is not None).values()) == 1
    assert toned.draw(7).tone == drawn[7].tone, "a draw is a pure function of seed and number"


def test_held_out_pictures_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_source", lambda *_: Pictures(tmp_path))
    data = Data(sources={"a": 1.0}, tones=1.0)
    assert sources.load_mixture(data, seed=0).draw(0).tone is not None
    assert sources.load_mixture(data, seed=0, split="test").draw(0).tone is None


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data.tones = .*expected a share from 0 to 1"):
        Data(sources={}, tones=share)
