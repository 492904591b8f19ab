"""Findings, each with the phrases that mean it (written as `phrases.py` states); plurals are added."""

FINDINGS: dict[str, str] = {
    # lung
    "atelectasis": "atelectasis; atelectases; atelectatic change?; atelectic; subsegmental|lobar collapse",
    "opacity": "opacity; opacification; opacified; wedge shaped opacity",
    "interstitial opacity": "reticular? interstitial opacity|opacification|density; reticular opacity;"
    " interstitial and alveolar|airspace opacity",
    "nodular opacity": "nodular|round|rounded opacity",
    "density": "density; radiodensity; hyperdensity; wedge shaped density",
    "nodular density": "nodular|round|rounded density",
    "airspace disease": "airspace disease|process|change; air space disease|process|change; alveolar disease|process",
    "infiltrate": "infiltrate; alveolar|airspace|interstitial|nodular infiltrate; infiltration; infiltrative process",
    "consolidation": "consolidation; consolidative change|process?",
    "pneumonia": "pneumonia; pneumonitis; bronchopneumonia; pneumonic process|infiltrate",
    "edema": "edema; oedema",
    "pulmonary edema": "pulmonary|interstitial|alveolar edema|oedema",
    "pulmonary congestion": "congestion; central congestion; congestive change; cephalization; vascular congestion;"
    " pulmonary vascular? congestion; pulmonary venous congestion|hypertension; pulmonary? vascular|venous"
    " engorgement|distention; pulmonary? vascular redistribution; cephalad redistribution; upper lobe|zone"
    " redistribution; fluid|volume overload; hypervolemia",
    "heart failure": "congestive? heart failure; chf; cardiac failure|decompensation; congestive failure",
    "emphysema": "emphysema; emphysematous change|disease?; bullous|centrilobular emphysema",
    "bulla": "bulla; bullous disease|change; bleb",
    "subcutaneous emphysema": "subcutaneous emphysema|air|gas; soft tissue emphysema|air|gas",
    "pneumomediastinum": "pneumomediastinum; mediastinal emphysema|air",
    "copd": "copd; chronic obstructive pulmonary|lung|airway|airways disease; obstructive lung|pulmonary disease",
    "hyperinflation": "hyperinflation; hyperinflated; hyperexpansion; hyperexpanded; hyperaeration; hyperaerated;"
    " hyperdistention; hyperdistended; overinflation; overinflated; overexpansion; overexpanded;"
    " hyper|over inflation|inflated|expansion|expanded|aerated",
    "low lung volume": "hypoinflation; hypoinflated; hypoventilation; hypoventilatory; hypoaeration; hypoaerated;"
    " hypoexpansion; hypoexpanded; underinflation; underinflated; hypo inflation|inflated|ventilation|ventilatory;"
    " poor|shallow|limited|low|suboptimal inspiration; poor inspiratory effort; expiratory",
    "fibrosis": "fibrosis; pulmonary|interstitial fibrosis; interstitial lung disease; fibrotic change|disease?",
    "scar": "scar; scarring; scarred; cicatrix; cicatrization; fibrotic scar|scarring",
    "granuloma": "granuloma; granulomata; granulomatous disease|change|process|infection|calcification?",
    "granulomatous nodule": "granulomatous nodule",
    "calcified granuloma": "calcified|calcific granuloma|granulomata; calcified granulomatous disease|change|nodule?",
    "nodule": "nodule; nodular focus|lesion|shadow?; nodularity; micronodule; noncalcified nodule; fibronodular;"
    " reticulonodular",
    "calcified nodule": "calcified|calcific nodule; calcified nodular density|opacity?",
    "mass": "mass; masslike; mass like opacity|density|lesion?",
    "cavitation": "cavitation; cavitary lesion?; cavity",
    "lucency": "lucency; radiolucency; hyperlucency; hyperlucent; lucent area",
    "bronchiectasis": "bronchiectasis; bronchiectatic change?",
    # pleura, diaphragm and chest wall
    "pleural effusion": "effusion; pleural effusion; pleural fluid collection?; hydrothorax",
    "pericardial effusion": "pericardial effusion|fluid",
    "pneumothorax": "pneumothorax; pneumothoraces; hydropneumothorax",
    "pleural thickening": "pleural parenchymal? thickening; pleural plaque|reaction; apical pleural? cap|capping;"
    " thickened pleura",
    "pectus deformity": "pectus excavatum|carinatum deformity?; pectus deformity; funnel chest",
    "eventration": "eventration",
    "hiatal hernia": "hiatal|hiatus|paraesophageal hernia",
    "pneumoperitoneum": "pneumoperitoneum; free air; free intraperitoneal|peritoneal|subdiaphragmatic air",
    "lymphadenopathy": "lymphadenopathy; adenopathy",
    # heart and vessels
    "cardiomegaly": "cardiomegaly; cardiac enlargement",
    "atherosclerosis": "atherosclerosis; atherosclerotic; atherosclerotic change|disease|calcification|plaque;"
    " atherosclerotic vascular|aortic disease|calcification; arteriosclerosis; arteriosclerotic; atheroma;"
    " atheromatous",
    # bones
    "fracture": "fracture; fractured",
    "hardware fracture": "catheter|screw|wire|lead|hardware fracture; fractured catheter|screw|wire|lead;"
    " screw is fractured",
    "deformity": "deformity; deformed; compression; compressed; wedging; wedged; anterior wedging; vertebral? wedge;"
    " height loss; loss of vertebral? body? height; decreased vertebral? body? height; endplate depression|"
    "compression; vertebra plana; biconcave",
    "scoliosis": "scoliosis; scoliotic; rotatory scoliosis; kyphoscoliosis; rotoscoliosis; curvature; s shaped;"
    " dextroscoliosis; dextrocurvature; dextroconvex; dextrorotary; dextro scoliosis?; levoscoliosis; levocurvature;"
    " levoconvex; levo scoliosis?",
    "kyphosis": "kyphosis; kyphotic curvature?; hyperkyphosis",
    "degenerative change": "degenerative; degeneration; degenerative change|disease|disc|disk|joint|spondylosis;"
    " degenerative disc|disk|joint disease; arthritis; arthritic change?; osteoarthritis; osteoarthritic change?;"
    " arthropathy; arthrosis; hypertrophic change; diffuse idiopathic skeletal hyperostosis; dish; djd; ddd;"
    " syndesmophyte",
    "osteophyte": "osteophyte; bridging osteophyte; osteophyte formation; osteophytosis; spur; spurring;"
    " osteophytic change|spurring|formation?; degenerative|hypertrophic endplate? spur|spurring",
    "spondylosis": "spondylosis; spondylosis deformans; spondylotic change?; spondylitic change?",
    "osteopenia": "osteopenia; osteopenic; decreased|low|diminished|reduced bone mineral? density; osteoporosis;"
    " osteoporotic; demineralization; demineralized",
    # anywhere
    "calcification": "calcification; calcinosis; calcified; calcific",
    "lesion": "lesion",
    "lung lesion": "lung|pulmonary lesion",
    "breast lesion": "breast lesion",
    "liver lesion": "liver lesion",
    "brain lesion": "brain lesion",
    "cyst": "cyst",
    "tumor": "tumor; tumour; neoplasm",
    "metastasis": "metastasis; metastatic disease",
    "hemorrhage": "hemorrhage; haemorrhage",
    "microaneurysm": "microaneurysm",
    # what was put there
    "catheter": "catheter; port; infusion|chest|power port; port a cath; port catheter; portacath; portacatheter;"
    " mediport; picc; picc line|catheter; central venous? line|catheter|access; central venous; venous access|line;"
    " dialysis catheter; jugular|subclavian|ij line|catheter; swan ganz catheter?; shunt; shunt tubing|catheter; vp"
    " shunt; central line; cvc; cvl; hickman; permcath; groshong; broviac; vascath; quinton",
    "implanted device": "pacemaker; pace maker; pacemaker|pacing lead|wire|generator|device; pacer; generator; icd;"
    " aicd; defibrillator; cardioverter; cardiac|pacer|icd|defibrillator|ventricular|atrial lead; epicardial lead|"
    "wire; dual chamber|lead|xxxx; biventricular; bi ventricular; cardiac device; implantable|implanted device;"
    " battery pack; loop|event recorder; stimulator device?; nerve stimulator; neurostimulator; septal? occluder;"
    " amplatzer; watchman; closure|occluder|occlusion|septal device; balloon pump; infusion|pain|medication|"
    "intrathecal pump; lvad; ventricular assist device; prosthetic|artificial|mechanical|bioprosthetic|porcine|tissue"
    " valve; valve ring; tavr; prosthetic|artificial aortic|mitral|pulmonic|tricuspid|cardiac|heart valve; valvular"
    " prosthesis; aortic|mitral|tricuspid? valve prosthesis|replacement; annuloplasty ring?; lap|gastric band; ivc|"
    "cava filter; joint|shoulder|hip|humeral|humerus prosthesis|replacement; prosthetic left|right? shoulder|joint;"
    " prosthesis; prostheses; prosthetic; arthroplasty; hemiarthroplasty; internal fixation; spinal|harrington rod",
    "cardiac device": "cardiac xxxx",
    "external device": "external|overlying cardiac? monitor|monitoring? lead|device|wire; overlying lead;"
    " monitor|telemetry|ekg|ecg lead",
    "breast implant": "breast implant|prosthesis|prostheses",
    "surgical material": "clip; staple; suture; coil; metallic|vascular|surgical clip; surgical staple|suture|wire|"
    "hardware|material|xxxx; sternotomy|sternal wire|suture; median|midline sternotomy wire|suture; cerclage wire;"
    " anastomotic|embolization|embolism clip|coil; bypass|cabg marker|clip; spinal? fixation hardware",
    "tube": "endotracheal|nasogastric|ng|et|enteric|feeding|chest|tracheostomy|thoracostomy|orogastric|gastric tube;"
    " tracheostomy; dobhoff tube?",
}  # fmt: skip
"""Canonical name -> phrases. `xxxx` is a word that de-identification took away: "cardiac xxxx" is a
device, unless its size is spoken of (`qualities.py`)."""

