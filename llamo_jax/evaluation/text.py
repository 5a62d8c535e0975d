"""Text against text: BLEU, ROUGE and METEOR, as the papers of the field compute them (MolT5, Edwards et al., 2022)."""

import warnings
from collections.abc import Sequence
from typing import Any

from data_pipeline.progress import watched
from llamo_jax.evaluation.metric_tokenizer import MAX_TOKENS, MetricTokenizer
from llamo_jax.evaluation.wordnet import HOW_TO_INSTALL, WordNet, find_wordnet


def text_scores(predictions: Sequence[str], targets: Sequence[str], tokenizer: MetricTokenizer) -> dict[str, Any]:
    """BLEU-2 and BLEU-4 over the corpus, ROUGE-1, -2, -L and METEOR averaged over rows; fractions.

    BLEU and METEOR (nltk) look at the first MAX_TOKENS tokens of `tokenizer`, ROUGE (rouge_score, without stemming) at
    its own words. `truncated` counts the texts that were longer. Without WordNet, meteor is None and meteor_missing
    says how to install it.
    """
    tokens, references = tokenizer.split(predictions), tokenizer.split(targets)
    bleu2, bleu4 = corpus_bleu(
        [prediction[:MAX_TOKENS] for prediction in tokens], [target[:MAX_TOKENS] for target in references], (2, 4)
    )
    return {
        "bleu2": bleu2,
        "bleu4": bleu4,
        **rouge_scores(predictions, targets),
        **meteor(tokens, references, find_wordnet()),
        "metric_tokenizer": tokenizer.name,
        "truncated": {"max_tokens": MAX_TOKENS, "predictions": _longer(tokens), "targets": _longer(references)},
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


def rouge_scores(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """F-measures of rouge_score without stemming, averaged over rows: {"rouge1", "rouge2", "rougeL"}."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(["rouge1", "rouge2"], tokenizer=DefaultTokenizer(use_stemmer=False))
    sums = dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.0)
    pairs = zip(predictions, targets, strict=True)
    for prediction, target in watched(pairs, desc="ROUGE", total=len(predictions), unit=" rows"):
        for name, score in scorer.score(target, prediction).items():
            sums[name] += score.fmeasure
        sums["rougeL"] += rouge_l(prediction, target)
    return {name: total / max(len(predictions), 1) for name, total in sums.items()}


def meteor(
    predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], wordnet: WordNet | None
) -> dict[str, Any]:
    """{"meteor"}: nltk's METEOR of tokenized texts, averaged over rows; None, with a reason, without WordNet."""
    from nltk.translate.meteor_score import single_meteor_score

    if wordnet is None:
        return {"meteor": None, "meteor_missing": f"WordNet 3.0 is not installed; {HOW_TO_INSTALL}"}
    total = 0.0
    pairs = zip(predictions, targets, strict=True)
    for prediction, target in watched(pairs, desc="METEOR", total=len(predictions), unit=" rows"):
        total += single_meteor_score(target[:MAX_TOKENS], prediction[:MAX_TOKENS], wordnet=wordnet)
    return {"meteor": total / max(len(predictions), 1)}


def _longer(texts: Sequence[Sequence[str]]) -> int:
    return sum(len(text) > MAX_TOKENS for text in texts)
