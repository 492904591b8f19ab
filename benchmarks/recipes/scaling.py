"""The growth of cost: with the tokens and images of a document, the size of a group, the boxes of a completion.

The training loss, forward and backward, beside transformers' model with its best attention; the update of GRPO beside
rows that repeat the prompt; the box reward beside NumPy and SciPy.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models import MedMO

from ..modules.judged import widened
from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from ..suite.schema import Check
from . import rewards
from .agreement import BOUND, Outcome, largest_difference, outcome
from .documents import MODEL_NAMES, answered, make_answers, make_prompt, padded, recomputing_model
from .grpo_update import GRPO, LENGTH
from .layouts import EACH_ROW, compare_layouts, shape_of

DIRECTION = "forward and backward"
EXACT = "float64"
LOOPS = "NumPy and SciPy"


@dataclass(frozen=True)
class DocumentSize:
    """A document that grows.

    Attributes:
        preset: the model.
        dtype: dtype of weights and activations.
        images: how many.
        side: side of each image, in patches.
        text: tokens beside them, half of them learned.
    """

    preset: str
    dtype: torch.dtype
    images: int
    side: int
    text: int

    @property
    def tokens(self) -> int:
        """All of them, with the two marks of each image."""
        return self.text + self.images * (self.side**2 // 4 + 2)

    def model(self, device: torch.device) -> MedMO:
        """Build the model; the same weights each time."""
        return recomputing_model(self.preset, device, self.dtype)

    def item(self, model: MedMO) -> Document:
        """Draw it."""
        prompt = make_prompt(model.config, (self.side,) * self.images, self.text - self.text // 2)
        return answered(prompt, make_answers(model.config, 1, self.text // 2))[0]


class TrainLoss:
    """The ways of one comparison: our loss and transformers'.

    Args:
        document: what is learned.
        flavour: flavour of transformers' model.
        device: where it runs.
    """

    def __init__(self, document: DocumentSize, flavour: Flavour, device: torch.device) -> None:
        self.document, self.flavour, self.device = document, flavour, device
        self.ours = Shared(partial(document.model, device))
        self.theirs: Shared[nn.Module] = Shared(self.build_theirs)
        self.found: dict[str, Outcome] = {}

    def build_theirs(self) -> nn.Module:
        """Build transformers' model with our weights."""
        return transformers_model.build(self.ours(), self.flavour, dtype=self.document.dtype, train=True)

    def our_loss(self, model: MedMO) -> Callable[[], Tensor]:
        """Return a call of our loss, forward and backward."""
        batch = pack([self.document.item(model)]).to(self.device)

        def call() -> Tensor:
            model.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            return loss.detach()

        return call

    def their_loss(self, model: Any) -> Callable[[], Tensor]:
        """Return a call of transformers' loss, forward and backward."""
        ours = self.ours()
        inputs = padded([self.document.item(ours)], ours.config, self.document.dtype)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}

        def call() -> Tensor:
            model.zero_grad()
            loss = model(**inputs, use_cache=False).loss
            loss.backward()
            return loss.detach()

        return call

    def outcome(self, way: str) -> Outcome:
        """Take loss and gradient norm of ours, of transformers' or, as `EXACT`, of ours in float64."""
        if way not in self.found:
            model = self.ours() if way == OURS else widened(self.ours()) if way == EXACT else self.theirs()
            loss = self.our_loss(model) if isinstance(model, MedMO) else self.their_loss(model)
            self.found[way] = outcome(model, loss, each=False)
        return self.found[way]

    def build(self, way: str) -> Ready:
        """Check a way and make it ready."""
        against = EXACT if self.device.type == "cpu" else self.flavour.name if way == OURS else OURS
        call = self.our_loss(self.ours()) if way == OURS else self.their_loss(self.theirs())
        error = largest_difference(self.outcome(way), self.outcome(against))
        return Ready({DIRECTION: call}, Check(against, error, BOUND[self.document.dtype]))


def compare_loss(document: DocumentSize, device: torch.device, axis: str, at: float) -> Comparison:
    """Compare the training losses at a place of a curve."""
    flavour, absent = next(found for found in transformers_model.flavours(device) if found[0].linear_patch_embed)
    made = TrainLoss(document, flavour, device)
    theirs = Way(flavour.name, partial(made.build, flavour.name), absent=absent)
    ways = [Way(OURS, partial(made.build, OURS), "ours"), theirs]
    images = f"{document.images} image{'s' if document.images > 1 else ''}"
    return Comparison(
        "recipes", "loss", f"{MODEL_NAMES.get(document.preset, document.preset)}, {images}, {document.tokens:,} tokens",
        str(document.dtype).removeprefix("torch."), (DIRECTION,), ways,
        {DIRECTION: Work(items=document.tokens, unit="tokens")},  # all of them
        seconds=0.6, repeats=10, axis=axis, at=at,
    )  # fmt: skip


def compare_rewards(prompts: int, samples: int, boxes: int) -> Comparison:
    """Compare the box reward with loops at a place of its curve."""
    texts = Shared(partial(rewards.make_texts, prompts, samples, boxes))
    ways = [
        Way(OURS, partial(rewards.ready, texts, rewards.our_scores, rewards.numpy_scores, LOOPS), "ours"),
        Way(LOOPS, partial(rewards.ready, texts, rewards.numpy_scores, rewards.our_scores, "our scores")),
    ]
    count = prompts * samples
    return Comparison(
        "recipes", "rewards", f"{count} completions of {boxes} boxes", "float64", (rewards.DIRECTION,), ways,
        {rewards.DIRECTION: Work(items=count, unit="completions")}, seconds=0.3, axis="boxes", at=boxes,
    )  # fmt: skip


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    groups, boxes = (2, 4, 8, 16), (1, 4, 16, 64)
    if device.type == "cuda":
        document, side = DocumentSize("medmo-4b", torch.bfloat16, 1, 32, 254), 64
        texts, images = (766, 1_790, 3_838, 7_934), (1, 4, 16, 32)
    else:
        document, side = DocumentSize("debug", torch.float32, 1, 16, 62), 24
        texts, images = (190, 958, 1_982), (1, 4, 16)
    if short:
        document, side, texts, images, groups, boxes = replace(document, side=8), 8, (30,), (2,), (2,), (2,)
    documents = [("tokens", replace(document, text=count)) for count in texts]
    documents += [("images", replace(document, images=count)) for count in images]
    curves = [
        compare_loss(one, device, axis, one.tokens if axis == "tokens" else one.images) for axis, one in documents
    ]
    for group in groups:
        shape = replace(shape_of(device, group, LENGTH, short=short), side=side)
        place = {"axis": "group size", "at": group, "seconds": 0.6}
        curves.append(compare_layouts("grpo_update", GRPO, shape, device, (OURS, EACH_ROW), **place))
    prompts, samples = (1, 4) if short else (16, 8)
    return curves + [compare_rewards(prompts, samples, n) for n in boxes]