_PARENTS: dict[str, tuple[str, ...]] = {
    "calcified granuloma": ("granuloma",),
    "calcified nodule": ("nodule", "calcification"),
    "granulomatous nodule": ("nodule", "granuloma"),
    "calcified lymph node": ("calcification",),
    "vascular calcification": ("atherosclerosis", "calcification"),
    "nodular opacity": ("nodule", "opacity"),
    "nodular density": ("nodule", "density", "opacity"),
    "density": ("opacity",),
    "interstitial opacity": ("opacity",),
    "pulmonary edema": ("edema",),
    "cardiac device": ("implanted device",),
    "osteophyte": ("degenerative change",),
    "spondylosis": ("degenerative change",),
    **dict.fromkeys(("lung lesion", "breast lesion", "liver lesion", "brain lesion"), ("lesion",)),
}

CENTRAL = frozenset({
    "atherosclerosis", "vascular calcification", "cardiomegaly", "copd", "degenerative change", "emphysema",
    "enlarged aorta", "heart failure", "hiatal hernia", "kyphosis", "osteopenia", "osteophyte", "pectus deformity",
    "pericardial effusion", "pneumomediastinum", "pneumoperitoneum", "pulmonary congestion", "scoliosis", "spondylosis",
    "tortuous aorta", "widened mediastinum",
})  # fmt: skip
"""Findings of which a side is not asked, or says something else (the way a spine curves)."""


def kinds_of(finding: str) -> tuple[str, ...]:
    """Return a finding and what it is a kind of: a calcified granuloma is a granuloma."""
    return (finding, *_PARENTS.get(finding, ()))
