"""OpenChemLib's editor for the page: one file of the npm package, which `make editor` fetches and checks."""

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).parent
VENDOR = FOLDER / "vendor"
SCRIPT = VENDOR / "openchemlib.js"
MISSING = "The editor is not there: in a checkout, `make editor` fetches it. Type or paste SMILES meanwhile."

DRAWN = "(text, _) => [text, window.llamoDrawn ? window.llamoDrawn() : '']"
"""JavaScript that gives a handler (what is typed, what is drawn)."""


def element() -> gr.HTML:
    """The editor in the page; without its file, a line that says what to do."""
    if not SCRIPT.exists():
        return gr.HTML(f"<p>{MISSING}</p>", elem_id="editor")
    gr.set_static_paths([VENDOR])
    source = f"/gradio_api/file={SCRIPT}"
    return gr.HTML(
        html_template=f'<div class="llamo-editor" data-source="{source}"></div>',
        js_on_load=(FOLDER / "editor.js").read_text(),
        elem_id="editor",
    )
