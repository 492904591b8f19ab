"""The price of a contradiction in reward `factuality`, where a text makes fewer or more claims than there are facts."""

from types import SimpleNamespace

import pytest

from medmo_core.rewards.factuality import factuality_reward


def fact(finding: str, status: str = "present", side: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(finding=finding, status=status, side=side, site=None, size_mm=None)


FACTS = [fact("liver"), fact("kidney", side="left"), fact("spleen", "absent"), fact("stomach"), fact("pancreas")]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        # 2 of 5 facts in 3 claims, one of which contradicts: F1 4/8, less 1/5 and not 1/3.
        ("Liver and stomach. The spleen is visible.", 4 / 8 - 1 / 5),
        # All but one of 5 facts in 8 claims: three invented, one contradicting: F1 8/13, less 1/5 and not 1/8.
        (
            "Liver, left kidney, stomach and pancreas are visible. The spleen is visible. Aorta, lung and a nodule.",
            8 / 13 - 1 / 5,
        ),
        # Two contradictions cost two shares.
        ("Stomach, pancreas and left kidney. No liver. The spleen is visible.", 6 / 10 - 2 / 5),
        # Never below nothing.
        ("The liver is absent. No stomach. The spleen is visible. Pancreas.", 0.0),
    ],
)
def test_a_contradiction_costs_its_share_of_the_facts(text: str, score: float) -> None:
    assert factuality_reward([text], task=["report"], facts=[FACTS]) == pytest.approx([score])


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (SimpleNamespace(type="report", value="A scar."), 1.0),
        (SimpleNamespace(type="open", value="A scar."), None),  # the answer to a question is no reference
        (SimpleNamespace(type="report", value=None), None),
        (None, None),
    ],
)
def test_a_reference_is_a_report(answer: SimpleNamespace | None, score: float | None) -> None:
    assert factuality_reward(["A scar."], task=["report"], facts=[()], answer=[answer]) == [score]  # type: ignore[list-item]
