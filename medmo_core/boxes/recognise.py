"""Boxes recognised in what models write, in every grammar of `grammars`. Pure text, no image sizes.

Recognition is one linear pass over text of any origin and never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .grammars import DIFFERENCE, GRAMMARS, clean_label
from .objects import Recognised, holds_objects, load, numbers_of, read_objects, shown

MAX_TEXT = 100_000  # characters; of a longer text nothing is read, so that no box can hide behind them
_INNER_LIST = re.compile(r"\[([^\[\]]*)\]")
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARK = re.compile(r"```[A-Za-z]{0,10}\s?|</?answer>")
_REX_BIN = re.compile(r"<(\d{1,4})>")
_REF = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<]*)(?:</ref>|<\|object_ref_end\|>)\s*$")
_NONE_SENTENCE = re.compile(
    r"(?:(?:there|it) (?:is|are|has) )?(?:no|none|nothing|not)\b[^\[\]<>{}.!?\n]{0,160}[.!]?", re.IGNORECASE
)
_HEDGE = re.compile(r"\b(?:but|however|except|only)\b", re.IGNORECASE)
_BOX_TAGS = (("<|box_start|>", "<|box_end|>"), ("<box>", "</box>"))
_LABEL_LIST = "medmo_label_list"
PLAIN_GRAMMAR = "qwen3_vl_json"
_PLAIN_NUMBER = r"(?!0[0-9])[0-9]{1,9}+"
_PLAIN_BOX = re.compile(
    rf'(?:\[|, )\{{"bbox_2d": \[({", ".join([_PLAIN_NUMBER] * 4)})\], "label": "([^"\\\x00-\x1f]*+)"\}}'
)


def recognise(text: str, grammar: str = "auto") -> Recognised:
    """Find the boxes in a text and the grammar they are written in.

    Every box of the answer counts, wherever it stands: in one of several code fences, inside answer tags or beside
    them, in another grammar than the rest. Only thinking is no part of the answer.

    Args:
        text: anything.
        grammar: key of `GRAMMARS` to expect, or `auto`. Boxes in another grammar are still returned, with an error.
    """
    if len(text) > MAX_TEXT:
        return Recognised(errors=[f"the text has {len(text)} characters: none is read of more than {MAX_TEXT}"])
    found = _recognise_any(text.strip())
    if found.grammar is None:
        if not found.errors:
            found.errors.append("no boxes found, and no statement that there are none")
        return found
    takes = GRAMMARS[grammar].also if grammar in GRAMMARS else ()
    if found.grammar == _LABEL_LIST and grammar != _LABEL_LIST and _LABEL_LIST not in takes:
        _take_for_difference(found)
    if grammar == "auto":
        return found
    empty = not found.rows and not found.errors  # an explicit "no box" says the same in every grammar
    if empty or found.grammar == grammar or found.grammar in takes:
        found.grammar = grammar
    else:
        found.errors.append(f"written as {found.grammar}, expected {grammar}")
    if grammar.startswith("medmo_answer") and "<answer>" not in text:
        found.errors.append("the answer is not inside <answer> tags")
    return found


def without_thinking(text: str) -> str:
    """Return a text without what stands between thinking tags, or before an end of thinking that has no beginning."""
    return _THINKING.sub("", text).rpartition("</think>")[2]


def _take_for_difference(found: Recognised) -> None:
    """Read a list whose every label is MedMO's word for a difference as its grammar, which has no labels."""
    if found.rows and all(label.lower() == DIFFERENCE.lower() for label, _ in found.rows):
        found.grammar, found.rows = "medmo_difference", [("", row) for _, row in found.rows]


def _recognise_any(text: str) -> Recognised:
    # A label may hold any text, even tags: take whole JSON as it is before taking anything apart.
    whole = text.removeprefix("```json").removesuffix("```").strip() if text.startswith("```json") else text
    if whole[:1] in ("[", "{") and load(whole) is not None:
        return _recognise_part(whole)
    thinks_on = text.rfind("<think>") > text.rfind("</think>")
    text = without_thinking(text)
    parts = list(_parts(text)) or [(0, False, "")]
    deepest = max(depth for depth, _, _ in parts)
    found = []
    for depth, answered, part in parts:
        read = _recognise_part(part)
        if read.rows and "<answer>" in text and not answered:
            read.errors.append("boxes stand outside the <answer> tags")
        if depth == deepest or read.rows:  # words around the answer proper say nothing by themselves
            found.append(read)
    whole_answer = _joined(found)
    denied = any(read.grammar is not None and not read.rows and not read.errors for read in found)
    if denied and whole_answer.rows:
        whole_answer.errors.append("one part says that there are no boxes, another names some")
    if thinks_on:
        whole_answer.errors.insert(0, "the text ends inside <think>")
    if text.rfind("<answer>") > text.rfind("</answer>"):
        whole_answer.errors.insert(0, "the text ends inside <answer>")
    elif (
        whole_answer.grammar is None and "<answer>" in text and not any(p.strip() for d, _, p in parts if d == deepest)
    ):
        whole_answer.grammar = "medmo_answer_box"  # empty answer tags: nothing there
    return whole_answer


def _joined(found: list[Recognised]) -> Recognised:
    """Return what was found in several parts of an answer as one."""
    whole = Recognised()
    for part in found:
        whole.add(part)
    names = dict.fromkeys(str(part.grammar) for part in found if part.rows)
    if len(names) > 1:
        whole.errors.append(f"boxes are written as {' and as '.join(names)}")
    return whole


