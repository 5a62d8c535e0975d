r"""Weights in and out of other formats.

    python -m llamo_jax.convert from_huggingface --language_model DIR_OR_HUB_ID [--graph_encoder molecule_model.pth] \
        [--projector projector.safetensors] [--adapter PEFT_DIR] --output DIR
    python -m llamo_jax.convert from_gguf --language_model FILE.gguf [--dtype bfloat16] [...as above] --output DIR
    python -m llamo_jax.convert from_official --checkpoint llamo.ckpt --language_model DIR_OR_HUB_ID --output DIR
    python -m llamo_jax.convert to_peft --checkpoint DIR --base_model DIR_OR_HUB_ID --output DIR
    python -m llamo_jax.convert to_huggingface --checkpoint DIR --output DIR

from_… write a model folder: start training from it (config.init_from, or configs/stage1.py:DIR), load it with
LLaMo.load or the assistant. to_… take a run's workdir or a model folder.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.prompt import PROMPT_STYLES, PromptEncoder
from data_pipeline.tokenizer import TextTokenizer, load_tokenizer
from llamo_jax import sharding
from llamo_jax.config import ConfigError, PromptConfig, differences, to_dict
from llamo_jax.convert import gguf_files, huggingface, official, peft
from llamo_jax.convert.names import adapted_projections, below, language_model_rules, prefixed
from llamo_jax.models import DecoderConfig, LoRAConfig, ModelConfig
from llamo_jax.models.config import Dtype
from llamo_jax.models.definition import ModelDefinition, define_model
from llamo_jax.models.folder import ModelFolder, is_model_folder, read_model, write_model
from llamo_jax.models.interfaces import GraphEncoderConfig, ProjectorConfig
from llamo_jax.models.lora import PARTS as LORA_PARTS
from llamo_jax.models.migrations import SCHEMA_VERSION
from llamo_jax.models.torch_names import rules_of, to_torch
from llamo_jax.parameters import WeightsError, abstract_arrays
from llamo_jax.training import checkpoints, workdir
from llamo_jax.weights import Weights, write_file


def from_huggingface(options: argparse.Namespace) -> None:
    """A language model, and what is given of the graph side, as a model folder."""
    folder = huggingface.locate(options.language_model)
    _from_language_model(options, *huggingface.read_language_model(folder), _tokenizer(options, folder), folder)


def from_gguf(options: argparse.Namespace) -> None:
    """The same from a language model in a GGUF file, dequantised."""
    file = gguf_files.read(options.language_model)
    found = gguf_files.read_language_model(file, np.dtype(options.dtype))
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else gguf_files.read_tokenizer(file)
    _from_language_model(options, *found, tokenizer, options.language_model)


def _from_language_model(
    options: argparse.Namespace,
    decoder: DecoderConfig,
    language_model: dict[str, Any],
    hf: dict[str, Any],
    tokenizer: TextTokenizer | None,
    source: Path,
) -> None:
    lora, notes = huggingface.NO_LORA, list[str]()
    if options.adapter:
        lora, adapter = peft.read_adapter(options.adapter, decoder, language_model, notes)
        language_model |= adapter
    weights = prefixed("language_model/", language_model)
    encoder, projector = official.graph_configs(options.graph_encoder, options.projector)
    if options.graph_encoder:
        weights |= prefixed("graph_encoder/", official.read_graph_encoder(options.graph_encoder, encoder, notes))
    if options.projector:
        weights |= prefixed("projector/", official.read_projector(options.projector, projector, encoder, decoder.width))
    config = _model_config(encoder, projector, decoder, lora, language_model["embedding"].dtype)
    _write(options, config, weights, hf, tokenizer, source, notes)


def from_official(options: argparse.Namespace) -> None:
    """A checkpoint of the original, stage 1 or 2, as a model folder; its language model gives sizes and tokenizer."""
    folder = huggingface.locate(options.language_model)
    hf = huggingface.read_json(folder / "config.json")
    stored = official.Checkpoint(options.checkpoint, hf)
    weights = {
        **prefixed("graph_encoder/", stored.graph_encoder),
        **prefixed("projector/", stored.projector),
        **prefixed("language_model/", stored.language_model),
    }
    dtype = stored.language_model["embedding"].dtype
    config = _model_config(official.GRAPH_ENCODER, official.PROJECTOR, stored.decoder, stored.lora, dtype)
    _write(options, config, weights, hf, _tokenizer(options, folder), folder, stored.notes)


def to_peft(options: argparse.Namespace) -> None:
    """The adapters, for PEFT; and the graph side."""
    stored = _read(options.checkpoint)
    if not adapted_projections(stored.config.lora):
        raise WeightsError(f"{options.checkpoint} has no adapters on its language model; use to_huggingface")
    base_model = options.base_model or (stored.huggingface or {}).get("_name_or_path", "")
    language_model = below("language_model/", stored.weights)
    is_run = not is_model_folder(options.checkpoint)
    if is_run and (trained := workdir.trained_language_model(options.checkpoint)):
        raise WeightsError(
            f"{options.checkpoint}: its language model was trained, such as {trained[0]}; adapters alone would "
            "lack that: use to_huggingface"
        )
    if base_model and Path(base_model).is_dir():  # Path("") would be the current folder
        _check_base(Path(base_model), stored.config.language_model, language_model)
    elif is_run and (trainer := workdir.trainer_of_language_model(options.checkpoint)):
        raise WeightsError(
            f"{options.checkpoint}: the adapters stand on a language model that {trainer} has trained; write that one "
            f"with to_huggingface --checkpoint {trainer} --output DIR, and give --base_model DIR"
        )
    elif base_model:
        print(f"note: {base_model} is no folder here, so it was not compared with the language model")

    def write(folder: epath.Path) -> None:
        peft.write_adapter(folder, stored.config.language_model, stored.config.lora, language_model, base_model)
        _write_graph_side(folder, stored)

    _new_folder(options.output, write)


def to_huggingface(options: argparse.Namespace) -> None:
    """The language model, adapters merged, for transformers; and the graph side."""
    stored = _read(options.checkpoint)
    decoder = stored.config.language_model
    language_model = huggingface.merged(below("language_model/", stored.weights), stored.config.lora)
    dtypes = {np.dtype(array.dtype) for array in language_model.values()}
    # float32 is what was trained: a reader would round it to the dtype of the rest
    dtype = np.dtype(np.float32) if np.dtype(np.float32) in dtypes else np.dtype(language_model["embedding"].dtype)
    hf = huggingface.write_config(decoder, stored.huggingface, dtype)
    tokenizer = workdir.at(options.checkpoint)[0] / "tokenizer"
    generation = _ends(load_tokenizer(tokenizer), stored.prompt) if tokenizer.is_dir() else {}
    hf |= generation
    tensors = to_torch(language_model_rules(decoder), language_model)

    def write(folder: epath.Path) -> None:
        write_file(folder / "model.safetensors", tensors)
        storage.write_json(folder / "config.json", hf)
        _write_graph_side(folder, stored)
        if tokenizer.is_dir():
            storage.write_json(folder / "generation_config.json", generation)
            storage.copy_folder(tokenizer, folder)

    _new_folder(options.output, write)


def _ends(tokenizer: TextTokenizer, prompt: PromptConfig | None) -> dict[str, Any]:
    """What transformers has to know of tokens that frame a text: where answers end above all, as they were trained."""
    style = "plain" if prompt is None else prompt.style
    ends = PromptEncoder(tokenizer, 0, style=style, show_smiles=True).stop_ids
    begins = {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    return {**begins, "eos_token_id": list(ends) if len(ends) > 1 else ends[0]}


def _check_base(base: Path, config: DecoderConfig, language_model: Weights) -> None:
    """Raises WeightsError unless a folder holds the language model that the adapters stand on."""
    there, weights, _ = huggingface.read_language_model(base)
    if differing := differences(to_dict(there), to_dict(config), ""):
        raise WeightsError(
            f"--base_model {base} is another model: {', '.join(differing).replace(' .', ' ').lstrip('.')}"
        )
    different = [name for name, theirs in weights.items() if not _equal(theirs, language_model[name])]
    if different:
        raise WeightsError(
            f"--base_model {base} has other weights than the adapters stand on: {len(different)} of {len(weights)} "
            f"arrays differ, such as {different[0]}"
        )


def _equal(theirs: Any, ours: Any) -> bool:
    """Layer by layer, in the smaller of the dtypes: what is frozen, or was exported before, may be kept in one."""
    dtype = min((theirs.dtype, ours.dtype), key=lambda each: np.dtype(each).itemsize)

    def same(one: Any, other: Any) -> bool:
        return np.array_equal(np.asarray(one).astype(dtype), np.asarray(other).astype(dtype))

    if len(theirs.shape) < 3:
        return same(theirs[...], ours[...])
    return all(same(theirs[layer], ours[layer]) for layer in range(theirs.shape[0]))


def _model_config(
    encoder: GraphEncoderConfig, projector: ProjectorConfig, decoder: DecoderConfig, lora: LoRAConfig, dtype: np.dtype
) -> ModelConfig:
    """float32 weights stay and compute in float32; others are trained and run in bfloat16, as in the presets."""
    kind: Dtype = "float32" if dtype == np.float32 else "bfloat16"
    return ModelConfig(
        graph_encoder=encoder,
        projector=projector,
        language_model=decoder,
        lora=lora,
        compute_dtype=kind,
        frozen_dtype=kind,
        quantize="none",
        attention="auto",
        remat="full",
        loss_chunk=512,
    )


def _write(
    options: argparse.Namespace,
    config: ModelConfig,
    weights: Weights,
    hf: dict[str, Any],
    tokenizer: TextTokenizer | None,
    language_model: Path,
    notes: list[str],
) -> None:
    if tokenizer is None:
        notes.append(f"{language_model} has no tokenizer; give --tokenizer DIR, or config.data.tokenizer in training")
    style: Any = options.prompt_style or _prompt_style(tokenizer, language_model)
    if tokenizer is not None:
        notes.append(f"prompt style: {style}")
    parts = tuple(dict.fromkeys(name.split("/")[0] for name in weights))
    prompt = PromptConfig(style=style, show_smiles=True)
    write_model(options.output, ModelFolder(config, weights, prompt, parts, hf), tokenizer)
    for note in notes:
        print(f"note: {note}")
    print(f"{options.output}: {', '.join(parts)}" + (f", adapters of rank {config.lora.rank}" * bool(config.lora.rank)))


def _prompt_style(tokenizer: TextTokenizer | None, language_model: Path) -> Literal["plain", "llama2", "chat_template"]:
    """How the model was taught to be asked: by its chat template, which for Llama-2-chat is the original's prompt."""
    template = getattr(tokenizer, "chat_template", None)
    if template is not None:
        return "llama2" if "<<SYS>>" in template else "chat_template"
    # its first releases came without a template
    return "llama2" if re.search(r"llama-?2.*chat", language_model.name, re.IGNORECASE) else "plain"


