"""Write how many launches a step of decoding makes into kernels/README.md; counted without a GPU, nothing is timed.

    python -m benchmarks.report.decode_launches            # exit status 1 where the page differs
    python -m benchmarks.report.decode_launches --write
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medmo_core.generation.kv_cache import KVCache
from medmo_core.models.build import build_decoder
from medmo_core.models.config import PRESETS, TextConfig

from ..suite.launches import Recorder, recorded
from .page_section import settle

PAGE = Path(__file__).resolve().parents[2] / "kernels/README.md"
COUNTED = {"debug": "debug", "4B": "medmo-4b", "8B": "medmo-8b"}
ROWS, PROMPT = 8, 1700


class FakeDecoding:
    """A decoder and its cache after some prompts, all without numbers.

    Args:
        text: sizes of the decoder.
        shared: whether rows share prompts.
        rows: rows that are decoded together, two of each prompt.
        prompt: tokens of each prompt.
    """

    def __init__(self, text: TextConfig, *, shared: bool = False, rows: int = ROWS, prompt: int = PROMPT) -> None:
        where: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
        self.decoder = build_decoder(text, where).requires_grad_(False)
        self.cache, owners = KVCache(shared=shared), [row // 2 for row in range(rows)]
        lengths = [prompt + number for number in range(owners[-1] + 1)]
        self.cache.expect(lengths)
        for layer in range(text.num_hidden_layers):
            key, value = (
                torch.empty(sum(lengths), text.num_key_value_heads, text.head_dim, **where) for _ in range(2)
            )
            self.cache.keep_prompt(layer, key, value)
        self.cache.arrange([], prompts=owners)
        self.tokens = self.positions = torch.zeros(rows, dtype=torch.int64, device="meta")
        self.step()  # what is made once is made

    def step(self) -> Recorder:
        """Run one token of each row through all layers, and go on to the next column."""
        with recorded() as recorder, torch.no_grad():
            self.decoder.step(self.tokens, self.positions, self.cache)
            self.cache.advance()
        return recorder


def section() -> str:
    """Return the text for the page."""
    rows = ["| decoder | layers | launches a layer | beside the layers | a step |", "|---" * 5 + "|"]
    counted: Counter[str] = Counter()
    for name, preset in COUNTED.items():
        text = PRESETS[preset].text
        total = len(FakeDecoding(text).step().launches)
        one, two = (Counter(FakeDecoding(replace(text, num_hidden_layers=n)).step().launches) for n in (1, 2))
        counted = two - one
        layer, layers = counted.total(), text.num_hidden_layers
        rows.append(f"| {name} | {layers} | {layer} | {total - layers * layer} | {total} |")
    ours_first = sorted(counted.items(), key=lambda part: (not part[0].endswith("kernel"), part[0]))
    parts = ", ".join(f"{count} `{name}`" if count > 1 else f"`{name}`" for name, count in ours_first)
    return "\n\n".join([
        "### Launches of one decoded token",
        f"Counted, not timed: the text decoder and its cache without head and sampling, {ROWS} rows in bf16, each of "
        "torch's ops as one launch. Liger, left aside here, makes one of `silu` and `mul`. None of them depends on the "
        "token's number, and the host reads nothing.",
        "\n".join(rows),
        f"A layer: {parts}.",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the section; write it into the page, or compare it with the page's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(argv)
    text = section()
    print(text)
    fix = "python -m benchmarks.report.decode_launches --write"
    return settle(PAGE, "benchmarks.report.decode_launches", text, write=arguments.write, fix=fix)


if __name__ == "__main__":
    sys.exit(main())