def _parts(text: str) -> Iterator[tuple[int, bool, str]]:
    """Yield the text between code fences and answer tags: in how many of both it stands, whether in tags, the text."""
    fenced, answered, start = False, False, 0
    for mark in _MARK.finditer(text):
        if text[start : mark.start()].strip() or answered:
            yield fenced + answered, answered, text[start : mark.start()]
        start = mark.end()
        if mark.group().startswith("```"):
            fenced = not fenced
        else:
            answered, fenced = mark.group() == "<answer>", False
    if text[start:].strip() or answered:
        yield fenced + answered, answered, text[start:]


def _recognise_part(text: str) -> Recognised:
    found, rest = [], text
    if holds_objects(rest):
        objects, rest = read_objects(rest)
        found.append(objects)
    for opening, closing in _BOX_TAGS:
        if opening in rest:
            tagged, rest = _recognise_tags(rest, opening, closing)
            found.append(tagged)
    if found:
        if "[" in rest and any(one.grammar for one in found):
            lists = _recognise_lists(rest)  # other brackets around boxes say nothing
            found += [replace(lists, errors=[])] if lists.rows else []
        return _joined(found)
    bare = text.strip()
    if bare in ("[]", "[ ]", "[[]]"):
        return Recognised(grammar="qwen3_vl_json")
    if "[" in text:
        return _recognise_lists(text)
    if len(bare) <= 200 and _NONE_SENTENCE.fullmatch(bare) and not _HEDGE.search(bare):
        return Recognised(grammar="medmo_class_list")
    return Recognised()


def plain_list(text: Any) -> tuple[str, tuple[str, ...]] | None:
    """Read a text that is a list of boxes just as `print_boxes` writes it in `PLAIN_GRAMMAR`, and nothing else.

    Finds what `recognise` finds, in a small part of its time.

    Args:
        text: anything.

    Returns:
        All corners, four whole numbers a box, separated by ", ", and the label of each box; None where the text is no
        such list and `recognise` has to say what it is.
    """
    if not isinstance(text, str) or text[-1:] != "]" or len(text) > MAX_TEXT:
        return None
    boxes = _PLAIN_BOX.findall(text)
    if not boxes:
        return None
    corners, labels = zip(*boxes, strict=True)
    numbers, words = ", ".join(corners), "".join(labels)
    # As long as the list of these boxes: nothing stands before, between or behind them.
    expected = len(numbers) + len(words) + len('{"bbox_2d": [], "label": ""}') * len(boxes) + len("[]")
    return (numbers, labels) if len(text) == expected else None


def _recognise_tags(text: str, opening: str, closing: str) -> tuple[Recognised, str]:
    """Return the boxes between tags, and the text around them with `{}` where they stood."""
    found = Recognised()
    around: list[str] = []
    position = text.find(opening)
    previous_end = 0
    while position >= 0:
        around.append(text[previous_end:position])
        label = _label_before(around[-1])
        content_start = position + len(opening)
        following = text.find(opening, content_start)
        limit = following if following >= 0 else len(text)
        content_end = text.find(closing, content_start, limit)
        closed = content_end >= 0
        if not closed:
            content_end = limit
            found.errors.append(f"{shown(label)}: no {closing} follows")
        _take_content(text[content_start:content_end], label, opening, found)
        previous_end = content_end + len(closing) if closed else content_end
        position = following
    around.append(text[previous_end:])
    return found, "{}".join(around)


def _take_content(content: str, label: str, opening: str, found: Recognised) -> None:
    """Read the boxes between one pair of tags."""
    bins = _REX_BIN.findall(content)
    if bins:
        kind = "rex_omni"
        groups: list[list[float] | None] = [
            [int(b) * 1000 / 999 for b in bins[i : i + 4]] for i in range(0, len(bins), 4)
        ]
    elif "[" in content:
        kind = "medmo_box" if "[[" in content.replace(" ", "") or content.strip() == "[]" else "medmo_answer_cells"
        groups = [numbers_of(inner) for inner in _INNER_LIST.findall(content) if inner.strip()]
        if content.count("[") != content.count("]"):
            found.errors.append(f"{shown(label)}: the list of boxes is cut off")
    else:
        kind = "qwen_vl_tags" if "(" in content else "medmo_answer_box" if "," in content else "minicpm_box"
        numbers = numbers_of(content)
        groups = [None] if numbers is None else [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    if opening == "<|box_start|>" and kind != "rex_omni":
        kind = "qwen2_vl_tokens"
    found.grammar = found.grammar or kind
    for group in groups:
        if group is None or len(group) != 4:
            found.errors.append(f"{shown(label)}: not four numbers")
        else:
            found.rows.append((label, tuple(group)))


def _label_before(text: str) -> str:
    tagged = _REF.search(text)
    return clean_label(tagged.group(1) if tagged else text)


def _recognise_lists(text: str) -> Recognised:
    """Read `Label: [[..], [..]]`, `label: [..]` line by line, and bare lists."""
    found = Recognised()
    previous_end, label, labelled = 0, "", False
    for match in _INNER_LIST.finditer(text):
        gap = text[previous_end : match.start()]
        previous_end = match.end()
        own_label = clean_label(gap)
        if own_label or not gap.lstrip().startswith(","):  # after a comma the list goes on under its label
            label = own_label
        labelled = labelled or bool(label)
        if not match.group(1).strip():
            found.grammar = found.grammar or _LABEL_LIST
            continue
        group = numbers_of(match.group(1))
        if group is None or len(group) != 4:
            found.errors.append(f"{shown(label)}: not four numbers")
            continue
        found.rows.append((label, tuple(group)))
        found.grammar = found.grammar or (_LABEL_LIST if labelled else "medmo_bare_list")
    if text.count("[") != text.count("]"):
        found.errors.append("the list of boxes is cut off")
    return found
