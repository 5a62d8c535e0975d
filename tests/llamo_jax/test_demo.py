"""The page in a real browser: drawn and pasted molecules, answers, what is refused, and how it looks."""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.known_molecules import known_molecules
from llamo_jax.apps.assistant import Assistant, Explanation, Look
from llamo_jax.apps.demo import editor, shown
from llamo_jax.apps.demo.talk import Talk
from llamo_jax.config import DecodingConfig
from llamo_jax.generation.batcher import Batcher
from llamo_jax.generation.prompts import GraphRoom

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
QUESTION = "Describe this molecule."
ASPIRIN = known_molecules()["aspirin"]
CAFFEINE = "CN1C=NC2=C1C(=O)N(C)C(=O)N2C"  # in other words than the list's
TOKENS = 32
SECONDS = 240_000  # in milliseconds: a guard against hanging, on a busy machine

pytestmark = pytest.mark.slow
needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None or not editor.SCRIPT.exists(),
    reason="Chromium (Debian: apt-get install chromium) or the editor (make editor) is not there",
)


@pytest.fixture(scope="module")
def talk(trained):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    assistant = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=TOKENS))
    batcher = Batcher(assistant.generator, rows=8, waiting=64, prompt_tokens=512, room=GraphRoom(4, 512))
    made = Talk(assistant, batcher)
    yield made
    batcher.close()


@pytest.fixture(scope="module")
def address(talk):
    from llamo_jax.apps.demo.page import CSS, make_page, theme

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = make_page(talk, "LLaMo")
    made.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, theme=theme(), css=CSS)
    yield f"http://127.0.0.1:{port}/"
    made.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def opened(address, browser):
    """Opens the page for one more person; nothing may be asked of another machine."""
    contexts, outside = [], []

    def open_page(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: outside.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
        page.goto(address)
        page.wait_for_selector("#cards svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def expected(trained):
    assistant = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=TOKENS))
    return lambda *smiles, question=QUESTION, **more: assistant.ask(question, smiles=smiles, **more)


def ask(page, question=QUESTION):
    page.fill("#question textarea", question)
    page.click("#ask")


def answered(page, text):
    """Waits until the last answer is `text`."""
    last = "([...document.querySelectorAll('#chat [data-testid=bot]')].at(-1)?.innerText ?? '')"
    page.wait_for_function(f"text => {last}.replace(/\\s+/g, '') == text", arg="".join(text.split()))


@needs_a_browser
def test_a_molecule_is_shown_and_a_question_answered_in_pieces(opened, expected):
    page = opened()
    assert "C9H8O4, 180.16 g/mol" in page.inner_text("#cards")
    page.evaluate(
        """() => { window.lengths = []; new MutationObserver(() => {
          const last = [...document.querySelectorAll('#chat [data-testid=bot]')].at(-1);
          if (last) window.lengths.push(last.innerText.trim().length);
        }).observe(document.querySelector('#chat'), {subtree: true, childList: true, characterData: true}); }"""
    )
    ask(page)
    answered(page, expected(ASPIRIN))
    page.wait_for_selector("#explained .llamo-word")
    lengths = page.evaluate("window.lengths.filter((x, i, all) => x && x != all[i - 1])")
    assert len(lengths) > 2  # token by token, and not at once
    words = [each.inner_text().strip() for each in page.query_selector_all(".llamo-word")]
    assert "".join("".join(words).split()).startswith("".join(expected(ASPIRIN).split())[:8])
    assert page.query_selector(".llamo-look").is_visible() is False
    page.focus(".llamo-word")
    assert page.query_selector(".llamo-look").is_visible()
    assert page.input_value("#question textarea") == ""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "light.png", full_page=True)


@needs_a_browser
def test_a_molecule_is_drawn(opened):
    page = opened()
    page.wait_for_selector(".llamo-editor[data-ready=yes]")
    page.evaluate("smiles => window.llamoDraw(smiles)", "CCO")
    page.click("#use-drawing")
    page.wait_for_function("document.querySelector('#smiles textarea').value == 'CCO'")
    page.wait_for_function("document.querySelector('#cards').innerText.includes('C2H6O')")
    place = page.query_selector(".llamo-editor").bounding_box()
    page.mouse.click(place["x"] + 250, place["y"] + 60)  # on white: the tool that is chosen adds a bond there
    page.click("#add-drawing")
    page.wait_for_function("document.querySelector('#smiles textarea').value.split('\\n').length == 2")
    assert page.input_value("#smiles textarea").splitlines() == ["CCO", page.evaluate("window.llamoDrawn()")]
    assert sorted(page.evaluate("window.llamoDrawn()").split(".")) == ["CC", "CCO"]


