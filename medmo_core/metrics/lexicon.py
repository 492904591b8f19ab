"""Names of structures and findings that a text may mention, with their other spellings."""

STRUCTURES: tuple[str, ...] = (
    # abdomen and pelvis
    "adrenal gland", "aorta", "bladder", "colon", "duodenum", "esophagus", "gallbladder", "iliac artery", "iliac vein",
    "inferior vena cava", "kidney", "liver", "pancreas", "portal vein", "prostate", "small bowel", "spleen", "stomach",
    # chest
    "clavicle", "heart", "lung", "pleural effusion", "pneumothorax", "pulmonary artery", "rib", "scapula", "sternum",
    "thyroid", "trachea",
    # bones and muscles
    "autochthon", "femur", "gluteus maximus", "gluteus medius", "gluteus minimus", "hip", "humerus", "iliopsoas",
    "sacrum", "spinal cord", "vertebra",
    # head
    "brain", "cerebellum", "edema", "enhancing tumor", "eye", "hippocampus", "optic disc", "skull", "tumor core",
    "ventricle",
    # lesions and microscopy
    "cell", "cyst", "fracture", "hemorrhage", "lesion", "mass", "metastasis", "nodule", "nucleus", "tumor",
)  # fmt: skip
"""Canonical names. A mention of one that a sample's facts do not know counts as unsupported."""

SPELLINGS: dict[str, str] = {
    "gall bladder": "gallbladder",
    "haemorrhage": "hemorrhage",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "optic disk": "optic disc",
    "psoas muscle": "iliopsoas",
    "suprarenal gland": "adrenal gland",
    "thyroid gland": "thyroid",
    "tumour": "tumor",
    "urinary bladder": "bladder",
    "windpipe": "trachea",
}
"""Other names of the same thing -> canonical name."""

_ENDINGS = {"us": "i", "is": "es", "a": "ae", "um": "a", "y": "ies", "x": "ces"}


def plurals(name: str) -> list[str]:
    """Return the forms that more than one of `name` may take, English and Latin; some are no words, which harms none."""
    irregular = [name[: -len(end)] + other for end, other in _ENDINGS.items() if name.endswith(end)]
    return [f"{name}s", f"{name}es", *irregular]
