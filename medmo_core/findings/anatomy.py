"""Structures and places of the body, with the words that name them (written as `phrases.py` states)."""

STRUCTURES: tuple[str, ...] = (
    # abdomen and pelvis
    "adrenal gland", "aorta", "bladder", "colon", "duodenum", "esophagus", "gallbladder", "iliac artery", "iliac vein",
    "inferior vena cava", "kidney", "liver", "pancreas", "portal vein", "prostate", "small bowel", "spleen", "stomach",
    # chest
    "clavicle", "heart", "lung", "pulmonary artery", "rib", "scapula", "sternum", "thyroid", "trachea",
    # bones and muscles
    "back muscle", "femur", "gluteal muscle", "hip bone", "humerus", "psoas muscle", "sacrum", "spinal cord",
    "vertebra",
    # head
    "brain", "cerebellum", "eye", "hippocampus", "optic disc", "skull", "ventricle",
    # microscopy
    "nucleus",
)  # fmt: skip
"""What everybody has: a mention is a claim that it can be seen. Plurals are added."""

UNPAIRED = frozenset({
    "aorta", "bladder", "brain", "colon", "duodenum", "esophagus", "gallbladder", "heart", "inferior vena cava",
    "liver", "pancreas", "portal vein", "prostate", "sacrum", "small bowel", "spinal cord", "spleen", "stomach",
    "trachea", "vertebra",
})  # fmt: skip
"""Structures of which a body has one: a side says where it lies, not which one it is, and is not compared."""

STRUCTURE_SPELLINGS: dict[str, str] = {
    "esophagus": "oesophagus",
    "gallbladder": "gall bladder",
    "optic disc": "optic disk",
    "psoas muscle": "iliopsoas",
    "adrenal gland": "suprarenal gland",
    "thyroid": "thyroid gland",
    "bladder": "urinary bladder",
    "trachea": "windpipe",
}
"""Canonical name -> other names of the same thing. Plurals are added."""

PARTS: dict[str, str] = {
    "heart": "heart size|contour|contours|silhouette|shadow|border; cardiac; cardiac size|silhouette|contour|contours|"
    "shadow; cardiac and mediastinal silhouette|silhouettes|contour|contours|shadow|size; cardiomediastinum;"
    " cardio mediastinal silhouette|silhouettes|contour|contours|structures|size;"
    " cardiomediastinal silhouette|silhouettes|contour|contours|structures|size",
    "mediastinum": "superior? mediastinum; mediastinal; mediastinal contour|contours|silhouette|structures|width|"
    "shadow",
    "lung": "lung fields|parenchyma; pulmonary parenchyma",
    "lung volume": "lung? volume|volumes|inflation; inspiratory volume|volumes|effort; inspiration; aeration",
    "vessels": "pulmonary|lung? vasculature|vascularity|vessels; pulmonary vascular|vasculatures|venous;"
    " pulmonary xxxx; vasculature; vascularity; vascular; vascular markings|pattern|margins|margination",
    "markings": "lung|pulmonary|bronchovascular? markings; bronchovascular|bronchopulmonary structures;"
    " bronchopulmonary; broncho vascular; interstitial lung? markings; interstitium; interstitial; interstitial"
    " pattern|changes; bronchovascular; peribronchial; septal lines; kerley b? lines; reticular markings|pattern;"
    " reticulation",
    "diaphragm": "diaphragm; diaphragms; hemidiaphragm; hemidiaphragms; hemi diaphragm; diaphragmatic",
    "costophrenic angle": "costophrenic; costophrenic|cardiophrenic angle|angles|sulcus|sulci|recess|recesses;"
    " cp angle|angles; lateral|posterior sulcus|sulci",
    "aorta": "aortic; aortic arch|knob|root|contour; thoracic aorta; arch; ascending|descending aorta",
    "central vein": "svc; superior vena cava; cavoatrial|caval junction; cavo|caval atrial junction;"
    " brachiocephalic|subclavian vein",
    "heart chamber": "right atrium|ventricle; atrium; ventricle; coronary sinus",
    "coronary artery": "coronary; coronary artery|arteries",
    "spine": "spine; spinal; vertebral; vertebral body|bodies; disc|disk space|spaces; endplate|endplates;"
    " end plate|plates; thoracolumbar; intervertebral",
    "vertebral height": "vertebral? body height|heights; vertebral height|heights",
    "pleura": "pleura; pleural; pleural surface|surfaces; fissure; fissures; fissural; subpleural",
    "hilum": "hilum; hila; hilar; hilar contour|contours; perihilar",
    "lymph node": "lymph; lymph node|nodes; node|nodes; hilar|mediastinal lymph? node|nodes",
    "airspace": "airspace; airspaces; air space|spaces; alveolar",
}
"""Structure or part of one -> words for it, which a quality turns into a finding (`qualities.py`)."""

SITES: dict[str, str] = {
    "upper lobe": "upper lobe|lobes|lung|lungs|zone|zones",
    "lower lobe": "lower lobe|lobes|lung|lungs|zone|zones",
    "middle lobe": "middle lobe; mid lung|lungs|zone; midlung",
    "lingula": "lingula; lingular",
    "apex": "apex; apices; apical; biapical; lung apex|apices",
    "base": "base; bases; basilar; basal; bibasilar; bibasal; lung base|bases; retrocardiac; infrahilar",
}
"""Place in a lung -> words for it."""

_ZONES = {
    "upper lobe": {"upper"},
    "apex": {"upper"},
    "middle lobe": {"middle"},
    "lingula": {"middle"},
    "lower lobe": {"lower"},
    "base": {"lower"},
    "lung": {"upper", "middle", "lower"},
}

SIDES: dict[tuple[str, ...], str] = {
    ("left",): "left; leftward; left sided",
    ("right",): "right; rightward; right sided",
    ("left", "right"): "both; bilateral; bilaterally",
}
"""Sides of the body -> words for them."""

BOTH_SIDES = "bibasilar; bibasal; biapical"
"""Words for a place on both sides: found as the site, read as the sides too."""


def sites_agree(one: str, other: str) -> bool:
    """Say whether two places can be one: one is not named, they have one name, or they share a zone of the lung."""
    return not one or not other or one == other or not _ZONES.get(one, set()).isdisjoint(_ZONES.get(other, set()))
