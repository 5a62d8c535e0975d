"""Requests that come and go: answers are the generator's in any company, and rows come back whatever happens."""

import dataclasses
import queue
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.conversation import Conversation, Message
from data_pipeline.records import featurized
from data_pipeline.tokenizer import load_tokenizer, pieces
from llamo_jax.analysis.attention import words_of
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import DecodingConfig
from llamo_jax.generation.batcher import Batcher, BusyError, Sampling
from llamo_jax.generation.prompts import GraphRoom
from llamo_jax.generation.texts import TextStream

SMILES = ["CC(=O)Oc1ccccc1C(=O)O", "C", "[Na+].[Cl-]", "c1ccccc1", "CCO", "CCN", "O=C=O", "CC(C)C"]
TOKENS = 24
ROWS = 8  # one for each of the eight devices


@pytest.fixture(scope="module")
def generator(trained):
    return Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=TOKENS)).generator


@pytest.fixture(scope="module")
def batcher(generator):
    made = Batcher(generator, rows=ROWS, waiting=64, prompt_tokens=256, room=GraphRoom(4, 128))
    yield made
    made.close()


def records(question="Describe this molecule.", smiles=SMILES):
    return [featurized(Conversation((each,), (Message("user", question),))) for each in smiles]


class Asked:
    """An answer, and the pieces that it came in."""

    def __init__(self, batcher, prompt, *samplings, seconds=600.0):
        self.pieces = queue.SimpleQueue()
        self.count = len(samplings)
        self.tickets = batcher.submit(prompt, samplings, lambda n, piece: self.pieces.put((n, piece)), seconds=seconds)

    def result(self):
        """Of each: its tokens, their log-probabilities, and why it ended."""
        found = [([], [], []) for _ in range(self.count)]
        while not all(reasons for *_, reasons in found):
            number, piece = self.pieces.get(timeout=300)
            tokens, scores, reasons = found[number]
            tokens += piece.tokens
            scores += piece.log_probabilities
            reasons += [piece.reason] if piece.reason else []
        return [(tokens, scores, reason) for tokens, scores, (reason,) in found]


def test_answers_are_the_generators(generator, batcher):
    prompts = generator.encoder.encode(records())
    asked = [Asked(batcher, prompt, Sampling(TOKENS)) for prompt in prompts]
    found = [each.result()[0] for each in asked]
    for index, (expected,) in generator.generate(records()):
        tokens, scores, reason = found[index]
        assert tokens == expected.tokens.tolist()
        np.testing.assert_allclose(scores, expected.log_probabilities, atol=1e-4)
        assert reason == ("stop" if tokens[-1] in generator.stop_ids else "length")
    assert len({tuple(tokens) for tokens, *_ in found}) > 1


def test_tokens_of_the_settings_end_answers_too(trained, generator):
    """config.decoding.stop_ids, beside what ends an answer in the prompt's style."""
    prompt = records(smiles=SMILES[:1])
    ((_, (whole,)),) = generator.generate(prompt)
    tokens = whole.tokens.tolist()
    place = next(
        place for place in range(3, TOKENS)
        if tokens[place] not in tokens[:place] and generator.text(tokens[:place]) != generator.text(tokens[: place + 1])
    )  # fmt: skip
    settings = DecodingConfig(max_new_tokens=TOKENS, stop_ids=(tokens[place],))
    stopping = Assistant.load(trained, decoding=settings).generator
    ((_, (answer,)),) = stopping.generate(prompt)
    assert answer.tokens.tolist() == tokens[: place + 1]
    assert answer.text == generator.text(tokens[:place])
    batcher = Batcher(stopping, rows=ROWS, waiting=1, prompt_tokens=256, room=GraphRoom(4, 128))
    try:
        found = Asked(batcher, stopping.encoder.encode(prompt)[0], Sampling(TOKENS)).result()
        assert [(given, reason) for given, _, reason in found] == [(tokens[: place + 1], "stop")]
    finally:
        batcher.close()


def test_drawn_answers_are_the_generators(trained, generator, batcher):
    settings = DecodingConfig(max_new_tokens=TOKENS, temperature=1.3, top_p=0.8, seed=7, num_samples=3)
    drawing = Assistant.load(trained, decoding=settings).generator
    (prompt,) = generator.encoder.encode(records(smiles=SMILES[:1]))
    samplings = [Sampling(TOKENS, 1.3, 0.8, seed=7, sample=sample) for sample in range(3)]
    found = [tokens for tokens, *_ in Asked(batcher, prompt, *samplings).result()]
    ((_, expected),) = drawing.generate(records(smiles=SMILES[:1]))
    assert found == [each.tokens.tolist() for each in expected]
    assert len(set(map(tuple, found))) > 1


def test_top_p_of_one_row_is_not_the_others(generator, batcher):
    prompts = generator.encoder.encode(records())
    wild = [Asked(batcher, prompt, Sampling(TOKENS, 5.0, 1.0, seed=n)) for n, prompt in enumerate(prompts[1:])]
    # at a tiny top_p nothing but the most probable token is left, whatever the temperature
    narrow = Asked(batcher, prompts[0], Sampling(TOKENS, 5.0, 1e-6, seed=1)).result()[0][0]
    assert narrow == Asked(batcher, prompts[0], Sampling(TOKENS)).result()[0][0]
    assert all(each.result()[0][0] != narrow for each in wild)


