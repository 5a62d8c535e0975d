"""Language models out of GGUF files, with llama.cpp's own writer on one side and transformers' reader on the other."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quantize
from gguf.constants import MODEL_ARCH
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data_pipeline.tokenizer import load_tokenizer
from llamo_jax.config import ConfigError
from llamo_jax.convert import __main__ as convert
from llamo_jax.convert import gguf_files, huggingface
from llamo_jax.models.folder import read_model
from llamo_jax.parameters import WeightsError
from tests.llamo_jax.test_convert import our_logits, torch_logits

SIZES = {
    "vocab_size": 256,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
}
WRITTEN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""What the package gguf can quantise; of others, blocks are put together below."""


def torch_model(family="llama", **changes):
    """A small model of torch whose every weight, biases and norms included, is random."""
    kind, options = FAMILIES[family]
    torch.manual_seed(0)
    config = kind(**{**SIZES, **options, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def interleaved(matrix, heads):
    """Rows of rotated pairs next to each other, as llama.cpp's converter writes them for LLaMA."""
    width = matrix.shape[0] // heads
    order = [head * width + i + half for head in range(heads) for i in range(width // 2) for half in (0, width // 2)]
    return matrix[order]


def k_quantised(shape, kind, rng):
    """Blocks of 256 weights with random contents and a small scale."""
    size, scales = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}[kind]  # bytes, and where float16 scales stand
    blocks = rng.integers(0, 256, (np.prod(shape) // 256, size), dtype=np.uint8)
    for start in scales:
        blocks[:, start : start + 2] = np.array([2e-4 if kind == "Q4_K" else 2e-5], np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def write(path, family="llama", quantisation="F32", metadata=(), tensors=(), tokenizer=(), **changes):
    """A GGUF file of a random model; `metadata`, `tensors`: what differs (None: left out); `tokenizer`: its keys."""
    model = torch_model(family, **changes)
    config = model.config
    prefix = "general.architecture", family
    keys = dict([
        prefix,
        (f"{family}.vocab_size", config.vocab_size),
        (f"{family}.block_count", config.num_hidden_layers),
        (f"{family}.context_length", config.max_position_embeddings),
        (f"{family}.embedding_length", config.hidden_size),
        (f"{family}.feed_forward_length", config.intermediate_size),
        (f"{family}.attention.head_count", config.num_attention_heads),
        (f"{family}.attention.head_count_kv", config.num_key_value_heads),
        (f"{family}.attention.layer_norm_rms_epsilon", config.rms_norm_eps),
        (f"{family}.rope.freq_base", float(config.rope_parameters["rope_theta"])),
    ])  # fmt: skip
    if family == "qwen3":
        keys[f"{family}.attention.key_length"] = keys[f"{family}.attention.value_length"] = config.head_dim
    keys |= dict(metadata) | dict(tokenizer)
    names = get_tensor_name_map(getattr(MODEL_ARCH, family.upper()), config.num_hidden_layers)
    arrays = {}
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem == "lm_head" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if family == "llama" and stem.endswith(("q_proj", "k_proj")):
            array = interleaved(array, config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads)
        arrays[f"{names.get_name(stem)}.{kind}"] = array
    arrays |= dict(tensors)
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, keys.pop("general.architecture"))
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            kinds = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
            kinds[type(value)](key, value)
    for name, array in arrays.items():
        if array is None:
            continue
        if array.ndim == 1 or array.dtype != np.float32:
            writer.add_tensor(name, array)
        elif quantisation in WRITTEN:
            kind = GGMLQuantizationType[quantisation]
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(
                name, k_quantised(array.shape, quantisation, rng), raw_dtype=GGMLQuantizationType[quantisation]
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path):
    return gguf_files.read_language_model(gguf_files.read(path), np.dtype(np.float32))


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(3, 256, (2, 20))


@pytest.mark.parametrize(
    ("family", "quantisation"),
    [("llama", kind) for kind in (*WRITTEN, "Q4_K", "Q6_K")] + [("qwen2", "F32"), ("qwen2", "Q8_0"), ("qwen3", "F32")],
)
def test_logits_equal_those_of_transformers(tmp_path, ids, family, quantisation):
    path = write(tmp_path / "model.gguf", family, quantisation)
    config, arrays, hf = read(path)
    if family == "qwen3":  # of which transformers does not read the width of a head
        theirs = torch_model(family)
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    expected = torch_logits(theirs.eval(), ids)
    assert expected.std() > 0.1
    np.testing.assert_allclose(our_logits(config, huggingface.NO_LORA, arrays, ids), expected, atol=1e-4)
    assert (config.tie_embeddings, config.qkv_bias) == (family == "qwen2", family == "qwen2")
    assert huggingface.decoder_config(hf) == config


def test_the_command_line_writes_a_model_folder(tmp_path, capsys, byte_level):
    path = write(tmp_path / "model.gguf", tokenizer=byte_level, vocab_size=len(byte_level["tokenizer.ggml.tokens"]))
    output = tmp_path / "model"
    convert.main(["from_gguf", "--language_model", str(path), "--output", str(output), "--dtype", "bfloat16"])
    assert "prompt style: chat_template" in capsys.readouterr().out
    stored = read_model(output)
    assert stored.parts == ("language_model",)
    assert stored.config.compute_dtype == stored.config.frozen_dtype == "bfloat16"
    assert stored.huggingface["architectures"] == ["LlamaForCausalLM"]
    exact = read(path)[1]["layers/query/kernel"][...]
    np.testing.assert_allclose(stored.weights["language_model/layers/query/kernel"][...], exact, rtol=2**-8)
    tokenizer = load_tokenizer(output / "tokenizer")
    assert tokenizer.decode(tokenizer.encode(["CC(=O)O"])[0]) == "CC(=O)O"


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_wavelengths_are_recognised(tmp_path, ids, factor):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = torch_model(rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    plain = 1 / 5e5 ** (np.arange(0, 64, 2, dtype=np.float32) / 64)
    factors = (plain / scaled.numpy()).astype(np.float32)
    path = write(tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors}, rope_parameters=rope)
    config, arrays, _ = read(path)
    assert config.rope_scaling.factor == factor
    np.testing.assert_allclose(
        our_logits(config, huggingface.NO_LORA, arrays, ids), torch_logits(model, ids), atol=1e-4
    )
    odd = write(tmp_path / "odd.gguf", tensors={"rope_freqs.weight": np.linspace(1, 3, 32, dtype=np.float32)})
    with pytest.raises(ConfigError, match=r"odd\.gguf: rope_freqs\.weight holds the scaling of no published Llama"):
        read(odd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": {"general.architecture": "gemma"}}, "general.architecture is 'gemma'; known are llama, qwen2"),
        ({"metadata": {"llama.attention.head_count_kv": [2, 2]}}, "num_key_value_heads must be a whole number"),
        ({"metadata": {"llama.logit_scale": 2.0}}, "llama.logit_scale='2.0' is unknown"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count=8 is not implemented"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type='yarn' is not implemented"),
        ({"metadata": {"llama.rope.dimension_count": 32}}, "llama.rope.dimension_count=32 is not the width of a head"),
        ({"metadata": {"split.count": 2}}, "one of 2 parts; put them together with llama-gguf-split --merge"),
        ({"metadata": {"llama.block_count": None}}, "lacks num_hidden_layers"),
        ({"metadata": {"llama.block_count": 3}}, "missing: .*model.layers.2.input_layernorm.weight"),
        ({"tensors": {"blk.0.attn_q.weight": None}}, r"missing: \['model.layers.0.self_attn.q_proj.weight'\]"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((8, 256), np.float32)}}, "blk.0.ffn_gate_inp.weight"),
        ({"tensors": {"blk.0.attn_q.weight": np.ones((256, 256), np.int8)}}, "attn_q.weight: the quantisation I8"),
        ({"tensors": {"blk.1.ffn_up.weight": np.ones((512, 128), np.float32)}}, "up_proj.weight: expected shape"),
    ],
)  # fmt: skip
def test_what_is_unknown_is_refused_by_name(tmp_path, options, message):
    path = write(tmp_path / "model.gguf", **options)
    with pytest.raises((ConfigError, WeightsError), match=message) as refused:
        read(path)
    assert "model.gguf" in str(refused.value) or "quantisation" in message


def test_weights_that_are_no_numbers_are_named(tmp_path):
    path = write(tmp_path / "model.gguf", tensors={"output_norm.weight": np.full(256, np.nan, np.float32)})
    with pytest.raises(WeightsError, match=r"output_norm\.weight: holds NaN"):
        read(path)[1]["norm/scale"][...]


def test_damaged_files_are_one_line(tmp_path, capsys):
    whole = write(tmp_path / "model.gguf").read_bytes()
    for name, content in {"cut": whole[:200], "cut_late": whole[:-1000], "text": b"GGUF or not", "empty": b""}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(SystemExit):
            convert.main(["from_gguf", "--language_model", str(path), "--output", str(tmp_path / "out")])
        with pytest.raises(WeightsError, match=rf"{name}\.gguf: not a readable GGUF file, or cut short \(.+\)$"):
            gguf_files.read(path)
    with pytest.raises(WeightsError, match="nowhere: no such file"):
        gguf_files.read(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


# Tokenizers

TEXTS = ["I have 12345 apples; isn't it?", "  12 spaces\n\n1. ends", "CC(=O)Oc1ccccc1C(=O)O", "Ünïcode e\u0301", ""]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def texts(shared_data):
    """SMILES and descriptions, 250 each."""
    rows = (shared_data / "chebi20" / "train.tsv").read_text().splitlines()[1:251]
    return [*TEXTS, *(column for row in rows for column in row.split("\t")[1:3])]


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level vocabulary with control tokens, as GGUF files hold it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, control = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    samples = ["This molecule has 12 rings.\n\n  It isn't a ketone.\n\nCC(=O)Oc1ccccc1C(=O)O  "] * 50
    tokenizer.train_from_iterator(samples, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            int(TokenType.CONTROL if token in control else TokenType.NORMAL) for token in tokens
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_byte_level_tokens_equal_those_of_transformers(tmp_path, byte_level, texts, pre):
    path = write(tmp_path / "model.gguf", tokenizer=byte_level | {"tokenizer.ggml.pre": pre})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = gguf_files.read_tokenizer(gguf_files.read(path))
    composed = [unicodedata.normalize("NFC", text) for text in texts]  # transformers leaves that out
    assert ours.encode(composed) == theirs(composed, add_special_tokens=False)["input_ids"]
    assert [ours.decode(ids) for ids in ours.encode(composed)] == composed
    if pre == "qwen2":
        assert ours.encode(texts) == ours.encode(composed)
    assert (ours.bos_id, ours.eos_id, ours.size) == (1, 2, len(byte_level["tokenizer.ggml.tokens"]))
    assert ours.control_tokens() == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert ours.encode(["<|im_end|>"]) != [[2]]  # what people write is text


def test_smollm_takes_digits_one_by_one(tmp_path, byte_level):
    file = gguf_files.read(write(tmp_path / "model.gguf", tokenizer=byte_level))
    tokens = byte_level["tokenizer.ggml.tokens"]

    def spelled(text, pre):
        read = gguf_files.read_tokenizer(file._replace(metadata=file.metadata | {"tokenizer.ggml.pre": pre}))
        return [tokens[index] for index in read.encode([text])[0]]

    # spaces in front of a digit stay together, as in the published tokenizer.json; GPT-2's rule would part them
    assert spelled("12.\n\n12", "smollm") == ["1", "2", ".", "\u010a\u010a", "1", "2"]
    assert spelled("12.\n\n12", "gpt-2") == ["12", ".", "\u010a", "\u010a", "12"]


def test_sentencepiece_is_put_together_again(tmp_path, shared_data, texts):
    path = shared_data / "tokenizers" / "llama2_tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    count = processor.vocab_size()
    kinds = {
        TokenType.UNKNOWN: processor.is_unknown,
        TokenType.CONTROL: processor.is_control,
        TokenType.BYTE: processor.is_byte,
    }
    types = [next((int(kind) for kind, test in kinds.items() if test(i)), int(TokenType.NORMAL)) for i in range(count)]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in range(count)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    ours = gguf_files.read_tokenizer(gguf_files.read(write(tmp_path / "model.gguf", tokenizer=keys)))
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(path, folder / "tokenizer.model")
    published = load_tokenizer(folder)
    assert ours.encode(texts) == published.encode(texts)
    assert ours.encode(texts, [True] * len(texts)) == published.encode(texts, [True] * len(texts))
    assert [ours.decode(ids) for ids in ours.encode(texts)] == texts
    assert (ours.bos_id, ours.eos_id, ours.size) == (1, 2, 32000)
    assert ours.encode(["</s>"]) != [[2]]

    # as older files have what ends a turn: a piece of text
    turn = ["<|im_end|>", "<|im_start|>", "[x]", "\n"]
    more = keys | {
        "tokenizer.ggml.tokens": [*keys["tokenizer.ggml.tokens"], *turn],
        "tokenizer.ggml.scores": [*keys["tokenizer.ggml.scores"], 0.0, 0.0, 0.0, 0.0],
        "tokenizer.ggml.token_type": [*types, *[int(TokenType.USER_DEFINED)] * 4],
        "tokenizer.ggml.eos_token_id": count,
        "tokenizer.ggml.padding_token_id": 0,  # what is unknown pads
        "tokenizer.chat_template": "{{ '<|im_start|>' }}\n",
        "tokenizer.ggml.add_space_prefix": False,
    }
    ours = gguf_files.read_tokenizer(gguf_files.read(write(tmp_path / "older.gguf", tokenizer=more)))
    assert ours.eos_id == count
    found = ours.encode(["CC<|im_end|><|im_start|>[x]"])[0]
    assert count not in found
    assert count + 1 not in found
    assert found[-1] == count + 2  # neither ends answers nor frames them
    assert ours.encode(["CC"]) == ours.encode(["CC"], [True])
    assert ours.encode(["\n"]) == [[count + 3]]  # a text, though the template has line ends
    assert ours.decode([count + 3]) == "\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'; known are llama-bpe"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; known are 'gpt2' and 'llama'"),
        ({"tokenizer.ggml.merges": None}, "lacks tokenizer.ggml.merges"),
        ({"tokenizer.ggml.eos_token_id": None}, "lacks tokenizer.ggml.eos_token_id"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.merges": ["never seen"]}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.pre": ["smollm"]}, "tokenizer"),
    ],
)
def test_tokenizers_that_are_unknown_are_refused_by_name(tmp_path, byte_level, change, message):
    file = gguf_files.read(write(tmp_path / "model.gguf", tokenizer=byte_level | change))
    with pytest.raises(WeightsError, match=rf"model\.gguf: .*{message}"):
        gguf_files.read_tokenizer(file)