@needs_a_browser
def test_a_conversation_of_several_turns_and_molecules(opened, expected):
    page = opened()
    page.fill("#smiles textarea", f"{ASPIRIN}\nCCO")
    page.wait_for_function("document.querySelectorAll('#cards .llamo-card').length == 2")
    ask(page)
    first = expected(ASPIRIN, "CCO")
    answered(page, first)
    page.wait_for_function("document.querySelectorAll('#explained .llamo-words').length == 2")
    ask(page, "Is it aromatic?")
    second = expected(ASPIRIN, "CCO", question="Is it aromatic?", history=[(QUESTION, first)])
    answered(page, second)
    page.wait_for_timeout(500)
    with page.expect_download() as download:
        page.click("#save-jsonl")
    saved = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "conversation.jsonl"
    assert saved["smiles"] == [ASPIRIN, "CCO"]
    assert [each["content"] for each in saved["messages"]] == [QUESTION, first, "Is it aromatic?", second]
    with page.expect_download() as download:
        page.click("#save-markdown")
    assert "    Is it aromatic?" in Path(download.value.path()).read_text()
    # another molecule: a new conversation, which the first turns are no part of
    page.fill("#smiles textarea", "CCN")
    ask(page)
    answered(page, expected("CCN"))
    assert "a new conversation" in page.inner_text("#note")


@needs_a_browser
def test_questions_are_changed_and_asked_again(opened, expected, talk):
    page = opened()
    page.fill("#smiles textarea", CAFFEINE)
    ask(page)
    answered(page, expected(CAFFEINE))
    page.get_by_role("button", name="Edit").first.click()
    page.locator("#chat textarea").first.fill("Is it aromatic?")
    page.get_by_role("button", name="Submit").first.click()
    answered(page, expected(CAFFEINE, question="Is it aromatic?"))
    before = talk.batcher.counts.admitted
    page.get_by_role("button", name="Retry").first.click()
    until = time.monotonic() + SECONDS / 1000
    while talk.batcher.counts.admitted == before and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert talk.batcher.counts.admitted == before + 1
    answered(page, expected(CAFFEINE, question="Is it aromatic?"))
    page.click("#swap")
    told = "With the graph of ibuprofen instead"
    page.wait_for_function("text => document.querySelector('#swapped').innerText.includes(text)", arg=told)
    page.wait_for_selector("#swapped svg")


@needs_a_browser
def test_an_answer_is_stopped_and_what_was_said_stays(opened, talk, monkeypatch):
    page = opened()
    advance = talk.batcher._engine.advance
    gone_on = threading.Event()

    def slow(tokens):
        found = advance(tokens)
        gone_on.set()
        time.sleep(1.0)
        return found

    monkeypatch.setattr(talk.batcher._engine, "advance", slow)
    before = talk.batcher.counts.tokens
    ask(page)
    assert gone_on.wait(SECONDS / 1000)
    page.wait_for_selector("#chat [data-testid=bot]")
    page.click("#stop")
    page.wait_for_selector("#explained .llamo-word")
    assert talk.batcher.running == 0
    assert 0 < talk.batcher.counts.tokens - before < TOKENS


HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"


@needs_a_browser
def test_what_is_no_molecule_is_refused_in_words(opened, expected):
    page = opened()
    for text, refusal in (
        ("C(C", "extra open parentheses"),
        (HOSTILE, "<script>"),
        ("C" * 1_000_000, "at most 1,000 are allowed"),
        ("C\n" * 5, "at most 4 are allowed"),
    ):
        page.fill("#smiles textarea", text)
        ask(page)
        page.wait_for_function("text => document.querySelector('#note').innerText.includes(text)", arg=refusal)
        assert page.input_value("#question textarea") == QUESTION  # it is not lost
    page.fill("#smiles textarea", "CCO")
    ask(page, "x" * 3000)
    page.wait_for_function("document.querySelector('#note').innerText.includes('at most 2,000 are allowed')")
    ask(page, HOSTILE)
    answered(page, expected("CCO", question=HOSTILE))
    page.wait_for_selector("#explained h4, #explained p")
    assert HOSTILE in page.inner_text("#chat")
    assert page.evaluate("window.hacked") is None


MARKED = "Does it give CCO>>CC=O & <b>more</b>? &lt;"


@needs_a_browser
@pytest.mark.parametrize("clipboard", [True, False], ids=["https", "http"])
def test_what_is_copied_is_what_was_said(opened, expected, clipboard):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    if not clipboard:  # as browsers do for pages of other machines without https
        page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', {value: undefined})")
        page.reload()
        page.wait_for_selector("#cards svg")
    ask(page, MARKED)
    answered(page, expected(ASPIRIN, question=MARKED))
    for button in ("Copy message", "Copy conversation"):
        page.get_by_role("button", name=button).first.click()
        page.fill("#question textarea", "")
        page.focus("#question textarea")
        page.keyboard.press("Control+V")
        page.wait_for_function("text => document.querySelector('#question textarea').value.includes(text)", arg=MARKED)