def test_company_changes_nothing_to_the_last_bit(generator, batcher):
    prompts = generator.encoder.encode(records(smiles=SMILES[:5]) + records("What groups does it have?", SMILES[4:7]))
    alone = [Asked(batcher, prompt, Sampling(TOKENS)).result() for prompt in prompts]
    # twice as many as there are rows, of other lengths and settings among them
    crowd = [Asked(batcher, prompt, Sampling(5 + n, 0.7 * (n % 2), seed=n)) for n, prompt in enumerate(prompts)]
    together = [Asked(batcher, prompt, Sampling(TOKENS)) for prompt in prompts]
    assert [each.result() for each in together] == alone
    assert [len(each.result()[0][0]) <= 5 + n for n, each in enumerate(crowd)] == [True] * len(prompts)
    assert (batcher.running, batcher.waiting) == (0, 0)


def test_a_request_that_nobody_waits_for_gives_its_row_back(generator):
    endless = dataclasses.replace(generator.decoding, max_new_tokens=4000, min_new_tokens=4000)
    long = Assistant(_with(generator, endless)).generator
    batcher = Batcher(long, rows=ROWS, waiting=ROWS, prompt_tokens=256, room=GraphRoom(4, 128))
    try:
        (prompt,) = long.encoder.encode(records(smiles=SMILES[:1]))
        running = Asked(batcher, prompt, *[Sampling(4000)] * ROWS)
        running.pieces.get(timeout=300)  # they are being decoded
        queued = Asked(batcher, prompt, *[Sampling(2)] * ROWS)
        with pytest.raises(BusyError, match="8 requests are waiting already") as error:
            Asked(batcher, prompt, Sampling(2))
        assert not error.value.closing
        queued.tickets[-1].cancel()  # who has left takes no room from others
        late = Asked(batcher, prompt, Sampling(2))
        running.tickets[0].cancel()  # one row is enough for those that wait
        assert [reason for *_, reason in queued.result()] == ["length"] * (ROWS - 1) + ["cancelled"]
        assert late.result()[0][2] == "length"
        assert batcher.running == ROWS - 1
        for ticket in running.tickets:
            ticket.cancel()
        assert {reason for *_, reason in running.result()} == {"cancelled"}
        assert batcher._engine.advance(1)[1].all()  # no row goes on for nobody
        slow = Asked(batcher, prompt, Sampling(4000))
        assert slow.pieces.get(timeout=300)[1].tokens
        slow.tickets[0].deadline = 0.0  # its time is up while it is being decoded
        tokens, _, reason = slow.result()[0]
        assert reason == "deadline"
        assert len(tokens) < 4000
        assert Asked(batcher, prompt, Sampling(2), seconds=0.0).result() == [([], [], "deadline")]
    finally:
        batcher.close()


def test_a_failure_is_told_and_the_next_request_is_answered(generator, monkeypatch):
    batcher = Batcher(generator, rows=ROWS, waiting=ROWS, prompt_tokens=256, room=GraphRoom(4, 128))
    (prompt,) = generator.encoder.encode(records(smiles=SMILES[:1]))
    expected = Asked(batcher, prompt, Sampling(TOKENS)).result()
    broken = batcher._engine

    def fails(tokens):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(broken, "advance", fails)
    asked = Asked(batcher, prompt, Sampling(TOKENS))
    _, piece = asked.pieces.get(timeout=300)
    assert (piece.reason, piece.error) == ("failed", "RuntimeError: RESOURCE_EXHAUSTED: out of memory")
    assert Asked(batcher, prompt, Sampling(TOKENS)).result() == expected
    assert batcher.counts.failures == 1
    batcher.close()


def test_closing_ends_what_was_begun_and_refuses_the_rest(generator):
    batcher = Batcher(generator, rows=ROWS, waiting=64, prompt_tokens=256, room=GraphRoom(4, 128))
    (prompt,) = generator.encoder.encode(records(smiles=SMILES[:1]))
    asked = Asked(batcher, prompt, *[Sampling(TOKENS)] * 3 * ROWS)
    batcher.close(300)
    assert {reason for *_, reason in asked.result()} <= {"stop", "length"}
    assert not batcher.alive
    with pytest.raises(BusyError, match="the server is stopping") as error:
        Asked(batcher, prompt, Sampling(2))
    assert error.value.closing


def test_what_is_not_finished_in_time_is_told(generator):
    batcher = Batcher(generator, rows=ROWS, waiting=512, prompt_tokens=256, room=GraphRoom(4, 128))
    (prompt,) = generator.encoder.encode(records(smiles=SMILES[:1]))
    asked = Asked(batcher, prompt, *[Sampling(TOKENS)] * 40 * ROWS)
    batcher.close()
    ends = [reason for *_, reason in asked.result()]
    assert ends.count("failed") > ROWS
    assert set(ends) <= {"failed", "stop", "length"}
    assert (batcher.running, batcher.waiting) == (0, 0)


