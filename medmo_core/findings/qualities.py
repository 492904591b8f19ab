"""Meaning of a structure's quality: an enlarged heart is cardiomegaly, a heart of normal size is none."""

QUALITIES: dict[str, str] = {
    "enlarged": "enlarged; enlarging; enlargement; large; big; increased; increase; increasing; dilated; dilatation;"
    " dilation; widened; widening; distended; augmented",
    "prominent": "prominent; prominently; prominence; accentuated; accentuation; exaggerated; fullness; full",
    "borderline": "borderline; borderline enlarged|enlargement|prominent|large; normal to borderline enlarged?;"
    " upper limits of normal to borderline",
    "upper normal": "upper limit|limits of? normal; upper|top|high normal; top normal limits; top limits of normal",
    "normal": "normal; unremarkable; within? normal limits; within? the? limits of normal; normal in size; not"
    " enlarged; wnl; sharp; midline; intact",
    "clear": "clear",
    "coarse": "coarse; coarsened; coarsening; indistinct; indistinctness",
    "crowded": "crowding; crowded",
    "engorged": "engorged; engorgement; congested; plethora; plethoric; cephalized",
    "altered": "irregular; abnormal; abnormality; chronic; chronic appearing irregular?; scattered; streaky; reticular;"
    " linear; diffuse",
    "thickened": "thickened; thickening; cap; capping",
    "low": "low; lower; decreasing; decreased; decrease; diminished; reduced; small; poor; shallow; limited;"
    " suboptimal",
    "collapsed": "collapse; collapsed",
    "tortuous": "tortuous; tortuosity; ectatic; ectasia; unfolded; unfolding; uncoiled; uncoiling; elongated;"
    " elongation",
    "elevated": "elevated; elevation; raised; high riding",
    "flattened": "flattened; flattening; flat; depressed; depression",
    "blunted": "blunted; blunting; obscured; obscuration; obliterated; obliteration",
    "lost": "loss; loss of height?; loss in height; height loss; decreased|diminished|reduced height; decreased in"
    " height",
    "misshapen": "irregularity; contour|cortical|corticated irregularity|abnormality|deformity; shortening; shortened;"
    " post? traumatic change|changes; posttraumatic change|changes|deformity; expansile changes; remodeling; buckling;"
    " old|remote|prior trauma|injury",
    "narrowed": "narrowing; narrowed; space narrowing; loss of disc space",
    "round": "round; rounded; nodular; ovoid; oval; nodule like",
    "tip": "tip; terminates; terminating",
    "lead": "lead; leads; electrode; electrodes",
}
"""Name of a quality -> phrases (written as `phrases.py` states)."""

_RULES: tuple[tuple[str, str, str], ...] = (
    ("heart; cardiac device", "enlarged; prominent; borderline", "cardiomegaly"),
    ("heart; cardiac device", "normal; upper normal", "no cardiomegaly"),
    ("mediastinum", "enlarged; prominent", "widened mediastinum"),
    ("mediastinum", "normal", "no widened mediastinum"),
    ("aorta", "enlarged; prominent", "enlarged aorta"),
    ("aorta", "tortuous", "tortuous aorta"),
    ("aorta; coronary artery", "calcification", "vascular calcification"),
    ("lymph node; hilum", "calcification", "calcified lymph node"),
    ("granuloma", "calcification", "calcified granuloma"),
    ("nodule; nodular density; nodular opacity", "calcification", "calcified nodule"),
    ("lung volume", "low", "low lung volume"),
    ("lung volume", "enlarged", "hyperinflation"),
    ("lung volume", "normal", "no low lung volume; no hyperinflation"),
    ("lung; airspace", "clear", "no opacity; no infiltrate; no consolidation; no airspace disease"),
    ("lung", "collapsed", "atelectasis"),
    ("vessels", "enlarged; prominent; engorged; coarse", "pulmonary congestion"),
    ("vessels; pulmonary congestion", "normal", "no pulmonary congestion"),
    ("markings", "enlarged; prominent; coarse; crowded; altered; thickened", "increased markings"),
    ("vessels; hilum; lung; lung volume", "crowded", "increased markings"),
    ("markings", "normal", "no increased markings"),
    ("hilum", "enlarged; prominent", "prominent hilum"),
    ("diaphragm", "elevated", "elevated diaphragm"),
    ("diaphragm", "flattened", "flattened diaphragm"),
    ("costophrenic angle", "blunted", "blunted costophrenic angle"),
    ("costophrenic angle", "normal; clear", "no blunted costophrenic angle"),
    ("pleura; apex", "thickened", "pleural thickening"),
    ("spine; vertebra", "lost; collapsed", "deformity"),
    ("vertebral height", "low; lost", "deformity"),
    ("spine; vertebra; rib; clavicle; humerus; sternum; scapula", "misshapen", "deformity"),
    ("spine", "narrowed", "degenerative change"),
    ("opacity", "round", "nodular opacity"),
    ("density", "round", "nodular density"),
    ("central vein; heart chamber", "tip", "catheter"),
    ("heart chamber", "lead", "implanted device"),
)
"""Structures or findings, their qualities or kinds, and what a pair of them means. Other pairs mean nothing."""


def _table() -> dict[tuple[str, str], tuple[tuple[str, bool], ...]]:
    """Return (structure, quality) -> findings, each with whether it is there."""
    table = {}
    for structures, qualities, findings in _RULES:
        meaning = tuple((name.removeprefix("no "), not name.startswith("no ")) for name in findings.split("; "))
        for structure in structures.split("; "):
            table.update(((structure, quality), meaning) for quality in qualities.split("; "))
    return table


PAIRS = _table()
