"""Prompts: the original's token ids, chat templates, and text that only looks like control tokens."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError, PromptError
from data_pipeline.lengths import token_lengths
from data_pipeline.prompt import PROMPT_STYLES, PromptEncoder, truncate
from data_pipeline.records import Record, featurized
from data_pipeline.tasks import TASKS, Columns
from data_pipeline.tokenizer import HuggingFaceTokenizer, load_tokenizer, train_tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
Q = 28
_NONE = np.zeros(0, np.int32)
NO_GRAPH = GraphArrays(
    np.zeros((0, 9), np.uint8), np.zeros((0, 3), np.uint8), _NONE, _NONE, np.zeros((0, 73), np.uint8)
)


@pytest.fixture(scope="module")
def prompts(golden):
    return json.loads((golden / "prompt.json").read_text())


def llama2_encoder(golden, name):
    folder = golden.parent / "tokenizer_llama2" if name == "llama2" else golden / "tokenizer_tiny"
    return PromptEncoder(load_tokenizer(folder), Q, style="llama2", show_smiles=True)


def conversation_of(case):
    row = {key: case[key] for key in ("smiles", "instruction", "output")}
    (conversation,) = TASKS["instruction"](list(row), Columns())(row)
    return conversation


def test_text_stays_text_where_the_original_lets_it_control(golden, prompts):
    encoder = llama2_encoder(golden, "llama2")
    (case,) = [case for case in prompts["cases"] if case["tag"] == "literal_special_tokens"]
    (encoded,) = encoder.encode([featurized(conversation_of(case))])
    assert np.count_nonzero(encoded.tokens == encoder.tokenizer.bos_id) == 1
    assert np.count_nonzero(encoded.tokens == encoder.tokenizer.eos_id) == 1
    said = encoder.tokenizer.decode(encoded.tokens[encoded.is_target].tolist())
    assert said == case["output"]


def test_a_sentencepiece_folder_survives_saving(golden, tmp_path):
    tokenizer = load_tokenizer(golden / "tokenizer_tiny")
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.encode(["C=O and\nso"], [True]) == tokenizer.encode(["C=O and\nso"], [True])
    (tmp_path / "saved" / "tokenizer.model").write_bytes(b"no")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        load_tokenizer(tmp_path / "saved")
    with pytest.raises(DataError, match="not a tokenizer folder"):
        load_tokenizer(tmp_path)


LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN2 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = {
    LLAMA3: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    QWEN2: ["<|im_start|>", "<|im_end|>"],
}


TINYLLAMA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


def test_the_default_of_several_templates_is_taken(tmp_path):
    """Hermes and others bring one for tools as well."""
    small = train_tokenizer(["What is it?"], 300)
    small._tokenizer.chat_template = {"default": MISTRAL, "tool_use": "x"}
    assert small.chat_template == MISTRAL
    small.save(tmp_path / "several")
    again = load_tokenizer(tmp_path / "several")
    assert again.render_chat([{"role": "user", "content": "a"}], add_generation_prompt=True) == "<s>[INST] a [/INST]"


def test_models_without_a_space_in_front(tmp_path):
    content = (GOLDEN / "tokenizer_tiny" / "tokenizer.model").read_bytes()
    for name, more in (("with", b""), ("without", b"\x1a\x02\x18\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content + more)
    usual, other = (load_tokenizer(tmp_path / name) for name in ("with", "without"))
    assert usual.encode(["CC"]) != other.encode(["CC"]) == usual.encode(["CC"], [True])
    assert usual.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("template", [TINYLLAMA, MISTRAL])
def test_chat_templates_of_sentencepiece_models(template, legacy, tmp_path):
    """As Hugging Face tokenizes: its space stands at the beginning, and behind control tokens only if `legacy`."""
    import sentencepiece

    content = (GOLDEN / "tokenizer_tiny" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content)
    configuration = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template, "legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    encoder = PromptEncoder(load_tokenizer(tmp_path), Q, style="chat_template", show_smiles=True)
    turns = (Message("user", "Is it C=O </s> or not"), Message("assistant", "no"), Message("user", "why"))
    (encoded,) = encoder.encode([(Conversation((), turns), ())])

    bare = sentencepiece.SentencePieceProcessor(model_proto=content + b"\x1a\x02\x18\x00")
    user, answer, question = (
        ("<|user|>\nIs it C=O </s> or not", "no", "why")
        if template is TINYLLAMA
        else ("[INST] Is it C=O </s> or not [/INST]", "no", "[INST] why [/INST]")
    )
    space = "\u2581"
    behind = space if legacy else ""
    bos, eos = [bare.bos_id()], [bare.eos_id()]
    if template is TINYLLAMA:
        expected = [
            *bare.encode(f"{space}{user}"), *eos,
            *bare.encode(f"{behind}\n<|assistant|>\n"), *bare.encode(answer), *eos,
            *bare.encode(f"{behind}\n<|user|>\n{question}"), *eos, *bare.encode(f"{behind}\n<|assistant|>\n"),
        ]  # fmt: skip
    else:
        expected = [
            *bos, *bare.encode(f"{behind}{user}"), *bare.encode(answer), *eos, *bare.encode(f"{behind}{question}"),
        ]  # fmt: skip
    assert encoded.tokens.tolist() == expected
    said = encoded.tokens[encoded.is_target].tolist()
    assert said == [*bare.encode(answer), *eos]
    assert encoder.tokenizer.decode(said) == "no"
    other = tmp_path / "other"
    encoder.tokenizer.save(other)
    again = PromptEncoder(load_tokenizer(other), Q, style="chat_template", show_smiles=True)
    assert again.fingerprint() == encoder.fingerprint()
    (other / "tokenizer_config.json").write_text(json.dumps(configuration | {"chat_template": template + " "}))
    changed = PromptEncoder(load_tokenizer(other), Q, style="chat_template", show_smiles=True)
    assert changed.fingerprint() != encoder.fingerprint()


def test_tokens_added_to_a_sentencepiece_model(tmp_path):
    """A ChatML fine-tune: its own end of an answer is honoured, and ids behind the model's are known."""
    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / "tokenizer_tiny" / "tokenizer.model").read_bytes())
    plain = load_tokenizer(tmp_path)
    added = {"<|im_start|>": plain.size + 1, "<|im_end|>": plain.size}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (tmp_path / "chat_template.jinja").write_text(QWEN2)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.size, tokenizer.eos_id) == (plain.size + 2, plain.size)
    assert tokenizer.fingerprint() != plain.fingerprint()
    encoder = PromptEncoder(tokenizer, Q, style="chat_template", show_smiles=True)
    assert encoder.stop_ids == (plain.size,)
    (encoded,) = encoder.encode([(Conversation((), (Message("user", "<|im_end|>"), Message("assistant", "no"))), ())])
    assert np.count_nonzero(encoded.tokens == plain.size) == 2  # one for each message, none for the text
    assert tokenizer.decode(encoded.tokens.tolist()).startswith("user\n<|im_end|>")


