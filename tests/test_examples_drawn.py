"""Property tests draw the same examples every day; `make fuzz` draws others and runs what the suite leaves out."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


def drawn(profile: str) -> list[int]:
    """Return the numbers that a property test sees under a profile."""
    seen: list[int] = []

    @settings(settings.get_profile(profile), max_examples=20, database=None)
    @given(st.integers(0, 2**60))
    def property_test(number: int) -> None:
        seen.append(number)

    property_test()
    return seen


def test_the_suite_draws_the_same_examples_and_fuzzing_others() -> None:
    assert settings.get_current_profile_name() == os.environ.get("HYPOTHESIS_PROFILE", "ci")
    assert drawn("ci") == drawn("ci")
    assert drawn("random") != drawn("random")


@pytest.mark.fuzz
def test_a_long_search_is_run_only_when_asked_for(pytestconfig: pytest.Config) -> None:
    assert "fuzz" in pytestconfig.getoption("markexpr").replace("not fuzz", "")


def test_the_suite_leaves_long_searches_out_and_make_fuzz_runs_them() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert '-m "not fuzz"' in options["addopts"]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("fuzz: $(STAMP)\n")[2].partition("\n\n")[0]
    assert "HYPOTHESIS_PROFILE=random" in recipe and '-m "fuzz or hypothesis"' in recipe
