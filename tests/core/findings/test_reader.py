"""The findings reader: claims of short texts sorted by hand, rule by rule, and what hostile texts cost."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.findings import PRESENT, Claim, canonical, kinds_of, read_claims, sites_agree
from medmo_core.findings.names import FINDINGS
from medmo_core.findings.phrases import Lexicon, expand, tokenise
from medmo_core.findings.qualities import PAIRS, QUALITIES
from medmo_core.findings.sections import reported
from medmo_core.findings.synonyms import one_name

MARKS = {"present": "+", "absent": "-", "uncertain": "?"}


def said(text: str) -> list[str]:
    """Claims as short words, structures left out: +cardiomegaly, -left pneumothorax, ?nodule."""
    claims = [c for c in read_claims(text) if c.finding not in ("heart", "lung", "aorta", "rib", "clavicle")]
    return [MARKS[c.status] + f"{c.side} {c.finding}".strip() for c in claims]


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        # denial
        ("No pneumothorax or pleural effusion.", ["-pneumothorax", "-pleural effusion"]),
        ("Negative for fracture; scoliosis.", ["-fracture", "+scoliosis"]),
        ("The effusion has resolved.", ["-pleural effusion"]),
        ("Pneumothorax is no longer seen.", ["-pneumothorax"]),
        ("No visible pneumothorax.", ["-pneumothorax"]),
        ("No change in the scar.", ["+scar"]),
        ("Fracture not well seen.", ["+fracture"]),
        ("No effusion, but there is a scar.", ["-pleural effusion", "+scar"]),
        # doubt
        ("Opacity which may represent pneumonia.", ["+opacity", "?pneumonia"]),
        ("Opacity consistent with pneumonia.", ["+opacity", "+pneumonia"]),
        ("Probable granuloma.", ["+granuloma"]),
        ("Atelectasis versus scar.", ["+atelectasis", "+scar"]),
        ("A small effusion is suspected.", ["?pleural effusion"]),
        ("Pneumonia cannot be excluded.", ["?pneumonia"]),
        ("Rule out pneumonia.", []),
        ("If there is concern for fracture, rib views.", []),
        # structure and quality
        ("The heart is mildly enlarged.", ["+cardiomegaly"]),
        ("Enlargement of the cardiac silhouette.", ["+cardiomegaly"]),
        ("Heart size is normal.", ["-cardiomegaly"]),
        ("A heart at the upper limits of normal.", ["-cardiomegaly"]),
        ("Borderline heart size.", ["+cardiomegaly"]),
        ("The heart is not enlarged.", ["-cardiomegaly"]),
        ("The heart is not normal.", []),
        ("The heart is enlarged, lung volumes are low.", ["+cardiomegaly", "+low lung volume"]),
        ("Blunting of the left costophrenic angle.", ["+left blunted costophrenic angle"]),
        ("Tortuous and calcified aorta.", ["+tortuous aorta", "+vascular calcification"]),
        ("Calcified left hilar lymph nodes.", ["+left calcified lymph node"]),
        ("Calcified 7 mm right apical granuloma.", ["+right calcified granuloma"]),
        ("Old rib fractures with irregularity of the left clavicle.", ["+fracture", "+left deformity"]),
        ("Left chest port with its tip in the SVC.", ["+left catheter", "+catheter"]),
        ("Low lung volumes with bronchovascular crowding.", ["+low lung volume", "+increased markings"]),
        ("A wedge shaped opacity.", ["+opacity"]),
        # side
        ("Bilateral effusions.", ["+left pleural effusion", "+right pleural effusion"]),
        ("Bibasilar atelectasis.", ["+left atelectasis", "+right atelectasis"]),
        ("Opacities in the right and left bases.", ["+right opacity", "+left opacity"]),
        ("Left base scar and right apical nodule.", ["+left scar", "+right nodule"]),
        ("Left ventricular enlargement of the heart.", ["+cardiomegaly"]),
        # words that are taken away
        ("Left chest cardiac XXXX in stable position.", ["+left cardiac device"]),
        ("The cardiac ___ is enlarged.", ["+cardiomegaly"]),
        # British
        ("Pulmonary oedema and a tumour.", ["+pulmonary edema", "+tumor"]),
    ],
)
def test_rules(text: str, claims: list[str]) -> None:
    assert said(text) == claims


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("An 8 mm nodule.", 8),
        ("8mm nodule", 8),
        ("Nodule measuring 1.2 cm.", 12),
        ("A 2 x 3 cm mass.", 30),
        ("A 2.0 cm x 3.5 cm mass.", 35),
        ("A mass of 2-3 cm.", 30),
        ("A 1 inch mass.", 25.4),
        ("A 5 mm right lower lobe nodule.", 5),
        ("A tube 3 cm above the carina, and a nodule.", 0),
        ("A nodule. The scar is 4 mm.", 0),
        ("No 8 mm nodule.", 0),
        ("A 0 mm nodule.", 0),
    ],
)
def test_sizes(text: str, size: float) -> None:
    (found,) = [c for c in read_claims(text) if c.finding in ("nodule", "mass")]
    assert found.size_mm == pytest.approx(size)


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("Right upper lobe nodule.", "upper lobe"),
        ("Nodule in the left lower lobe.", "lower lobe"),
        ("Biapical scarring.", "apex"),
        ("A scar at the right base, a nodule.", ""),
        ("Lesion of the liver.", "liver"),
    ],
)
def test_places(text: str, site: str) -> None:
    claim = read_claims(text)[-1]
    assert claim.site == site


def test_places_agree_where_they_share_a_zone() -> None:
    assert sites_agree("upper lobe", "apex") and sites_agree("lung", "base") and sites_agree("", "liver")
    assert not sites_agree("upper lobe", "base") and not sites_agree("liver", "spleen")


def test_what_is_asked_is_no_finding_of_the_report() -> None:
    report = "INDICATION: cough, fracture\nCOMPARISON: effusion in May\nFINDINGS: Clear lungs.\nIMPRESSION: Scar."
    assert "fracture" not in reported(report) and "effusion" not in reported(report)
    assert [c.finding for c in read_claims(report) if c.status == PRESENT] == ["lung", "scar"]
    assert reported("A scar: small. Impression") == "A scar: small. Impression"


def test_names_and_their_kinds() -> None:
    assert canonical("Left_Kidney") == ("kidney", ("left",))
    assert canonical("enlarged heart")[0] == "enlarged heart", "two words of two kinds are no name of ours"
    assert canonical("pleural fluid")[0] == "pleural effusion"
    assert canonical("gizmo") == ("gizmo", ())
    assert kinds_of("calcified granuloma") == ("calcified granuloma", "granuloma")
    assert kinds_of("scar") == ("scar",)


def test_every_name_is_read_as_itself() -> None:
    named = set(FINDINGS) | {finding for meaning in PAIRS.values() for finding, _ in meaning}
    assert all(name in named for name in FINDINGS)
    for name in FINDINGS:
        (phrase, *_) = expand(FINDINGS[name])
        assert name in {kind for claim in read_claims(f"{phrase}.") for kind in kinds_of(claim.finding)}, name


def test_every_rule_names_a_quality_or_a_finding() -> None:
    assert {quality for _, quality in PAIRS} <= set(QUALITIES) | set(FINDINGS)
    assert set(QUALITIES) == {quality for _, quality in PAIRS if quality in QUALITIES}, "a quality that no rule uses"


def test_the_longest_phrase_wins_and_none_overlaps() -> None:
    words = Lexicon()
    words.add("a", 1, "one two|three four?")
    words.add("b", 2, "one")
    words.add("c", 3, "four five")
    found = [(tag.kind, tag.start, tag.end) for tag in words.scan(tokenise("one three four five one six one two four"))]
    assert found == [("a", 0, 3), ("b", 4, 5), ("a", 6, 9)]


@given(
    st.lists(st.sampled_from(["no", "heart", "enlarged", "left", "and", "may", ".", "5", "mm", "seen", "scar", "of"]))
)
@settings(max_examples=150, deadline=None)
def test_any_words_are_read(words: list[str]) -> None:
    claims = read_claims(" ".join(words))
    assert len(set(claims)) == len(claims)
    assert all(isinstance(claim, Claim) and claim.status in MARKS and claim.size_mm >= 0 for claim in claims)


@pytest.mark.parametrize(
    "piece", ["no left ", "heart enlarged ", "and enlarged ", "kidney seen ", "1 mm nodule ", "may ", "left ", "xxxx "]
)
def test_hostile_repetition_costs_little(piece: str) -> None:
    """4 times the text takes at most 12 times as long: no rule looks over a whole clause for each of its words."""

    def seconds(count: int) -> float:
        text = piece * count
        start = time.process_time()
        read_claims(text + "kidney")
        return time.process_time() - start

    seconds(10)
    short, long = min(seconds(400) for _ in range(3)), min(seconds(1600) for _ in range(3))
    assert long < 12 * short + 0.02


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("enlarged heart", "Cardiomegaly", True),
        ("oedema", "edema", True),
        ("tumour", "neoplasm", True),
        ("CT scan", "computed tomography", True),
        ("oesophagus", "esophagus", True),
        ("picc line", "port", False),
        ("pulmonary edema", "edema", False),
        ("collapsed lung", "pneumothorax", False),
        ("four", "for", False),
    ],
)
def test_synonyms(one: str, other: str, same: bool) -> None:
    assert (one_name(one) == one_name(other)) == same