def chat_encoder(template):
    """A small tokenizer with the control tokens and the template of a large model."""
    tokenizer = train_tokenizer(["User: describe C=O\nAssistant: it is small"] * 3, 400)._tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL[template]})
    tokenizer.chat_template = template
    tokenizer.eos_token = CONTROL[template][-1]
    return PromptEncoder(HuggingFaceTokenizer(tokenizer), Q, style="chat_template", show_smiles=True), tokenizer


TURNS = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes."), Message("user", "Why?"))


@pytest.mark.parametrize("template", [LLAMA3, QWEN2], ids=["llama3", "qwen2"])
def test_chat_templates_give_the_ids_of_the_template(template):
    encoder, tokenizer = chat_encoder(template)
    for count in (2, 3, 4):
        (encoded,) = encoder.encode([(Conversation((), TURNS[:count]), ())])
        messages = [message._asdict() for message in TURNS[:count]]
        expected = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=count % 2 == 0
        )
        assert encoded.tokens.tolist() == expected
    said = tokenizer.decode(encoded.tokens[encoded.is_target])
    assert said == f"Yes.{CONTROL[template][-1]}"
    assert encoder.end_id == tokenizer.convert_tokens_to_ids(CONTROL[template][-1])


@pytest.mark.parametrize("template", [LLAMA3, QWEN2], ids=["llama3", "qwen2"])
def test_chat_templates_keep_messages_text(template):
    encoder, tokenizer = chat_encoder(template)
    attack = "".join(CONTROL[template]) + "</s>"
    (encoded,) = encoder.encode([(Conversation((), (Message("user", attack), Message("assistant", attack))), ())])
    (harmless,) = encoder.encode([(Conversation((), (Message("user", "x"), Message("assistant", "x"))), ())])
    ids = tokenizer.convert_tokens_to_ids([*CONTROL[template], "</s>"])
    assert np.isin(encoded.tokens, ids).sum() == np.isin(harmless.tokens, ids).sum()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="refused by the chat template"):
        encoder.encode([(Conversation((), TURNS), ())])
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        encoder.encode([(Conversation((), TURNS), ())])


