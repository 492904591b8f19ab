"""One training step of a whole model: forward, backward and optimiser, all blocks computed again in the backward pass.

All ways have the same random weights (ours, under their official names), the same packed documents and the same
optimiser, inputs on the device. The documents are of one length, so that no way pads. A way's loss and gradient norm
must be ours before it is timed; our loss must be that of float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medmo_core.batch import Batch
from medmo_core.models.medmo import MedMO
from medmo_recipes.settings.run_config import Optim
from medmo_recipes.training.optim.optimizer import Optimizer

from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Comparison, Ready, Way, Work, weakest
from ..suite.schema import Check
from .documents import DocumentSizes, for_transformers, make_batch, random_model
from .judged import LOSS_TOLERANCE, loss_check, widened

NORM_TOLERANCE = {dtype: 10 * tolerance for dtype, tolerance in LOSS_TOLERANCE.items()}
"""Relative difference of two gradient norms: gradients pass through every block twice."""

Step = Callable[[], tuple[float, float]]
"""Do a training step; returns its mean loss and the gradient's norm."""


@dataclass
class TrainStep:
    """A step as every way takes it.

    Attributes:
        documents: what is learned.
        device: device on which the ways run.
        dtype: dtype of weights and activations.
        kind: kind of the optimiser.
        found: our loss and gradient norm, once ours has run.
    """

    documents: DocumentSizes
    device: torch.device
    dtype: torch.dtype
    kind: Any
    found: tuple[float, float] | None = None

    def model(self) -> MedMO:
        """Build our model; the same weights each time."""
        return random_model(self.documents.preset, self.device, self.dtype)

    def batch(self) -> Batch:
        """Draw the documents."""
        return make_batch(self.documents).to(self.device)

    def ours(self) -> Ready:
        """Build ours, after a comparison of its loss with that of float64."""
        model = self.model()
        small = make_batch(self.documents.first).to(self.device)
        with torch.no_grad():
            truth = float(widened(model).loss(small))
            check = loss_check("float64 on one document", float(model.loss(small)), truth, self.dtype)
        step = our_step(model, self.batch(), self.kind)
        self.found = step()  # compiles kernels and makes the optimiser's state
        return Ready({"step": step}, check)

    def theirs(self, flavour: Flavour) -> Ready:
        """Build a flavour of transformers' model with the weights of ours."""
        if self.found is None:
            raise NotImplementedError("ours did not run: there is nothing to compare with")
        model = transformers_model.build(self.model(), flavour, dtype=self.dtype, train=True)
        batch, config = self.batch(), self.documents.config
        step = their_step(model, for_transformers(batch, config, self.dtype, packed=False), self.kind)
        (loss, norm), (our_loss, our_norm) = step(), self.found
        checks = [
            loss_check("our loss", loss, our_loss, self.dtype),
            Check("our gradient norm", abs(norm / our_norm - 1), NORM_TOLERANCE[self.dtype]),
        ]
        return Ready({"step": step}, weakest(*checks))


def our_step(model: MedMO, batch: Batch, kind: Any) -> Step:
    """Return our step."""
    model.train()
    model.checkpoint_activations("all")
    optimizer = Optimizer(model, Optim(kind=kind), steps=1000)
    assert batch.labels is not None
    learned = int((batch.labels >= 0).sum())

    def step() -> tuple[float, float]:
        loss = model.token_losses(batch).total / learned
        loss.backward()
        return float(loss.detach()), optimizer.step(0)[0]

    return step


def their_step(model: Any, inputs: dict[str, torch.Tensor], kind: Any) -> Step:
    """Return the step of transformers' model, with our optimiser."""
    optimizer = Optimizer(model, Optim(kind=kind), steps=1000)

    def step() -> tuple[float, float]:
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        return float(loss.detach()), optimizer.step(0)[0]

    return step


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    if device.type == "cuda":
        documents = DocumentSizes("medmo-4b", (300,) * 8, 80, 150)
        setup, case = TrainStep(documents, device, torch.bfloat16, "adamw_bf16"), "4B, 8 images, 1280 px"
    else:
        documents = DocumentSizes("debug", (16,) * 2, 4, 6) if short else DocumentSizes("tiny", (60,) * 2, 16, 30)
        case = f"{documents.preset}, 2 images, {16 * documents.side} px"
        setup = TrainStep(documents, device, torch.float32, "adamw")
    ways = [Way(OURS, setup.ours, "ours")]
    for flavour, absent in transformers_model.flavours(device):
        ways.append(Way(flavour.name, lambda flavour=flavour: setup.theirs(flavour), absent=absent))
    tokens = sum(documents.lengths)
    work = Work(flops=documents.flops(trains=True), items=tokens, unit="tokens")
    dtype = str(setup.dtype).removeprefix("torch.")
    return [
        Comparison("modules", "train_step", case, dtype, ("step",), ways, {"step": work},
                   seconds=40 if device.type == "cuda" else 2, repeats=20, apart=device.type == "cuda"),
    ]  # fmt: skip
