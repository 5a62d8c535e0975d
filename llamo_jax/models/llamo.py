"""LLaMo: graph encoder, projector and language model, joined by splicing graph tokens into the text."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Key

from data_pipeline.batch import Batch, MoleculeGraphs
from llamo_jax import parameters, sharding, weights
from llamo_jax.config import PromptConfig
from llamo_jax.models import layers, lora, quantization
from llamo_jax.models.config import ModelConfig
from llamo_jax.models.folder import PARTS, ModelFolder, Tokenizer, read_model, write_model
from llamo_jax.models.llama import LlamaDecoder


class LLaMo(nnx.Module):
    """The whole model (arXiv 2411.00871).

    Graph encoder and projector are of the kinds that the configuration names; adapters and quantisation are put on
    the finished model, which does not know about them.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        decoder = config.language_model
        self.graph_encoder = config.graph_encoder.build(rngs=rngs)
        self.projector = config.projector.build(config.graph_encoder.width, config.num_levels, decoder.width, rngs=rngs)
        self.language_model = LlamaDecoder(
            decoder, compute_dtype=config.compute_dtype, remat=config.remat, attention=config.attention, rngs=rngs
        )
        # adapters come last, on whatever the maps are then (QLoRA); drawn after everything else, so that the base
        # weights of a seed do not depend on them
        quantization.quantize_model(self, config.quantize)
        lora.add_adapters(self, config.lora, rngs=rngs)

    def encode_graphs(
        self, molecules: MoleculeGraphs, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot; `out` holds `levels` (L S N F) and the projector's intermediates."""
        levels = self.graph_encoder(molecules.atoms, batch_statistics=batch_statistics, dropout_key=dropout_key)
        tokens, out = self.projector(levels, molecules)
        return tokens, {"levels": levels, **out}

    def splice(self, batch: Batch, graph_tokens: Float[Array, "S G Q D"]) -> Float[Array, "B T D"]:
        """Token embeddings, with each molecule's graph tokens where `molecule_slot` is not -1."""
        text = self.language_model.embed(batch.tokens)
        if graph_tokens.shape[2] == 0:  # of a projector without graph tokens
            return text
        shards = graph_tokens.shape[0]
        # rows of a shard lie together, so [B, T] is [S, B/S · T]
        slot, query = (x.reshape(shards, -1) for x in (batch.molecule_slot, batch.molecule_query))
        # text looks behind the last molecule, where there is nothing and no gradient goes to
        slot = jnp.where(slot < 0, graph_tokens.shape[1], slot)

        def of_shard(tokens: Array, slot: Array, query: Array) -> Array:
            return tokens.at[slot, query].get(mode="fill", fill_value=0)

        # each shard looks into its own molecules alone: no communication
        graphs = jax.vmap(of_shard)(graph_tokens, slot, query)
        return jnp.where((batch.molecule_slot >= 0)[..., None], graphs.reshape(text.shape).astype(text.dtype), text)

    def hidden_states(
        self, batch: Batch, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        """Final hidden states of every position; `batch_statistics` as in `GraphEncoder`; no key, no dropout."""
        model = lora.with_dropout(self, layers.fold_key(dropout_key, 1))
        graph_tokens, out = model.encode_graphs(
            batch.molecules, batch_statistics=batch_statistics, dropout_key=layers.fold_key(dropout_key, 0)
        )
        embeddings = model.splice(batch, graph_tokens)
        hidden = model.language_model(embeddings, batch.positions, batch.segments)
        return hidden, {"graph_tokens": graph_tokens, "embeddings": embeddings, **out}

    def __call__(
        self, batch: Batch, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        """float32 logits of every position, and named intermediates."""
        hidden, out = self.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=dropout_key)
        return self.language_model.logits(hidden), {"hidden": hidden, **out}

    def save(
        self, folder: str | os.PathLike, *, tokenizer: Tokenizer | None = None, prompt: PromptConfig | None = None
    ) -> None:
        """Writes the model as one new folder; see llamo_jax.models.folder.

        tokenizer, prompt: what the assistant needs besides the model. Raises DataError if the folder exists.
        """
        if self.config.quantize != "none":
            raise parameters.WeightsError("a quantised model is not stored: keep what it was made from")
        arrays = parameters.flatten(nnx.state(self))
        write_model(folder, ModelFolder(self.config, arrays, prompt), tokenizer)

    @classmethod
    def load(cls, folder: str | os.PathLike, mesh: Mesh | None = None) -> "LLaMo":
        """The model of a folder, adapters included, on the shards of `mesh` (default: the first device).

        Raises WeightsError if the folder is none, holds only a part of the model, or its weights do not fit.
        """
        stored = read_model(folder)
        if set(stored.parts) != set(PARTS):
            raise parameters.WeightsError(f"{folder} holds only {stored.parts}; train it with config.init_from")
        mesh = mesh or sharding.single_device_mesh()
        graphdef, variables = nnx.split(sharding.without_values(lambda: cls(stored.config, rngs=nnx.Rngs(0))))
        abstract = parameters.abstract_arrays(variables, stored.config.frozen_dtype, mesh, trained={})
        parameters.check_names(set(abstract), stored.weights)
        # in the dtype that they are stored in: loading is no place to round
        abstract = {name: spec.update(dtype=stored.weights[name].dtype) for name, spec in abstract.items()}
        return nnx.merge(graphdef, parameters.unflatten(variables, weights.place(stored.weights, abstract)))