@needs_a_browser
def test_what_is_changed_is_what_was_said(opened, expected):
    page = opened()
    ask(page, MARKED)
    answered(page, expected(ASPIRIN, question=MARKED))
    page.get_by_role("button", name="Edit").first.click()
    field = page.locator("#chat textarea").first
    page.wait_for_function("text => document.querySelector('#chat textarea').value == text", arg=MARKED)
    field.press("End")
    field.press_sequentially(" &gt;")
    page.get_by_role("button", name="Submit").first.click()
    answered(page, expected(ASPIRIN, question=f"{MARKED} &gt;"))
    assert f"{MARKED} &gt;" in page.inner_text("#chat")


@needs_a_browser
def test_two_at_once_get_their_own_answers(opened, expected):
    pages = {smiles: opened() for smiles in ("CCO", "c1ccccc1")}
    for smiles, page in pages.items():
        page.fill("#smiles textarea", smiles)
    for page in pages.values():
        ask(page)
    for smiles, page in pages.items():
        answered(page, expected(smiles))
    assert expected("CCO") != expected("c1ccccc1")
    pages["CCO"].reload()
    pages["CCO"].wait_for_selector("#cards svg")
    assert pages["CCO"].query_selector("#chat [data-testid=bot]") is None
    ask(pages["CCO"])
    answered(pages["CCO"], expected(ASPIRIN))


@needs_a_browser
def test_it_fits_a_telephone_and_follows_the_keyboard(opened, expected):
    page = opened(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.focus("#question textarea")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    answered(page, expected(ASPIRIN))
    page.wait_for_selector("#explained .llamo-word")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    # dark around the cards, which are white: what stands on them is dark as well
    for colour in ("document.body).backgroundColor", "document.querySelector('#cards figcaption')).color"):
        found = page.evaluate(f"getComputedStyle({colour}")
        assert max(map(int, found.removeprefix("rgb(").removesuffix(")").split(","))) < 60
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "narrow-dark.png", full_page=True)
    wide = opened(color_scheme="dark")
    ask(wide)
    wide.wait_for_selector("#explained .llamo-word")
    wide.screenshot(path=SCREENSHOTS / "dark.png", full_page=True)


def test_markup_of_what_people_type_is_text():
    cards = shown.molecules([HOSTILE, "CCO"], ["", HOSTILE])
    assert "<script>" not in cards
    assert "<img" not in cards
    assert "&lt;script&gt;" in cards
    assert "<script>" not in shown.line(HOSTILE)
    markdown = shown.as_markdown(["C`C"], [("# no heading", "a\n<b>")])
    assert "\n    # no heading\n" in markdown
    assert "\n    a\n    <b>\n" in markdown
    assert shown.molecules([]) == '<div class="llamo-cards"></div>'


def test_what_is_too_large_is_not_drawn():
    """Coordinates of such a chain take hours, and RDKit cannot be interrupted."""
    cards = shown.molecules(["C" * 5000, "CCO"])
    assert "more than 300 atoms, not drawn" in cards
    assert "C5000H10002" in cards
    assert cards.count("<svg") == 1
    look = Look(["an", "acid"], np.ones((2, 400)), None)
    found = shown.explanation(Explanation("an acid", [], [look]), ["C" * 400])
    assert found.count("not drawn") == 2


def test_explanations_are_kept_by_all_that_they_explain(monkeypatch):
    asked = []

    class Explains:
        def explain(self, question, *, smiles, history, answer):
            asked.append((question, tuple(smiles), tuple(history), answer))
            return Explanation(answer, [], [])

    monkeypatch.setattr("llamo_jax.apps.demo.talk.KEPT", 3)
    talk = Talk(Explains(), None)
    first, second = ("What is it?", "An acid."), ("Why?", "It has a carboxylic acid.")
    several = [(["CCO"], [first]), (["CCN"], [first]), (["CCO"], [first, second])]
    expected = [(*first[:1], ("CCO",), (), first[1]), (*first[:1], ("CCN",), (), first[1]),
                (*second[:1], ("CCO",), (first,), second[1])]  # fmt: skip
    for each in [*several, *several]:
        assert talk.explain(*each).answer == each[1][-1][1]
    assert asked == expected  # a second look takes no time
    talk.explain(["CCC"], [first])  # the oldest goes
    talk.explain(*several[1])
    assert len(asked) == 4
    talk.explain(*several[0])
    assert len(asked) == 5


def test_an_empty_answer_is_told():
    from llamo_jax.apps.demo.page import Handlers

    class Silent:
        def checked(self, question, smiles):
            return smiles

        def answer(self, *_):
            yield ""

    said = Handlers(Silent()).answer("Why?", "C", [], [], 8, 0.0, 1.0, 0, SimpleNamespace(session_hash="somebody"))
    *_, (_, turns, _, _, note) = said
    assert turns == [("Why?", "")]  # it can be asked again
    assert "The answer is empty" in note
