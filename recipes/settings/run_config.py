"""A run, described completely: frozen dataclasses, checked when they are made.

A run is a Python function in `medmo_recipes.configs` that returns a `RunConfig`; a variant calls its parent and
replaces fields (`change`). `command_line.py` turns `section.field=value` into the same types. Every value is checked
here, whichever way it came in, and an error names the field, what it got and what it expects.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from medmo_core.choices import DEFAULT_MAX_PIXELS, DEFAULT_MIN_PIXELS, Recompute
from medmo_core.datasets.names import with_current_names

from .reinforce import Grpo, Rewards, Rollout, Watching
from .section import ConfigError, Section, describe_type, require, typed, unknown_key
from .stage import STAGES, Stage

__all__ = [
    "SECTIONS",
    "STAGES",
    "ConfigError",
    "Data",
    "Grpo",
    "Lora",
    "Model",
    "Optim",
    "Parallel",
    "Rewards",
    "Rollout",
    "RunConfig",
    "Section",
    "Stage",
    "Train",
    "Watching",
    "describe_type",
    "require",
    "typed",
    "unknown_key",
]

"""Stages in their order."""


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """Model that is trained."""

    init: str = "tiny"
    """A preset ("debug", "tiny", "medmo-4b", "medmo-8b": random weights), a checkpoint folder, or a hub id."""
    encoder: str | None = None
    """Vision encoder by its name in `medmo_core.encoders.ENCODERS`; none = the one of `init`."""
    encoder_size: str | None = None
    """Size of a new `encoder` ("debug", "tiny", "base", "large"); none = that of the preset `init`, else "base"."""
    encoder_init: Mapping[str, str] = field(default_factory=dict)
    """Encoder name -> checkpoint folder with its weights (both towers of "fused"); without one they are random."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of weights and activations; bfloat16 on CUDA, float32 on the CPU."""
    trainable: tuple[str, ...] = ("all",)
    """What trains: "all", the parts "encoder", "projector", "decoder", or prefixes of parameter names."""
    tokenizer: str = "auto"
    """"auto" (the checkpoint's own, else the embedded one), "embedded", a tokenizer.json or a .tiktoken file."""
    profile: Literal["auto", "qwen3_vl", "qwen3_vl_tens", "medmo", "medmo_canvas768"] = "auto"
    """Box frame and grammar the checkpoint speaks; "auto" reads medmo_profile.json, else Qwen3-VL's."""
    recompute_text: Recompute = "nothing"
    """What each decoder block computes again in the backward pass: "all" keeps only its input (a third more time),
    "selected" keeps the results of matrix products and attention and computes the cheap rest again."""
    recompute_vision: Recompute = "nothing"
    """The same for the blocks of the vision encoder."""
    compile: bool = False
    """Compile the blocks with torch.compile, for any length of the packed tokens."""
    float8: bool = False
    """Multiply in float8 in the decoder's linear layers (torchao; needs a GPU that has float8)."""
    bfloat16_products: bool = False
    """Multiply in bfloat16 in fp32 linear layers, on processors that have units for it (AVX-512 BF16, AMX, GPUs);
    elsewhere nothing changes."""

    def check(self) -> None:
        require(bool(self.trainable), "model.trainable", self.trainable, "at least one part or prefix")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Data that feeds the run."""

    sources: Mapping[str, float] = field(default_factory=dict)
    """Name -> weight in the mixture. A name is "embedded:TASK" (embedded real data), a JSONL file, Parquet files
    (x.parquet, a folder of them, a pattern) or WebDataset tar shards (shards-{0000..0099}.tar, a pattern)."""
    root: str | None = None
    """Folder that image paths in JSONL files are relative to; none = the folder of each JSONL file."""
    split: str = "train"
    """Split drawn from; a record that names none belongs to train."""
    min_pixels: int = DEFAULT_MIN_PIXELS
    """Smallest image area after resizing, in px (256 x 256, the Qwen3-VL default)."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest image area after resizing, in px (4096 x 4096, the Qwen3-VL default); one token covers 32 x 32 px."""
    max_tokens: int | None = None
    """Longer samples are dropped and counted, never cut; none = no limit."""
    num_workers: int = 0
    """Processes that decode and resize images; 0 = one thread of the training process."""
    on_bad_sample: Literal["skip", "stop"] = "skip"
    """A sample that cannot be read is counted, written to skipped.jsonl and left out, or stops the run."""
    share_prefixes: bool = True
    """Compute what documents about the same images have in common (the images, the beginning of the text) once."""
    independent_turns: bool = False
    """Learn every question of a sample by itself: the picture is encoded once, no answer can lean on another. Off: one
    conversation."""
    crops: bool = False
    """Train on random square crops; boxes move along. It is what makes a small model look at the image. In JSONL files
    only samples whose answer is boxes are cropped: a crop could hide what another answer speaks of."""
    tones: float = 0.0
    """Share of the training pictures shown under a random tone curve with noise, as another scanner or contrast might
    have shown them; a model that sees few scans would learn their looks by heart. Pictures with known outlines (the
    embedded set's) get contrast agent and other greys structure by structure too. Held-out pictures never are."""
    max_bad_ratio: float = 0.1
    """Stop when more than this share of what was drawn (from 64 draws on) was unreadable or too long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sources", with_current_names(self.sources))

    def check(self) -> None:
        for name, weight in self.sources.items():
            require(weight >= 0, f"data.sources.{name}", weight, "a weight of 0 or more")
        require(not self.sources or sum(self.sources.values()) > 0, "data.sources", self.sources, "a positive weight")
        require(0 < self.min_pixels <= self.max_pixels, "data.min_pixels", self.min_pixels, "0 < min <= max_pixels")
        require(self.max_tokens is None or self.max_tokens > 0, "data.max_tokens", self.max_tokens, "1 or more")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "0 or more")
        require(0 <= self.tones <= 1, "data.tones", self.tones, "a share from 0 to 1")
        require(0 <= self.max_bad_ratio <= 1, "data.max_bad_ratio", self.max_bad_ratio, "a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Optim(Section):
    """Optimiser and its schedule."""

    kind: Literal["adamw", "adamw_bf16", "adamw_8bit", "muon"] = "adamw"
    """"adamw": moments, and for bfloat16 weights a master copy, in fp32. "adamw_bf16": weights and moments in bfloat16,
    rounded stochastically, no master copy. "adamw_8bit": the same with moments in 8 bits (torchao). "muon":
    matrices move along the orthogonal part of their momentum, all else by "adamw"; the rates of AdamW serve."""
    lr: float = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; norms, biases and embeddings never decay."""
    warmup_ratio: float = 0.05
    """Share of the steps over which the rate rises linearly from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    min_lr_ratio: float = 0.0
    """Share of `lr` that a cosine ends at."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """Factor on `lr` for a part or a prefix of parameter names, as in model.trainable."""
    weight_decay_scale: Mapping[str, float] = field(default_factory=dict)
    """Factor on `weight_decay` for a part or a prefix of parameter names."""

    def check(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "a rate above 0")
        require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "two numbers in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "a number above 0")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.warmup_ratio <= 1, "optim.warmup_ratio", self.warmup_ratio, "a share from 0 to 1")
        require(0 <= self.min_lr_ratio <= 1, "optim.min_lr_ratio", self.min_lr_ratio, "a share from 0 to 1")
        require(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "0 or more")
        for key in ("lr_scale", "weight_decay_scale"):
            for name, scale in getattr(self, key).items():
                require(scale >= 0, f"optim.{key}.{name}", scale, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """Length of the run, size of a step, and files that are written."""

    steps: int = 1000
    """Optimiser steps."""
    docs_per_step: int = 32
    """Global batch: documents per step over all processes (in reinforce: prompts)."""
    micro_batch: int = 8
    """Documents packed into one forward pass of one process (in reinforce: completions)."""
    tokens_per_batch: int | None = None
    """Pack by tokens instead: each forward pass holds at most so many, filled first-fit-decreasing from a buffer of
    documents. A step is then `batches_per_step` passes, and docs_per_step and micro_batch are unused."""
    batches_per_step: int = 8
    """Forward passes of one step over all processes, where tokens_per_batch is set."""
    pack_buffer: int = 512
    """Documents waiting to be packed, where tokens_per_batch is set."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting (1e-4 is usual). In
    align and instruct."""
    attention_weight: float = 0.0
    """Weight of attention supervision: while an answer says boxes, one head of one decoder layer must look at them. An
    answer counts like so many tokens; 12 in the tiny recipe. In align and instruct."""
    coordinate_spread: float = 0.0
    """Standard deviation, in thousandths of the image's side, of the target that stands for a box's coordinate: the
    numbers beside the written one are nearly right. 0 = that number alone; 40 in the tiny recipe. In align and
    instruct."""
    log_every: int = 1
    """Steps between metric lines."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    eval_every: int = 0
    """Steps between measurements of the loss on `eval_split`, a new best of which is saved; 0 = never. In align and
    instruct."""
    eval_docs: int = 32
    """Documents in such a measurement, the same ones every time."""
    eval_split: str = "val"
    """Split those documents come from."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; 0 = all. The best on `eval_split` is kept too."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are kept for good; 0 = none."""
    async_save: bool = True
    """Write checkpoints while training goes on."""
    export_every: int = 0
    """Steps between models written in the official layout, to exports/step-N; 0 = only final/ at the end."""
    spike_ratio: float = 0.0
    """Stop when a step's loss is so many times the median of the last 64 steps', naming its samples; 0 = never. In
    align and instruct."""
    profile_step: int = 0
    """Step (from 1) whose torch profile, and on CUDA memory snapshot, is written to profile/; 0 = none."""
    seed: int = 0
    """Seeds weights, data order and sampling."""
    out_dir: str = "runs/unnamed"
    """Folder of the run: config.json, metrics.jsonl, tensorboard/, checkpoints/, exports/, final/, summary.md."""
    resume: bool = False
    """Continue from the newest whole checkpoint in out_dir, or begin where there is none yet; without it a folder that
    holds a run is refused."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = CUDA when there is one."""
    num_threads: int = 0
    """CPU threads per process; 0 = cores divided by the processes of this machine."""

    def check(self) -> None:
        for name in ("steps", "docs_per_step", "micro_batch", "batches_per_step", "pack_buffer", "log_every",
                     "save_every", "eval_docs"):  # fmt: skip
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        for name in ("eval_every", "keep_checkpoints", "keep_every", "export_every",
                     "profile_step", "num_threads", "seed", "z_loss", "attention_weight", "coordinate_spread",
                     "spike_ratio"):  # fmt: skip
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        require(self.profile_step <= self.steps, "train.profile_step", self.profile_step, f"one of {self.steps} steps")
        budget = self.tokens_per_batch
        require(budget is None or budget > 0, "train.tokens_per_batch", budget, "1 or more, or none")


