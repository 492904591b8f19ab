"""The comparison of box_match with SciPy's optimum, on few problems; tools/check_box_match.py makes many."""

from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_kernels import box_match
from tools import check_box_match as tool


@pytest.mark.parametrize("seed", range(8))
def test_every_optimum_is_scipys(seed: int) -> None:
    assert tool.differing(seed, problems=40) == []


def test_a_pair_given_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_pair_short(*args: Any, **arguments: Any) -> Tensor:
        match = box_match(*args, **arguments)
        match[torch.nonzero(match >= 0)[0]] = -1
        return match

    monkeypatch.setattr(tool, "box_match", one_pair_short)
    (line,) = tool.differing(0, problems=40)
    assert "SciPy" in line


def test_a_dearer_assignment_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pairs as SciPy's, each box of a problem with the other's partner."""

    def exchanged(*args: Any, **arguments: Any) -> Tensor:
        match = box_match(*args, **arguments)
        first = int(torch.nonzero(match >= 0)[0])
        match[first : first + 2] = match[first : first + 2].flip(0)
        return match

    monkeypatch.setattr(tool, "box_match", exchanged)
    assert tool.differing(1, problems=1) or tool.differing(5, problems=5)
