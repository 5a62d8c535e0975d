"""A real language model, from its file to an assistant: conversion, both stages, exports and answers.

Ten steps each, which teach it nothing yet: whether all parts fit together is what is looked at.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from filelock import FileLock
from peft import PeftModel

from data_pipeline.tokenizer import load_tokenizer
from llamo_jax.convert import __main__ as convert
from llamo_jax.convert.names import below
from llamo_jax.models.folder import read_model
from llamo_jax.weights import read_folder
from tests.llamo_jax.test_convert import our_logits, torch_logits

ROOT = Path(__file__).resolve().parents[1]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = (
    "What is the capital of France?", "Name three noble gases.", "What is aspirin?", "Write a haiku about water.",
    "What is 12 times 12?", "Who wrote Hamlet?", "Explain what a ketone is.", "List the planets.",
    "What colour is copper sulfate?", "Translate 'good morning' into Spanish.", "What does DNA stand for?",
    "Is benzene aromatic?", "How many legs has a spider?", "What is the pH of pure water?", "Tell me a short joke.",
    "What is photosynthesis?", "Name a strong acid.", "What is the boiling point of ethanol?",
    "Complete: to be or not to", "What is the SMILES of ethanol?",
)  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """The folder models/, filled as `make smollm2` does, once for all."""
    with FileLock(ROOT / "models.lock", timeout=1800):
        make = ["make", "smollm2", f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed-gguf"]  # it is installed
        subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1800)
    return ROOT / "models"


@pytest.fixture(scope="module")
def theirs(models):
    """The same file in transformers, float32."""
    found = transformers.AutoModelForCausalLM.from_pretrained(models, gguf_file=FILE, dtype=torch.float32)
    return found.eval()


def alone(*command, cwd, flags=""):
    """Runs a Python program on one device, as on a laptop; returns what it prints."""
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.fixture(scope="module")
def runs_of_both_stages(models, few, tmp_path_factory):
    """Ten steps each."""
    root = tmp_path_factory.mktemp("smollm2")
    small = {
        "data.rows": 1,
        "data.tokens_per_row": 128,
        "train.steps": 10,
        "train.log_every": 10,
        "train.eval_every": 10,
        "train.samples": 0,
    }
    small |= {"model.compute_dtype": "float32", "model.frozen_dtype": "float32"}  # else as fits the machine
    small |= {"train.checkpoint_every": 10, "train.warmup_steps": 2, "train.eval_batches": 1}
    sources = {"stage1": (models / "smollm2", few / "description"), "stage2": (root / "stage1", few / "instruction")}
    for stage, (base, data) in sources.items():
        settings = small | {"init_from": base, "data.source": data}
        options = [f"--config.{name}={value}" for name, value in settings.items()]
        config = f"{ROOT}/configs/{stage}.py:smollm2"
        command = [ROOT / "launch.py", "--config", config, "--workdir", root / stage, *options]
        printed = alone(*command, cwd=root)
        assert "step     10/10" in printed
        assert "1 x cpu" in printed
    return root


ASK = """
import json, sys
from data_pipeline.conversation import Conversation, Message
from data_pipeline.records import featurized
from llamo_jax.config import DecodingConfig
from llamo_jax.loading import load_generator

found = {}
for stage, (tokens, questions) in json.loads(sys.argv[1]).items():
    generator, _ = load_generator(stage, decoding=DecodingConfig(max_new_tokens=tokens))
    records = [featurized(Conversation(tuple(smiles), (Message("user", text),))) for text, smiles in questions]
    prompts = [prompt.tokens.tolist() for prompt in generator.encoder.encode(records)]
    answers = [answer[0] for _, answer in sorted(generator.generate(records), key=lambda found: found[0])]
    found[stage] = [prompts, [answer.tokens.tolist() for answer in answers], [answer.text for answer in answers]]
