"""Draws of a run as documents: how long they are, known without decoding, and the batches they make together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.data.processor import Item, Processor, TooLong
from medmo_core.data.records.sample import Sample

from .skipped import TOO_LONG, UNREADABLE, BadData, Fault

SEARCH_FILLER = 256  # draws looked through for a document to fill a pass with


class SampleError(RuntimeError):
    """The code failed on a sample in a way that no fault of the data explains; the message names the sample."""


@dataclass
class Documents:
    """Turn draws into documents; can be sent to other processes.

    Args:
        draw: sample number n of the run, for any n, in any order.
        processor: turns samples into tokens and patches.
        independent_turns: every turn of a sample is a document of its own.
        share_prefixes: what documents about the same images have in common is computed once.
        for_generation: a document is a prompt, without its answer.
        budget: tokens that a draw may have at most; None: no limit.
        equal: a batch is never empty, as sharded models need (their processes gather weights block by block, so all
            must run as many passes).
    """

    draw: Callable[[int], Sample]
    processor: Processor
    independent_turns: bool = False
    share_prefixes: bool = False
    for_generation: bool = False
    budget: int | None = None
    equal: bool = False
    _filler: Item | None = field(default=None, repr=False)

    def items(self, number: int, *, pixels: bool = True) -> list[Item] | Fault:
        """Return the documents of a draw ready to pack, or why it cannot be used.

        Args:
            number: of the draw.
            pixels: off: leave the images out, see `Processor.encode`.

        Raises:
            BadData: a library that reads this kind of image is not installed.
            SampleError: anything but a fault of the data.
        """
        sample_id, files = f"draw {number}", ()
        try:
            sample = self.draw(number)
            sample_id, files = sample.id, tuple(image.path for image in sample.images)
            if self.independent_turns:
                return self.processor.encode_turns(sample, pixels=pixels)
            return [self.processor.encode(sample, for_generation=self.for_generation, pixels=pixels)]
        except (ValueError, OSError) as error:
            kind = TOO_LONG if isinstance(error, TooLong) else UNREADABLE
            return Fault(number, sample_id, str(error), kind, files)
        except ImportError as error:
            raise BadData(f"sample {sample_id} (draw {number}): {error}") from error
        except Exception as error:
            raise SampleError(f"sample {sample_id} (draw {number}): {type(error).__name__}: {error}") from error

    def length(self, number: int) -> int | Fault:
        """Return the tokens that a draw takes in a batch, without decoding its images, or why it cannot be used."""
        items = self.items(number, pixels=False)
        if isinstance(items, Fault):
            return items
        if self.share_prefixes:
            length = sum(tree.num_tokens for tree in prefix_trees(items))
        else:
            length = sum(len(item.input_ids) for item in items)
        if self.budget is None or length <= self.budget:
            return length
        sample = items[0].sample
        reason = f"{length} tokens, and a batch holds train.tokens_per_batch={self.budget}"
        return Fault(number, sample.id, reason, TOO_LONG, tuple(image.path for image in sample.images))

    def lengths(self, numbers: Sequence[int]) -> list[int | Fault]:
        """Return `length` of several draws."""
        return [self.length(number) for number in numbers]

    def batch(self, numbers: Sequence[int]) -> tuple[Batch | None, list[Fault]]:
        """Return the batch of some draws (None where nothing is left), and the draws left out of it."""
        outcomes = [self.items(number) for number in numbers]
        faults = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
        items = [item for outcome in outcomes if not isinstance(outcome, Fault) for item in outcome]
        if self.equal and not items:
            items.append(self.filler())
        return (pack(items, self.share_prefixes) if items else None), faults

    def filler(self) -> Item:
        """Return a document that teaches nothing but passes through every block of the decoder.

        Raises:
            BadData: none of the first draws can serve.
        """
        if self._filler is None:
            found = (self.items(number) for number in range(SEARCH_FILLER))
            item = next((outcome[0] for outcome in found if not isinstance(outcome, Fault)), None)
            if item is None:
                raise BadData(f"none of the first {SEARCH_FILLER} samples can be used: {self.items(0)}")
            assert item.labels is not None
            self._filler = replace(item, labels=np.full_like(item.labels, IGNORE_INDEX))
        return self._filler
