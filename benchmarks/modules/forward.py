"""The loss of a ragged pack of documents by a whole model, without gradients.

Transformers' model takes them as rows filled up to the longest, or packed where flash attention is installed. Its loss
must be ours before it is timed; our loss must be that of float64.
"""

from functools import cached_property, partial

import torch

from medmo_core.batch import Batch
from medmo_core.models.medmo import MedMO

from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from .documents import DocumentSizes, for_transformers, frozen_model, make_batch
from .judged import loss_check, widened


class Forward:
    """Documents and models that all ways share.

    Args:
        documents: whose loss is asked for.
        device: device on which the ways run.
        dtype: dtype of weights and activations.
    """

    def __init__(self, documents: DocumentSizes, device: torch.device, dtype: torch.dtype) -> None:
        self.documents, self.device, self.dtype = documents, device, dtype

    @cached_property
    def model(self) -> MedMO:
        """Our model, with random weights."""
        return frozen_model(self.documents.preset, self.device, self.dtype)

    @cached_property
    def batch(self) -> Batch:
        """The documents."""
        return make_batch(self.documents).to(self.device)

    @cached_property
    def loss(self) -> float:
        """Ours."""
        return float(self.model.loss(self.batch))


@torch.no_grad()
def ours(shared: Shared[Forward]) -> Ready:
    """Build ours, after a comparison with float64."""
    setup = shared()
    small = make_batch(setup.documents.first).to(setup.device)
    truth = float(widened(setup.model).loss(small))
    check = loss_check("float64 on one document", float(setup.model.loss(small)), truth, setup.dtype)
    call = torch.no_grad()(lambda: setup.model.loss(setup.batch))
    call()
    return Ready({"forward": call}, check)


@torch.no_grad()
def theirs(shared: Shared[Forward], flavour: Flavour) -> Ready:
    """Build a flavour of transformers' model."""
    setup = shared()
    model = transformers_model.build(setup.model, flavour, dtype=setup.dtype, train=False)
    packed = flavour.attention.startswith("flash")
    inputs = for_transformers(setup.batch, setup.documents.config, setup.dtype, packed=packed)
    call = torch.no_grad()(lambda: model(**inputs, use_cache=False).loss)
    return Ready({"forward": call}, loss_check("our loss", float(call()), setup.loss, setup.dtype))


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    if device.type == "cuda":
        documents = DocumentSizes("medmo-4b", (2000, 1200, 900, 700, 500, 300, 200, 100), 48, 60)
        dtype, what = torch.bfloat16, "4B"
    else:
        documents = (
            DocumentSizes("debug", (24, 16), 4, 6) if short else DocumentSizes("tiny", (200, 120, 60, 40), 16, 20)
        )
        dtype, what = torch.float32, documents.preset
    shared = Shared(partial(Forward, documents, device, dtype))
    peers = [
        Way(flavour.name, partial(theirs, shared, flavour), absent=absent)
        for flavour, absent in transformers_model.flavours(device)
    ]
    tokens = sum(documents.lengths)
    work = Work(flops=documents.flops(trains=False), items=tokens, unit="tokens")
    return [
        Comparison(
            "modules", "forward", f"{what}, {len(documents.texts)} ragged documents, {tokens:,} tokens",
            str(dtype).removeprefix("torch."), ("forward",), [Way(OURS, partial(ours, shared), "ours"), *peers],
            {"forward": work}, seconds=5.0 if device.type == "cuda" else 1.0,
        )
    ]  # fmt: skip
