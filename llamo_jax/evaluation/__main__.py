"""Scores a file of predictions, whoever made them.

python -m llamo_jax.evaluation --task description --predictions answers.jsonl --metric_tokenizer vocab.txt
python -m llamo_jax.evaluation --task retrosynthesis --predictions answers.jsonl --report report.html

Rows are {"prediction", "target"}, and for more scores "smiles" and "yes_probability". Prints one JSON object; scores
are fractions. --metric_tokenizer: what BLEU and METEOR count; papers use SciBERT's or Llama's, and scores differ.
"""

import argparse
import json
import sys
from pathlib import Path

from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from llamo_jax.evaluation.metric_tokenizer import HUB_IDS, WORDS, load_metric_tokenizer
from llamo_jax.evaluation.predictions import read_predictions
from llamo_jax.evaluation.scores import KINDS, score


@program("llamo_jax.evaluation")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.evaluation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--task", required=True, choices=sorted(KINDS))
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument(
        "--metric_tokenizer",
        default=WORDS,
        metavar="NAME_OR_PATH",
        help=f"{WORDS} (default), {', '.join(HUB_IDS)} (from the Hugging Face hub or its cache),\n"
        "a tokenizer folder, a WordPiece vocab.txt, or a sentencepiece .model",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write a page: .html or .md")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        tokenizer = load_metric_tokenizer(options.metric_tokenizer)
        found = read_predictions(options.predictions)
        result = {"task": options.task, "rows": len(found.rows), **score(options.task, found.rows, tokenizer)}
        if found.broken:
            result["broken_rows"] = found.broken
            for line, reason in found.broken_lines:
                print(f"{options.predictions}, line {line}: left out: {reason}", file=sys.stderr)
        if options.report:
            from llamo_jax.evaluation.report import write_report

            write_report(options.report, options.task, result, found.rows)
    except DataError as error:
        sys.exit(f"llamo_jax.evaluation: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
