"""MedMO: a vision encoder, a projector and a decoder under Qwen3-VL's official parameter names.

Shapes: T packed tokens, L labelled tokens, M visual tokens, E decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch
from ..batch.coordinates import NO_COORDINATE, Coordinates
from ..choices import Recompute
from ..decoders.qwen3 import Qwen3Decoder
from ..encoders.protocol import Encoder
from ..encoders.qwen3_vl import Qwen3VLEncoder
from ..generation.decoding import Generation, Prompts, generate
from ..generation.kv_cache import KeepKV
from ..generation.sampling import Sampling
from ..losses.chunked_head import TokenLosses, linear_cross_entropy, linear_token_losses, token_logprobs
from ..losses.grpo import PolicyLoss, linear_grpo_loss
from ..losses.policy_objective import DAPO, PolicyObjective
from ..losses.soft_targets import softened
from ..modules.blocks import blocks_of, set_forward
from ..modules.projector import Projector
from ..profile import CheckpointProfile
from .build import build_decoder, build_encoder, init_weights, resolve
from .checkpoint_config import read_config
from .config import ModelConfig
from .looking import LookLoss
from .official.folder import open_checkpoint
from .official.read import load_weights
from .official.write import DEFAULT_SHARD_BYTES, SavesFiles, save_checkpoint
from .placeholders import placeholder_index
from .targets import labelled_rows, learned_positions
from .vision_tower import VisionTower


class VisionLanguageModel(nn.Module):
    """Vision tower and decoder, which stand under `model.` in the official names.

    Args:
        visual: encoder and projector.
        language_model: decoder.
    """

    def __init__(self, visual: VisionTower, language_model: Qwen3Decoder) -> None:
        super().__init__()
        self.visual = visual
        self.language_model = language_model


class MedMO(nn.Module):
    """A multimodal language model of the Qwen3-VL architecture.

    State: `model.visual.*`, `model.language_model.*` and, when the head is not tied, `lm_head.weight`.

    Args:
        config: sizes.
        device: where the parameters are made; "meta" makes none.
        dtype: dtype of the parameters.
    """

    def __init__(
        self, config: ModelConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        text = config.text
        encoder = build_encoder(config, where)
        self.primary_encoder, spec = next(iter(encoder.specs.items()))
        self.merge_size = spec.merge_size
        projector = Projector(
            encoder.embed_dim,
            text.hidden_size,
            num_deepstack=encoder.num_deepstack,
            merge_size=spec.merge_size,
            **where,
        )
        self.model = VisionLanguageModel(VisionTower(encoder, projector), build_decoder(text, where))
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False, **where)
        # Given the embeddings of a batch that shows no image; who shards the vision tower says what it must do then.
        self.without_images: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def from_config(
        cls,
        config: str | ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> MedMO:
        """Build a model with random weights (drawn from torch's global generator).

        Args:
            config: a name in `PRESETS` or a config.
            device: where the parameters are made; "meta" makes none.
            dtype: dtype of the parameters.
            **overrides: changed fields, see `ModelConfig.override`.

        Returns:
            The model, in training mode.

        Raises:
            ValueError: unknown preset, field or encoder.
        """
        model = cls(resolve(config, overrides), device=device, dtype=dtype)
        model.init_weights()
        return model

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> MedMO:
        """Load an official checkpoint from a folder or, when online, by its hub id.

        Args:
            path: folder with config.json and safetensors files, or `owner/name` on the hub.
            dtype: dtype of the parameters; None: as stored.
            device: device of the parameters.
            revision: branch, tag or commit on the hub; ignored for folders.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is broken, or its names or shapes are not those that config.json describes.
        """
        checkpoint = open_checkpoint(path, revision=revision)
        model = cls(read_config(checkpoint), device="meta")
        load_weights(model, checkpoint, dtype=dtype, device=device)
        return model.eval()

    def save_pretrained(
        self,
        folder: str | Path,
        tokenizer: SavesFiles | None = None,
        profile: CheckpointProfile | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> Path:
        """Write the model in the official layout, atomically; see `save_checkpoint`.

        Args:
            folder: made if need be; a checkpoint that stands there is replaced once the new one is complete.
            tokenizer: object whose `save(folder)` writes the tokenizer's files; None: none are written.
            profile: conventions of the checkpoint's box text; None: none are written.
            min_pixels: smallest image area in px, for the processor's settings; None: Qwen3-VL's.
            max_pixels: largest image area in px; None: Qwen3-VL's.
            max_shard_bytes: size past which another file is begun.

        Returns:
            The folder.
        """
        return save_checkpoint(
            folder,
            self.state_dict(),
            config=self.config.to_dict(),
            tokenizer=tokenizer,
            profile=profile,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_shard_bytes=max_shard_bytes,
        )

    def init_weights(self) -> None:
        """Draw all weights anew, see `init_weights`."""
        init_weights(self, self.config.initializer_range)
        if isinstance(self.encoder, Qwen3VLEncoder):
            self.encoder.init_positions()

    @property
    def encoder(self) -> Encoder:
        """The vision encoder (a view: its parameters are named under `model.visual`)."""
        return self.model.visual.encoder

    @property
    def projector(self) -> Projector:
        """The projector (a view: its parameters are named under `model.visual`)."""
        return self.model.visual.projector

    @property
    def decoder(self) -> Qwen3Decoder:
        """The decoder, `model.language_model`."""
        return self.model.language_model

    @property
    def head_weight(self) -> Tensor:
        """(V, E) weight that turns hidden states into logits."""
        return self.decoder.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def checkpoint_activations(self, text: Recompute | bool = "all", vision: Recompute | bool | None = None) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them.

        Args:
            text: what the decoder's blocks compute again: "nothing", "all" (True) or "selected": all but matrix
                products and attention.
            vision: the same for the vision encoder's; None: as `text`.
        """
        set_forward(blocks_of(self.decoder), recompute=text)
        set_forward(blocks_of(self.model.visual), recompute=text if vision is None else vision)

    def hidden_states(
        self,
        batch: Batch,
        rows: Tensor | None = None,
        *,
        keep_kv: KeepKV | None = None,
        keep_qk: KeepKV | None = None,
    ) -> Tensor:
        """Run a batch up to the final norm.

        Args:
            batch: packed documents.
            rows: (R,) tokens whose states are wanted, repeated ones too, which saves work in the last layer; None: all.
            keep_kv: function that receives every decoder layer's keys and values.
            keep_qk: function that receives every decoder layer's rotated queries and keys.

        Returns:
            (T, E) or (R, E).

        Raises:
            ValueError: the images do not fit their placeholders.
        """
        x = self.decoder.embed_tokens(batch.input_ids)
        index, deepstack = None, []
        if batch.patches or batch.features is not None:
            if batch.features is None:
                visual, deepstack = self.model.visual(batch.patches, batch.image_grid_thw)
            else:
                visual, *deepstack = batch.features
            shown = batch.shown_rows(self.primary_encoder, self.merge_size)
            if shown is not None:
                visual, deepstack = visual[shown], [level[shown] for level in deepstack]
            index = self._visual_index(batch, visual.shape[0])
            x = x.index_copy(0, index, visual.to(x.dtype))
        else:
            self._visual_index(batch, 0)
            x = x if self.without_images is None else self.without_images(x)
        return self.decoder(
            x,
            batch.position_ids,
            batch.cu_seqlens,
            visual_index=index,
            deepstack=deepstack,
            keep_kv=keep_kv,
            keep_qk=keep_qk,
            rows=rows,
            max_seqlen=batch.max_seqlen,
            prompt_of=batch.prompt_of,
        )

    def encode_images(self, batch: Batch) -> Tensor:
        """Run the vision tower alone on the images of a batch.

        Returns:
            (1 + D, M, E): visual tokens, then the additions to the first D decoder layers, image after image; as
            `Batch.features` they spare later passes over the same images the tower.
        """
        visual, deepstack = self.model.visual(batch.patches, batch.image_grid_thw)
        return torch.stack([visual, *deepstack])

    def forward(self, batch: Batch) -> Tensor:
        """Return the (T, V) logits of every token of a batch."""
        return F.linear(self.hidden_states(batch), self.head_weight)

    def loss(self, batch: Batch, reduction: str = "mean") -> Tensor:
        """Return the cross-entropy of the labelled tokens; logits exist for their rows only.

        Args:
            batch: packed documents with labels.
            reduction: "mean" over the labelled tokens, or "sum".

        Returns:
            A scalar.

        Raises:
            ValueError: the batch has no labels.
        """
        rows, targets = labelled_rows(batch)
        return linear_cross_entropy(self.hidden_states(batch, rows), self.head_weight, targets, reduction)

    def token_losses(
        self,
        batch: Batch,
        *,
        z_loss: float = 0.0,
        accuracy: bool = False,
        attention_weight: float = 0.0,
        coordinates: Coordinates | None = None,
    ) -> TokenLosses:
        """Return the summed loss of the labelled tokens and what it is made of, from one pass.

        Args:
            batch: packed documents with labels.
            z_loss: weight of the z-loss.
            accuracy: also say of every labelled token whether it was the most likely one.
            attention_weight: weight of the supervised attention of the batch's looks.
            coordinates: distributions that stand for the batch's coordinates, on its device; None: the tokens alone.

        Returns:
            The sum with a graph; the parts without one, tokens in the order of the labels.

        Raises:
            ValueError: the batch has no labels.
        """
        rows, targets = labelled_rows(batch)
        looking = self._looking(batch) if attention_weight else None
        hidden = self.hidden_states(batch, rows, keep_qk=None if looking is None else looking.keep_qk)
        losses = linear_token_losses(hidden, self.head_weight, targets, z_loss=z_loss, accuracy=accuracy)
        if coordinates is not None and batch.coordinates is not None:
            losses = losses._replace(total=losses.total + self._softened(batch, hidden, coordinates))
        if looking is None:
            return losses
        term = attention_weight * looking.total()
        return losses._replace(total=losses.total + term, attention=term.detach())

    def _softened(self, batch: Batch, hidden: Tensor, coordinates: Coordinates) -> Tensor:
        assert batch.coordinates is not None
        codes = batch.coordinates[learned_positions(batch)]
        said, codes = codes != NO_COORDINATE, codes.clamp(min=0)
        shares = coordinates.shares[codes] * said[:, None]
        return softened(hidden, self.head_weight, coordinates.tokens, shares, coordinates.own[codes])

    def _looking(self, batch: Batch) -> LookLoss | None:
        if not batch.looks:
            return None
        return LookLoss(batch, len(self.decoder.layers), (self.config.image_token_id, self.config.video_token_id))

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the log-probability of every labelled token, in the order of the labels.

        Args:
            batch: packed documents with labels; a label on the first token of a document without a prompt cannot be
                predicted and has no entry.
            temperature: number that the logits are divided by.

        Returns:
            (L,) fp32 (float64 for a float64 model).
        """
        rows, targets = labelled_rows(batch)
        return token_logprobs(self.hidden_states(batch, rows), self.head_weight, targets, temperature)

    def policy_loss(
        self,
        batch: Batch,
        advantages: Tensor,
        token_weights: Tensor,
        old_logps: Tensor | None = None,
        ref_logps: Tensor | None = None,
        sampled_logps: Tensor | None = None,
        *,
        objective: PolicyObjective = DAPO,
        temperature: float = 1.0,
    ) -> PolicyLoss:
        """Return the policy-gradient loss of the labelled tokens; see `medmo_core.losses.linear_grpo_loss`.

        Args:
            batch: packed documents with labels; a completion is the labelled part of one document.
            advantages, token_weights, old_logps, ref_logps, sampled_logps: (L,) in the order of the labels.
            objective: kind of loss and its settings.
            temperature: divisor of the logits.
        """
        rows, targets = labelled_rows(batch)
        documents = batch.document_of(learned_positions(batch))
        per_token = (targets, advantages, token_weights, old_logps, ref_logps, sampled_logps, documents)
        hidden = self.hidden_states(batch, rows)
        return linear_grpo_loss(hidden, self.head_weight, *per_token, objective=objective, temperature=temperature)

    def generate(
        self,
        batch: Batch | Prompts,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        num_generations: int = 1,
        stop_token_ids: Sequence[int] | None = None,
        seed: int = 0,
        num_rows: int | None = None,
    ) -> list[list[Generation]]:
        """Continue every document of a batch, or prompts that are run when they are due.

        See `medmo_core.generation.decoding.generate` and, for the settings, `medmo_core.generation.sampling.Sampling`.
        """
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            num_generations=num_generations,
            stop_token_ids=frozenset((self.config.eos_token_id,) if stop_token_ids is None else stop_token_ids),
            seed=seed,
        )
        return generate(self, batch, sampling, num_rows)

    def _visual_index(self, batch: Batch, num_visual: int) -> Tensor:
        ids = (self.config.image_token_id, self.config.video_token_id)
        return placeholder_index(batch, num_visual, ids, encoder=self.primary_encoder, merge_size=self.merge_size)
