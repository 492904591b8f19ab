"""Small sentences, one for each branch of the reader: joined sides, places, predicates, templates' lists, sizes."""

import pytest

from medmo_core.findings import canonical, read_claims, sites_agree
from medmo_core.findings.qualities import PAIRS
from medmo_core.findings.reader import sides_of

MARKS = {"present": "+", "absent": "-", "uncertain": "?"}


def said(text: str) -> list[str]:
    """Claims as short words with side, place and size: +right nodule @upper lobe 8."""
    return [
        MARKS[c.status] + " ".join(w for w in (c.side, c.finding, f"@{c.site}" * bool(c.site)) if w)
        + (f" {c.size_mm:g}" if c.size_mm else "")
        for c in read_claims(text)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        # two sides
        ("No left or right effusion.", ["-left pleural effusion", "-right pleural effusion"]),
        ("No right or left pneumothorax is seen.", ["-right pneumothorax", "-left pneumothorax"]),
        ("Left and right effusions.", ["+left pleural effusion", "+right pleural effusion"]),
        ("Possible left or right nodule.", ["?left nodule", "?right nodule"]),
        ("Left right nodule.", ["+right nodule"]),
        # the place behind a noun, however far into the sentence
        ("We now see an additional small nodule in the left lower lobe.", ["+left nodule @lower lobe"]),
        ("Nodule and scar in the left base.", ["+nodule", "+left scar @base"]),
        ("Lesion within the liver.", ["+lesion @liver"]),
        # a lobe has the qualities of a lung
        ("Collapsed right upper lobe.", ["+right atelectasis @upper lobe"]),
        ("Crowding of the lower lobe.", ["+increased markings @lower lobe"]),
        # predicates
        ("A nodule is seen.", ["+nodule"]),
        ("A nodule is seen and a scar is not seen.", ["+nodule", "-scar"]),
        ("A nodule may be seen.", ["?nodule"]),
        ("A nodule may be a scar.", ["+nodule", "?scar"]),
        # lists of a template
        ("Scar, nodule, effusion: none", ["-scar", "-nodule", "-pleural effusion"]),
        ("Small scar, nodule of 5 mm, effusion: none", ["+scar", "+nodule 5", "-pleural effusion"]),
        ("Effusion: small, scar and nodule: none", ["+pleural effusion", "-scar", "-nodule"]),
        ("Pneumothorax: no scar", ["+pneumothorax", "-scar"]),
        ("Pneumothorax: no scar, no pneumothorax is seen", ["-pneumothorax", "-scar"]),
        (", effusion: none", ["-pleural effusion"]),
        # a value below its heading
        ("Pneumothorax:\n\nNo.", ["-pneumothorax"]),
        ("Pneumothorax:? \n None", ["-pneumothorax"]),
        ("A large pneumothorax of the left lung?\nNo.", ["-left pneumothorax @lung"]),
        ("A large pneumothorax in a tall man.\nNo.", ["+pneumothorax"]),
        ("The patient has a pneumothorax\nNone", ["+pneumothorax"]),
        # the longest number that is read
        ("A 1.2345678 mm nodule.", ["+nodule 1.23457"]),
        ("A 1.23456789 mm nodule.", ["+nodule"]),
    ],
)
def test_sentences(text: str, claims: list[str]) -> None:
    assert said(text) == claims


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("", "", True), ("liver", "", True), ("", "liver", True), ("liver", "liver", True), ("liver", "spleen", False),
        ("upper lobe", "apex", True), ("apex", "base", False), ("lung", "lingula", True), ("lung", "liver", False),
    ],
)  # fmt: skip
def test_places_agree(one: str, other: str, agree: bool) -> None:
    assert sites_agree(one, other) == agree


@pytest.mark.parametrize(
    ("value", "sides"),
    [("Left", ("left",)), (" right ", ("right",)), ("both", ("left", "right")), ("bilateral", ("left", "right")),
     (None, ()), ("", ()), ("middle", ())],
)  # fmt: skip
def test_sides_of_a_field(value: str | None, sides: tuple[str, ...]) -> None:
    assert sides_of(value) == sides


@pytest.mark.parametrize(
    ("name", "bare", "sides"),
    [("left kidneys", "kidney", ("left",)), ("both lungs", "lung", ("left", "right")), ("Port-a-cath", "catheter", ())],
)
def test_names(name: str, bare: str, sides: tuple[str, ...]) -> None:
    assert canonical(name) == (bare, sides)


@pytest.mark.parametrize(
    ("structure", "quality", "meaning"),
    [
        ("heart", "enlarged", (("cardiomegaly", True),)),
        ("cardiac device", "upper normal", (("cardiomegaly", False),)),
        ("hilum", "calcification", (("calcified lymph node", True),)),
        ("clavicle", "misshapen", (("deformity", True),)),
    ],
)
def test_rules_are_spread_over_all_that_they_name(
    structure: str, quality: str, meaning: tuple[tuple[str, bool], ...]
) -> None:
    assert PAIRS[structure, quality] == meaning
    assert not any(";" in word for pair in PAIRS for word in pair)
