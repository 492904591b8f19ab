"""Fixed templates: findings as headings with values; and what any text costs and yields."""

import random
import time
from types import SimpleNamespace

import pytest

from medmo_core.findings import ABSENT, PRESENT, UNCERTAIN, kinds_of, read_claims
from medmo_core.findings.names import FINDINGS
from medmo_core.findings.phrases import expand, tokenise
from medmo_core.findings.reader import MAX_CLAIMS
from medmo_core.findings.sections import reported
from medmo_core.rewards import factuality_reward

MARKS = {PRESENT: "+", ABSENT: "-", UNCERTAIN: "?"}
STRUCTURES = ("heart", "lung", "rib", "liver")

DENIALS = [
    "{}: none", "{}: None.", "{} - none", "{} (no)", "{}: no", "{}: negative", "{}: nil", "{}: none seen", "{}: neg",
    "{}: not seen", "{}: absent", "{}: no evidence", "{}: none identified at this time.", "{}? No.", "{}?\nNo",
    "{}:\n\nNone", "{}\nNone", "{}. None seen.", "{} (-)", "{} [none]", "| {} | none |", "{} ..... none", "{} = nil",
    "**{}:** none", "1. {}: none\n2. Kyphosis: mild", "{} negative", "No {}", "{} is not seen", "Negative for {}",
    "Is there {}? No.", "{}: none, kyphosis: mild", "Kyphosis: mild, {}: none", "Mild kyphosis, {} none",
    "Wrist, {}: none", "{} (left): none", "Absent: {}", "{}: without evidence",
    "{}: -ve", "{}: nothing seen", "{}: none apparent", "{}: excluded", "{}: none on either side", "{}: false",
]  # fmt: skip
AFFIRMATIONS = ["{}: present", "{}: small", "{} (left)", "{}: yes", "{}: no change", "{}\nNo cough.", "{}: left side",
                "{}: not resolved", "{} has not cleared.", "{} not yet resolved"]  # fmt: skip


@pytest.mark.parametrize("form", DENIALS)
def test_a_denial_works_before_after_and_as_a_value(form: str) -> None:
    for name, phrases in FINDINGS.items():
        if name == "kyphosis":  # stands in the forms themselves
            continue
        phrase = next(expand(phrases)).capitalize()
        found = [c for c in read_claims(form.format(phrase)) if name in kinds_of(c.finding)]
        assert found and {c.status for c in found} == {ABSENT}, (form.format(phrase), found)


@pytest.mark.parametrize("form", AFFIRMATIONS)
def test_other_values_leave_their_heading(form: str) -> None:
    for name in ("pneumothorax", "pleural effusion", "fracture", "cardiomegaly"):
        found = [c for c in read_claims(form.format(name)) if c.finding == name]
        assert found and {c.status for c in found} == {PRESENT}, (form.format(name), found)


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Effusion: small, pneumothorax: none", ["+pleural effusion", "-pneumothorax"]),
        ("Pneumothorax: no, effusion: small", ["-pneumothorax", "+pleural effusion"]),
        ("No pneumothorax, effusion: small", ["-pneumothorax", "+pleural effusion"]),
        ("Pneumothorax, effusion: none.", ["-pneumothorax", "-pleural effusion"]),
        ("Pneumothorax/effusion: none", ["-pneumothorax", "-pleural effusion"]),
        ("Nodule 5 mm in the right lung, effusion: none", ["+right nodule", "-pleural effusion"]),
        ("Pneumothorax none, effusion none, nodule 5 mm", ["-pneumothorax", "-pleural effusion", "+nodule"]),
        ("Pneumothorax: not seen, effusion: seen", ["-pneumothorax", "+pleural effusion"]),
        ("Left pneumothorax: none. Right pneumothorax: small", ["-left pneumothorax", "+right pneumothorax"]),
        ("Pneumothorax: no pneumothorax is seen. Scar.", ["-pneumothorax", "+scar"]),
        ("Nodule: no significant growth", ["+nodule"]),
        ("Lungs: negative", []),
        ("Enlarged heart: none", ["-cardiomegaly"]),
        ("The scar: none the worse", ["+scar"]),
        ("None of the following: fracture, scar.", ["-fracture", "-scar"]),
        ("Small effusion.\nNo fracture.", ["+pleural effusion", "-fracture"]),
        ("Mild degenerative changes.. No fracture.", ["+degenerative change", "-fracture"]),
        ("Pneumonia has not been excluded.", ["?pneumonia"]),
        ("Pneumonia cannot be ruled out.", ["?pneumonia"]),
        ("Pneumothorax: possible", ["?pneumothorax"]),
        ("Nodule possible, effusion: none", ["?nodule", "-pleural effusion"]),
        ("Effusion: small scar: none", ["+pleural effusion", "-scar"]),
        (
            "Lungs: Clear.\nPleura: No effusion or pneumothorax.\nHeart: Normal size.\nBones: No fracture.\n"
            "Catheters: None.",
            ["-opacity", "-infiltrate", "-consolidation", "-airspace disease", "-pleural effusion", "-pneumothorax",
             "-cardiomegaly", "-fracture", "-catheter"],
        ),
    ],
)  # fmt: skip
def test_a_value_denies_its_own_heading_only(text: str, claims: list[str]) -> None:
    found = [
        MARKS[c.status] + f"{c.side} {c.finding}".strip() for c in read_claims(text) if c.finding not in STRUCTURES
    ]
    assert found == claims


