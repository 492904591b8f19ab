"""Questions with several, small or no targets: find all of a kind, or count them.

A question is asked only where the answer is certain: every target of the view is visible enough for a box, or not a
pixel of one is in it. Held out are the lower part of the image of nuclei, the contrast-enhanced CT and two lesions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

from ...data.images.crop import random_square_window
from ...data.records.sample import Answer, Fact, Sample
from .facts import EMBEDDED_ROOT, MIN_AREA_PX, ImageFacts, Seen, View, load_counted, load_facts, look
from .tasks import CROP_OVERHANG, STREAM_PREFIX, Draft, bind, records_of

MAX_BOXES = 12
EMPTY_RATIO = 0.2  # of the questions that ask to find what is not there
COUNT_RATIO = 0.12  # of the questions that ask how many there are
WINDOW_TRIALS, RECORD_TRIALS = 6, 40
ORGANS = (
    "adrenal gland", "bladder", "colon", "duodenum", "gallbladder", "kidney", "liver", "lung", "pancreas", "prostate",
    "small bowel", "spleen", "stomach",
)  # fmt: skip
"""Last words of the names of organs; bones, muscles, vessels and the spinal cord are none."""


@dataclass(frozen=True)
class Kind:
    """Targets that are found or counted together.

    Attributes:
        plural: word of the question.
        weight: how often it is asked, beside the others.
        sources: sources of the images.
        endings: last words of the structures' names, any of which is a target.
        fewest: boxes that an answer has at least, where it has any.
        windows: shortest and longest side of the window, over the shorter side of the image.
        is_counted: whether to ask how many there are, besides where.
        min_area_px: pixels of a target that must be in view.
    """

    plural: str
    weight: float
    sources: tuple[str, ...]
    endings: tuple[str, ...]
    fewest: int = 1
    windows: tuple[float, float] = (0.55, 1.3)
    is_counted: bool = False
    min_area_px: int = MIN_AREA_PX

    def matches(self, name: str) -> bool:
        """Return whether a structure of this name is a target."""
        return name.endswith(self.endings)

    def knows(self, record: ImageFacts) -> bool:
        """Return whether targets were looked for in an image."""
        return any(self.matches(name) for name in record.labelled)


_CT, _SCANS = ("ct-abdomen", "ct-contrast"), ("ct-abdomen", "ct-contrast", "mr-abdomen")
KINDS: dict[str, Kind] = {
    "nuclei": Kind("nuclei", 0.25, ("nuclei", "nuclei-held-out"), ("nucleus",), 1, (0.3, 1.2), is_counted=True),
    "organs": Kind("organs", 0.25, _SCANS, ORGANS, fewest=2),
    "ribs": Kind("ribs", 0.2, _CT, ("rib",), 1, (0.4, 0.9), is_counted=True, min_area_px=4),
    "vertebrae": Kind("vertebrae", 0.1, _CT, ("vertebra",), 1, (0.4, 1.1), is_counted=True),
    "lesions": Kind("lesions", 0.1, ("lesion", "mr-liver-overlay"), (" lesion",), 1, (0.3, 1.1)),
    "kidneys": Kind("kidneys", 0.05, _SCANS, ("kidney",), is_counted=True),
    "lungs": Kind("lungs", 0.05, (*_SCANS, "ct-aorta"), ("lung",), is_counted=True),
}
"""Name -> kind."""


@cache
def records_for(name: str, split: str) -> tuple[ImageFacts, ...]:
    """Return the images of a split that a kind can be asked of, in the order of their ids, with its targets alone."""
    kind = KINDS[name]
    in_split = {r.path for r in records_of(split)}
    tables = load_counted() if name in ("ribs", "vertebrae") else load_facts()
    return tuple(_reduced(kind, r) for r in tables if r.path in in_split and r.source in kind.sources and kind.knows(r))


def _reduced(kind: Kind, record: ImageFacts) -> ImageFacts:
    """Return a table with the targets of a kind alone: looking for the others takes most of the time."""
    structures = tuple(s for s in record.structures if kind.matches(s.name))
    return replace(record, structures=structures, traces=tuple(filter(kind.matches, record.traces)))


@cache
def _whole_tables() -> dict[str, ImageFacts]:
    return {record.path: record for record in load_facts()}


def found_in(kind: Kind, view: View) -> tuple[Seen, ...] | None:
    """Return the targets of a view of a reduced table; none where it is certain that there is none.

    They stand by name, and those of one name from top to bottom: an answer then says its labels in a known order.

    Returns:
        None where a target is cut, too small or in several parts that one box would not mark, and where there are
        fewer or more than an answer may have.
    """
    if view.partial:
        return None
    if not view.seen:
        return ()
    is_divided = kind.min_area_px < MIN_AREA_PX and any(s.structure.parts > 1 for s in view.seen)
    if is_divided or not kind.fewest <= len(view.seen) <= MAX_BOXES:
        return None
    return tuple(sorted(view.seen, key=lambda s: (s.name, s.xyxy_px[1], s.xyxy_px[0])))


def find_all(name: str, found: tuple[Seen, ...]) -> Draft:
    """Ask for the boxes of all targets of a kind."""
    names = dict.fromkeys(s.name for s in found)
    facts = tuple(Fact(n, "present") for n in names)
    form = "find_all" if found else "find_none"
    return Draft(form, f"Locate all {KINDS[name].plural}.", Answer("boxes"), found, facts, name)


def how_many(name: str, found: tuple[Seen, ...]) -> Draft:
    """Ask how many targets of a kind there are."""
    return Draft("count", f"How many {KINDS[name].plural} are visible?", Answer("open", str(len(found))), about=name)


class Targets:
    """Questions about several, small or no targets of one split, as a source for a mixture.

    Args:
        split: train or test, a volume is in one of them only; or a part of train.
        crops: draw a random square window for every question; otherwise show whole images.
    """

    def __init__(self, split: str = "train", crops: bool = True) -> None:
        self.name = "embedded:targets"
        self.stream = f"{STREAM_PREFIX}targets"
        self.root: Path = EMBEDDED_ROOT
        self.split, self.crops = split, crops
        self._kinds = tuple(name for name in KINDS if records_for(name, split))

    def __len__(self) -> int:
        return sum(len(records_for(name, self.split)) for name in self._kinds)

    def get(self, index: int, rng: Random) -> Sample:
        """Return a question; kind, image and view are drawn from `rng`, so that the kinds keep their shares."""
        name = rng.choices(self._kinds, [KINDS[k].weight for k in self._kinds])[0]
        is_count = KINDS[name].is_counted and rng.random() < COUNT_RATIO
        is_empty = rng.random() < EMPTY_RATIO
        for wanted in (is_empty, not is_empty):
            sample = self.draw(name, rng, is_count=is_count, is_empty=wanted)
            if sample is not None:
                return sample
        raise AssertionError(f"no view of split {self.split} can be asked for {name}, though it was listed")

    def draw(self, name: str, rng: Random, *, is_count: bool, is_empty: bool) -> Sample | None:
        """Return a question about one kind; None where no view that was tried allows it.

        Args:
            name: one of `KINDS`.
            rng: generator that draws image and view.
            is_count: ask how many there are; otherwise where they are.
            is_empty: ask where there are none.
        """
        kind, records = KINDS[name], records_for(name, self.split)
        for record in rng.sample(records, min(RECORD_TRIALS, len(records))):
            for view in self._views(kind, record, rng):
                found = found_in(kind, view)
                if found is not None and bool(found) != is_empty:
                    # With the image's own table, so that tone curves move every structure and not the targets alone.
                    shown = replace(view, record=_whole_tables()[record.path])
                    if is_count:
                        return bind("vqa", how_many(name, found), shown)
                    return bind("grounding", find_all(name, found), shown)
        return None

    def _views(self, kind: Kind, record: ImageFacts, rng: Random) -> Iterable[View]:
        if not self.crops:
            yield look(record, min_area_px=kind.min_area_px)
            return
        for _ in range(WINDOW_TRIALS):
            window = random_square_window((record.width, record.height), rng, *kind.windows, CROP_OVERHANG)
            yield look(record, window, min_area_px=kind.min_area_px)


def target_samples(
    split: str = "test", n: int = 200, seed: int = 0, *, form: str = "", kinds: Iterable[str] = KINDS
) -> list[Sample]:
    """Return fixed questions to evaluate on; the same for the same arguments.

    Args:
        split: train or test.
        n: questions wanted, spread evenly over the kinds; there may be fewer, since each is returned once.
        seed: seed of images, crops and questions.
        form: `find_all`, `find_none` or `count`; empty: as a run draws them.
        kinds: names of kinds to ask for.
    """
    source = Targets(split)
    names = [name for name in kinds if records_for(name, split) and (form != "count" or KINDS[name].is_counted)]
    samples: dict[str, Sample] = {}
    for i in range(n):
        rng = Random(f"{seed}/targets/{split}/{form}/{i}")
        if form:
            name, is_count = names[i % len(names)], form == "count"
            is_empty = rng.random() < EMPTY_RATIO if is_count else form == "find_none"
            sample = source.draw(name, rng, is_count=is_count, is_empty=is_empty)
        else:
            sample = source.get(i, rng)
        if sample is not None:
            samples.setdefault(sample.id, sample)
    return list(samples.values())
