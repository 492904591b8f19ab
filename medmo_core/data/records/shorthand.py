"""The short forms of a record: an image, a question, and an answer or boxes.

`image` or `images` take file names; `question` becomes the user's turn with the images before the text; `answer` is a
text (its type is inferred) or, left out beside `boxes`, the boxes are the answer. `xyxy` is short for `xyxy_px`.
"""

from __future__ import annotations

from typing import Any

from .faults import Fault, shown

SHORT_FIELDS = ("image", "question", "choices", "system")


def expand(values: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """Return a record in the full form; a record that is in it comes back as it is.

    Args:
        values: the parsed JSON object.
        faults: where contradictions are noted.
    """
    record = dict(values)
    if "image" in record:
        if "images" in record:
            faults.append(Fault("image", "both image and images are given", "one of the two", "keep images"))
        record["images"] = [record.pop("image")]
    if isinstance(record.get("images"), list):
        record["images"] = [{"path": image} if isinstance(image, str) else image for image in record["images"]]
    if isinstance(record.get("boxes"), list):
        record["boxes"] = [_full_box(box) for box in record["boxes"]]
    if "question" in record:
        _expand_question(record, faults)
    _expand_answer(record)
    record.setdefault("task", _infer_task(record))
    return record


def _full_box(box: Any) -> Any:
    if isinstance(box, dict) and "xyxy" in box and "xyxy_px" not in box:
        return {("xyxy_px" if key == "xyxy" else key): value for key, value in box.items()}
    return box


def _expand_question(record: dict[str, Any], faults: list[Fault]) -> None:
    question = record.pop("question")
    if "messages" in record:
        faults.append(Fault("question", "both question and messages are given", "one of the two", "keep messages"))
        return
    if not isinstance(question, str) or not question:
        faults.append(Fault("question", f"is {shown(question)}", "a text", "write the question"))
        return
    images = record.get("images")
    parts = [{"type": "image"}] * (len(images) if isinstance(images, list) else 0)
    record["messages"] = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    system = record.pop("system", None)
    if system is not None:
        record["messages"].insert(0, {"role": "system", "content": system})


def _expand_answer(record: dict[str, Any]) -> None:
    answer, choices = record.get("answer"), record.pop("choices", None)
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    if isinstance(answer, str):
        is_yesno = answer.lower().strip(" .") in ("yes", "no")
        kind = "choice" if choices else "yesno" if is_yesno else "open"
        record["answer"] = {"type": kind, "value": answer.strip(" .") if kind == "yesno" else answer}
        if choices:
            record["answer"]["choices"] = choices
    elif answer is None and _asks_for_boxes(record):
        record["answer"] = {"type": "boxes"}


def _asks_for_boxes(record: dict[str, Any]) -> bool:
    """Whether the boxes of a record are its answer: no other task is named, and nothing answers yet."""
    messages = record.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    is_answered = isinstance(last, dict) and last.get("role") == "assistant"
    return record.get("boxes") is not None and record.get("task") in (None, "grounding") and not is_answered


def _infer_task(record: dict[str, Any]) -> str:
    answer = record.get("answer")
    kind = answer.get("type") if isinstance(answer, dict) else None
    if not record.get("images"):
        return "text"
    return {"boxes": "grounding", "report": "report"}.get(str(kind), "vqa")
