"""The page itself: what stands where, and what happens when."""

import functools
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from rdkit import Chem

from data_pipeline.known_molecules import known_molecules
from data_pipeline.molecule import parse_smiles
from llamo_jax.apps.demo import editor, shown
from llamo_jax.apps.demo.talk import MAX_MOLECULES, MAX_QUESTION, RefusedError, Style, Talk, Turns, lines_of

CSS = Path(__file__).with_name("page.css").read_text()
EXAMPLES = ("aspirin", "caffeine", "ibuprofen", "nicotine", "paracetamol")
QUESTIONS = ("Describe this molecule.", "Which functional groups does it have?", "Is it aromatic?")
AT_A_TIME = 16
"""Handlers that run side by side; answers share the rows of the model in any case."""

QUEUE = 64
"""Events that may wait; more are told that the queue is full."""

SAVE = """(text, name) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'text/plain;charset=utf-8'}));
  link.download = name; link.click(); URL.revokeObjectURL(link.href); return [text, name];
}"""

PLAIN = """() => {
  const plain = text => text.replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&amp;', '&');
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = text => write(plain(text));
  }
  document.addEventListener('copy', event => {
    if (event.target.style?.left != '-999999px') return;
    event.clipboardData.setData('text/plain', plain(event.target.value));
    event.preventDefault();
  });
  document.addEventListener('focusin', event => {
    const field = event.target;
    if (!field.matches('#chat .edit-textarea') || field.dataset.plain) return;
    field.dataset.plain = 'yes';
    field.value = plain(field.value);
    field.dispatchEvent(new Event('input', {bubbles: true}));
  });
}"""
"""The chat copies, and gives to edit, what it was given, which `_messages` escaped: of a reaction's ">>", "&gt;&gt;".
Without https there is no clipboard, and Gradio copies out of a field that it puts outside of the page.
"""


