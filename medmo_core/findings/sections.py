"""The part of a report that says what the image shows."""

import re

_SKIPPED = (
    "indications?|reasons? for (?:the )?(?:exam|examination|study)|(?:clinical |patient )?history|clinical "
    "(?:information|indication|data)|comparisons?|technique|procedure|exam(?:ination)?|views?|recommendations?"
)
_KEPT = "findings|impression|conclusions?|opinion|report|results?|interpretation"
_HEADING = re.compile(rf"(?:^|(?<=[\n.!?;]))[ \t*#]*(?:(?P<skipped>{_SKIPPED})|{_KEPT})[ \t*]*:", re.IGNORECASE)


def reported(text: str) -> str:
    """Return a report without its indication, history, comparison and technique; any other text as it is."""
    if ":" not in text:
        return text
    kept, start, skipping = [], 0, False
    for heading in _HEADING.finditer(text):
        if not skipping:
            kept.append(text[start : heading.start()])
        start, skipping = heading.end(), heading.group("skipped") is not None
    if not skipping:
        kept.append(text[start:])
    return "\n".join(kept)
