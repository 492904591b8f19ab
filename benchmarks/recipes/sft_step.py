"""One step of the instruct recipe, from packed documents to the optimiser, beside transformers' model on padded rows.

Documents are of unequal length, as tasks are: short questions about large images, captions of small ones, reports about
two views, text alone. Ours are packed and take `fit.train_step`, which counts, sums the loss, clips and steps. The
peers get the rows that a processor and a collator make: normalised pixels, padding up to the longest document, and the
loss that transformers computes from all logits; blocks are computed again in the backward pass on both sides, and the
optimiser is the same. Batches lie on the host when a step begins.

Loss and gradient norm of the first step must be those of every document by itself, on a CPU in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models import MedMO
from medmo_core.models.config import ModelConfig
from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.skipped import SkippedSamples
from medmo_recipes.training.loop.fit import train_step
from medmo_recipes.training.loop.run import Run
from medmo_recipes.training.optim.optimizer import Optimizer

from ..modules.judged import widened
from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Comparison, Ready, Way, Work, weakest
from ..suite.schema import Check
from .agreement import BOUND, gradient_norm
from .documents import MODEL_NAMES, answered, make_answers, make_prompt, padded, recomputing_model

Step = Callable[[], tuple[float, float]]
"""Do a training step; returns the mean loss and the gradient norm before clipping."""


@dataclass(frozen=True)
class DocumentSize:
    """One document.

    Attributes:
        sides: sides of its images, in patches.
        text: tokens of the prompt beside its images.
        answer: tokens that are learned.
    """

    sides: tuple[int, ...]
    text: int
    answer: int

    @property
    def length(self) -> int:
        """Tokens, with the two marks of each image."""
        return sum(side**2 // 4 + 2 for side in self.sides) + self.text + self.answer


@dataclass(frozen=True)
class Size:
    """A model and the documents it is trained on.

    Attributes:
        preset: the model.
        documents: documents of a step.
        dtype: dtype of weights and activations.
        kind: kind of the optimiser.
    """

    preset: str
    documents: tuple[DocumentSize, ...]
    dtype: torch.dtype
    kind: Any

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(document.length for document in self.documents)

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return sum(document.answer for document in self.documents)

    def model(self, device: torch.device) -> MedMO:
        """Build our model; the same weights each time."""
        return recomputing_model(self.preset, device, self.dtype)

    def items(self, config: ModelConfig) -> list[Document]:
        """Draw the documents."""
        return [
            item
            for number, document in enumerate(self.documents)
            for item in answered(
                make_prompt(config, document.sides, document.text, name=f"document {number}", seed=number),
                make_answers(config, 1, document.answer, seed=number),
            )
        ]


MIX = (
    DocumentSize((80,), 40, 20),  # a question about a slide of 1,280 px
    DocumentSize((48,), 40, 10),
    DocumentSize((32,), 30, 120),  # a caption, 512 px
    DocumentSize((), 150, 150),  # text
    DocumentSize((80,), 60, 300),  # a report
    DocumentSize((48, 48), 80, 300),  # a report about two views of 768 px
    DocumentSize((64,), 40, 60),  # boxes
    DocumentSize((), 50, 30),
)
"""7,766 tokens; rows as long as the longest take 15,696."""
SMALL = (
    DocumentSize((16,), 20, 6),
    DocumentSize((10,), 20, 6),
    DocumentSize((6,), 10, 30),
    DocumentSize((), 40, 40),
    DocumentSize((16,), 20, 80),
    DocumentSize((10, 10), 20, 80),
    DocumentSize((12,), 20, 16),
    DocumentSize((), 16, 8),
)
SIZES = {
    "cuda": Size("medmo-4b", MIX, torch.bfloat16, "adamw_bf16"),
    "cpu": Size("tiny", SMALL, torch.float32, "adamw"),
    "short": Size("debug", SMALL[1:4], torch.float32, "adamw"),
}
"""By kind of device."""


def our_step(model: MedMO, items: Sequence[Document], kind: Any) -> Step:
    """Return the trainer's step, in one micro-batch."""
    device, batches = model.head_weight.device, [pack(items)]
    model.train()
    run = SimpleNamespace(
        world=World(0, 1, device),
        kit=SimpleNamespace(model=model),
        optimizer=Optimizer(model, Optim(kind=kind), steps=1000),
        skipped=SkippedSamples(None),
    )

    def step() -> tuple[float, float]:
        result = train_step(cast(Run, run), batches, model.token_losses, 0)
        return result.loss, result.grad_norm

    return step


def their_step(model: Any, inputs: dict[str, torch.Tensor], device: torch.device, kind: Any) -> Step:
    """Return the step of transformers' model, with our optimiser."""
    optimizer = Optimizer(model, Optim(kind=kind), steps=1000)

    def step() -> tuple[float, float]:
        loss = model(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False).loss
        loss.backward()
        return float(loss.detach()), optimizer.step(0)[0]

    return step


class SftStep:
    """The ways of the comparison.

    Args:
        size: size of the step.
        device: where it runs.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.found: tuple[float, float] | None = None

    def truth(self, model: MedMO) -> tuple[float, float]:
        """Take loss and gradient norm document by document, in float64 on a CPU; needs the weights of the start."""
        if self.found is None:
            exact, loss = widened(model) if self.device.type == "cpu" else model, 0.0
            for item in self.size.items(model.config):
                part = exact.loss(pack([item]).to(self.device), "sum") / self.size.targets
                part.backward()
                loss += float(part.detach())
            self.found = loss, float(gradient_norm(exact))
            exact.zero_grad()
        return self.found

    def ready(self, step: Step, truth: tuple[float, float]) -> Ready:
        """Take the first step and compare it."""
        against = "document by document" + (", float64" if self.device.type == "cpu" else "")
        errors = [abs(got / true - 1) for got, true in zip(step(), truth, strict=True)]
        loss, norm = (Check(against, error, BOUND[self.size.dtype]) for error in errors)
        return Ready({"step": step}, weakest(loss, norm))

    def ours(self) -> Ready:
        """Build our step."""
        model = self.size.model(self.device)
        truth = self.truth(model)
        return self.ready(our_step(model, self.size.items(model.config), self.size.kind), truth)

    def theirs(self, flavour: Flavour) -> Ready:
        """Build the step of a flavour of transformers' model with the weights of ours."""
        size, model = self.size, self.size.model(self.device)
        truth, inputs = self.truth(model), padded(size.items(model.config), model.config, size.dtype)
        theirs = transformers_model.build(model, flavour, dtype=size.dtype, train=True)
        del model
        return self.ready(their_step(theirs, inputs, self.device, size.kind), truth)


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    cuda = device.type == "cuda"
    size = SIZES["short" if short and not cuda else device.type]
    both = SftStep(size, device)
    ways = [Way(OURS, both.ours, "ours")]
    for flavour, absent in transformers_model.flavours(device):
        ways.append(Way(f"{flavour.name}, padded rows", partial(both.theirs, flavour), absent=absent))
    case = f"{MODEL_NAMES.get(size.preset, size.preset)}, {len(size.documents)} documents of {size.tokens:,} tokens"
    work = {"step": Work(items=size.tokens, unit="tokens")}  # all of them, padding not counted
    return [
        Comparison("recipes", "sft_step", case, str(size.dtype).removeprefix("torch."), ("step",), ways, work,
                   seconds=40 if cuda else 2, repeats=20, apart=cuda),
    ]  # fmt: skip
