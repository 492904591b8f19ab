"""Chats: token for token Qwen3-VL's template, and the loss on the assistant's words alone."""

from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.batch import IGNORE_INDEX
from medmo_core.data.text.chat_template import encode_chat, render_chat
from medmo_core.data.text.tokenizer import SPECIAL_TOKENS, Tokenizer

embedded = cache(Tokenizer.embedded)
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def says(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": words}


CHATS = {
    "text": [says("user", "Hello, what is CT?")],
    "one image": [user(IMAGE, text("Is the liver visible?")), says("assistant", "Yes.")],
    "several images": [user(text("First: "), IMAGE, text(" second: "), IMAGE, IMAGE, text("\ncompare"))],
    "several turns": [
        user(IMAGE, text("Where is it?")),
        says("assistant", "On the left."),
        says("user", "Sure?\n"),
        {"role": "assistant", "content": [text("Yes, "), text("sure.")]},
        says("user", " And now?"),
    ],
    "system": [says("system", "Be brief.\n"), user(text("Hi"), IMAGE), says("assistant", "Hello")],
    "system in parts": [{"role": "system", "content": [text("Be"), text(" brief.")]}, says("user", "Hi")],
    "video": [user(VIDEO, text("What happens?")), says("assistant", "The heart beats.")],
    "image and video": [user(IMAGE, VIDEO, text("Compare.")), says("assistant", "\n\nThey agree.\n")],
    "empty texts": [says("user", ""), says("assistant", "")],
}


@cache
def oracle() -> Any:
    """Qwen3-VL's own template, from the copy that trl publishes."""
    jinja2 = pytest.importorskip("jinja2")
    try:
        found = [f for f in files("trl") or [] if f.name == "qwen3_vl.jinja"]
    except PackageNotFoundError:
        found = []
    if not found:
        pytest.skip("needs the published template: pip install --no-deps trl==1.16.0")
    source = Path(str(found[0].locate())).read_text(encoding="utf-8")
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)


def whole_chat_tokenizer() -> tokenizers.Tokenizer:
    """The same vocabulary as others use it: special tokens are found in the rendered string."""
    backend = tokenizers.Tokenizer.from_str(embedded().to_str())
    backend.encode_special_tokens = False
    return backend


@pytest.mark.parametrize("prompt", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("name", CHATS)
def test_string_equals_the_published_template(name: str, prompt: bool) -> None:
    assert render_chat(CHATS[name], prompt) == oracle().render(messages=CHATS[name], add_generation_prompt=prompt)


WORDS = st.text(alphabet="ab1 \n.,{é", max_size=8)
PARTS = st.lists(st.one_of(WORDS.map(text), st.just(IMAGE), st.just(VIDEO)), min_size=1, max_size=4)
TURNS = st.tuples(PARTS, WORDS).map(lambda t: [user(*t[0]), says("assistant", t[1])])


@given(st.lists(TURNS, min_size=1, max_size=3).map(lambda turns: [m for turn in turns for m in turn]))
@settings(max_examples=60, deadline=None)
def test_tokens_equal_those_of_the_published_template(messages: list[dict[str, Any]]) -> None:
    """Placeholders once each; the tokenizer sees the rendered string as a whole."""
    rendered = oracle().render(messages=messages, add_generation_prompt=False)
    kinds = [p["type"] for m in messages if m["role"] == "user" for p in m["content"]]
    video = {"image_tokens": [1] * kinds.count("image"), "video_tokens": [[(0.0, 1)]] * kinds.count("video")}
    ours = encode_chat(embedded(), messages, **video)  # type: ignore[arg-type]
    rendered = rendered.replace("<|vision_start|><|video_pad|>", "<0.0 seconds><|vision_start|><|video_pad|>")
    assert ours.input_ids == whole_chat_tokenizer().encode(rendered, add_special_tokens=False).ids


def test_placeholders_are_repeated_per_visual_token() -> None:
    encoded = encode_chat(embedded(), CHATS["several images"], [4, 9, 1])
    runs = "".join("i" if i == embedded().image_token_id else "." for i in encoded.input_ids).replace(".", " ").split()
    assert runs == ["iiii", "iiiiiiiii", "i"]


def test_video_becomes_frame_pairs_after_their_times() -> None:
    encoded = encode_chat(embedded(), CHATS["video"], video_tokens=[[(0.25, 2), (1.3, 2)]])
    pads = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    shown = embedded().decode(encoded.input_ids, skip_special=False)
    assert f"user\n<0.2 seconds>{pads}<1.3 seconds>{pads}What happens?" in shown


def learned_text(messages: list[dict[str, Any]], images: list[int]) -> list[str]:
    """The stretches of text that are learned."""
    encoded = encode_chat(embedded(), messages, images)
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(encoded.input_ids, encoded.labels, strict=True))
    stretches: list[list[int]] = [[]]
    for label in encoded.labels:
        if label == IGNORE_INDEX:
            stretches.append([])
        else:
            stretches[-1].append(label)
    return [embedded().decode(s, skip_special=False) for s in stretches if s]


