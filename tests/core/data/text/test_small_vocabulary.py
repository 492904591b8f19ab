"""A vocabulary of 256 bytes and three merges: built from ranks as Qwen's is, and written as transformers reads it."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from medmo_core.data.text.chat_template import name_images
from medmo_core.data.text.tokenizer import (
    PLAIN_ADDED_TOKENS,
    QWEN_SPLIT,
    SPECIAL_TOKENS,
    Tokenizer,
    assemble,
)

BYTES = [bytes([value]) for value in range(256)]
IMAGE = {"type": "image"}


def written(folder: Path, tokens: list[bytes]) -> Path:
    """Write a vocabulary in tiktoken form, the last token first: ranks need no order in the file."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path = folder / "small.tiktoken"
    path.write_text("\n".join(reversed(lines)))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken(written(tmp_path, [*BYTES, b"ab", b" l", b"abc"]))


def test_merges_follow_from_the_ranks(small: Tokenizer) -> None:
    model = json.loads(small.to_str())["model"]
    assert model["merges"] == [["a", "b"], ["\u0120", "l"], ["ab", "c"]]
    assert (model["byte_fallback"], model["ignore_merges"]) == (False, False)
    assert small.vocab_size == 256 + 3 + 26
    assert small.encode("abc abl l") == [258, 32, 256, 108, 257]
    assert small.encode_batch(("abc", "b")) == [[258], [98]]


def test_every_byte_is_spelled_and_read_back(small: Tokenizer) -> None:
    """Printable Latin-1 as itself, the other 68 from U+0100 on, in their order, as in GPT-2's alphabet."""
    vocabulary = json.loads(small.to_str())["model"]["vocab"]
    spelled = {rank: token for token, rank in vocabulary.items() if rank < 256}
    assert [spelled[value] for value in (0, 32, 33, 126, 127, 160, 161, 172, 173, 174, 255)] == [
        "\u0100", "\u0120", "!", "~", "\u0121", "\u0142", "\u00a1", "\u00ac", "\u0143", "\u00ae", "\u00ff",
    ]  # fmt: skip
    text = "\x00\x7f\u00a0\u00ad\u00e9\u809d"
    assert small.decode(small.encode(text)) == text


def test_a_token_that_no_merges_make_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"small\.tiktoken: token of rank 256 cannot be made"):
        Tokenizer.from_tiktoken(written(tmp_path, [*BYTES, b"abc", b"ab"]))
    with pytest.raises(ValueError, match="cover all 256 single bytes"):
        Tokenizer.from_tiktoken(written(tmp_path, BYTES[1:]))


def test_special_tokens_are_left_out_unless_asked_for(small: Tokenizer) -> None:
    ids = [97, small.im_end_id, small.image_token_id, 98]
    assert small.decode(ids) == "ab"
    assert small.decode(ids, skip_special=False) == "a<|im_end|><|image_pad|>b"
    assert small.encode("<think>") == [small.token_to_id("<think>")]
    assert small.decode(small.encode("<think>")) == "<think>", "it is a token, but no special one"


def test_a_pickled_tokenizer_still_reads_special_tokens_as_text(small: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert again.encode("<|im_end|>") == small.encode("<|im_end|>") == list(b"<|im_end|>")
    assert again.source == small.source


@pytest.mark.parametrize(("split", "kind"), [(QWEN_SPLIT, "Qwen2TokenizerFast"), (r"\S+", "PreTrainedTokenizerFast")])
def test_the_settings_beside_it_are_those_that_transformers_needs(tmp_path: Path, split: str, kind: str) -> None:
    vocabulary = {chr(256 + value): value for value in range(256)}  # any spelling will do
    path = Tokenizer(assemble(vocabulary, [], split)).save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "tokenizer.json"
    settings = json.loads((path.parent / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings == {
        "tokenizer_class": kind, "model_max_length": 262_144, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "bos_token": None, "unk_token": None, "add_prefix_space": False, "add_bos_token": False,
        "clean_up_tokenization_spaces": False, "split_special_tokens": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }  # fmt: skip
    added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    assert [(token["content"], token["special"], token["normalized"]) for token in added] == [
        *((token, True, False) for token in SPECIAL_TOKENS), *((token, False, False) for token in PLAIN_ADDED_TOKENS),
    ]  # fmt: skip


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([IMAGE], [text("Image 1: "), IMAGE]),
        ([IMAGE, IMAGE, text("?")], [text("Image 1: "), IMAGE, text("Image 2: "), IMAGE, text("?")]),
        ([text("Image 1: "), IMAGE], [text("Image 1: "), IMAGE]),
        ([text("see image 7"), IMAGE], [text("see image 7"), IMAGE]),
        ([text("Image 1: a scan"), IMAGE], [text("Image 1: a scan"), text("Image 1: "), IMAGE]),
        ([{"type": "boxes", "boxes": [0]}, IMAGE], [{"type": "boxes", "boxes": [0]}, text("Image 1: "), IMAGE]),
        ("words", "words"),
    ],
)
def test_images_are_named_once(content: Any, named: Any) -> None:
    (message,) = name_images([{"role": "user", "content": content, "more": 1}])
    assert message == {"role": "user", "content": named, "more": 1}


def test_names_count_over_all_turns() -> None:
    turn = {"role": "user", "content": [IMAGE]}
    answer = {"role": "assistant", "content": "yes"}
    named = name_images([turn, answer, turn])
    assert named[0]["content"][0] == text("Image 1: ") and named[2]["content"][0] == text("Image 2: ")
    assert named[1] == answer


def test_every_role_of_a_chat_is_one_token() -> None:
    tokenizer = Tokenizer.embedded()
    assert [len(tokenizer.encode(role)) for role in ("system", "user", "assistant")] == [1, 1, 1]
