"""Parts of a model as they are compared: run, differentiated, and held to float64 and to ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from medmo_core.models.medmo import MedMO

from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from .judged import Judge, holding, reference_ops, widened

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"


@dataclass(frozen=True)
class Side:
    """A part with its inputs.

    Attributes:
        run: function that runs the part.
        inputs: what gradients are wanted of beside the parameters, in the order in which all ways have them.
        parameters: official names -> parameters.
        rows: where the packed rows stand in inputs and outputs that are flattened to rows; None: they are packed.
    """

    run: Callable[[], Sequence[Tensor]]
    inputs: Sequence[Tensor]
    parameters: Mapping[str, Tensor]
    rows: Tensor | None = None

    def results(self, *, differentiated: bool) -> list[Tensor]:
        """Return the outputs, and the gradients of inputs and parameters under fixed random weights of the outputs."""
        if not differentiated:
            with torch.no_grad():
                return [self._packed(output) for output in self.run()]
        outputs = self.run()
        gradients = torch.autograd.grad(outputs, self._leaves, self._weights(outputs))
        count = len(self.inputs)
        rows = [self._packed(tensor) for tensor in (*outputs, *gradients[:count])]
        return [tensor.detach() for tensor in (*rows, *gradients[count:])]

    def calls(self, directions: Sequence[str]) -> dict[str, Callable[[], object]]:
        """Return what is timed."""
        calls: dict[str, Callable[[], object]] = {FORWARD: torch.no_grad()(self.run)}
        if BOTH not in directions:
            return calls
        outputs = self.run()
        weights = self._weights(outputs)
        calls[BOTH] = lambda: torch.autograd.grad(self.run(), self._leaves, weights)
        if BACKWARD in directions:  # again and again through one graph, which is kept meanwhile
            calls[BACKWARD] = lambda: torch.autograd.grad(outputs, self._leaves, weights, retain_graph=True)
        return calls

    @property
    def _leaves(self) -> list[Tensor]:
        return [*self.inputs, *(self.parameters[name] for name in sorted(self.parameters))]

    def _packed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.flatten(0, -2)
        return tensor if self.rows is None else tensor[self.rows]

    def _weights(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Draw weights for the packed rows; a filler has none."""
        generator = torch.Generator().manual_seed(2)
        weights = []
        for output in outputs:
            packed = torch.randn(self._packed(output.detach()).shape, generator=generator).to(output)
            weights.append(unpacked(packed, self.rows, output.shape))
        return weights


def unpacked(packed: Tensor, rows: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Lay packed rows out in a shape; the rows between them are zero."""
    if rows is None:
        return packed.view(*shape)
    return packed.new_zeros(*shape).flatten(0, -2).index_copy(0, rows, packed).view(*shape)


@dataclass(frozen=True)
class ModelPart:
    """A part of a model, ours and theirs, with inputs to compare and to time.

    Attributes:
        model: function that makes our model, which holds the part.
        ours: the part of our model with some inputs, which it turns into the model's dtype.
        theirs: the part of transformers' model with the same inputs.
        small: inputs for float64.
        timed: inputs that are timed; both are made on the host.
    """

    model: Callable[[], MedMO]
    ours: Callable[[MedMO, Any], Side]
    theirs: Callable[[Any, Flavour, Any], Side]
    small: Callable[[], Any]
    timed: Callable[[], Any]


class _Setup:
    """Our model and the judge that the ways of a comparison share."""

    def __init__(self, part: ModelPart, dtype: torch.dtype, differentiated: bool) -> None:
        self.part, self.dtype, self.differentiated = part, dtype, differentiated
        self.model = part.model()

    @cached_property
    def inputs(self) -> tuple[Any, Any]:
        return self.part.timed(), self.part.small()

    @cached_property
    def judge(self) -> Judge:
        _, small = self.inputs
        with reference_ops():
            truth, plain = (
                self.part.ours(model, small).results(differentiated=self.differentiated)
                for model in (widened(self.model), self.model)
            )
        return Judge(truth, plain, self.dtype)

    def build(self, flavour: Flavour | None, directions: Sequence[str]) -> Ready:
        make: Callable[[Any], Side] = partial(self.part.ours, self.model)
        if flavour is not None:
            model = transformers_model.build(self.model, flavour, dtype=self.dtype, train=False)
            make = partial(self.part.theirs, model, flavour)
        timed, small = (make(inputs) for inputs in self.inputs)
        # A graph that is differentiated again and again must keep what it saved. The size that is timed comes first:
        # what is compiled is compiled for it.
        with torch._functorch.config.patch(donated_buffer=False):  # pyright: ignore[reportAttributeAccessIssue]
            calls = timed.calls(directions)
            found = [side.results(differentiated=self.differentiated) for side in (timed, small)]
        return Ready(holding(self, calls), self.judge.check(found[1], found[0], ours=flavour is None))


def compare(
    part: ModelPart,
    dtype: torch.dtype,
    flavours: Sequence[tuple[Flavour, str]],
    *,
    subject: str,
    case: str,
    work: Mapping[str, Work],
    seconds: float,
) -> Comparison:
    """Return the comparison of a part of our model with that of transformers'.

    Args:
        part: part to compare.
        dtype: dtype of weights and activations.
        flavours: flavours of transformers' model, each with the reason why it is absent.
        subject: the part's name.
        case: its size.
        work: counted work of every direction that is timed.
        seconds: time to spend on timing each way.
    """
    directions = tuple(work)
    shared = Shared(partial(_Setup, part, dtype, BOTH in directions))
    ways = [Way(OURS, lambda: shared().build(None, directions), "ours")]
    ways += [Way(f.name, lambda f=f: shared().build(f, directions), absent=absent) for f, absent in flavours]
    name = str(dtype).removeprefix("torch.")
    return Comparison("modules", subject, case, name, directions, ways, work, seconds=seconds)