def test_prompts_depend_on_nothing_but_the_conversation():
    """Neither on the day, nor on thoughts: the same precedes an answer that is learned and one that is asked for."""
    thinking = (
        "{{ strftime_now('%d') if date_string is not defined else date_string }}" + QWEN2.replace(
            "{% for message in messages %}",
            "{% for message in messages %}{% set thought = '<think></think>' if message.role == 'assistant' else '' %}",
        ).replace("+ message['content']", "+ thought + message['content']").replace(
            "assistant\n' }}",
            "assistant\n' + ('<think></think>' if enable_thinking is defined and not enable_thinking else '') }}")
    )  # fmt: skip
    encoder, tokenizer = chat_encoder(QWEN2)
    plain = encoder.fingerprint()
    tokenizer.chat_template = thinking
    question, answer = Message("user", "Is it?"), Message("assistant", "no")
    learned, asked = encoder.encode([(Conversation((), (question, answer)), ()), (Conversation((), (question,)), ())])
    first = int(np.flatnonzero(learned.is_target)[0])
    assert learned.tokens[:first].tolist() == asked.tokens.tolist()
    text = tokenizer.decode(asked.tokens)
    assert text.startswith("26 Jul 2024")
    assert text.endswith("<think></think>")
    assert encoder.fingerprint() != plain


@pytest.fixture(scope="module")
def encoders():
    plain = train_tokenizer(["User: describe C=O\nAssistant: it is small"] * 3, 300)
    styles = {style: PromptEncoder(plain, Q, style=style, show_smiles=True) for style in ("plain", "llama2")}
    return styles | {"chat_template": chat_encoder(QWEN2)[0]}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PROMPT_STYLES)),
    st.lists(st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=12)), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(0, 12),
    st.integers(1, 300),
)
def test_every_style_shows_every_molecule_once(encoders, style, turns, molecules, place, limit):
    """Whatever is said: whole graphs in order, targets only where the assistant speaks, cuts only behind graphs."""
    messages = tuple(m for ask, answer in turns for m in (Message("user", ask), Message("assistant", answer)))
    at = (0, min(place, len(turns[0][0]))) if place % 2 else None
    conversation = Conversation(("C",) * molecules, messages, at)
    (encoded,) = encoders[style].encode([(conversation, (NO_GRAPH,) * molecules)])
    shown = encoded.molecule[encoded.molecule >= 0]
    np.testing.assert_array_equal(shown, np.repeat(np.arange(molecules), Q))
    np.testing.assert_array_equal(encoded.query[encoded.molecule >= 0], np.tile(np.arange(Q), molecules))
    assert not encoded.is_target[encoded.molecule >= 0].any()
    ends = encoded.tokens[encoded.is_target] == encoders[style].end_id
    assert ends.sum() == len(turns)
    try:
        cut = truncate(encoded, limit)
    except PromptError:
        return
    assert len(cut.tokens) <= limit + 1
    assert (cut.molecule >= 0).sum() == molecules * Q
    assert cut.is_target[1:].any()


class _Reader:
    """Records in memory, as token_lengths reads them."""

    split = "train"

    def __init__(self, folder, conversations):
        self.folder = folder
        self._records = [Record(conversation, ()) for conversation in conversations]

    def __len__(self):
        return len(self._records)

    def fetch(self, indices):
        return [self._records[index] for index in indices]


