"""A web page to talk with a model about molecules that are drawn or typed.

    python -m llamo_jax.apps.demo --checkpoint runs/stage1-tiny          # then open http://127.0.0.1:7860

Nothing is fetched from a network when the page is used. It is shown to this machine alone, unless --host says
otherwise; --share, which lends it a public address through Gradio's servers, is never implied. See docs/serving.md.
"""

import argparse
import os
import sys

from etils import epath

from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries


@program("llamo_jax.apps.demo")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.apps.demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: every machine that reaches this one")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public address for 72 hours (needs a network)")
    parser.add_argument("--rows", type=int, default=8, help="answers side by side")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--title", default="LLaMo")
    options = parser.parse_args(arguments)
    quiet_libraries()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported, when it looks for a newer version
    from llamo_jax import runs

    try:
        try:
            from llamo_jax.apps.demo.page import CSS, make_page, theme
        except ImportError as error:
            raise DataError(f"{error}; pip install 'llamo_jax[demo]'") from None
        from data_pipeline.drawing import why_not
        from llamo_jax.apps.assistant import Assistant
        from llamo_jax.apps.demo.talk import MAX_MOLECULES, Talk
        from llamo_jax.config import DecodingConfig
        from llamo_jax.generation.batcher import Batcher
        from llamo_jax.generation.prompts import GraphRoom

        runs.use_compilation_cache()
        assistant = Assistant.load(options.checkpoint, decoding=DecodingConfig(max_new_tokens=options.max_new_tokens))
        batcher = Batcher(
            assistant.generator,
            rows=assistant.generator.fitting_rows(options.rows, 1024),
            waiting=64,
            prompt_tokens=1024,
            room=GraphRoom(MAX_MOLECULES, 512),
        )
        page = make_page(Talk(assistant, batcher), options.title)
        if reason := why_not():
            print(f"note: {reason}; the page shows their SMILES", flush=True)
        page.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            theme=theme(),
            css=CSS,
            footer_links=[],
            max_threads=80,
        )
    except (*runs.UserError, OSError) as error:
        sys.exit(f"llamo_jax.apps.demo: {error}")


if __name__ == "__main__":
    main()
