"""The page on the record format: its examples have no fault, and its table names every field there is."""

import re
from pathlib import Path

from PIL import Image

from medmo_core.data.records.sample import Answer, BoxAnnotation, Fact, ImageRef, Sample, record_fields
from medmo_core.data.sources.file_check import iter_faults

PAGE = (Path(__file__).parents[3] / "docs" / "record_format.md").read_text(encoding="utf-8")


def test_the_examples_have_no_fault(tmp_path: Path) -> None:
    Image.new("L", (512, 400)).save(tmp_path / "ct.png")
    blocks = re.findall(r"<!-- records -->\n```json\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "my.jsonl").write_text("".join(blocks), encoding="utf-8")
    assert [str(fault) for fault in iter_faults(tmp_path / "my.jsonl") if fault.level == "error"] == []


def test_every_field_is_described() -> None:
    names = {f.name for kind in (Sample, ImageRef, BoxAnnotation, Answer, Fact) for f in record_fields(kind)}
    assert not names & {"root", "tone", "outlines"}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
