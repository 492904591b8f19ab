"""Text to token ids and back: any `tokenizer.json`, the Qwen vocabulary, or the small embedded one.

All of them end with the same 26 added tokens, so that a chat looks the same to every model. Text is text: a special
token that somebody typed is encoded as the characters it is written with, never as the token (see `encode`).
"""

from __future__ import annotations

import base64
import binascii
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ...durable import write_json, write_text
from ...errors import InputError

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Added tokens that Qwen does not count as special: they are found in any text and decoded as text."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's published pretokeniser: contractions, words, single digits, punctuation runs, line ends, spaces."""

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
MAX_LENGTH = 262_144  # Qwen3-VL's context, which transformers reads from the tokenizer's own file


class Tokenizer:
    """Byte-level BPE tokenizer: text to ids and back.

    Args:
        backend: a `tokenizers.Tokenizer` that knows Qwen's vision and chat tokens.
        source: where it came from, for messages.

    Raises:
        ValueError: a token that the chat template needs is missing, or text could become one.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, source: str = "tokenizer") -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True  # as text: what people type must never become a special token
        # A file may ask for texts of one length; a cut report or a filled question would be taught without a word.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.source = source
        self.endoftext_id = self._required("<|endoftext|>")
        self.im_start_id = self._required("<|im_start|>")
        self.im_end_id = self._required("<|im_end|>")
        self.vision_start_id = self._required("<|vision_start|>")
        self.vision_end_id = self._required("<|vision_end|>")
        self.image_token_id = self._required("<|image_pad|>")
        self.video_token_id = self._required("<|video_pad|>")
        self._refuse_control_tokens_in_text()

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickle forgets that special tokens are to be read as text.
        return _from_text, (self.to_str(), self.source)

    def _required(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise InputError(
                f"{self.source}: the vocabulary has no {token}; a Qwen3-VL model needs a tokenizer with Qwen's chat "
                "and vision tokens"
            )
        return token_id

    def _refuse_control_tokens_in_text(self) -> None:
        """Refuse a vocabulary in which a text can become a control token: typed as such, or under another spelling."""
        ids = {token: self._backend.token_to_id(token) for token in SPECIAL_TOKENS}
        owners = {token_id: token for token, token_id in ids.items() if token_id is not None}
        names = self._backend.get_vocab(with_added_tokens=True).items()
        shared = sorted((token_id, name) for name, token_id in names if owners.get(token_id, name) != name)
        if shared:
            token_id, name = shared[0]
            raise InputError(
                f"{self.source}: {name!r} and {owners[token_id]} share the id {token_id}, so that one would be read as "
                "the other; give every token a separate id, or copy the base model's file"
            )
        typed = [t for t, i in ids.items() if i is not None and i in self.encode(t) + self.encode(f"a {t}a {t} ")]
        if typed:
            raise InputError(
                f"{self.source}: typed text becomes the control token {typed[0]} ({len(typed)} such in all), so that a "
                'question could end its turn; set "special": true for them under added_tokens, or copy the base '
                "model's file"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            ValueError: no such file, or no tokenizer in it.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; expected a tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path}: not a readable tokenizer.json ({error})") from None
        return cls(backend, source=str(path))

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder.

        Raises:
            ValueError: the folder has no `tokenizer.json`.
        """
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise InputError(
                f"{folder}: no {TOKENIZER_FILE} in this checkpoint; copy the base model's there, or pass a tokenizer"
            )
        return cls.from_file(path)

    @classmethod
    def embedded(cls) -> Tokenizer:
        """Return the small tokenizer that travels with the package, for tiny models."""
        backend = tokenizers.Tokenizer.from_str(_resource(TOKENIZER_FILE))
        return cls(backend, source="embedded tokenizer")

    @classmethod
    def from_tiktoken(cls, path: str | Path) -> Tokenizer:
        """Build Qwen's tokenizer from its vocabulary in tiktoken form (`qwen.tiktoken`).

        The file lists byte strings by rank. The merge that makes a token is what remains of it after applying all
        merges of lower rank, so vocabulary and merges follow from the ranks alone.

        Args:
            path: one base64 byte string and its rank per line.

        Raises:
            ValueError: a line that is no such pair, naming it.

        Reference: facts checked against Qwen3's published tokenizer.json: 151,387 merges, same order.
        """
        ranks = _read_ranks(Path(path))
        to_text = _byte_alphabet()

        def spell(token: bytes) -> str:
            return "".join(to_text[byte] for byte in token)

        merges = [
            (spell(left), spell(right))
            for token, rank in ranks.items()
            if len(token) > 1
            for left, right in [_last_merge(token, rank, ranks, str(path))]
        ]
        vocabulary = {spell(token): rank for token, rank in ranks.items()}
        return cls(assemble(vocabulary, merges), source=str(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included: an embedding of this many rows is enough."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text.

        Special tokens are not recognised: `encode("<|im_end|>")` spells the ten characters. Whoever assembles a chat
        puts the ids of special tokens there itself, as `chat_template.encode_chat` does, so no text can end its turn or
        open another.
        """
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text and the character at which each begins."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several texts."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids; special tokens are left out or written by name."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token as the vocabulary spells it, or None."""
        return self._backend.token_to_id(token)

    def to_str(self) -> str:
        """Return the content of a `tokenizer.json`."""
        return self._backend.to_str(pretty=False)

    def _splits_as_qwen(self) -> bool:
        steps = (json.loads(self.to_str()).get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
        return (steps[0].get("pattern") or {}).get("Regex") == QWEN_SPLIT

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer, its config and the chat template as transformers reads them; return the first one's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / TOKENIZER_FILE
        write_text(path, self.to_str())
        config = {
            # transformers gives Qwen's class Qwen's own pretokeniser, whatever the file says.
            "tokenizer_class": "Qwen2TokenizerFast" if self._splits_as_qwen() else "PreTrainedTokenizerFast",
            "model_max_length": MAX_LENGTH,
            "eos_token": "<|im_end|>",  # transformers would otherwise take <|endoftext|> and never stop
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "add_prefix_space": False,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        }
        write_json(folder / CONFIG_FILE, config, indent=2)
        write_text(folder / TEMPLATE_FILE, _resource(TEMPLATE_FILE))
        return path


def _resource(name: str) -> str:
    """Return the content of a file that travels with the package."""
    return (importlib.resources.files("medmo_core.data.text") / "tokenizer" / name).read_text(encoding="utf-8")


def _from_text(text: str, source: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), source=source)


def assemble(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], split: str = QWEN_SPLIT
) -> tokenizers.Tokenizer:
    """Put a byte-level BPE together as Qwen does, with the 26 added tokens at the end.

    Args:
        vocabulary: token, spelled in the byte alphabet -> id, gapless from 0.
        merges: pairs of tokens in the order they apply.
        split: regular expression whose matches are the words that merges stay within.
    """
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(merges), byte_fallback=False, ignore_merges=False)
    )
    dress(backend, split)
    return backend


def dress(backend: tokenizers.Tokenizer, split: str) -> None:
    """Give a byte-level BPE its normaliser, pretokeniser, decoder and the 26 added tokens."""
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_added(token, special=True) for token in SPECIAL_TOKENS])
    backend.add_tokens([_added(token, special=False) for token in PLAIN_ADDED_TOKENS])


def _added(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(
                f"{path}:{number}: expected a base64 byte string and its rank, as in a .tiktoken vocabulary"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise InputError(f"{path}: ranks must run from 0 without gaps and cover all 256 single bytes")
    return dict(sorted(ranks.items(), key=lambda pair: pair[1]))


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int], source: str) -> tuple[bytes, bytes]:
    """Return the two pieces that are left when only merges below `rank` are applied to a token."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        options = [(ranks.get(pieces[i] + pieces[i + 1], rank), i) for i in range(len(pieces) - 1)]
        lowest, at = min(options)
        if lowest >= rank:
            raise InputError(f"{source}: token of rank {rank} cannot be made by merging tokens of lower rank")
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces[0], pieces[1]


def _byte_alphabet() -> dict[int, str]:
    """Return how byte-level BPE writes each byte: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