def test_headings_in_bold_are_headings() -> None:
    assert "fever" not in reported("**Indication:** fever\n**Findings:** scar")


def test_a_template_as_reference_pays_the_right_report() -> None:
    reference = SimpleNamespace(type="report", value="Pneumothorax: none\nEffusion: small left", choices=())
    right, wrong = "No pneumothorax. Small left pleural effusion.", "Pneumothorax. Small left pleural effusion."
    columns = {"task": ["report"] * 2, "facts": [()] * 2, "answer": [reference] * 2}
    assert factuality_reward([right, wrong], **columns) == [1.0, 0.0]


@pytest.mark.parametrize("digit", ["\u1369", "\u19da", "\u2488", "9" * 400])
def test_a_size_is_an_ordinary_number(digit: str) -> None:
    (found,) = read_claims(f"A {digit} mm nodule.")
    assert found.size_mm == 0
    assert read_claims("A \u0663 mm nodule.")[0].size_mm == 3


PIECES = [
    "no ", "none", "nil ", "negative ", ": ", ", ", "(", ") ", ". ", "? ", "\n", "- ", "scar ", "effusion", " left ",
    "heart ", "enlarged ", "not seen", " may be ", "5 mm ", "1.5 x 2 cm ", "indication: ", "findings: ", "___", " and ",
    "in the ", "lower lobe ", "\u1369", "\u00e9", "\x00", "\ud800", "....", "(-)", "any ", "of ", "no longer ", "if ",
    "lungs clear ",
]  # fmt: skip


def test_any_pieces_are_read() -> None:
    """500 texts of pieces; no error of a library escapes, claims are told once each."""
    rng = random.Random(11)
    for _ in range(500):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 40)))
        claims = read_claims(text, ["gizmo", "left lung"])
        assert len(set(claims)) == len(claims) <= MAX_CLAIMS, text
        assert all(c.status in MARKS and 0 <= c.size_mm < 1e9 for c in claims), text


def test_any_repetition_costs_linear_time() -> None:
    """8 times the text takes at most 20 times as long, whatever is repeated; a quadratic rule takes 64 times."""

    def seconds(text: str) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            read_claims(text)
            best = min(best, time.process_time() - start)
        return best

    rng = random.Random(13)
    cases = [[rng.choice(PIECES) for _ in range(rng.randint(1, 4))] for _ in range(20)]
    for piece in ["".join(case) for case in cases] + [
        "scar no ",
        "scar: no scar",
        "left no ",
        "scar, ",
        "scar: ,",
        "\n",
    ]:
        short, long = (seconds("scar " + piece * (size // len(piece))) for size in (2_000, 16_000))
        assert long < 20 * short + 0.03, piece


def test_tokens_of_negative_signs() -> None:
    assert tokenise("scar (-)") == tokenise("scar (\u2212)") == ["scar", "(", "none", ")"]
    assert tokenise("scar..... none") == ["scar", ":", "none"] and "." in tokenise("scar. none")
