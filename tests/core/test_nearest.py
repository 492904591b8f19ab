"""The nearest known name of a mistyped one."""

import pytest

from medmo_core.nearest import nearest_name

SETTINGS = ("train.docs_per_step", "train.steps", "optim.lr", "data.max_pixels")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("train.docs_per_stepp", "train.docs_per_step"), ("optm.lr", "optim.lr"), ("zzz", None), ("", None)],
)
def test_the_nearest_name_or_none(name: str, expected: str | None) -> None:
    assert nearest_name(name, SETTINGS) == expected


def test_names_may_come_from_any_iterable_and_may_be_none_at_all() -> None:
    assert nearest_name("decodr", iter({"decoder": 1, "encoder": 2})) == "decoder"
    assert nearest_name("decoder", ()) is None
