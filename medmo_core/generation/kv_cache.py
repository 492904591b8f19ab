"""The keys and values that a decoder looks back at while it continues prompts, token by token.

From one arrangement of rows to the next the storage stays where it is and is handed over whole; which column comes
next, and so how far rows are filled, is a number on the device that `advance` raises. So nothing that is launched for
a token depends on which token it is, and the host reads nothing back.

Shapes: n prompts, B rows (the continuations still running), T packed prompt tokens, P tokens of the longest prompt,
S columns of the rows' own cache, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from medmo_kernels.decode_attention import decode_attention

KeepKV = Callable[[int, Tensor, Tensor], None]
"""Called with the layer's index and its (T, K, D) keys and values."""
SHARE_FROM = 4096
"""On the CPU prompts are shared where that saves copies of this many tokens: below, one pass over copies is faster than
two passes (measured on two cores: 8 prompts of 300 tokens: 8 rows each gain 2x, 2 rows each lose a sixth)."""
GROWTH = 64
"""Free columns behind the longest row whenever the rows are laid out anew, which happens at the latest when they are
filled: memory follows what was written, and copying costs a 64th of what attention reads meanwhile."""


def sharing_pays(lengths: Sequence[int], num_generations: int, device: torch.device) -> bool:
    """Say whether prompts of these lengths, with so many rows each, should be stored once instead of in every row."""
    return (num_generations - 1) * sum(lengths) >= (SHARE_FROM if device.type == "cpu" else 1)


class Place(NamedTuple):
    """The place of one layer's keys and values of the token at hand.

    Attributes:
        key: (B, K, S, D) keys of the rows.
        value: (B, K, S, D) values.
        columns: (B,) int32 column of each row's token.
    """

    key: Tensor
    value: Tensor
    columns: Tensor


class StepCache(Protocol):
    """A cache that one token of each row can be run against, layer by layer."""

    def place(self, layer: int) -> Place:
        """Say where a layer writes the token's keys and values."""
        ...

    def look_back(self, layer: int, q_BHD: Tensor) -> Tensor:
        """Attend to everything up to what was written last: (B, H, D)."""
        ...


