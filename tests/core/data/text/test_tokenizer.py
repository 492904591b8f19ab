"""Tokenizers: round trips, boxes that cost little, and Qwen's vocabulary rebuilt from its byte ranks."""

import base64
import json
import unicodedata
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
import regex
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medmo_core.boxes import Boxes, print_boxes
from medmo_core.data.text.tokenizer import PLAIN_ADDED_TOKENS, QWEN_SPLIT, SPECIAL_TOKENS, Tokenizer

MIXED = (
    "Pleural effusion, 12.5 mm; nódulo pulmonar. 肝脏 CT-Aufnahme: größer als 3 cm?\n\n  def f(x):\n\treturn x**2   "
    "It's the patient's LEFT side...\r\n Ⅳ ½ naïve cafe\u0301 🩻 don't  \n"
)

embedded = cache(Tokenizer.embedded)


@cache
def qwen_file() -> Path:
    try:
        found = [f for f in files("dashscope") or [] if f.name == "qwen.tiktoken"]
    except PackageNotFoundError:
        found = []
    if not found:
        pytest.skip("needs Qwen's vocabulary: pip install --no-deps dashscope==2.0.2")
    return Path(str(found[0].locate()))


@cache
def qwen() -> Tokenizer:
    return Tokenizer.from_tiktoken(qwen_file())


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_round_trip(text: str) -> None:
    ids = embedded().encode(text)
    assert embedded().decode(ids, skip_special=False) == unicodedata.normalize("NFC", text)
    assert all(0 <= i < embedded().vocab_size for i in ids)


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "\n", "liver"]), max_size=8))
@settings(max_examples=50, deadline=None)
def test_special_tokens_typed_as_text_stay_text(parts: list[str]) -> None:
    text = "".join(parts)
    ids = embedded().encode(text)
    specials = {embedded().token_to_id(token) for token in SPECIAL_TOKENS}
    assert not specials & set(ids)
    assert embedded().decode(ids) == text


def test_embedded_tokenizer_has_qwens_added_tokens_last_and_in_order() -> None:
    tokenizer = embedded()
    first = tokenizer.vocab_size - 26
    assert [tokenizer.token_to_id(t) for t in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)] == list(range(first, first + 26))
    assert (tokenizer.im_start_id, tokenizer.im_end_id) == (first + 1, first + 2)
    assert (tokenizer.image_token_id, tokenizer.video_token_id) == (first + 12, first + 13)
    assert (tokenizer.vision_start_id, tokenizer.vision_end_id) == (first + 9, first + 10)
    assert tokenizer.endoftext_id == first
    assert 1000 <= tokenizer.vocab_size <= 2048


@pytest.mark.parametrize("label", ["liver", "left kidney", "spleen", "nucleus", "lung lesion"])
@pytest.mark.parametrize("grammar", ["qwen3_vl_json", "medmo_box"])
def test_a_labelled_box_costs_at_most_22_tokens(label: str, grammar: str) -> None:
    boxes = Boxes([[123, 456, 789, 987]], "norm1000", (512, 512), (label,))  # type: ignore[arg-type]
    assert len(embedded().encode(print_boxes(boxes, grammar))) <= 22


def test_every_coordinate_in_tens_is_one_token() -> None:
    for number in range(0, 1001, 10):
        tokens = [embedded().decode([i]) for i in embedded().encode(f"[{number}, {number}], 6.{number}")]
        assert tokens.count(str(number)) == 3 and "".join(tokens) == f"[{number}, {number}], 6.{number}"


@pytest.mark.parametrize("text", ["123", "1234567890", "999 cells, 0.25 mm", "2024-11-05"])
def test_other_numbers_come_back_whole(text: str) -> None:
    assert embedded().decode(embedded().encode(text)) == text


def test_starts_count_characters_not_bytes() -> None:
    text = "größe 肝 x"
    ids, starts = embedded().encode_with_starts(text)
    assert starts[0] == 0
    assert starts[-1] in (text.index("x"), text.index("x") - 1)
    assert ids == embedded().encode(text)


def test_saved_tokenizer_reads_back_equal(tmp_path: Path) -> None:
    embedded().save(tmp_path)
    again = Tokenizer.from_checkpoint(tmp_path)
    assert again.encode(MIXED) == embedded().encode(MIXED)
    assert again.vocab_size == embedded().vocab_size


def test_transformers_reads_the_saved_tokenizer_alike(tmp_path: Path) -> None:
    """Beside a Qwen3-VL config, as in a checkpoint: transformers must not put Qwen's pretokeniser over ours."""
    transformers = pytest.importorskip("transformers")
    embedded().save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(MIXED)["input_ids"] == embedded().encode(MIXED)
    assert theirs.eos_token_id == embedded().im_end_id
    assert theirs.convert_tokens_to_ids("<|image_pad|>") == embedded().image_token_id
    assert len(theirs("<|im_start|>")["input_ids"]) == 1  # pipelines of others tokenise whole chats


