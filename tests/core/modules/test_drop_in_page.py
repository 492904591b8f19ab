"""The drop-in page: each code block runs on its own and prints what its comments say; nothing public is missing."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

from medmo_core import losses, modules

PAGE = Path(__file__).resolve().parents[3] / "docs/drop_in.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_runs_and_prints_what_it_says(block: str) -> None:
    """Each block has a namespace of its own."""
    if "import transformers" in block and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, str(PAGE), "exec"), {"__name__": "drop_in"})
    assert out.getvalue().splitlines() == PRINTED.findall(block)
    assert out.getvalue()


def test_every_public_module_and_loss_is_on_the_page() -> None:
    assert [name for name in (*modules.__all__, *losses.__all__) if f"`{name}`" not in TEXT] == []