def _tokenizer(options: argparse.Namespace, folder: Path) -> TextTokenizer | None:
    """What is asked for, or else that of a language model's folder, if it has one."""
    if options.tokenizer:
        return load_tokenizer(options.tokenizer)
    try:
        return load_tokenizer(folder)
    except DataError:
        if any(folder.glob("tokenizer*")):
            raise
        return None


def _read(folder: epath.Path) -> ModelFolder:
    """A model folder, or a run with the weights of all it started from, on the first device."""
    if is_model_folder(folder):
        return read_model(folder)
    model, prompt = workdir.read_model_config(folder)
    model = dataclasses.replace(model, quantize="none")  # what was frozen is still whole where it came from
    definition = define_model(model)
    mesh = sharding.single_device_mesh()
    abstract = abstract_arrays(definition.variables, model.frozen_dtype, mesh, trained=_trained(folder, definition))
    arrays = checkpoints.load_weights(folder, abstract).arrays
    return ModelFolder(model, arrays, prompt, huggingface=workdir.read_origin(folder))


def _trained(folder: epath.Path, definition: ModelDefinition) -> dict[str, bool]:
    """What a run or one that it started from may have trained: kept in float32, as it was trained."""
    trained = {name for name in definition.names() if name.rpartition("/")[2] in LORA_PARTS}
    at: epath.Path | None = folder
    while at is not None:
        trained.update(workdir.trained_language_model(at))
        at = workdir.trainer_of_language_model(at)
    return dict.fromkeys(trained, True)


