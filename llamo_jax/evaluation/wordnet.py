"""WordNet 3.0 for METEOR: nltk's data, or Debian's package `wordnet-base`, whichever is there."""

import functools
import io
import warnings
from pathlib import Path
from typing import Any, Protocol

DEBIAN_FOLDER = Path("/usr/share/wordnet")

HOW_TO_INSTALL = "apt-get install wordnet-base, or: python -m nltk.downloader wordnet"


# Debian leaves out this table of WordNet's "lexicographer files" (manual page lexnames(5WN)); synsets refer to it.
_LEXNAMES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state
noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption
verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative
verb.weather adj.ppl
""".split()


class WordNet(Protocol):
    """What METEOR asks of a WordNet reader."""

    def synsets(self, word: str) -> list[Any]:
        """The sets of synonyms that a word, or its base form, is in."""


@functools.cache
def find_wordnet() -> WordNet | None:
    """WordNet's reader, remembering what it was asked; None if it is not installed."""
    from nltk.corpus import wordnet

    if _loads(wordnet):
        return _Remembering(wordnet)
    if (DEBIAN_FOLDER / "data.noun").is_file():
        return _Remembering(_debian_wordnet(DEBIAN_FOLDER))
    return None  # and no attempt to download it: scoring asks no network unasked


class _Remembering:
    """A reader that looks every word up once: descriptions repeat themselves."""

    def __init__(self, reader: Any):
        self.synsets = functools.lru_cache(maxsize=None)(reader.synsets)


def _loads(wordnet: Any) -> bool:
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def _debian_wordnet(folder: Path) -> Any:
    """A reader of the files as Debian installs them: without the tables of other languages and of lexnames."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class DebianWordNet(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{number}\t{name}\t0\n" for number, name in enumerate(_LEXNAMES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:  # only other languages need it
            return None

    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))  # nltk reads nothing outside of its path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "multilingual functions are not available"
        return DebianWordNet(str(folder), None)
