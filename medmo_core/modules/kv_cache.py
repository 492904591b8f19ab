"""The keys and values that a decoder looks back at while it continues prompts, token by token.

Shapes: n prompts, B rows (the continuations still running), T packed prompt tokens, P tokens of the longest prompt,
S columns of the rows' own cache, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medmo_kernels.decode_attention import decode_attention

SHARE_FROM = 4096
"""On the CPU prompts are shared where that saves copies of this many tokens: below, one pass over copies is faster than
two passes (measured on two cores: 8 prompts of 300 tokens: 8 rows each gain 2x, 2 rows each lose a sixth)."""


class KVCache:
    """Keys and values of every layer of a decoder.

    A prompt with several continuations is stored once, and its rows refer to it. A prompt with one continuation lies
    at the head of its row, aligned on the right: one stretch to read, and every row writes the same column.

        cache = KVCache([12, 30], room=100, num_generations=8, device=x.device)
        decoder(x, positions, cu_seqlens, keep_kv=cache.keep_prompt)       # run the prompts once
        hidden = decoder.step(tokens, positions, cache.attend)             # 16 rows: prompt 0 eight times, prompt 1 ...
        cache.advance()
        kept = cache.select([0, 3, 9])                                     # drop finished rows

    Args:
        lengths: tokens of each prompt.
        room: new tokens that each row has space for.
        num_generations: continuations of each prompt.
        device: of keys and values.
    """

    def __init__(self, lengths: Sequence[int], room: int, num_generations: int, device: torch.device) -> None:
        self.lengths, self.room, self.num_generations = list(lengths), room, num_generations
        saved = (num_generations - 1) * sum(lengths)
        self.shared = saved >= (SHARE_FROM if device.type == "cpu" else 1)
        self.width = 0 if self.shared else max(lengths)
        """Columns of the rows' own cache that are filled."""
        self.prompts: list[tuple[Tensor, Tensor]] = []
        """Of each layer (n, K, P, D), where prompts are shared."""
        self.own: list[tuple[Tensor, Tensor]] = []
        """Of each layer (B, K, S, D)."""
        self._owners = [prompt for prompt in range(len(lengths)) for _ in range(num_generations)]
        self._prompt_of = self._index(self._owners, device)
        equal = min(lengths) == max(lengths)  # nothing to mask
        self._prompt_lengths = None if equal else self._index(lengths, device)
        padding = [max(lengths) - lengths[prompt] for prompt in self._owners]
        self._left_pad = None if equal or self.shared else self._index(padding, device)

    @staticmethod
    def _index(values: Sequence[int], device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    def keep_prompt(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Store one layer's packed prompt keys and values; layers come in order, once each."""
        assert layer == len(self.own), f"layer {layer} after {len(self.own)} layers"
        if self.shared:
            self.prompts.append((self._spread(k_TKD), self._spread(v_TKD)))
            shape = (len(self._owners), k_TKD.shape[1], self.room, k_TKD.shape[2])
            self.own.append((k_TKD.new_empty(shape), v_TKD.new_empty(shape)))
        else:
            self.own.append((self._spread(k_TKD), self._spread(v_TKD)))

    def _spread(self, packed: Tensor) -> Tensor:
        """Lay packed prompts into blocks, on the left; or into every row of theirs, on the right with room behind."""
        longest = max(self.lengths)
        copies, columns = (1, longest) if self.shared else (self.num_generations, longest + self.room)
        blocks = packed.new_zeros(len(self.lengths), copies, packed.shape[1], columns, packed.shape[2])
        for block, prompt in zip(blocks, packed.split(self.lengths), strict=True):
            first = 0 if self.shared else longest - prompt.shape[0]
            block[:, :, first : first + prompt.shape[0]] = prompt.transpose(0, 1)
        return blocks.flatten(0, 1)

    def attend(self, layer: int, q_BHD: Tensor, k_BKD: Tensor, v_BKD: Tensor) -> Tensor:
        """Store one token of each row in the column at hand and attend to everything up to it: (B, H, D)."""
        keys, values = self.own[layer]
        keys[:, :, self.width], values[:, :, self.width] = k_BKD, v_BKD
        stop = self.width + 1
        keys, values = keys[:, :, :stop], values[:, :, :stop]
        if not self.shared:
            return decode_attention(q_BHD, keys, values, left_pad=self._left_pad)
        prompt_key, prompt_value = self.prompts[layer]
        return decode_attention(
            q_BHD,
            keys,
            values,
            prompt_key=prompt_key,
            prompt_value=prompt_value,
            prompt_lengths=self._prompt_lengths,
            prompt_of=self._prompt_of,
        )

    def advance(self) -> None:
        """Go on to the next column, once every layer has attended."""
        self.width += 1

    def select(self, rows: Sequence[int]) -> Tensor:
        """Keep the given rows, and the prompts that they continue.

        Args:
            rows: indices into the rows as they are.

        Returns:
            The same indices as a tensor on the cache's device.
        """
        kept = torch.tensor(rows, device=self._prompt_of.device)
        for layer, (keys, values) in enumerate(self.own):  # layer by layer: the old rows of one layer at most
            self.own[layer] = keys[kept], values[kept]
        self._left_pad = None if self._left_pad is None else self._left_pad[kept]
        self._owners = [self._owners[row] for row in rows]
        read = sorted(set(self._owners))
        if self.shared and len(read) < self.prompts[0][0].shape[0]:
            self._drop_prompts(read)
        self._prompt_of = self._index(self._owners, kept.device)
        return kept

    def _drop_prompts(self, read: list[int]) -> None:
        """Forget all prompts but those that are still read."""
        kept = torch.tensor(read, device=self._prompt_of.device)
        for layer, (keys, values) in enumerate(self.prompts):
            self.prompts[layer] = keys[kept], values[kept]
        self._prompt_lengths = None if self._prompt_lengths is None else self._prompt_lengths[kept]
        self._owners = [read.index(owner) for owner in self._owners]