def _write_graph_side(folder: epath.Path, stored: ModelFolder) -> None:
    """What there is of encoder and projector, adapters merged, for torch, with their configuration.

    Under the names that their kinds give; our own paths, where a kind has no names of its own.
    """
    config = stored.config
    tables: tuple[tuple[str, Any, tuple, Weights], ...] = (
        ("graph_encoder", config.graph_encoder, (), config.graph_encoder.torch_extras()),
        ("projector", config.projector, (config.num_levels,), {}),
    )
    for part, module, args, extras in tables:
        if part in stored.parts:
            arrays = huggingface.merged(below(f"{part}/", stored.weights), config.lora, part)
            tensors = to_torch(rules_of(module, {name: array.shape for name, array in arrays.items()}, *args), arrays)
            write_file(folder / f"{part}.safetensors", {**tensors, **extras})
    content: dict[str, Any] = {name: to_dict(getattr(config, name)) for name in ("graph_encoder", "projector")}
    content["schema_version"] = SCHEMA_VERSION
    storage.write_json(folder / official.GRAPH_CONFIG, content)


def _new_folder(folder: epath.Path, write: Callable[[epath.Path], None]) -> None:
    """A folder that exists whole or not at all; raises DataError if there is one already."""
    with storage.new_folder(folder) as partial:
        write(partial)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llamo_jax.convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--output", required=True, type=epath.Path, metavar="DIR", help="a new folder")
        return sub

    hugging_face, in_gguf, lightning = command(from_huggingface), command(from_gguf), command(from_official)
    for sub in (hugging_face, lightning):
        sub.add_argument("--language_model", required=True, metavar="DIR_OR_HUB_ID")
    in_gguf.add_argument("--language_model", required=True, type=Path, metavar="FILE.gguf")
    in_gguf.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32, exact")
    for sub in (hugging_face, in_gguf, lightning):
        sub.add_argument("--tokenizer", type=epath.Path, metavar="DIR", help="default: the language model's own")
    for sub in (hugging_face, in_gguf):
        sub.add_argument("--graph_encoder", type=Path, metavar="FILE", help="MoleculeSTM's molecule_model.pth")
        sub.add_argument("--projector", type=Path, metavar="FILE", help="as to_huggingface writes it")
        sub.add_argument("--adapter", type=Path, metavar="PEFT_DIR")
        sub.add_argument(
            "--prompt_style", choices=PROMPT_STYLES, help="default: the model's own chat template, or llama2, or plain"
        )
    lightning.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="the Lightning checkpoint")
    lightning.set_defaults(prompt_style="llama2")
    for sub in (outgoing := [command(to_peft), command(to_huggingface)]):
        sub.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run or a model folder")
    outgoing[0].add_argument("--base_model", default="", metavar="DIR_OR_HUB_ID", help="named in adapter_config.json")
    return parser


@program("llamo_jax.convert", "nothing was written")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    options = _parser().parse_args(arguments)
    quiet_libraries()
    try:
        storage.check_new(options.output)  # before anything takes time
        options.run(options)
    except (ConfigError, DataError, WeightsError, workdir.CheckpointError) as error:
        sys.exit(f"llamo_jax.convert: {error}")
    except OSError as error:
        sys.exit(f"llamo_jax.convert: {error.filename or options.output}: {error.strerror or error}")


if __name__ == "__main__":
    main()
