"""Description of a run without running it: sizes, what trains, an estimate of memory, and the first batch to read."""

from dataclasses import dataclass

import torch

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.inference.kit import Kit

from ...settings.run_config import ConfigError, RunConfig
from ..distributed.torchrun import num_launched
from ..distributed.world import World
from ..loading.files import check_files
from ..loading.loader import Loader
from ..loading.plan import TokenBudget
from ..loading.skipped import SkippedSamples
from ..loading.sources import load_mixture
from ..model.float8 import check_device
from ..model.kit import load_kit, stands_in
from ..model.parts import parameter_parts
from ..model.trainable import choose_trainable
from ..monitoring.log import count
from ..optim.optimizer import check_types
from .activations import BatchShape
from .ledger import Device
from .memory import Memory, estimate

SHOWN_DOCUMENTS = 2
PLANNED_TEXT, PLANNED_LEARNED = 256, 64
"""Tokens of text, and those of them that are learned, in a document that stands for data which is not here."""
LEARNED_ON, LEARNED_OFF = "[[", "]]"
NAMED = ("model.dtype", "model.recompute_text", "model.recompute_vision", "optim.kind", "parallel.shard", "lora.rank")
"""Settings that decide the memory, beside the batch."""


@dataclass(frozen=True)
class DryRun:
    """Findings of a dry run.

    Attributes:
        text: parameters per module, what trains, a memory estimate, tokens per step, and the first documents decoded,
            with learned tokens in double brackets.
        problem: reason why there is no first batch, for which the run itself would be refused; "": there is one.
    """

    text: str
    problem: str = ""


def dry_run(config: RunConfig) -> DryRun:
    """Build the run on meta tensors and describe it; nothing is trained or written.

    Args:
        config: the run.

    Raises:
        ConfigError: settings that the run itself would refuse.
    """
    kit = load_kit(config, "meta")
    trainable = choose_trainable(config, kit.model)
    check_types([(n, p) for n, p in kit.model.named_parameters() if p.requires_grad], config.optim)
    if config.model.float8 and torch.cuda.is_available():
        check_device(torch.device("cuda", torch.cuda.current_device()))
    processes = num_launched()
    lines = [f"{config.name} ({config.stage}), {processes} process(es)", *_stand_in(config), ""]
    lines += [*_parameter_table(kit), "", trainable.describe()]
    try:
        check_files(config)
        batch, skipped = _first_batch(config, kit)
    except (ConfigError, OSError, ImportError) as error:
        # The rest is worth reading without the data, which may live on another machine.
        lines += ["", *_memory(config, kit, None, processes), "", f"no first batch: {error}"]
        return DryRun("\n".join(lines), str(error))
    num_samples = skipped.drawn - skipped.total
    lines += ["", *_memory(config, kit, batch, processes), "", _tokens_per_step(config, batch, num_samples, processes)]
    lines += [f"first batch: {skipped.summary()}", *_documents(batch, kit)]
    return DryRun("\n".join(lines))