def test_a_vocabulary_without_chat_tokens_is_refused(tmp_path: Path) -> None:
    values = json.loads(embedded().to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] != "<|im_end|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the vocabulary has no <\|im_end\|>"):
        Tokenizer.from_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a readable tokenizer.json"):
        Tokenizer.from_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.json in this checkpoint"):
        Tokenizer.from_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|box_start|>"])
@pytest.mark.parametrize("form", ["unflagged", "of the model"])
def test_a_vocabulary_in_which_typed_text_becomes_a_control_token_is_refused(token: str, form: str) -> None:
    values = json.loads(embedded().to_str())
    added = next(t for t in values["added_tokens"] if t["content"] == token)
    if form == "unflagged":
        added["special"] = False
    else:  # a plain entry of the vocabulary, which the words of a text are looked up in
        values["added_tokens"] = []
        first = len(values["model"]["vocab"])
        values["model"]["vocab"] |= {t: first + i for i, t in enumerate(SPECIAL_TOKENS)}
        values["model"]["ignore_merges"], values["pre_tokenizer"] = True, None
    backend = tokenizers.Tokenizer.from_str(json.dumps(values))
    with pytest.raises(ValueError, match=r'own\.json: typed text becomes the control token <.*set "special": true'):
        Tokenizer(backend, source="own.json")


def test_two_names_of_one_control_token_are_refused() -> None:
    values = json.loads(embedded().to_str())
    values["model"]["vocab"]["liver"] = embedded().im_end_id
    backend = tokenizers.Tokenizer.from_str(json.dumps(values))
    with pytest.raises(ValueError, match=r"own\.json: 'liver' and <\|\w+\|> share the id \d+"):
        Tokenizer(backend, source="own.json")


def test_a_file_that_cuts_or_fills_texts_does_neither(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(embedded().to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    assert Tokenizer(backend).encode("The liver is enlarged.") == embedded().encode("The liver is enlarged.")
    assert Tokenizer(backend).encode_batch(["a", "bc"]) == embedded().encode_batch(["a", "bc"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("IQ== 0\nnot base64!\n", r":2: expected a base64 byte string and its rank"),
        ("IQ== 0\nIg== 2\n", "ranks must run from 0 without gaps"),
    ],
)
def test_a_broken_tiktoken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.tiktoken"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_tiktoken(path)


def test_qwen_vocabulary_has_the_published_counts_and_ids() -> None:
    tokenizer = qwen()
    model = json.loads(tokenizer.to_str())["model"]
    assert (len(model["vocab"]), len(model["merges"]), tokenizer.vocab_size) == (151_643, 151_387, 151_669)
    assert [tokenizer.token_to_id(t) for t in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)] == list(range(151_643, 151_669))
    assert (tokenizer.image_token_id, tokenizer.video_token_id) == (151_655, 151_656)
    assert (tokenizer.vision_start_id, tokenizer.vision_end_id, tokenizer.im_end_id) == (151_652, 151_653, 151_645)


def encode_by_ranks(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding straight from the ranks: always join the neighbours whose union has the lowest rank."""
    ids: list[int] = []
    for word in regex.findall(QWEN_SPLIT, unicodedata.normalize("NFC", text)):
        pieces = [bytes([b]) for b in word.encode()]
        while len(pieces) > 1:
            pairs = zip(pieces, pieces[1:], strict=False)
            rank, at = min((ranks.get(left + right, 10**9), i) for i, (left, right) in enumerate(pairs))
            if rank == 10**9:
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        ids += [ranks[piece] for piece in pieces]
    return ids


@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="aeinrst 0123.,'[]{}\n肝é", max_size=60)))
@settings(max_examples=80, deadline=None)
def test_qwen_encoding_equals_byte_pair_encoding_by_rank(text: str) -> None:
    assume(not any(token in text for token in PLAIN_ADDED_TOKENS))  # found as such, not byte by byte
    assert qwen().encode(text) == encode_by_ranks(text, qwen_ranks())


def test_qwen_encoding_of_mixed_text() -> None:
    assert qwen().encode(MIXED) == encode_by_ranks(MIXED, qwen_ranks())
    assert qwen().decode(qwen().encode(MIXED)) == unicodedata.normalize("NFC", MIXED)


@cache
def qwen_ranks() -> dict[bytes, int]:
    lines = (line.split() for line in qwen_file().read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}
