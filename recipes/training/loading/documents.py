"""Draws of a run as documents: their lengths, known without decoding, and the batches they make together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.data.processor import Processor, TooLong
from medmo_core.data.records.sample import Sample

from .skipped import TOO_LONG, UNREADABLE, BadData, SkippedSample

SEARCH_FILLER = 256  # draws looked through for a document to fill a pass with


class SampleError(RuntimeError):
    """The code failed on a sample in a way that no fault of the data explains; the message names the sample."""


@dataclass
class DocumentMaker:
    """Maker of documents from draws; can be sent to other processes.

    Args:
        draw: sample number n of the run, for any n, in any order.
        processor: maker of tokens and patches from samples.
        independent_turns: whether every turn of a sample is a separate document.
        share_prefixes: whether what documents about the same images have in common is computed once.
        for_generation: whether a document is a prompt, without its answer.
        budget: tokens that a draw may have at most; None: no limit.
        equal: whether a batch is never empty, as sharded models need (their processes gather weights block by block, so
            all must run as many passes).
    """

    draw: Callable[[int], Sample]
    processor: Processor
    independent_turns: bool = False
    share_prefixes: bool = False
    for_generation: bool = False
    budget: int | None = None
    equal: bool = False
    _filler: Document | None = field(default=None, repr=False)

    def documents_of(self, number: int, *, pixels: bool = True) -> list[Document] | SkippedSample:
        """Return the documents of a draw ready to pack, or why it cannot be used.

        Args:
            number: number of the draw.
            pixels: whether images are decoded, see `Processor.encode`.

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
            return SkippedSample(number, sample_id, str(error), kind, files)
        except ImportError as error:
            raise BadData(f"sample {sample_id} (draw {number}): {error}") from error
        except Exception as error:
            raise SampleError(f"sample {sample_id} (draw {number}): {type(error).__name__}: {error}") from error

    def length(self, number: int) -> int | SkippedSample:
        """Return the tokens that a draw takes in a batch, without decoding its images, or why it cannot be used."""
        documents = self.documents_of(number, pixels=False)
        if isinstance(documents, SkippedSample):
            return documents
        if self.share_prefixes:
            length = sum(tree.num_tokens for tree in prefix_trees(documents))
        else:
            length = sum(len(document.input_ids) for document in documents)
        if self.budget is None or length <= self.budget:
            return length
        sample = documents[0].sample
        reason = f"{length} tokens, and a batch holds train.tokens_per_batch={self.budget}"
        return SkippedSample(number, sample.id, reason, TOO_LONG, tuple(image.path for image in sample.images))

    def lengths(self, numbers: Sequence[int]) -> list[int | SkippedSample]:
        """Return `length` of several draws."""
        return [self.length(number) for number in numbers]

    def batch(self, numbers: Sequence[int]) -> tuple[Batch | None, list[SkippedSample]]:
        """Return the batch of some draws (None where nothing is left), and the draws left out of it."""
        outcomes = [self.documents_of(number) for number in numbers]
        faults = [outcome for outcome in outcomes if isinstance(outcome, SkippedSample)]
        documents = [document for outcome in outcomes if not isinstance(outcome, SkippedSample) for document in outcome]
        if self.equal and not documents:
            documents.append(self.filler())
        return (pack(documents, self.share_prefixes) if documents else None), faults

    def filler(self) -> Document:
        """Return a document that teaches nothing but passes through every block of the decoder.

        Raises:
            BadData: none of the first draws can serve.
        """
        if self._filler is None:
            found = (self.documents_of(number) for number in range(SEARCH_FILLER))
            document = next((outcome[0] for outcome in found if not isinstance(outcome, SkippedSample)), None)
            if document is None:
                raise BadData(f"none of the first {SEARCH_FILLER} samples can be used: {self.documents_of(0)}")
            assert document.labels is not None
            labels = np.full_like(document.labels, IGNORE_INDEX)
            self._filler = replace(document, labels=labels, looks=None, coordinates=None)
        return self._filler