def estimate_memory(config: RunConfig, kit: Kit, batch: Batch | None, processes: int) -> tuple[Memory, BatchShape]:
    """Estimate the memory of one process of a run.

    Args:
        config: the run.
        kit: kit whose model is on the meta device; what trains has been chosen.
        batch: first batch, whose mixture of text and images is taken for that of all; None: documents with one image
            of data.max_pixels, PLANNED_TEXT tokens of text and PLANNED_LEARNED learned ones.
        processes: number of processes of the run.

    Returns:
        The estimate, and the shape of the batch it is for.
    """
    train, rollout = config.train, config.rollout
    is_sampled = config.stage == "reinforce"
    share = -(-train.docs_per_step * (rollout.num_generations if is_sampled else 1) // processes)
    documents, passes = min(share, train.micro_batch), -(-share // train.micro_batch)
    if batch is not None:
        shape = BatchShape.of(batch)
    else:
        shape = BatchShape.planned(
            kit.model, pixels=config.data.max_pixels, text_tokens=PLANNED_TEXT, learned=PLANNED_LEARNED
        )
        shape = shape.scaled(shape.tokens * documents)
    if is_sampled:
        prompts = -(-documents // rollout.num_generations) if config.data.share_prefixes else documents
        known = documents if batch is None else batch.num_documents
        shape = shape.scaled(shape.tokens * prompts / known).with_completions(documents, rollout.max_new_tokens)
    elif train.tokens_per_batch is not None:
        shape = shape.scaled(train.tokens_per_batch)
        passes = -(-train.batches_per_step // processes)
    return estimate(kit.model, config, shape, processes=processes, passes=passes, device=device_of(config)), shape


def device_of(config: RunConfig) -> Device:
    """Return the device that a run is planned for: the one that is here, else the one its weights are made for."""
    if config.train.device != "auto":
        return config.train.device
    return "cuda" if torch.cuda.is_available() or config.model.dtype == "bfloat16" else "cpu"


def _stand_in(config: RunConfig) -> list[str]:
    """Say when names alone stand for a checkpoint that is not on this machine."""
    if not stands_in(config.model, "meta"):
        return []
    return [f"{config.model.init} is not on this machine: official sizes; the embedded tokenizer for the batch below"]


def _parameter_table(kit: Kit) -> list[str]:
    """Return one line per module of the second level, with its part and parameters."""
    parts = parameter_parts(kit.model)
    numbers: dict[tuple[str, str], int] = {}
    for name, parameter in kit.model.named_parameters():
        module = ".".join(name.split(".")[:3]) if name.startswith("model.") else name.split(".")[0]
        numbers[module, parts[name]] = numbers.get((module, parts[name]), 0) + parameter.numel()
    rows = [f"  {module:<44} {part:<10} {number:>16,}" for (module, part), number in numbers.items()]
    return ["parameters:", *rows, f"  {'total':<55} {sum(numbers.values()):>16,}"]


def _memory(config: RunConfig, kit: Kit, batch: Batch | None, processes: int) -> list[str]:
    """Say what memory one process needs, of what, and under which settings."""
    memory, shape = estimate_memory(config, kit, batch, processes)
    values = {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in NAMED}
    settings = " ".join(f"{name}={str(value).lower()}" for name, value in values.items())
    patches = ", ".join(f"{number:,} patches of {name}" for name, number in shape.patches.items()) or "no image"
    lines = [*memory.describe().split("\n"), f"  with {settings}"]
    lines.append(f"  and a pass of {shape.tokens:,} tokens ({shape.learned:,} learned), {patches}")
    if batch is None:
        lines.append(f"  as documents of one image of data.max_pixels and {PLANNED_TEXT} tokens of text would make it")
    if config.stage == "reinforce":
        lines.append("  for learning from completions of full length; keys and values while sampling are not in it")
    return lines


def _tokens_per_step(config: RunConfig, batch: Batch, num_samples: int, processes: int) -> str:
    train = config.train
    if train.tokens_per_batch is not None:
        per_document = batch.num_tokens / batch.num_examples
        total = train.tokens_per_batch * train.batches_per_step
        return (
            f"tokens per step: at most {count(total)} ({train.batches_per_step} passes of {train.tokens_per_batch:,} "
            f"over {processes} process(es); about "
            f"{total / per_document:.0f} documents of about {per_document:.0f} tokens)"
        )
    share = -(-train.docs_per_step // processes)
    per_sample = batch.num_tokens / num_samples  # of one or, with data.independent_turns, more documents
    return (
        f"tokens per step: about {count(per_sample * train.docs_per_step)} "
        f"({train.docs_per_step} documents of about {per_sample:.0f} tokens; {share} per process, "
        f"{min(share, train.micro_batch)} at a time)"
    )


def _first_batch(config: RunConfig, kit: Kit) -> tuple[Batch, SkippedSamples]:
    train = config.train
    mixture = load_mixture(config.data, seed=train.seed)
    skipped = SkippedSamples(None)
    shown = min(train.docs_per_step, train.micro_batch)
    budget = None
    if train.tokens_per_batch is not None:
        budget = TokenBudget(train.tokens_per_batch, batches_per_step=1, pack_buffer=train.pack_buffer)
    loader = Loader(
        mixture.draw,
        kit.processor,
        world=World(rank=0, size=1, device=torch.device("cpu")),
        docs_per_step=shown,
        micro_batch=shown,
        skipped=skipped,
        by_tokens=budget,
        independent_turns=config.data.independent_turns,
        share_prefixes=config.data.share_prefixes,
    )
    try:
        batches = loader.step(0, look_ahead=False)
    finally:
        loader.close()
    if not batches:
        raise ConfigError(skipped.summary() + "; " + "; ".join(f.reason for f in skipped.examples))
    return batches[0], skipped


def _documents(batch: Batch, kit: Kit) -> list[str]:
    """Decode the first documents; runs of image placeholders are counted, learned tokens bracketed."""
    assert batch.labels is not None
    lines = []
    bounds = batch.cu_seqlens.tolist()
    for index, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if index == SHOWN_DOCUMENTS:
            break
        ids, labels = batch.input_ids[start:stop].tolist(), batch.labels[start:stop].tolist()
        lines += ["", f"--- {batch.document_name(index)}: {stop - start} tokens", _with_loss_mask(ids, labels, kit)]
    return [*lines, "", f"({LEARNED_ON}learned{LEARNED_OFF}: the tokens in the loss)"]


def _with_loss_mask(ids: list[int], labels: list[int], kit: Kit) -> str:
    """Decode one document in runs that share learned-or-not and image-or-not."""
    pictures = {kit.tokenizer.image_token_id, kit.tokenizer.video_token_id}
    kinds = [(token in pictures, label != IGNORE_INDEX) for token, label in zip(ids, labels, strict=True)]
    text, start = "", 0
    for stop in range(1, len(ids) + 1):
        if stop < len(ids) and kinds[stop] == kinds[start]:
            continue
        is_picture, is_learned = kinds[start]
        if is_picture:
            text += f"<{stop - start} image tokens>"
        else:
            run = kit.tokenizer.decode(ids[start:stop], skip_special=False)
            text += f"{LEARNED_ON}{run}{LEARNED_OFF}" if is_learned else run
        start = stop
    return text