@dataclass(frozen=True, kw_only=True)
class Parallel(Section):
    """Division of the work among processes."""

    shard: bool = False
    """Shard weights, gradients and optimiser state over all processes (FSDP2); off = each keeps a whole copy."""
    replicas: int = 1
    """Copies of the sharded model, each over world size / replicas neighbouring processes (HSDP): the number of nodes
    keeps the gathering of weights inside a node."""
    compute_dtype: Literal["same", "bfloat16"] = "same"
    """Type that sharded weights are gathered and multiplied in; "bfloat16" under model.dtype=float32 is mixed
    precision with fp32 weights. Rotary tables and gradient sums stay fp32."""
    blank_images: bool = False
    """Give a process without an image a blank one whose result is multiplied by zero, instead of keeping the vision
    encoder out of the sharded gathering where an image is missing."""
    timeout_s: float = 600.0
    """How long a process waits for the others in one exchange, or for the slowest to write its part of a checkpoint,
    before the run ends."""

    def check(self) -> None:
        require(self.replicas >= 1, "parallel.replicas", self.replicas, "1 or more")
        require(self.timeout_s > 0, "parallel.timeout_s", self.timeout_s, "a time above 0")
        for name, off in (("replicas", 1), ("compute_dtype", "same"), ("blank_images", False)):
            value = getattr(self, name)
            require(self.shard or value == off, f"parallel.{name}", value, f"{off} without parallel.shard=true")


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """Low-rank adapters on named linear layers (peft), in place of training the weights themselves."""

    rank: int = 0
    """Rank of the adapters; 0 = none, and the rest of this section is unused."""
    alpha: float = 16.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapter's input dropped in training."""
    targets: tuple[str, ...] = ("decoder",)
    """Linear layers that receive an adapter: parts or prefixes, as in model.trainable. The model's own weights are
    frozen; model.trainable is unused."""
    dora: bool = False
    """Learn the length of each weight row too (DoRA)."""

    def check(self) -> None:
        require(self.rank >= 0, "lora.rank", self.rank, "0 or more")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a share in [0, 1)")
        require(bool(self.targets), "lora.targets", self.targets, "at least one part or prefix")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """One run. `change` makes variants; `to_dict` and `from_dict` go through JSON unchanged."""

    stage: Stage
    """The stage this run belongs to; another stage's command refuses it."""
    name: str = "unnamed"
    """Shown in logs; the name of the config function."""
    model: Model = field(default_factory=Model)
    """What is trained."""
    data: Data = field(default_factory=Data)
    """What feeds."""
    optim: Optim = field(default_factory=Optim)
    """How the weights move."""
    train: Train = field(default_factory=Train)
    """How long, and what is written."""
    parallel: Parallel = field(default_factory=Parallel)
    """How processes share the work."""
    lora: Lora = field(default_factory=Lora)
    """Adapters instead of whole weights."""
    rollout: Rollout = field(default_factory=Rollout)
    """How reinforce samples; unused elsewhere."""
    grpo: Grpo = field(default_factory=Grpo)
    """What reinforce minimises; unused elsewhere."""
    rewards: Rewards = field(default_factory=Rewards)
    """What reinforce rewards; unused elsewhere."""
    watching: Watching = field(default_factory=Watching)
    """What reinforce shows; unused elsewhere."""

    def check(self) -> None:
        used = bool(self.rewards.weights)
        if self.stage == "reinforce":
            require(used, "rewards.weights", self.rewards.weights, "at least one reward with a weight")
            for name, off in (("top_p", 1.0), ("top_k", 0)):
                value = getattr(self.rollout, name)
                require(value == off, f"rollout.{name}", value, f"{off}: training knows no truncated distribution")
            for name in ("eval_every", "z_loss", "attention_weight", "coordinate_spread", "spike_ratio"):
                value = getattr(self.train, name)
                require(value == 0, f"train.{name}", value, "0: align and instruct alone have it")
            overlong, longest = self.grpo.overlong_tokens, self.rollout.max_new_tokens
            require(overlong < longest, "grpo.overlong_tokens", overlong, f"less than rollout.max_new_tokens={longest}")

    def change(self, **sections: Any) -> Self:
        """Copy with some fields replaced: `change(train={"steps": 10}, name="short")`.

        Args:
            sections: section name -> mapping of fields, or a top-level field's value.

        Raises:
            ConfigError: unknown section or field, or a value of the wrong type.
        """
        new: dict[str, Any] = {}
        for name, value in sections.items():
            if name not in SECTIONS and name not in ("stage", "name"):
                raise unknown_key(name, [*SECTIONS, "stage", "name"], "section")
            if name not in SECTIONS or isinstance(value, Section):
                new[name] = value
                continue
            section = getattr(self, name)
            known = [f.name for f in dataclasses.fields(section)]
            for key in value:
                if key not in known:
                    raise unknown_key(f"{name}.{key}", [f"{name}.{k}" for k in known])
            new[name] = dataclasses.replace(section, **value)
        return dataclasses.replace(self, **new)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: an unknown key or a value of the wrong type.
        """
        if not isinstance(values, Mapping) or not all(isinstance(values.get(n, {}), Mapping) for n in SECTIONS):
            raise ConfigError("expected one object of settings, with an object for each section")
        if "stage" not in values:
            raise ConfigError(f"config without 'stage': expected one of {', '.join(map(repr, STAGES))}")
        # The check of rewards needs all sections at once: build from the stored ones in one step.
        base = RunConfig(stage="align").change(**{k: v for k, v in values.items() if k != "stage"})
        return cls(**{**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)}, "stage": values["stage"]})


SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "optim": Optim,
    "train": Train,
    "parallel": Parallel,
    "lora": Lora,
    "rollout": Rollout,
    "grpo": Grpo,
    "rewards": Rewards,
    "watching": Watching,
}