print(json.dumps(found))
"""


def test_tokens_equal_those_of_transformers(models, shared_data):
    ours = load_tokenizer(models / "smollm2" / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(models, gguf_file=FILE)
    rows = (shared_data / "chebi20" / "train.tsv").read_text().splitlines()[1:251]
    texts = [*QUESTIONS, *(column for row in rows for column in row.split("\t")[1:3])]  # SMILES, description
    assert len(texts) == 520
    assert ours.encode(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    turns = [{"role": "user", "content": "What is aspirin?"}]
    assert ours.render_chat(turns, add_generation_prompt=True) == theirs.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )


ASPIRIN = ("Describe this molecule.", ("CC(=O)Oc1ccccc1C(=O)O",))


@pytest.fixture(scope="module")
def answers(runs_of_both_stages):
    """By stage: prompts, greedy answers' tokens and their texts; without a molecule, but for the last of stage 2."""
    asked = {"stage1": (64, [(question, ()) for question in QUESTIONS]),
             "stage2": (16, [(QUESTIONS[2], ()), ASPIRIN])}  # fmt: skip
    printed = alone("-c", ASK, json.dumps(asked), cwd=runs_of_both_stages)
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def questions(answers):
    """Prompts without a molecule, as the stages write them, and what stage 1's model answers greedily."""
    prompts, tokens, _ = answers["stage1"]
    return [torch.tensor([prompt]) for prompt in prompts], tokens


def test_logits_equal_those_of_transformers(models, theirs, questions):
    stored = read_model(models / "smollm2")
    weights = below("language_model/", stored.weights)
    # all at once: what stands behind a prompt changes nothing before it
    padded = np.zeros((len(QUESTIONS), max(prompt.shape[1] for prompt in questions[0])), np.int64)
    for row, prompt in zip(padded, questions[0], strict=True):
        row[: prompt.shape[1]] = prompt[0]
    ours = our_logits(stored.config.language_model, stored.config.lora, weights, padded)
    for got, expected, prompt in zip(ours, torch_logits(theirs, padded), questions[0], strict=True):
        np.testing.assert_allclose(got[: prompt.shape[1]], expected[: prompt.shape[1]], atol=1e-3)


def test_the_frozen_model_answers_as_in_transformers(theirs, questions):
    """After stage 1 nothing but the graph side has changed: without a molecule, it is SmolLM2."""
    prompts, tokens = questions
    longest = max(prompt.shape[1] for prompt in prompts)
    padded = torch.stack([torch.nn.functional.pad(prompt[0], (longest - len(prompt[0]), 0)) for prompt in prompts])
    seen = torch.stack([torch.arange(longest) >= longest - prompt.shape[1] for prompt in prompts]).long()
    end = theirs.config.eos_token_id
    given = theirs.generate(padded, attention_mask=seen, max_new_tokens=64, do_sample=False, pad_token_id=end)
    for answer, ours, question in zip(given[:, longest:].tolist(), tokens, QUESTIONS, strict=True):
        assert ours == answer[: answer.index(end) + 1 if end in answer else None], question
        assert len(ours) > 3
    assert "Paris" in load_tokenizer(ROOT / "models" / "smollm2" / "tokenizer").decode(questions[1][0])


def test_both_stages_answer_and_leave_the_language_model_alone(models, runs_of_both_stages, answers):
    stored = read_model(models / "smollm2").weights
    assert all(texts[-1].strip() for _, _, texts in answers.values())
    convert.main(["to_peft", "--checkpoint", str(runs_of_both_stages / "stage2"),
                  "--output", str(runs_of_both_stages / "peft")])  # fmt: skip
    convert.main(["to_huggingface", "--checkpoint", str(runs_of_both_stages / "stage2"),
                  "--output", str(runs_of_both_stages / "merged")])  # fmt: skip
    merged = read_folder(runs_of_both_stages / "merged")
    key = "model.layers.7.self_attn.k_proj.weight"  # no adapter stands on keys
    np.testing.assert_array_equal(merged[key][...].T, stored["language_model/layers/key/kernel"][7])
    query = "model.layers.7.self_attn.q_proj.weight"
    change = merged[query][...].T - stored["language_model/layers/query/kernel"][7]
    assert 0 < np.abs(change).max() < 0.1


def test_exports_are_the_same_model_in_torch(theirs, runs_of_both_stages, questions, answers):
    prompts = questions[0]
    merged = transformers.AutoModelForCausalLM.from_pretrained(runs_of_both_stages / "merged", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs_of_both_stages / "merged")
    assert tokenizer.eos_token == "<|im_end|>"
    expected = torch_logits(merged.eval(), prompts[0].numpy())
    assert np.abs(expected - torch_logits(theirs, prompts[0].numpy())).max() > 1e-3
    adapted = PeftModel.from_pretrained(theirs, runs_of_both_stages / "peft").eval()  # changes `theirs`: the last test
    np.testing.assert_allclose(torch_logits(adapted, prompts[0].numpy()), expected, atol=1e-3)
    ours = answers["stage2"][1][0]
    answer = merged.generate(prompts[2], max_new_tokens=16, do_sample=False, pad_token_id=2)
    assert ours == answer[0, prompts[2].shape[1] :].tolist()