def test_loss_is_on_every_assistant_turn_and_its_end_only() -> None:
    assert learned_text(CHATS["several turns"], [3]) == ["On the left.<|im_end|>", "Yes, sure.<|im_end|>"]
    assert learned_text(CHATS["system"], [2]) == ["Hello<|im_end|>"]
    assert learned_text(CHATS["text"], []) == []
    assert learned_text(CHATS["empty texts"], []) == ["<|im_end|>"]


def test_a_token_that_begins_before_the_answer_is_not_learned() -> None:
    """The answer's leading line breaks merge with the one after the role into a token that no prompt ends with."""
    chat = [says("user", "Hi"), says("assistant", "\n\nYes")]
    assert learned_text(chat, [])[0].endswith("Yes<|im_end|>")
    prompt = encode_chat(embedded(), chat[:1], add_generation_prompt=True).input_ids
    encoded = encode_chat(embedded(), chat)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORE_INDEX)
    assert embedded().decode(encoded.input_ids[:first]).startswith(embedded().decode(prompt))


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "\n", "assistant", "x"]), max_size=6).map("".join))
@settings(max_examples=60, deadline=None)
def test_special_tokens_inside_a_message_open_no_turn_and_no_image(words: str) -> None:
    chat = [user(IMAGE, text(words)), says("assistant", words)]
    ids = encode_chat(embedded(), chat, [2]).input_ids
    assert ids.count(embedded().im_start_id) == ids.count(embedded().im_end_id) == 2
    assert ids.count(embedded().image_token_id) == 2
    assert ids.count(embedded().vision_start_id) == 1
    assert embedded().decode(ids).count(words) >= 2


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        ([user(IMAGE, text("a"))], [], r"1 image placeholder\(s\), 0 image\(s\) are given"),
        ([user(IMAGE, text("a"))], [1, 1], r"1 image placeholder\(s\), 2 image\(s\) are given"),
        ([user(VIDEO)], [], r"1 video placeholder\(s\), 0 video\(s\) are given"),
        ([says("tool", "x")], [], r"messages\[0\]\.role is 'tool': expected user or assistant"),
        ([says("user", "x"), says("system", "y")], [], r"messages\[1\]\.role is 'system'"),
        ([user({"type": "audio"})], [], r"messages\[0\]\.content\[0\] is \{'type': 'audio'\}"),
        ([{"role": "assistant", "content": [IMAGE]}], [1], r"messages\[0\]\.content\[0\]"),
        ([{"role": "user"}], [], r"messages\[0\]\.content is None: expected text or a list of parts"),
    ],
)
def test_wrong_chats_say_what_is_wrong(messages: list[dict[str, Any]], images: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_chat(embedded(), messages, images)


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_a_call_of_a_tool_is_refused_and_not_dropped(key: str) -> None:
    """The published template writes it; none at all is the same as no key."""
    call = {"type": "function", "function": {"name": "measure", "arguments": {"label": "liver"}}}
    turn = {"role": "assistant", "content": "I measure.", key: [call] if key == "tool_calls" else call["function"]}
    for write in (render_chat, lambda chat: encode_chat(embedded(), chat)):
        with pytest.raises(ValueError, match=rf"messages\[1\]\.{key}: chats are written without tools"):
            write([says("user", "How large?"), turn])
    if key == "tool_calls":
        assert "<tool_call>" in oracle().render(messages=[says("user", "How large?"), turn])
    assert render_chat([says("user", "Hi"), {**turn, key: None}]) == render_chat(
        [says("user", "Hi"), says("assistant", "I measure.")]
    )