def theme() -> gr.themes.Base:
    """Of the page; light or dark as the browser asks."""
    # Gradio's own fonts come from a server of Google's
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def make_page(talk: Talk, title: str) -> gr.Blocks:
    """The page, to be launched with `theme=theme(), css=CSS`."""
    names, most = known_molecules(), talk.batcher.max_new_tokens
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        turns = gr.State([])  # what was said, of which the chat shows a picture
        about = gr.State([])  # the molecules that it was said about
        gr.Markdown(f"# {title}\n{talk.assistant.about}. It is a language model, and can be wrong.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                smiles = gr.Textbox(
                    label=f"Molecules: SMILES, one a line, at most {MAX_MOLECULES}",
                    lines=2,
                    max_lines=6,
                    value=names["aspirin"],
                    elem_id="smiles",
                )
                known = gr.Dropdown(
                    [name for name in EXAMPLES if name in names] + sorted(set(names) - set(EXAMPLES)),
                    label="or a known one",
                    value=None,
                    elem_id="known",
                )
                cards = gr.HTML(elem_id="cards")
                with gr.Accordion("Draw", open=True):
                    editor.element()
                    with gr.Row():
                        draw = gr.Button("Use the drawing", elem_id="use-drawing")
                        add = gr.Button("Add the drawing", elem_id="add-drawing")
                    drawn = gr.Textbox(visible=False)
            with gr.Column(scale=3, min_width=300):
                chat = gr.Chatbot(
                    label="Conversation",
                    height=420,
                    editable="user",
                    buttons=["copy", "copy_all"],
                    render_markdown=False,
                    feedback_options=None,
                    allow_tags=False,
                    elem_id="chat",
                )
                question = gr.Textbox(
                    label="Question", lines=1, max_lines=4, placeholder=QUESTIONS[0], max_length=MAX_QUESTION + 1,
                    elem_id="question",
                )  # fmt: skip
                with gr.Row():
                    send = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
                    fresh = gr.Button("New conversation", elem_id="new")
                note = gr.HTML(elem_id="note")
                gr.Examples([[each] for each in QUESTIONS], question, label="Questions")
                explained = gr.HTML(elem_id="explained")
                swap = gr.Button("With another molecule's graph", elem_id="swap")
                swapped = gr.HTML(elem_id="swapped")
                with gr.Accordion("How answers are chosen", open=False):
                    tokens = gr.Slider(1, most, min(128, most), step=1, label="tokens, at most")
                    temperature = gr.Slider(0, 2, 0, step=0.05, label="temperature; 0: the most probable answer")
                    top_p = gr.Slider(0.05, 1, 1, step=0.05, label="top p")
                    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="seed")
                with gr.Row():
                    jsonl = gr.Button("Save as JSONL", elem_id="save-jsonl")
                    markdown = gr.Button("Save as Markdown", elem_id="save-markdown")
                text, file = gr.Textbox(visible=False), gr.Textbox(visible=False)

        style = [tokens, temperature, top_p, seed]
        result = [chat, turns, about, question, note]
        do = Handlers(talk)

        smiles.change(_cards, smiles, cards, show_progress="hidden")
        page.load(_cards, smiles, cards, show_progress="hidden")
        page.load(None, js=PLAIN)
        known.input(lambda name: names.get(name, ""), known, smiles)
        draw.click(lambda _, made: made, [smiles, drawn], smiles, js=editor.DRAWN)
        add.click(_added, [smiles, drawn], smiles, js=editor.DRAWN)
        for event in (send.click, question.submit):
            said = event(do.answer, [question, smiles, turns, about, *style], result, concurrency_limit=AT_A_TIME)
            said.then(do.explain, [turns, about], [explained, swapped], show_progress="hidden")
        again = chat.retry(do.again, [smiles, turns, about, *style], result)
        again.then(do.explain, [turns, about], [explained, swapped], show_progress="hidden")
        edited = chat.edit(do.edited, [smiles, turns, about, *style], result)
        edited.then(do.explain, [turns, about], [explained, swapped], show_progress="hidden")
        chat.select(do.selected, [turns, about], [explained, swapped], show_progress="hidden")
        chat.clear(_new, None, [*result, explained, swapped])
        fresh.click(_new, None, [*result, explained, swapped])
        stop.click(do.stop, None, None, queue=False)
        swap.click(do.swapped, [turns, about, *style], swapped)
        for button, name, form in (
            (jsonl, "conversation.jsonl", shown.as_jsonl),
            (markdown, "conversation.md", shown.as_markdown),
        ):
            made = button.click(functools.partial(_saved, form, name), [about, turns], [text, file])
            made.then(None, [text, file], [text, file], js=SAVE)
        page.unload(do.stop)
    page.queue(default_concurrency_limit=AT_A_TIME, max_size=QUEUE)
    return page


def _names_of(smiles: Sequence[str]) -> list[str]:
    by_smiles = {value: name for name, value in known_molecules().items()}
    return [by_smiles.get(each, "") for each in smiles]


def _cards(text: str) -> str:
    smiles = lines_of(text)
    more = f"<p>{len(smiles) - MAX_MOLECULES} more are not shown.</p>" if len(smiles) > MAX_MOLECULES else ""
    smiles = smiles[:MAX_MOLECULES]
    return shown.molecules(smiles, _names_of(smiles)) + more


def _added(text: str, drawn: str) -> str:
    return "\n".join([*lines_of(text), drawn]) if drawn else text


def _messages(turns: Turns) -> list[dict[str, Any]]:
    """For the chat, which takes its texts for HTML: of "<C(=O)", as models write it, nothing would be seen."""
    roles = ("user", "assistant")
    return [
        {"role": role, "content": html.escape(text, quote=False)}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]


