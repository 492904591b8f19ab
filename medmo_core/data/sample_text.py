"""Chat text of a sample: turns, question and target, with boxes as the checkpoint writes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..boxes import AnyBoxes
from ..errors import InputError
from ..profile import CheckpointProfile
from .records.sample import Message, Sample, message_parts, message_text


@dataclass(frozen=True)
class SampleText:
    """Writer of a sample's chat for one checkpoint; needs neither tokenizer nor images.

    Attributes:
        profile: how the checkpoint writes boxes, and its system prompt.
    """

    profile: CheckpointProfile

    def messages(self, sample: Sample, *, for_generation: bool = False) -> list[Message]:
        """Return the sample's chat with the profile's system prompt, and with or without its answer.

        Raises:
            ValueError: there is no answer to learn, or the profile's grammar cannot write it.
        """
        messages = [self._with_boxes_as_text(message, sample) for message in sample.messages]
        if self.profile.system_prompt is not None and not any(m["role"] == "system" for m in messages[:1]):
            messages.insert(0, {"role": "system", "content": self.profile.system_prompt})
        is_answered = bool(messages) and messages[-1]["role"] == "assistant"
        if for_generation:
            return messages[:-1] if is_answered else messages
        if is_answered:
            return messages
        return [*messages, {"role": "assistant", "content": self.target_text(sample)}]

    def question_text(self, sample: Sample) -> str:
        """Return the words of the turn to be answered, boxes in it as the profile writes them."""
        return message_text(self.messages(sample, for_generation=True)[-1])

    def target_text(self, sample: Sample) -> str:
        """Return what the model is to say: the last assistant turn, or the answer, boxes as the profile writes them.

        Raises:
            ValueError: the sample has no answer, or the profile's grammar cannot write its boxes.
        """
        if sample.messages and sample.messages[-1]["role"] == "assistant":
            return message_text(self._with_boxes_as_text(sample.messages[-1], sample))
        answer = sample.answer
        if answer is None:
            raise InputError(f"{sample.id}: nothing to learn: no assistant turn at the end, and no answer")
        if answer.type != "boxes":
            if answer.value is None:
                raise InputError(f"{sample.id}: answer.value is missing; an answer of type {answer.type!r} is a text")
            return answer.value
        return self._print_boxes(sample.truth_boxes(), sample)

    def _with_boxes_as_text(self, message: Message, sample: Sample) -> Message:
        """Return a turn whose parts of type `boxes` are written as the profile writes boxes."""
        given = message_parts(message)
        if not any(part["type"] == "boxes" for part in given):
            return message
        parts = [
            {"type": "text", "text": self._print_boxes(sample.boxes_at(part["boxes"]), sample)}
            if part["type"] == "boxes"
            else part
            for part in given
        ]
        return {"role": message["role"], "content": parts}

    def _print_boxes(self, boxes: AnyBoxes | None, sample: Sample) -> str:
        if boxes is None:
            raise InputError(f"{sample.id}: the answer is boxes, but the sample has no image")
        try:
            return self.profile.write_boxes(boxes)
        except ValueError as error:
            raise InputError(f"{sample.id}: {error}") from None


def independent_turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Return one conversation per answer: the system turn, the images of the first question, the question, the answer.

    Messages that are not pairs of question and answer with all images in the first come back whole.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(system) :])
    pairs = list(zip(rest[::2], rest[1::2], strict=False))
    paired = len(rest) % 2 == 0 and all((q["role"], a["role"]) == ("user", "assistant") for q, a in pairs)
    if not paired or any(part["type"] == "image" for question, _ in pairs[1:] for part in message_parts(question)):
        return [list(messages)]
    images = [part for part in message_parts(pairs[0][0]) if part["type"] == "image"] if pairs else []
    turns = []
    for question, answer in pairs:
        words = [part for part in message_parts(question) if part["type"] != "image"]
        turns.append([*system, {"role": "user", "content": [*images, *words]}, answer])
    return turns
