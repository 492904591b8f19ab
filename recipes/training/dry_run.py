"""What a run would be, without running it: sizes, what trains, an estimate of memory, and the first batch to read."""


import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch

from .build import DTYPES, Kit, choose_trainable, load_kit, load_mixture, parameter_parts, stands_in
from .config import ConfigError, RunConfig
from .data import Loader, SkippedSamples
from .distributed import World, num_launched
from .log import count
from .optim import HELD_IN_FP32

SHOWN_DOCUMENTS = 2
KEPT_PER_LAYER = {False: 34, True: 1}  # activation values kept per token, layer and width, by checkpointing
LEARNED_ON, LEARNED_OFF = "[[", "]]"


def dry_run(config: RunConfig) -> str:
    """Build the run on meta tensors and describe it; nothing is trained or written.

    Args:
        config: the run.

    Returns:
        Text: parameters per module, what trains, a memory estimate, tokens per step, and the first documents decoded,
        with learned tokens in double brackets.
    """
    kit = load_kit(config, "meta")
    trainable = choose_trainable(kit.model, config.model.trainable)
    processes = num_launched()
    lines = [f"{config.name} ({config.stage}), {processes} process(es)", *_stand_in(config), ""]
    lines += [*_parameter_table(kit), "", trainable.describe()]
    try:
        batch, skipped = _first_batch(config, kit)
    except (ConfigError, OSError, ImportError) as error:
        # The rest is worth reading without the data, which may live on another machine.
        return "\n".join([*lines, "", _memory(config, kit, None, processes), "", f"no first batch: {error}"])
    share = -(-config.train.docs_per_step // processes)
    per_document = batch.num_tokens / batch.num_documents
    lines += ["", _memory(config, kit, per_document, processes)]
    lines += [
        "",
        f"tokens per step: about {count(per_document * config.train.docs_per_step)} "
        f"({config.train.docs_per_step} documents of about {per_document:.0f} tokens; {share} per process, "
        f"{min(share, config.train.micro_batch)} at a time)",
        f"first batch: {skipped.summary()}",
        *_documents(batch, kit),
    ]
    return "\n".join(lines)


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


def _memory(config: RunConfig, kit: Kit, tokens_per_document: float | None, processes: int) -> str:
    """Estimate the memory of one process, by what needs it; activations only where the data is known."""
    sharing = processes if config.parallel.shard else 1
    trained = [p for p in kit.model.parameters() if p.requires_grad]
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in kit.model.parameters()) / sharing,
        "gradients": sum(p.numel() * p.element_size() for p in trained) / sharing,
        "optimiser": sum(p.numel() * _state_bytes(p) for p in trained) / sharing,
    }
    if tokens_per_document is not None:
        text, share = kit.model.config.text, -(-config.train.docs_per_step // processes)
        tokens = tokens_per_document * min(config.train.micro_batch, share)
        kept = KEPT_PER_LAYER[config.model.recompute_text != "nothing"]
        width = DTYPES[config.model.dtype].itemsize
        parts["activations of the decoder"] = tokens * text.hidden_size * text.num_hidden_layers * kept * width
    unit, name = (2**30, "GiB") if sum(parts.values()) >= 2**30 else (2**20, "MiB")
    shown = ", ".join(f"{part} {number / unit:.2f}" for part, number in parts.items())
    return f"memory per process, ESTIMATED, not measured: {sum(parts.values()) / unit:.2f} {name} ({shown})"


def _state_bytes(parameter: Tensor) -> int:
    """Bytes of optimiser state per number: two moments, and under bfloat16 the fp32 master and its gradient."""
    return 16 if parameter.dtype in HELD_IN_FP32 else 2 * parameter.element_size()


def _first_batch(config: RunConfig, kit: Kit) -> tuple[Batch, SkippedSamples]:
    mixture = load_mixture(config.data, seed=config.train.seed)
    skipped = SkippedSamples(None)
    shown = min(config.train.docs_per_step, config.train.micro_batch)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    loader = Loader(
        mixture.draw,
        kit.processor,
        world=world,
        docs_per_step=shown,
        micro_batch=shown,
        skipped=skipped,
        independent_turns=config.data.independent_turns,
    )
    batches = loader.step(0, look_ahead=False)
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