def test_what_does_not_fit_is_refused(generator, batcher):
    (large,) = generator.encoder.encode(records(smiles=["C" * 200]))
    assert batcher.refusal(large) == "the molecules have 200 atoms; at most 128 are allowed in all"
    (long,) = generator.encoder.encode(records("very " * 300, SMILES[:1]))
    assert "tokens; at most 256 are allowed" in batcher.refusal(long)
    many = featurized(Conversation(("C",) * 5, (Message("user", "?"),)))
    assert batcher.refusal(generator.encoder.encode([many])[0]) == (
        "the conversation shows 5 molecules; at most 4 are allowed"
    )


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_text_that_ends_answers_is_never_shown_in_part(size):
    text = "It is an acid. User: and what else? User"
    for stop, expected in (
        (["User:"], "It is an acid. "),
        ([], text),
        (["?"], "It is an acid. User: and what else"),
        (["nothing"], text),
        (["User", "acid"], "It is an "),
    ):
        stream = TextStream("".join, stop)
        shown = []
        for end in range(size, len(text) + size, size):
            shown.append(stream.shown(text[:end], whole=end >= len(text)))
            assert not any(each in "".join(shown) for each in stop)
        assert "".join(shown) == expected
        assert stream.stopped == (expected != text)


def test_characters_of_several_tokens_are_shown_whole():
    letters = "é中"
    tokens = list(letters.encode())
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    shown = [stream.shown(tokens[: n + 1], whole=n + 1 == len(tokens)) for n in range(len(tokens))]
    assert shown == ["", "é", "", "", "中"]


def test_tokens_are_pieces_of_the_text():
    """Also sentencepiece's, whose space before a word is lost where a token is decoded alone."""
    tokenizer = load_tokenizer(Path(__file__).parents[1] / "golden" / "tokenizer_tiny")
    text = "It is an acid, é中."
    (ids,) = tokenizer.encode([text])
    assert "".join(tokenizer.decode([index]) for index in ids) != text
    found = pieces(tokenizer.decode, ids)
    assert "".join(found) == text
    assert [word for word, _ in words_of(found)] == text.split()
    letters = list("é中".encode())
    assert pieces(lambda ids: bytes(ids).decode(errors="replace"), letters) == ["", "é", "", "", "中"]
    assert pieces(lambda ids: bytes(ids).decode(errors="replace"), letters[:-1]) == ["", "é", "", ""]

    def all_or_none(ids):  # as tokenizers' ByteFallback decodes a run of bytes
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(ids)

    assert pieces(all_or_none, letters) == ["", "é", "", "", "中"]


def _with(generator, decoding):
    made = object.__new__(type(generator))
    made.__dict__ |= generator.__dict__ | {"decoding": decoding}
    return made


def test_who_leaves_takes_nobody_else_along(generator):
    long = dataclasses.replace(generator.decoding, max_new_tokens=64, min_new_tokens=64)
    batcher = Batcher(Assistant(_with(generator, long)).generator, rows=ROWS, waiting=0, prompt_tokens=256,
                      room=GraphRoom(4, 128))  # fmt: skip
    try:
        one, other = generator.encoder.encode(records(smiles=SMILES[:2]))
        expected = Asked(batcher, one, Sampling(64)).result()
        first, second = Asked(batcher, one, Sampling(64)), Asked(batcher, other, Sampling(64))
        second.pieces.get(timeout=300)  # in the row behind
        second.tickets[0].cancel()
        assert first.result() == expected
        assert len(expected[0][0]) == 64
        deadline = time.monotonic() + 300
        while batcher.running and time.monotonic() < deadline:
            time.sleep(0.01)
        # free rows are room enough where nobody may queue
        every = Asked(batcher, one, *[Sampling(2)] * ROWS)
        assert {reason for *_, reason in every.result()} == {"length"}
        with pytest.raises(BusyError):
            Asked(batcher, one, *[Sampling(2)] * (ROWS + 1))
    finally:
        batcher.close()


def test_where_no_rows_can_be_made_anew_all_are_told(generator, monkeypatch):
    batcher = Batcher(generator, rows=ROWS, waiting=ROWS, prompt_tokens=256, room=GraphRoom(4, 128))
    (prompt,) = generator.encoder.encode(records(smiles=SMILES[:1]))

    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def no_room():
        # the old rows, and the error whose frames hold them, are gone by now
        renewed.append(hasattr(batcher, "_engine") or sys.exc_info() != (None, None, None))
        fails()

    renewed = []
    monkeypatch.setattr(batcher, "_new_engine", no_room)
    monkeypatch.setattr(batcher._engine, "advance", fails)
    asked = Asked(batcher, prompt, *[Sampling(TOKENS)] * 2 * ROWS)
    assert {reason for *_, reason in asked.result()} == {"failed"}
    assert renewed == [False]
    assert not batcher.alive
    with pytest.raises(BusyError):
        Asked(batcher, prompt, Sampling(2))
    batcher.close()