class KVCache:
    """Keys and values of every layer of a decoder, for rows that come and go.

    All rows write the same column, so each row has a column that it begins at. Shared prompts are stored once, and
    their rows refer to them; otherwise each row has a copy of its prompt at its head: one stretch to read. Rows of a
    prompt stand together, as the op likes them, when prompts are started in order.

        cache = KVCache(shared=True)
        cache.expect([12, 30])                                             # prompts 0 and 1
        decoder(x, positions, cu_seqlens, keep_kv=cache.keep_prompt)       # run the prompts once
        cache.arrange([], prompts=[0] * 8 + [1] * 8)                       # 16 rows
        hidden = decoder.step(tokens, positions, cache)
        cache.advance()
        cache.arrange([0, 3, 9])                                           # drop finished rows; others could start

    Args:
        shared: store a prompt once, however many rows continue it.
    """

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.width = 0
        """Columns of the rows' own cache that are filled."""
        self.prompts: list[tuple[Tensor, Tensor]] = []
        """Of each layer (n, K, P, D): prompts that rows share, or that rows are still to be started from."""
        self.own: list[tuple[Tensor, Tensor]] = []
        """Of each layer (B, K, S, D)."""
        self._lengths: list[int] = []  # of every prompt there ever was; its place is its number
        self._held: list[int] = []  # numbers of `prompts`
        self._arriving: list[int] = []  # numbers of the prompts announced, whose layers come in
        self._arrived: list[tuple[Tensor, Tensor]] = []
        self._owners: list[int] = []  # of each row its prompt's number
        self._starts: list[int] = []  # of each row the column that it begins at
        self._prompt_of: Tensor | None = None
        self._prompt_lengths: Tensor | None = None
        self._left_pad: Tensor | None = None
        self._columns = self._stops = torch.empty(0, dtype=torch.int32)  # (B,): the column at hand, and the one behind
        self._steps = torch.empty(0, dtype=torch.int32)  # (2, B): both, to be raised at once

    def expect(self, lengths: Sequence[int]) -> None:
        """Announce prompts, whose keys and values come next; they are numbered on from those before."""
        assert not self._arriving, "the prompts announced before have not been arranged"
        self._arriving = list(range(len(self._lengths), len(self._lengths) + len(lengths)))
        self._lengths += lengths

    def keep_prompt(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Store one layer's packed keys and values of the prompts announced; layers come in order, once each."""
        assert layer == len(self._arrived), f"layer {layer} after {len(self._arrived)} layers"
        self._arrived.append((self._spread(k_TKD), self._spread(v_TKD)))

    def arrange(self, rows: Sequence[int], prompts: Sequence[int] = (), waiting: Collection[int] = ()) -> None:
        """Keep some rows, start others behind them, and forget the prompts that nobody reads any more.

        Args:
            rows: indices of the rows that go on, as they stand now.
            prompts: number of the prompt of each row to be started.
            waiting: numbers of prompts that more rows will be started from later.
        """
        stored = self._held + self._arriving
        owners = [*(self._owners[row] for row in rows), *prompts]
        read = sorted({*waiting, *(owners if self.shared else ())})
        written = [self.width - self._starts[row] for row in rows]
        heads = [0 if self.shared else self._lengths[prompt] for prompt in prompts]
        # All rows write the same column next: what is old ends there, what is new begins there.
        width = max([*written, self._longest(stored) if any(heads) else 0])
        device = (self.own or self._arrived)[0][0].device
        kept = torch.tensor(rows, dtype=torch.long, device=device)
        sources = torch.tensor([stored.index(prompt) for prompt in prompts], dtype=torch.long, device=device)
        places = torch.tensor([stored.index(number) for number in read], dtype=torch.long, device=device)
        span = self._span(self._longest(read), self._longest(stored))
        for layer in range(max(len(self.own), len(self._arrived))):  # what goes and what comes meet in one layer only
            blocks = self._blocks(layer)
            olds = self.own[layer] if rows else (None, None)
            key, value = (
                self._rows(old, block, kept, sources, max(written, default=0), width)
                for old, block in zip(olds, blocks, strict=True)
            )
            self.own[layer : layer + 1] = [(key, value)]
            if read != stored:
                blocks = blocks[0][places, :, span], blocks[1][places, :, span]
            self.prompts[layer : layer + 1] = [blocks]
        self.width, self._owners, self._held = width, owners, read
        self._starts = [width - count for count in written + heads]
        self._arriving, self._arrived = [], []
        self._index_rows(device)

    def attend(self, layer: int, q_BHD: Tensor, k_BKD: Tensor, v_BKD: Tensor) -> Tensor:
        """Store one token of each row in the column at hand and attend to everything up to it: (B, H, D)."""
        key, value, columns = self.place(layer)
        column = columns[:1].long()  # one for all rows
        key.index_copy_(2, column, k_BKD.unsqueeze(2))
        value.index_copy_(2, column, v_BKD.unsqueeze(2))
        return self.look_back(layer, q_BHD)

    def place(self, layer: int) -> Place:
        """Say where a layer writes the keys and values of the token at hand."""
        return Place(*self.own[layer], self._columns)

    def look_back(self, layer: int, q_BHD: Tensor) -> Tensor:
        """Attend to everything up to the column at hand, which has been written: (B, H, D)."""
        keys, values = self.own[layer]
        if not self.shared:
            return decode_attention(q_BHD, keys, values, self._stops, left_pad=self._left_pad)
        prompt_key, prompt_value = self.prompts[layer]
        return decode_attention(
            q_BHD,
            keys,
            values,
            self._stops,
            left_pad=self._left_pad,
            prompt_key=prompt_key,
            prompt_value=prompt_value,
            prompt_lengths=self._prompt_lengths,
            prompt_of=self._prompt_of,
        )

    def advance(self) -> None:
        """Go on to the next column, once every layer has attended."""
        self._steps.add_(1)
        self.width += 1
        if self.width == self.own[0][0].shape[2]:
            self.arrange(range(len(self._owners)), waiting=self._held)

    def go_to(self, width: int) -> None:
        """Make a column the one at hand, as at its time: what was written from there on is written again."""
        rows, device = len(self._owners), self.own[0][0].device
        self.width = width
        self._steps = torch.tensor([[width], [width + 1]], dtype=torch.int32, device=device).repeat(1, rows)
        self._columns, self._stops = self._steps

    def _longest(self, numbers: Sequence[int]) -> int:
        return max((self._lengths[number] for number in numbers), default=0)

    def _span(self, length: int, longest: int) -> slice:
        """Return the columns of a prompt in a block: on the left, or where rows copy it, and so it must end, right."""
        first = 0 if self.shared else longest - length
        return slice(first, first + length)

    def _spread(self, packed: Tensor) -> Tensor:
        """Lay packed prompts into a block: (T, K, D) to (n, K, P, D)."""
        lengths = [self._lengths[number] for number in self._arriving]
        block = packed.new_zeros(len(lengths), packed.shape[1], max(lengths), packed.shape[2])
        for place, prompt in zip(block, packed.split(lengths), strict=True):
            place[:, self._span(prompt.shape[0], max(lengths))] = prompt.transpose(0, 1)
        return block

    def _blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return one layer's keys and values of all prompts: those held, then those that have arrived."""
        parts = [*self.prompts[layer : layer + 1]] if self._held or not self._arrived else []
        parts += self._arrived[layer : layer + 1]
        if len(parts) == 1:
            return parts[0]
        (old_key, old_value), (new_key, new_value) = parts
        return self._join(old_key, new_key), self._join(old_value, new_value)

    def _join(self, *blocks: Tensor) -> Tensor:
        longest = max(block.shape[2] for block in blocks)
        shape = sum(len(block) for block in blocks), blocks[0].shape[1], longest, blocks[0].shape[3]
        joined = blocks[0].new_zeros(shape)
        for place, block in zip(joined.split([len(block) for block in blocks]), blocks, strict=True):
            place[:, :, self._span(block.shape[2], longest)] = block
        return joined

    def _rows(
        self, old: Tensor | None, block: Tensor, kept: Tensor, sources: Tensor, written: int, width: int
    ) -> Tensor:
        """Lay out the rows that go on, of at most `written` columns, and those that are started: (B, K, S, D)."""
        shape = len(kept) + len(sources), block.shape[1], width + GROWTH, block.shape[3]
        rows = block.new_zeros(shape)  # zeros: a mask multiplies what it hides by 0, which would keep NaN
        if old is not None:
            rows[: len(kept), :, width - written : width] = old[kept, :, self.width - written : self.width]
        if not self.shared and len(sources):
            rows[len(kept) :, :, width - block.shape[2] : width] = block[sources]
        return rows

    def _index_rows(self, device: torch.device) -> None:
        """Write down for the op where rows begin and which prompts they continue."""
        lengths = [self._lengths[number] for number in self._held]

        def index(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.go_to(self.width)
        self._left_pad = index(self._starts) if any(self._starts) else None
        if self.shared:
            self._prompt_of = index([self._held.index(owner) for owner in self._owners])
            self._prompt_lengths = index(lengths) if len(set(lengths)) > 1 else None
