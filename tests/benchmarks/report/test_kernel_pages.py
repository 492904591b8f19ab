"""The page of the kernels: costlier loops are named, and another version of Triton is no fault."""

import copy
from typing import Any

from benchmarks.report import kernel_pages
from benchmarks.report.kernel_loops import HEADING, grown, loops

LOOP = {"matrix": 640.0, "issue": 716.0, "special": 544.0, "drains": 2, "barriers": 4, "fences": 4}
RECORDS: list[dict[str, Any]] = [
    {"op": "a", "kernel": "f", "size": "x, y", "budget": {"loops": [LOOP, {**LOOP}], "outside": 1204.5}},
    {"op": "a", "kernel": "g", "size": "x", "budget": None},
]


def text_of(records: list[dict[str, Any]]) -> str:
    return "\n".join([HEADING, "", *loops(records)])


def test_every_loop_has_a_row() -> None:
    assert loops(RECORDS)[2:] == [f"| `a` | `f` | x, y | {n} | 640 | 716 | 544 | 2 | 4 | 4 | 1204.5 |" for n in (0, 1)]


def test_what_costs_more_is_named() -> None:
    after = copy.deepcopy(RECORDS)
    loop = after[0]["budget"]["loops"][1]
    loop |= {"matrix": 1280.0, "issue": 700.0, "drains": 4, "fences": 5}
    assert grown(text_of(RECORDS), text_of(after)) == [
        "a, f, x, y, loop 1: drains 4, was 2", "a, f, x, y, loop 1: memory barriers 5, was 4",
    ]  # fmt: skip
    assert grown(text_of(RECORDS), text_of(RECORDS)) == grown("a page without the table", text_of(RECORDS)) == []


def test_what_another_triton_compiled_is_not_compared() -> None:
    page = f"floors\n{kernel_pages.COMPILED}\n3 launches compiled ahead of time by triton 3.9.0, 1 spills"
    same = page.replace("1 spills", "2 spills")
    assert kernel_pages.comparable(same, page) == same
    other = same.replace("3.9.0", "3.10.0")
    assert kernel_pages.comparable(other, page) == page
    assert kernel_pages.comparable(other.replace("floors", "others"), page) == page.replace("floors", "others")
