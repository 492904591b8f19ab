"""Names of structures and findings that a text may mention, with their other spellings."""

STRUCTURES: tuple[str, ...] = (
    # abdomen and pelvis
    "adrenal gland", "aorta", "bladder", "colon", "duodenum", "esophagus", "gallbladder", "iliac artery", "iliac vein",
    "inferior vena cava", "kidney", "liver", "liver lesion", "pancreas", "portal vein", "prostate", "small bowel",
    "spleen", "stomach",
    # chest
    "breast lesion", "clavicle", "heart", "lung", "lung lesion", "pleural effusion", "pneumothorax", "pulmonary artery",
    "rib", "scapula", "sternum", "thyroid", "trachea",
    # bones and muscles
    "back muscle", "femur", "gluteal muscle", "hip bone", "humerus", "psoas muscle", "sacrum", "spinal cord",
    "vertebra",
    # head
    "brain", "brain lesion", "cerebellum", "edema", "eye", "hippocampus", "microaneurysm", "optic disc", "skull",
    "ventricle",
    # lesions and microscopy
    "cyst", "fracture", "hemorrhage", "lesion", "mass", "metastasis", "nodule", "nucleus", "tumor",
)  # fmt: skip
"""Canonical names. A mention of one that a sample's facts do not know counts as unsupported."""

UNPAIRED = frozenset({
    "aorta", "bladder", "brain", "colon", "duodenum", "esophagus", "gallbladder", "heart", "inferior vena cava",
    "liver", "pancreas", "portal vein", "prostate", "sacrum", "small bowel", "spinal cord", "spleen", "stomach",
    "trachea", "vertebra",
})  # fmt: skip
"""Structures of which a body has one: a side says where it lies, not which one it is, and is not compared."""

SPELLINGS: dict[str, str] = {
    "gall bladder": "gallbladder",
    "haemorrhage": "hemorrhage",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "optic disk": "optic disc",
    "iliopsoas": "psoas muscle",
    "suprarenal gland": "adrenal gland",
    "thyroid gland": "thyroid",
    "tumour": "tumor",
    "urinary bladder": "bladder",
    "windpipe": "trachea",
}
"""Other names of the same thing -> canonical name."""

_ENDINGS = {"us": "i", "is": "es", "a": "ae", "um": "a", "y": "ies", "x": "ces"}


def plurals(name: str) -> list[str]:
    """Return the plurals `name` may have, English and Latin; some are no words, which does no harm."""
    irregular = [name[: -len(end)] + other for end, other in _ENDINGS.items() if name.endswith(end)]
    return [f"{name}s", f"{name}es", *irregular]