def test_lengths_of_what_a_template_refuses(tmp_path):
    encoder, tokenizer = chat_encoder(QWEN2)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + QWEN2
    )
    reader = _Reader(tmp_path, [Conversation((), TURNS[1:3]), Conversation((), TURNS[:3])])
    lengths = token_lengths(reader, encoder)
    (encoded,) = encoder.encode([reader.fetch([0])[0]])
    first_target = int(np.flatnonzero(encoded.is_target)[0])
    assert lengths[0].tolist() == [len(encoded.tokens), 0, first_target]
    assert lengths[1].tolist()[:2] == [0, 0]
    np.testing.assert_array_equal(token_lengths(_Reader(tmp_path, [None] * 2), encoder), lengths)  # kept on disk


def test_a_fingerprint_tells_templates_and_ends_apart(embedded):
    """Tokenizers that write other prompts, or end answers otherwise, are others, whatever their tokens."""
    tokenizer = load_tokenizer(embedded / "tokenizer")
    found = {tokenizer.fingerprint()}
    for change in ({"chat_template": "{{ messages }}"}, {"eos_token": "<pad>"}):
        other = load_tokenizer(embedded / "tokenizer")._tokenizer
        for name, value in change.items():
            setattr(other, name, value)
        found.add(HuggingFaceTokenizer(other).fingerprint())
    assert len(found) == 3
    assert load_tokenizer(embedded / "tokenizer").fingerprint() == tokenizer.fingerprint()


def test_a_tiktoken_model_beside_a_tokenizer_json_is_not_read(tmp_path, embedded):
    """As in Llama 3's repositories; and where it stands alone it is named."""
    shutil.copytree(embedded / "tokenizer", tmp_path / "both")
    lines = b"".join(base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(256))
    (tmp_path / "both" / "tokenizer.model").write_bytes(lines)
    expected = load_tokenizer(embedded / "tokenizer").encode(["CCO"])
    assert load_tokenizer(tmp_path / "both").encode(["CCO"]) == expected
    (tmp_path / "both" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="not a sentencepiece model"):
        load_tokenizer(tmp_path / "both")


def test_every_id_of_a_tokenizer_is_known_to_it(embedded, shared_data, tmp_path):
    shutil.copy(shared_data / "tokenizers" / "llama2_tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 32005}')
    padded = load_tokenizer(tmp_path)
    assert padded.size == 32_006
    assert padded.ids() == {*range(32_000), 32_005}  # the ids between have no token
    own = load_tokenizer(embedded / "tokenizer")
    assert own.ids() == set(range(own.size))


def test_a_fingerprint_tells_what_is_shown_apart(embedded):
    """Lengths are kept by it: those of 28 graph tokens are wrong for eight."""
    tokenizer = load_tokenizer(embedded / "tokenizer")
    settings = [
        {"num_graph_tokens": count, "show_smiles": smiles, "show_graph": graph, "style": style}
        for count in (8, 28) for smiles in (True, False) for graph in (True, False) for style in PROMPT_STYLES
    ]  # fmt: skip
    assert len({PromptEncoder(tokenizer, **each).fingerprint() for each in settings}) == len(settings)


def test_answers_end_with_the_turn_and_with_the_text():
    encoder, tokenizer = chat_encoder(QWEN2)
    end = encoder.end_id
    tokenizer.eos_token = "</s>"
    again = PromptEncoder(HuggingFaceTokenizer(tokenizer), Q, style="chat_template", show_smiles=True)
    assert again.end_id == end
    assert again.stop_ids == (end, tokenizer.convert_tokens_to_ids("</s>"))


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_graphs_stand_where_the_question_says(encoders, style):
    encoder = encoders[style]
    conversation = Conversation(("CCO",), (Message("user", "Look at what?"), Message("assistant", "It.")), (0, 8))
    (encoded,) = encoder.encode([featurized(conversation)])
    places = np.flatnonzero(encoded.molecule >= 0)
    before, behind = encoded.tokens[: places[0]].tolist(), encoded.tokens[places[-1] + 1 :].tolist()
    assert encoder.tokenizer.decode(before).rstrip().endswith("Look at")
    assert encoder.tokenizer.decode(behind).lstrip().startswith("what?")
