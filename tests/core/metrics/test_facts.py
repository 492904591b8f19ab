"""Facts read from text: sentences sorted by hand, and every report of the embedded set against its own facts."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.findings import read_claims
from medmo_core.metrics import fact_score, report_fact_f1
from medmo_core.metrics.facts import reference_score


def said(text: str, *findings: str) -> set[str]:
    """Claims as short words: +liver, -left kidney, ?lesion."""
    mark = {"present": "+", "absent": "-", "uncertain": "?"}
    return {mark[c.status] + f"{c.side} {c.finding}".strip() for c in read_claims(text, findings)}


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("The liver is visible.", "+liver"),
        ("LIVER, spleen and pancreas", "+liver +spleen +pancreas"),
        ("No liver.", "-liver"),
        ("No liver, spleen or pancreas is seen.", "-liver -spleen -pancreas"),
        ("There is no evidence of a pneumothorax.", "-pneumothorax"),
        ("The liver is not visible.", "-liver"),
        ("The liver is not clearly visible.", "-liver"),
        ("The liver and the spleen are absent.", "-liver -spleen"),
        ("The liver isn't seen, the spleen is visible.", "-liver +spleen"),
        ("The spleen is visible and the liver cannot be seen.", "+spleen -liver"),
        ("The spleen is absent and the liver is visible.", "-spleen +liver"),
        ("The liver is visible but no spleen.", "+liver -spleen"),
        ("The liver shows no lesion.", "+liver -lesion"),
        ("Liver without lesion; spleen.", "+liver -lesion +spleen"),
        ("Not visible: liver, spleen.", "-liver -spleen"),
        ("No doubt the liver is there.", "+liver"),
        ("A possible mass is seen.", "?mass"),
        ("No mass. The spleen is 9.5 mm.", "-mass +spleen"),
        ("Left kidney and right femur.", "+left_kidney +right_femur"),
        ("Left and right kidneys are visible.", "+left_kidney +right_kidney"),
        ("Both kidneys are visible.", "+left_kidney +right_kidney"),
        ("The left lower lung.", "+left_lung"),
        ("A lesion of 12 mm is visible on the left.", "+left_lesion"),
        ("A lung lesion on the right and a brain lesion on the left.", "+right_lung_lesion +left_brain_lesion"),
        ("The left_kidney is visible.", "+left_kidney"),
        ("The spleen lies on the left.", "+spleen"),  # there is only one spleen
        ("A lesion in the liver.", "+lesion"),
        ("Axial MR of the brain showing edema.", "+edema"),
        ("Nuclei, vertebrae and metastases.", "+nucleus +vertebra +metastasis"),
        ("The gall bladder, an oedema, a tumour.", "+gallbladder +edema +tumor"),
        ("Deliver it to the kidneyless.", ""),
        ("", ""),
    ],
)
def test_claims(text: str, claims: str) -> None:
    assert said(text) == {claim.replace("_", " ") for claim in claims.split()}


def test_findings_of_the_caller_are_looked_for() -> None:
    assert said("A shiny widget, no gizmos.") == set()
    assert said("A shiny widget, no gizmos.", "left widget", "gizmo") == {"+widget", "-gizmo"}
    assert said("A lesion in the liver.", "liver") == {"+lesion", "+liver"}


def fact(
    finding: str, status: str = "present", side: str | None = None, site: str | None = None, size: float | None = None
) -> Any:
    return SimpleNamespace(finding=finding, status=status, side=side, site=site, size_mm=size)


@pytest.mark.parametrize(
    ("text", "hits", "contradictions", "num_claims"),
    [
        ("The liver and the left kidney are visible. No spleen.", 3, 0, 3),
        ("Liver.", 1, 0, 1),
        ("Right kidney.", 0, 1, 1),
        ("No left kidney.", 0, 1, 1),
        ("No right kidney.", 0, 0, 0),
        ("No kidney.", 0, 1, 1),
        ("Kidney.", 0, 0, 1),
        ("Spleen.", 0, 1, 1),
        ("Possible liver.", 0, 1, 1),
        ("Liver. No liver.", 0, 1, 2),
        ("Lung.", 0, 0, 1),
        ("No lung.", 0, 0, 0),
        ("Left and right kidney.", 1, 1, 2),
    ],
)
def test_counts(text: str, hits: int, contradictions: int, num_claims: int) -> None:
    facts = [fact("liver"), fact("left_kidney"), fact("spleen", "absent", "left")]
    score = fact_score(text, facts)
    assert (score.hits, score.contradictions, score.num_claims) == (hits, contradictions, num_claims)
    assert report_fact_f1(text, facts) == pytest.approx(2 * hits / (num_claims + 3))


def test_a_fact_on_both_sides_is_two() -> None:
    facts = [fact("kidney", side="both")]
    assert report_fact_f1("Both kidneys are visible.", facts) == 1
    assert report_fact_f1("The left kidney is visible.", facts) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "hits", "contradictions", "num_claims"),
    [
        ("An 8 mm nodule in the right upper lobe.", 1, 0, 1),
        ("Right upper lobe nodule.", 1, 0, 1),  # a size that is not named is not compared
        ("A 9.6 mm nodule of the right apex.", 1, 0, 1),  # another word for a place in the same zone
        ("A 10.1 mm nodule of the right apex.", 0, 0, 1),
        ("A 1 cm right nodule.", 1, 0, 1),  # 2 mm more
        ("Right basal nodule.", 0, 0, 1),
        ("Left upper lobe nodule.", 0, 1, 1),
        ("No nodule.", 0, 1, 1),
        ("A calcified right apical nodule.", 1, 0, 1),  # a kind of nodule
        ("No calcified nodule.", 0, 0, 0),  # denying a kind denies no nodule
        ("Right nodule. The right nodule is 8 mm. It is a right upper lobe nodule.", 1, 0, 2),
    ],
)
def test_place_size_and_kind(text: str, hits: int, contradictions: int, num_claims: int) -> None:
    score = fact_score(text, [fact("nodule", "present", "right", "upper lobe", 8.0)])
    assert (score.hits, score.contradictions, score.num_claims) == (hits, contradictions, num_claims)


def test_one_claim_is_one_hit_and_sizes_are_held_to_the_true_one() -> None:
    both = [fact("granuloma"), fact("calcified granuloma")]
    assert fact_score("A calcified granuloma.", both).hits == 1, "though it agrees with both"
    assert fact_score("A 24 mm nodule.", [fact("nodule", size=20.0)]).hits == 1
    assert fact_score("A 24.5 mm nodule.", [fact("nodule", size=20.0)]).hits == 0, "4.5 mm are over 20 % of 20 mm"


REFERENCE = "The heart is enlarged. Calcified granuloma at the left base. Lungs otherwise clear, no effusion."


@pytest.mark.parametrize(
    ("text", "hits", "contradictions", "num_claims"),
    [
        (REFERENCE, 3, 0, 3),
        ("Cardiomegaly. Granuloma in the left lower lobe. No pleural fluid.", 3, 0, 3),
        ("Heart size is normal. Left granuloma. No effusion.", 2, 1, 3),
        ("Cardiomegaly with effusions. The lungs and the aorta are seen.", 1, 1, 2),
        ("Possible cardiomegaly.", 0, 1, 1),
        ("A nodule.", 0, 0, 1),
        ("No nodule, no fracture.", 0, 0, 0),
        ("No effusion on the left. No effusion at the left base. No effusion.", 1, 0, 1),
        ("", 0, 0, 0),
    ],
)
def test_against_a_reference_report(text: str, hits: int, contradictions: int, num_claims: int) -> None:
    score = reference_score(text, REFERENCE)
    assert (score.hits, score.contradictions, score.num_claims, score.num_facts) == (
        hits, contradictions, num_claims, 3,
    )  # fmt: skip


def test_a_reference_that_denies_and_affirms_states_what_it_affirms() -> None:
    """Clear lungs but for a scar: the general denial is no fact of its own."""
    score = reference_score("An opacity.", "The lungs are clear. There is an opacity at the left base.")
    assert score.contradictions == 0 and score.hits == 0, "the side is missing"
    assert reference_score("Left opacity.", "The lungs are clear. There is a left opacity.").hits == 1


def test_no_facts_and_no_claims_agree() -> None:
    assert report_fact_f1("Nothing.", []) == 1
    assert report_fact_f1("Liver.", []) == 0


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_has_a_score(text: str) -> None:
    facts = [fact("liver"), fact(text or "x", "absent", text, text)]
    assert 0 <= report_fact_f1(text, facts) <= 1


def test_a_long_text_takes_no_long_time() -> None:
    """Hostile repetition is read in linear time."""
    assert len(read_claims("no left " * 4000 + "kidney " * 4000)) <= 2
    assert read_claims("no " * 9000 + "liver") == []  # beyond what is read


def test_every_embedded_caption_and_report_states_its_own_facts() -> None:
    from medmo_core.datasets.embedded.facts import load_facts, look
    from medmo_core.datasets.embedded.texts import caption, report

    rng, checked, faulty = random.Random(0), 0, []
    for record in load_facts()[::2]:
        side = int(min(record.width, record.height) * rng.uniform(0.55, 1))
        x, y = rng.randrange(record.width - side + 1), rng.randrange(record.height - side + 1)
        for window in (None, (x, y, x + side, y + side)):
            for written in (caption(look(record, window)), report(look(record, window))):
                if written and written[1]:
                    checked += 1
                    score = fact_score(*written)
                    if score.f1 != 1 or score.contradictions:
                        faulty.append((written[0], score))
    assert checked > 200
    assert faulty == []
