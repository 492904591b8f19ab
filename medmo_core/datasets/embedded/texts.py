"""Caption, report and layout sentences, written from what a view shows; short, since small models read them.

The report's negations follow `medmo_core.metrics.facts`: one clause says what is visible, the next "No a, b or c."
"""

from __future__ import annotations

from ...data.records.sample import Fact
from .facts import ImageFacts, Seen, View

REPORT_ORGANS = (
    "liver",
    "spleen",
    "left kidney",
    "right kidney",
    "gallbladder",
    "stomach",
    "pancreas",
    "aorta",
)
MAX_NAMED = 4  # structures in a caption or a layout sentence
PROMPTS = {"caption": "Describe the image.", "report": "Report the findings.", "retrieval": "Describe the layout."}


def is_lesion(name: str) -> bool:
    """Return whether a structure is a lesion and not anatomy."""
    return name.endswith(" lesion")


def listed(names: tuple[str, ...], last: str = "and") -> str:
    """Return `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def article(noun: str) -> str:
    """Return a noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(name: str) -> str:
    """Return the plural of a structure's name."""
    return "nuclei" if name == "nucleus" else f"{name}s"


def imaging(record: ImageFacts) -> str:
    """Return how and where an image was taken: `axial unenhanced CT of the abdomen`."""
    contrast = {"given": "contrast-enhanced", "none": "unenhanced"}.get(record.contrast or "")
    words = " ".join(word for word in (record.plane, contrast, record.modality) if word)
    return f"{words} of {'cells' if record.region == 'cells' else f'the {record.region}'}"


def largest(view: View, number: int = MAX_NAMED) -> tuple[Seen, ...]:
    """Return the largest structures of a view, one per name, names with hidden twins left out."""
    chosen: dict[str, Seen] = {}
    for seen in sorted(view.seen, key=lambda s: (-s.area_px, s.name)):
        if seen.name not in view.partial:
            chosen.setdefault(seen.name, seen)
    return tuple(chosen.values())[:number]


def caption(view: View) -> tuple[str, tuple[Fact, ...]]:
    """Return a caption and the facts it states."""
    seen = largest(view)
    start = imaging(view.record)
    start = start[0].upper() + start[1:]
    if not seen:
        return f"{start}.", ()
    counts = {s.name: len(view.with_name(s.name)) for s in seen}
    names = tuple(s.name if counts[s.name] == 1 else plural(s.name) for s in seen)
    facts = tuple(Fact(s.name, "present") for s in seen)  # a caption names no side but those that are part of a name
    return f"{start} showing {listed(names)}.", facts


def report(view: View) -> tuple[str, tuple[Fact, ...]] | None:
    """Return the findings over a fixed list of organs, or of the lesion looked for, with the facts they state.

    None where too little of the list was looked for, or a lesion is cut so that it is neither visible nor absent.
    """
    lesions = tuple(name for name in view.record.labelled if is_lesion(name))
    if lesions:
        return _lesion_report(view, lesions[0])
    if sum(organ in view.record.labelled for organ in REPORT_ORGANS) < len(REPORT_ORGANS):
        return None
    present = tuple(organ for organ in REPORT_ORGANS if organ in view.visible_names)
    absent = tuple(organ for organ in REPORT_ORGANS if view.is_absent(organ))
    sentences = []
    if present:
        verb = "is" if len(present) == 1 else "are"
        sentences.append(f"{_capital(listed(present))} {verb} visible.")
    if absent:
        sentences.append(f"No {listed(absent, 'or')}.")
    sides = {s.name: s.structure.side for s in view.seen}
    facts = [Fact(organ, "present", side=sides[organ]) for organ in present]
    facts += [Fact(organ, "absent") for organ in absent]
    return " ".join(sentences), tuple(facts)


def _lesion_report(view: View, name: str) -> tuple[str, tuple[Fact, ...]] | None:
    site = name.removesuffix(" lesion")
    if view.is_absent(name):
        return f"No {name}.", (Fact(name, "absent", site=site),)
    found = view.with_name(name)
    if not found or name in view.partial:
        return None
    main = max(found, key=lambda s: s.area_px)
    side = main.structure.side
    size = main.structure.diameter_mm if main.share == 1 else None
    words = _capital(article(name))
    if size is not None:
        words += f" of {size:.0f} mm"
    words += f" is visible on the {side}." if side else " is visible."
    return words, (Fact(name, "present", site=site, side=side, size_mm=None if size is None else float(round(size))),)


def layout(view: View) -> tuple[str, tuple[Fact, ...]] | None:
    """Return a sentence about what lies in which part of the picture, which differs between views; None when empty."""
    seen = largest(view)
    if not seen:
        return None
    first = view.record.modality
    parts = [f"{s.name} {place(*view.centre(s))}" for s in seen]
    # The place belongs to the facts: two views of the same organs in other places are two candidates.
    facts = tuple(Fact(s.name, "present", site=place(*view.centre(s)), side=s.structure.side) for s in seen)
    return f"{first[0].upper() + first[1:]}: {', '.join(parts)}.", facts


def place(x: float, y: float) -> str:
    """Return the words for a place given as shares of the picture: a grid of three by three."""
    across = ("left", "", "right")[min(int(x * 3), 2)]
    down = ("upper", "", "lower")[min(int(y * 3), 2)]
    return " ".join(word for word in (down, across) if word) or "centre"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
