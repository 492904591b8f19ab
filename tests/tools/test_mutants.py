"""What `make mutants` counts: changes that matter, a seeded draw, and equivalents that are listed with a reason."""

import tomllib
from textwrap import dedent

import pytest

from tools.mutants.area import ROOT, described, sampled
from tools.mutants.equivalent import LIST, Equivalents, Mutant
from tools.mutants.wording import differ_in_wording_alone

AREAS = tomllib.loads((LIST.parent / "areas.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ('raise E(f"no {a} here")', 'raise E(f"XXno {a} hereXX")', True),
        ('raise E("no")', "raise E(None)", False),
        ('raise E(f"no {a}")', 'raise E(f"no {b}")', False),
        ('notice("said")', 'notice("SAID")', True),
        ('return "said"', 'return "SAID"', False),
        ('raise E("no") if a == "b" else E("yes")', 'raise E("no") if a != "b" else E("yes")', False),
    ],
)
def test_only_the_text_of_messages_is_left_aside(one: str, other: str, alike: bool) -> None:
    assert differ_in_wording_alone(*(f"def f(a, b):\n    {line}\n" for line in (one, other))) == alike


def test_a_mutant_is_described_by_the_lines_that_differ() -> None:
    before = dedent("""\
        def f(a):
            b = g(
                a,
                1,
            )
            return b
        """)
    mutant = described("medmo_core.boxes.text.xǁIndexǁf__mutmut_3", before, before.replace("        1,\n", ""))
    assert (mutant.function, mutant.removed, mutant.added) == ("medmo_core.boxes.text.Index.f", "1,", "")
    plain = described("medmo_core.boxes.text.x_f__mutmut_3", before, before.replace("return b", "return None"))
    assert (plain.function, plain.removed, plain.added) == ("medmo_core.boxes.text.f", "return b", "return None")


def test_the_draw_is_the_same_for_a_seed_and_even_over_modules() -> None:
    mutants = [Mutant(f"{module}.x_f__mutmut_{i}", "", "", "") for module in ("a", "b") for i in range(10)]
    drawn = sampled(mutants, 4, 0)
    assert drawn == sampled(mutants, 4, 0) != sampled(mutants, 4, 1)
    assert [mutant.key[0] for mutant in drawn] == ["a"] * 4 + ["b"] * 4
    assert sampled(mutants, 4, 0)[:4] == sampled(mutants[:10], 4, 0), "other modules change no draw"
    assert set(sampled(mutants, 0, 0)) == set(sampled(mutants, 99, 0)) == set(mutants)


def test_equivalents_are_known_by_their_lines_or_by_a_detail() -> None:
    known = Equivalents(
        """
        [[detail]]
        pattern = 'strict=\\w+'
        reason = "lengths agree"

        [[mutant]]
        function = "m.f"
        removed = "a = 1"
        added = "a = 2"
        reason = "a is not read"
        """
    )
    assert known.has(Mutant("", "m.f", "a = 1", "a = 2"))
    assert not known.has(Mutant("", "m.g", "a = 1", "a = 2"))
    assert known.has(Mutant("", "", "zip(a, b, strict=True)", "zip(a, b, )"))
    assert known.has(Mutant("", "", "zip(a, b, strict=True)", "zip(a, b, strict=None)"))
    assert not known.has(Mutant("", "", "zip(a, b, strict=True)", "zip(b, strict=True)"))


def test_every_area_and_every_equivalent_names_what_is_there() -> None:
    folders = {"medmo_recipes": ROOT / "recipes", "medmo_core": ROOT / "medmo_core"}
    for name, area in AREAS.items():
        for pattern in area["modules"]:
            top, _, rest = pattern.partition("/")
            assert list(folders[top].glob(rest)), f"{name}: {pattern}"
        for test in [*area["tests"], *area.get("without", ())]:
            file, _, function = test.partition("::")
            assert (ROOT / file).exists(), f"{name}: {test}"
            assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{name}: {test}"
    listed = tomllib.loads(LIST.read_text(encoding="utf-8"))
    assert all(entry["reason"] for entries in listed.values() for entry in entries)
    for mutant in listed["mutant"]:
        top, *names = mutant["function"].split(".")
        files = [folders[top].joinpath(*names[:count]).with_suffix(".py") for count in range(1, len(names))]
        (text,) = (file.read_text(encoding="utf-8") for file in files if file.is_file())
        assert mutant["removed"].split(" ")[0] in text and f"def {names[-1]}(" in text, mutant
