"""Text against text: BLEU, ROUGE and METEOR, as the papers of the field compute them (MolT5, Edwards et al., 2022)."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.progress import watched
from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.metric_tokenizer import MAX_TOKENS, MetricTokenizer
from llamo_jax.evaluation.wordnet import HOW_TO_INSTALL, WordNet, find_wordnet


def text_scores(predictions: Sequence[str], targets: Sequence[str], tokenizer: MetricTokenizer) -> dict[str, Any]:
    """BLEU-2 and BLEU-4 over the corpus, ROUGE-1, -2, -L and METEOR averaged over rows; fractions.

    BLEU and METEOR (nltk) look at the first MAX_TOKENS tokens of `tokenizer`, ROUGE (rouge_score, without stemming) at
    its own words. `truncated` counts the texts that were longer. Without WordNet, meteor is None and meteor_missing
    says how to install it.
    """
    tokens, references = tokenizer.split(predictions), tokenizer.split(targets)
    ours, theirs = ([text[:MAX_TOKENS] for text in texts] for texts in (tokens, references))
    bleu2, bleu4 = corpus_bleu(ours, theirs, (2, 4))
    rows = rouge_rows(predictions, targets) | meteor_rows(ours, theirs, find_wordnet())
    means = {name: float(np.mean(values)) if len(values) else 0.0 for name, values in rows.items()}
    counts = bleu_counts(ours, theirs)
    missing = {"meteor": None, "meteor_missing": f"WordNet 3.0 is not installed; {HOW_TO_INSTALL}"}
    return {
        "bleu2": bleu2,
        "bleu4": bleu4,
        **means,
        **({} if "meteor" in rows else missing),
        "metric_tokenizer": tokenizer.name,
        "truncated": {"max_tokens": MAX_TOKENS, "predictions": _longer(tokens), "targets": _longer(references)},
        "intervals": intervals.intervals(
            len(tokens),
            {
                "bleu2": intervals.bleu(counts, 2),
                "bleu4": intervals.bleu(counts, 4),
                **{name: intervals.mean(values) for name, values in rows.items()},
            },
        ),
    }


def corpus_bleu(
    predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], orders: Sequence[int]
) -> list[float]:
    """BLEU of nltk for tokenized texts, uniformly over n-grams of 1 … n for each n of `orders`, without smoothing."""
    from nltk.translate import bleu_score

    weights = [(1 / order,) * order for order in orders]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "0 counts of 4-gram overlaps": the score says so too
        found = bleu_score.corpus_bleu([[target] for target in targets], predictions, weights=weights)
    return [float(value) for value in (found if isinstance(found, list) else [found])]


def rouge_l(prediction: str, target: str) -> float:
    """F-measure of ROUGE-L, as rouge_score defines it.

    The longest common subsequence is rapidfuzz's: the same number, also for answers of ten thousand words.
    """
    from rapidfuzz.distance import LCSseq
    from rouge_score.tokenizers import DefaultTokenizer

    words = DefaultTokenizer(use_stemmer=False)
    ours, theirs = words.tokenize(prediction), words.tokenize(target)
    common = LCSseq.similarity(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def bleu_counts(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> np.ndarray:
    """int64[rows, 10], of whose sums BLEU is made: n-grams that match and n-grams, for n of 1 … 4, and both lengths."""
    counts = np.zeros((len(targets), 10), np.int64)
    for row, prediction, target in zip(counts, predictions, targets, strict=True):
        for order in range(1, 5):
            ours, theirs = (
                Counter(zip(*(text[start:] for start in range(order)), strict=False)) for text in (prediction, target)
            )
            row[2 * order - 2 : 2 * order] = (ours & theirs).total(), max(1, ours.total())  # as nltk counts none
        row[-2:] = len(prediction), len(target)
    return counts


def rouge_rows(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measures of rouge_score without stemming, of each row: {"rouge1", "rouge2", "rougeL"}."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(["rouge1", "rouge2"], tokenizer=DefaultTokenizer(use_stemmer=False))
    found = {name: np.zeros(len(targets)) for name in ("rouge1", "rouge2", "rougeL")}
    pairs = zip(predictions, targets, strict=True)
    for row, (prediction, target) in enumerate(watched(pairs, desc="ROUGE", total=len(targets), unit=" rows")):
        for name, score in scorer.score(target, prediction).items():
            found[name][row] = score.fmeasure
        found["rougeL"][row] = rouge_l(prediction, target)
    return found


def meteor_rows(
    predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], wordnet: WordNet | None
) -> dict[str, np.ndarray]:
    """{"meteor"}: nltk's METEOR of tokenized texts, of each row; nothing without WordNet."""
    from nltk.translate.meteor_score import single_meteor_score

    if wordnet is None:
        return {}
    pairs = zip(predictions, targets, strict=True)
    shown = watched(pairs, desc="METEOR", total=len(targets), unit=" rows")
    scores = [single_meteor_score(target[:MAX_TOKENS], ours[:MAX_TOKENS], wordnet=wordnet) for ours, target in shown]
    return {"meteor": np.array(scores)}


def _longer(texts: Sequence[Sequence[str]]) -> int:
    return sum(len(text) > MAX_TOKENS for text in texts)