class Handlers:
    """What happens when somebody asks; Gradio fills in `request` and `data` by their types."""

    def __init__(self, talk: Talk):
        self._talk = talk

    def answer(
        self,
        question: str,
        text: str,
        turns: Turns,
        about: list[str],
        tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """(chat, turns, molecules, question, note), again and again while the answer is said."""
        smiles, said, note = lines_of(text), "", ""
        turns = _pairs(turns)
        try:
            self._talk.checked(question, smiles)
            if turns and smiles != about:
                turns, note = [], "Other molecules: a new conversation."
            style = Style(int(tokens), float(temperature), float(top_p), int(seed or 0))
            left: Any = ""
            for said in self._talk.answer(str(request.session_hash), question, smiles, turns, style):
                yield _messages([*turns, (question, said)]), turns, smiles, left, shown.line(note)
                left = gr.skip()  # what is typed meanwhile is the next question
            turns = [*turns, (question, said)]
            note = note if said.strip() else "The answer is empty: ask again, or ask otherwise."
            yield _messages(turns), turns, smiles, left, shown.line(note)
        except RefusedError as error:
            yield _messages(turns), turns, about, question, shown.line(str(error))

    def again(
        self,
        text: str,
        turns: Turns,
        about: list[str],
        tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        request: gr.Request,
        data: gr.RetryData,
    ) -> Iterator[tuple[Any, ...]]:
        """The answer to a question of the conversation once more; what came later is dropped."""
        number = _turn(data.index)
        question = turns[number][0]
        yield from self.answer(question, text, turns[:number], about, tokens, temperature, top_p, seed, request)

    def edited(
        self,
        text: str,
        turns: Turns,
        about: list[str],
        tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        request: gr.Request,
        data: gr.EditData,
    ) -> Iterator[tuple[Any, ...]]:
        """The answer to a question that was changed; what came later is dropped."""
        value = data.value if isinstance(data.value, str) else "".join(part.get("text", "") for part in data.value)
        before = turns[: _turn(data.index)]
        yield from self.answer(value, text, before, about, tokens, temperature, top_p, seed, request)

    def swapped(
        self, turns: Turns, about: list[str], tokens: int, temperature: float, top_p: float, seed: int,
        request: gr.Request,
    ) -> Iterator[str]:  # fmt: skip
        """The last question once more, with the graph of a molecule that is another."""
        if not turns or len(about) != 1:
            yield shown.line("Ask about one molecule first.")
            return
        names = known_molecules()
        shown_already = Chem.CanonSmiles(about[0])  # however it was typed
        name = next(each for each in EXAMPLES[1:] if Chem.CanonSmiles(names[each]) != shown_already)
        *before, (question, answer) = _pairs(turns)
        style = Style(int(tokens), float(temperature), float(top_p), int(seed or 0))
        try:
            for other in self._talk.answer(
                str(request.session_hash), question, about, before, style, other=names[name]
            ):
                yield shown.comparison(answer, other, name, parse_smiles(names[name]))
        except RefusedError as error:
            yield shown.line(str(error))

    def explain(self, turns: Turns, about: list[str]) -> tuple[str, str]:
        """(claims and where the last answer looked, nothing in place of an old comparison)."""
        found = self._talk.explain(about, _pairs(turns)) if turns else None
        return (shown.explanation(found, about) if found else ""), ""

    def selected(self, turns: Turns, about: list[str], data: gr.SelectData) -> tuple[str, str]:
        """The same of the answer that was chosen in the chat."""
        return self.explain(turns[: _turn(data.index) + 1], about)

    def stop(self, request: gr.Request) -> None:
        """Ends what is being said to whoever asks for it, or has left the page."""
        self._talk.stop(str(request.session_hash))


def _pairs(turns: Sequence[Sequence[str]]) -> Turns:
    """Turns as they are stored in a page, where tuples are lists."""
    return [(question, answer) for question, answer in turns]


def _turn(index: Any) -> int:
    return int(index[0] if isinstance(index, (list, tuple)) else index) // 2


def _new() -> tuple[Any, ...]:
    return [], [], [], "", "", "", ""


def _saved(form: Any, name: str, about: list[str], turns: Turns) -> tuple[str, str]:
    return form(about, _pairs(turns)), name
