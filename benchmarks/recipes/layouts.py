"""Learning from several answers to one prompt: one prompt with branches beside separate rows that repeat it.

Separate rows are packed too, so no way pads; each row encodes its image and computes its prompt again, or the image is
encoded once for all. What is timed must agree in loss and gradient norm, and in float64, at small widths with a small
image, in every gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medmo_core.data.document import Document
from medmo_core.models import MedMO

from ..modules.documents import random_model
from ..suite.comparison import OURS, Comparison, Ready, Way, Work, weakest
from ..suite.made_once import Shared
from ..suite.schema import Check
from .agreement import BOUND, Outcome, largest_difference, outcome
from .documents import MODEL_NAMES, answered, make_answers, make_prompt, unshared

EACH_ROW = "prompt in each row"
ENCODED_ONCE = "prompt in each row, image encoded once"
WAYS = (OURS, EACH_ROW, ENCODED_ONCE)
DIRECTION = "forward and backward"
NARROW = {
    "vision": {"depth": 1, "num_heads": 1, "intermediate_size": 64, "deepstack_visual_indexes": (0,)},
    "text": {"num_hidden_layers": 4},
}
"""The preset "debug" with one vision block and more of the decoder: attention over 6,400 patches would hide the
decoder, which costs more than the encoder in the large models."""
TEXT = 20
"""Tokens of a prompt beside its image."""


@dataclass(frozen=True)
class LayoutShape:
    """A model, and what its answers are about.

    Attributes:
        preset: the model.
        dtype: dtype of weights and activations.
        answers: number of answers to one prompt.
        length: length of each answer, in tokens.
        side: side of the image, in patches: 80 are 1,280 px and 1,600 visual tokens.
        changes: fields of the preset that differ.
    """

    preset: str
    dtype: torch.dtype
    answers: int
    length: int
    side: int = 80
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model, as shown."""
        return "toy widths" if self.changes else MODEL_NAMES.get(self.preset, self.preset)

    @property
    def case(self) -> str:
        """What is shown of it."""
        answers = f"{self.answers} answers of {self.length} tokens"
        return f"{self.model_name}, {answers}, image of {self.side**2 // 4:,} tokens"

    @property
    def small(self) -> "LayoutShape":
        """Small widths and a small image, in float64."""
        return replace(self, preset="debug", dtype=torch.float64, side=min(self.side, 16), changes=NARROW)

    def model(self, device: torch.device) -> MedMO:
        """Build the model; the same weights each time."""
        model = random_model(self.preset, device, self.dtype, **self.changes)
        if device.type == "cuda":
            model.checkpoint_activations("all")
        return model

    def prompt(self, model: MedMO) -> Document:
        """Draw the prompt."""
        return make_prompt(model.config, (self.side,), TEXT)


def shape_of(device: torch.device, answers: int, length: int, *, short: bool) -> LayoutShape:
    """Return the 4B on a GPU, small widths on a CPU, and in the short form little of all."""
    if device.type == "cuda":
        shape = LayoutShape("medmo-4b", torch.bfloat16, answers, length)
    else:
        shape = LayoutShape("debug", torch.float32, answers, length, changes=NARROW)
    return replace(shape, answers=min(answers, 3), length=min(length, 6), side=16) if short else shape


@dataclass(frozen=True)
class Learning:
    """The parts of learning from answers.

    Attributes:
        lay_out: function that packs documents, sharing their prompt or not.
        step: function that is timed, on what `lay_out` made, forward and backward.
        checked_step: function that must agree in float64.
    """

    lay_out: Callable[[Sequence[Document], bool], Any]
    step: Callable[[MedMO, Any], Tensor]
    checked_step: Callable[[MedMO, Any], Tensor]

    def layout(self, shape: LayoutShape, model: MedMO, way: str) -> Any:
        """Lay the answers out in one of the ways."""
        items = answered(shape.prompt(model), make_answers(model.config, shape.answers, shape.length))
        return self.lay_out([unshared(item) for item in items] if way == EACH_ROW else items, way == OURS)


class Layouts:
    """The ways of one comparison.

    Args:
        learning: layout and step to compare.
        shape: shape of the model and the answers.
        device: where it runs.
    """

    def __init__(self, learning: Learning, shape: LayoutShape, device: torch.device) -> None:
        self.learning, self.shape = learning, shape
        self.model = Shared(partial(shape.model, device))
        self.exact: dict[str, Outcome] = {}
        self.found: dict[str, Outcome] = {}

    def exactly(self, way: str) -> Outcome:
        """Take a small float64 model's loss and every gradient."""
        if way not in self.exact:
            small = self.shape.small
            model = small.model(torch.device("cpu"))
            laid = self.learning.layout(small, model, way)
            self.exact[way] = outcome(model, lambda: self.learning.checked_step(model, laid), each=True)
        return self.exact[way]

    def timed(self, way: str) -> Outcome:
        """Take loss and gradient norm of what is timed."""
        if way not in self.found:
            model = self.model()
            laid = self.learning.layout(self.shape, model, way)
            self.found[way] = outcome(model, lambda: self.learning.step(model, laid), each=False)
        return self.found[way]

    def build(self, way: str) -> Ready:
        """Check a way, and make it ready."""
        model, learning = self.model(), self.learning
        other = OURS if way == EACH_ROW else EACH_ROW
        exact = largest_difference(self.exactly(way), self.exactly(other))
        timed = largest_difference(self.timed(way), self.timed(other))
        laid = learning.layout(self.shape, model, way)

        def call() -> Tensor:
            model.zero_grad()
            return learning.step(model, laid)

        return Ready({DIRECTION: call}, weakest(
            Check(f"{other}, float64 at a small size", exact, BOUND[torch.float64]),
            Check(f"{other}, as timed", timed, BOUND[self.shape.dtype]),
        ))  # fmt: skip


def compare_layouts(
    subject: str, learning: Learning, shape: LayoutShape, device: torch.device, ways: Sequence[str] = WAYS, **place: Any
) -> Comparison:
    """Compare one prompt with branches to separate rows.

    Args:
        subject: subject of the comparison.
        learning: layout and step to compare.
        shape: shape of the model and the answers.
        device: where it runs.
        ways: names of the ways to compare.
        **place: further fields of the comparison.
    """
    made = Layouts(learning, shape, device)
    return Comparison(
        level="recipes",
        subject=subject,
        case=shape.case,
        dtype=str(shape.dtype).removeprefix("torch."),
        directions=(DIRECTION,),
        ways=[Way(name, partial(made.build, name), "ours" if name == OURS else "peer") for name in ways],
        work={DIRECTION: Work(items=shape.answers * shape.length, unit="tokens")},  # of the answers
        repeats=5,
        **place,
    )
