"""The configuration of an evaluation."""

from typing import Literal

from llamo_jax.config import ConfigError, DecodingConfig, Int, Text, setting, settings


@settings
class EvaluationConfig:
    """One evaluation: `python launch.py --config configs/evaluate.py`."""

    name: Literal["evaluate"] = setting("tells launch.py what to do")
    checkpoint: Text = setting("a run's workdir or a model folder")
    task: Text = setting("see llamo_jax.evaluation.scores")
    data: Text = setting('a folder written by data_pipeline.prepare, a file of rows, or "embedded"')
    split: Text = setting('of a folder; "": test, or validation where there is no test')
    smiles_column: Text = setting('of a file; "": guessed, like the next two', default="")
    text_column: Text = setting("of a file", default="")
    target_columns: tuple[Text, ...] = setting("property columns of a file", default=())
    delimiter: Text = setting('between fields of a table; "": by evidence, like the next two', default="")
    quoting: Literal["", "minimal", "none"] = setting("none: quotation marks of a table are text", default="")
    encoding: Text = setting("of a table", default="")
    limit: Int = setting("evaluate the first so many examples; 0: all", ge=0)
    context: Literal["full", "questions_only"] = setting("whether earlier answers stay in the prompt; the original: no")
    metric_tokenizer: Text = setting("what BLEU and METEOR count; see llamo_jax.evaluation.metric_tokenizer")
    graph_use: Int = setting("so many examples are looked at with other graphs; 0: none", ge=0)
    group_questions: Int = setting("so many molecules are asked about; 0: none", ge=0)
    cache_dir: Text = setting("where the embedded corpus is prepared")
    tensor: Int = setting("devices that share each weight; 0: as few as hold them", ge=0)
    decoding: DecodingConfig = setting("how answers are chosen")

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ConfigError("checkpoint: give a run's workdir or a model folder")
