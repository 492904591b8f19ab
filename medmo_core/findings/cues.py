"""Words that say whether what is named is there (phrases are written as `phrases.py` states).

The words that commit the reporter ("probable", "consistent with", "compatible with", "represents") are no hedges: what
they introduce counts as present. Hedges are the words that leave it open.
"""

DENIED_BEFORE = (
    "no; not; without; neither; nor; absence of; free of|from; negative for?; lack|lacks|lacking of?; clear of;"
    " resolution of; clearing of; removal of; rather than; denies; cannot; never; isn t; aren t; can t; no longer;"
    " none of the following"
)
"""What follows is not there."""

NOT = frozenset({"not", "cannot", "never", "isn t", "aren t", "can t", "no longer"})
"""Those of them that turn the predicate after them: "not seen"."""

DENIED_AFTER = (
    "absent; invisible; missing; not there; unlikely; resolved; has|have resolved|cleared|disappeared; ruled out;"
    " excluded;"
    " is|are|was|were|been ruled out|excluded; has|have been removed"
)
"""What stands before is not there, unless it is denied: "has not resolved"."""

VALUES = "none; nil; neg; nothing; false"
"""What stands right before, as the heading of a template, is not there (`values.py`)."""

PREDICATES = (
    "visible; seen; present; shown; identified; detected; found; visualized; visualised; depicted; recognizable;"
    " recognisable; evident; noted; demonstrated; appreciated; observed; apparent"
)
"""What stands before is there, unless the predicate is denied."""

ONLY_SOUND_DENIED = (
    "not only; no doubt; not just; unchanged; not changed; not significantly changed; no new? change|changes in?;"
    " no significant|interval|appreciable? change|changes in; no significant interval change|changes in;"
    " no interval increase|improvement|worsening; no increase|decrease|progression|worsening|improvement in|of;"
    " not well|fully|completely|optimally|entirely|adequately seen|visualized|demonstrated|evaluated|assessed|included;"
    " no longer obscured|obscures; otherwise clear; bone|bony|osseous mineral? density"
)
"""Says nothing of what is there."""

HEDGE_BEFORE = (
    "possible; possibly; may; might; could; would; suspicious for?; suspicion for|of; suspected; questionable;"
    " question of?; suggest|suggests|suggested|suggesting; suggestive of?; concern|concerning for; worrisome for;"
    " cannot exclude; can not exclude; cannot rule out; differential; uncertain; perhaps; equivocal;"
    " potential; potentially; presumed; presumably; favor|favors|favored"
)
"""What follows may be there."""

HEDGE_AFTER = (
    "not entirely? excluded; not be|been excluded; not be|been ruled out; cannot be excluded; cannot be ruled out;"
    " can not be excluded; can not be ruled out; difficult to exclude|evaluate;"
    " is|are possible|suspected|questionable|questioned|considered|likely"
)
"""What stands before may be there."""

HYPOTHESES = (
    "rule out; exclude; if; if there is|are; evaluate|evaluation|assess for; for evaluation of; to assess for;"
    " to evaluate|identify|exclude|assess; assessment of; clinical concern for; follow up for; risk of;"
    " recommend|recommended"
)
"""What follows is talked of, not reported."""

MARKS = (".", ";", "!", "?", "\n")
BREAKS = (
    "but; however; although; though; whereas; while; except; which; there is|are|was|were|has|have; aside|apart from;"
    " other than; with the exception of; the remainder"
)
"""A clause ends: nothing of the above reaches across."""

STOPS = frozenset({",", "and", "with", "or", "is", "are", "(", ")", "then", "than", "without"})
"""Words that a noun's adjectives do not cross."""

LINKS = frozenset({"of", "in", "within", "to", "at", "on", "over", "about", "along", "involving", "throughout", "from"})
"""Words that join a noun to its place."""
