"""Where a model looks: from each word of its answer to graph tokens, and from those to atoms and functional groups.

    python -m llamo_jax.analysis.attention --checkpoint DIR --output OUT --smiles "CC(=O)Oc1ccccc1C(=O)O"
    python -m llamo_jax.analysis.attention --checkpoint DIR --output OUT --faithfulness 50     # and whether it matters

A word's attention to a graph token is the decoder's, averaged over heads and layers, at the positions that predict the
word; times the share of that token's attention that an atom has, or a motif and with it its atoms; summed over graph
tokens. Attention is no explanation by itself (Jain & Wallace, 2019), so --faithfulness asks for more: how much less
likely answers of the test split become when the most attended atoms are hidden from the projector, against as many
random ones. OUT gets attention.html (words to point at, the molecule drawn beside them), .png, .json and .md.
"""

import argparse
import html
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import Array

from data_pipeline import drawing, storage
from data_pipeline.batch import Batch, BatchShape, EncodedConversation, collate
from data_pipeline.command_line import program
from data_pipeline.conversation import Conversation, Message
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.mol_graph import read_mol
from data_pipeline.molecule import featurize, parse_smiles
from data_pipeline.motifs import motif_atoms
from data_pipeline.progress import watched
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import Record, featurized, read_records
from data_pipeline.tokenizer import pieces
from data_pipeline.vocabulary import MOLECULES, GraphVocabulary
from llamo_jax import runs
from llamo_jax.analysis import pages
from llamo_jax.config import ConfigError
from llamo_jax.evaluation import intervals
from llamo_jax.loading import load_generator, load_model
from llamo_jax.models import LLaMo
from llamo_jax.models.llama import DecoderLayer, rope_tables

QUESTION = "Describe this molecule."
SHOWN_WORDS = 12  # in the picture
SIZE = (320, 240)  # pixels of a molecule


class Attention(NamedTuple):
    """Of one answer about one molecule with n target tokens, Q graph tokens, N atoms and M motifs.

    tokens: the answer, piece by piece. graph: float32[n, Q], the decoder's attention to each graph token, averaged over
    heads and layers. atoms: float32[Q, N] and motifs: float32[Q, M], the shares of each graph token's attention.
    sources: what each graph token is made of.
    """

    tokens: list[str]
    graph: np.ndarray
    atoms: np.ndarray
    motifs: np.ndarray
    sources: list[str]

    def of_atoms(self, motif_atoms: Sequence[Sequence[int]], source: str | None = None) -> np.ndarray:
        """float32[n, N]: each token's attention to each atom, directly and as a part of motifs; of one source's tokens.

        A motif's attention is shared out equally among its atoms.
        """
        members = np.zeros((self.motifs.shape[1], self.atoms.shape[1]), np.float32)
        for motif, atoms in enumerate(motif_atoms):
            members[motif, list(atoms)] = 1 / len(atoms)
        chosen = np.array([source is None or each == source for each in self.sources], bool)
        return self.graph[:, chosen] @ (self.atoms + self.motifs @ members)[chosen]


def attend(model: LLaMo, encoder: PromptEncoder, record: Record, molecule: int = 0) -> Attention:
    """The attention of a conversation's last answer, with which it ends, to one of the molecules.

    Raises ConfigError if prompts show no graph, or the model's projector does not tell what it attends to.
    """
    (encoded,) = encoder.encode([record])
    if not encoded.graphs:
        raise ConfigError("this model's prompts show no graph, so there is nothing to attend to")
    batch = single_batch(encoded, model.config.graph_encoder.vocabulary)
    weights, out = _weights(model, batch)
    if "atom_attention" not in out:
        raise ConfigError(f"projector kind={model.config.projector.kind} does not tell what it attends to")
    before, graph = record.graphs[:molecule], record.graphs[molecule]
    targets = np.flatnonzero(batch.target_mask[0])
    targets = np.split(targets, np.flatnonzero(np.diff(targets) > 1) + 1)[-1]  # of the last answer
    places = np.flatnonzero(batch.molecule_slot[0] == molecule)
    queries = batch.molecule_query[0][places]
    tokens_to_graph = np.zeros((len(targets), len(places)), np.float32)
    tokens_to_graph[:, queries] = np.asarray(weights)[targets][:, places]
    atoms, first_atom = np.asarray(out["atom_attention"])[0], sum(len(each.atoms) for each in before)
    motifs = np.asarray(out.get("motif_attention", jnp.zeros((1, 0, len(places)))))[0]
    first_motif = sum(len(each.motifs) for each in before)
    of_motifs = motifs[first_motif : first_motif + len(graph.motifs)].T
    return Attention(
        tokens=pieces(encoder.tokenizer.decode, batch.targets[0][targets].tolist()),
        graph=tokens_to_graph,
        atoms=atoms[first_atom : first_atom + len(graph.atoms)].T,
        motifs=of_motifs if len(motifs) else np.zeros((len(places), len(graph.motifs))),
        sources=model.config.projector.token_sources(model.config.num_levels),
    )


def single_batch(encoded: EncodedConversation, vocabulary: GraphVocabulary = MOLECULES) -> Batch:
    """A batch of this conversation alone, of numpy arrays; padded to multiples of 64, so that few programs are made."""
    row = encoded.size()
    row = row._replace(**{name: -(-size // 64) * 64 for name, size in row._asdict().items() if name != "molecules"})
    return collate([[encoded]], BatchShape(1, 1, row, *vocabulary.widths))


@jax.jit
def _weights(model: LLaMo, batch: Batch) -> tuple[Array, dict[str, Any]]:
    """float32[T, T], the decoder's attention averaged over heads and layers, and what the projector tells."""
    tokens, out = model.encode_graphs(batch.molecules)
    decoder = model.language_model
    cos, sin = rope_tables(batch.positions, decoder.config)
    segments = batch.segments
    seen = jnp.tril(segments[0][:, None] == segments[0][None, :])

    def body(layer: DecoderLayer, _: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, total = carry
        q, k, v = layer.queries_keys_values(x, cos, sin)
        groups = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(each, groups, axis=2).astype(jnp.float32) for each in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q.astype(jnp.float32), k) * q.shape[-1] ** -0.5
        shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        attended = jnp.einsum("bhts,bshd->bthd", shares, v).astype(x.dtype)
        return layer.finish(x, attended), total + shares[0].mean(axis=0)

    x = model.splice(batch, tokens).astype(decoder.compute_dtype)
    length = segments.shape[1]
    _, total = decoder.run_layers(body, (x, jnp.zeros((length, length))))
    kept = {name: value for name, value in out.items() if name in ("atom_attention", "motif_attention")}
    return total / decoder.config.num_layers, kept


@jax.jit
def _log_likelihood(model: LLaMo, batch: Batch, kept: Array, kept_motifs: Array | None = None) -> Array:
    """Of a batch's targets, summed, when the projector sees those atoms alone whose entry of `kept`, [N], is 1.

    kept_motifs: the same of motifs, [M]; None: all. What is not kept is padding to the projector: no softmax has it.
    """
    levels = model.graph_encoder(batch.molecules.atoms)
    atoms, order = _moved(batch.molecules.atoms, kept)
    motifs = batch.molecules.motifs
    if kept_motifs is not None:
        motifs, places = _moved(motifs, kept_motifs)
        motifs = motifs._replace(nodes=motifs.nodes[:, places])
    tokens, _ = model.projector(levels[:, :, order], batch.molecules._replace(atoms=atoms, motifs=motifs))
    hidden = model.language_model(model.splice(batch, tokens), batch.positions, batch.segments)
    log_probabilities = jax.nn.log_softmax(model.language_model.logits(hidden))
    chosen = jnp.take_along_axis(log_probabilities, batch.targets[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(batch.target_mask, chosen, 0))


def _moved(graphs: jraph.GraphsTuple, kept: Array) -> tuple[jraph.GraphsTuple, Array]:
    """One shard's graphs without the nodes that are not kept, and the order of nodes: the others stand at the end.

    Nodes themselves are left to the caller, and edges are not moved along.
    """
    slots = graphs.n_node.shape[1]
    owner = jnp.repeat(jnp.arange(slots), graphs.n_node[0], total_repeat_length=kept.shape[0])
    padding = jraph.get_number_of_padding_with_graphs_graphs(jax.tree.map(lambda x: x[0], graphs))
    owner = jnp.where(kept > 0, owner, slots - padding)
    order = jnp.argsort(owner, stable=True)
    return graphs._replace(n_node=jnp.bincount(owner, length=slots)[None].astype(graphs.n_node.dtype)), order


def faithfulness(
    model: LLaMo, encoder: PromptEncoder, records: Sequence[Record], share: float, seed: int
) -> dict[str, Any]:
    """Nats of log-likelihood that answers lose, without the most attended atoms and without random ones.

    Motifs go with their atoms. share: of a molecule's atoms, at least one and not all: single atoms are left out, as
    are molecules whose atoms stand in another order than in their SMILES, since motifs are those of the latter.
    Random ones: the mean of five draws. Intervals over molecules.
    """
    rng = np.random.default_rng(seed)
    losses: dict[str, list[float]] = {"most_attended": [], "random": []}
    for record in watched(records, desc="molecules", unit="molecule"):
        smiles, graph = record.conversation.smiles[0], record.graphs[0]
        here = featurize(smiles)
        if len(graph.atoms) < 2 or not all(
            np.array_equal(a, b) for a, b in ((here.atoms[:, 0], graph.atoms[:, 0]), (here.senders, graph.senders))
        ):
            continue
        members = motif_atoms(read_mol(parse_smiles(smiles)))
        attention = attend(model, encoder, record).of_atoms(members).sum(axis=0)
        batch = single_batch(encoder.encode([record])[0])
        count = max(1, round(share * len(attention)))
        slots, motif_slots = (graphs.nodes.shape[1] for graphs in batch.molecules)

        def lost(
            hidden: np.ndarray,
            batch: Batch = batch,
            slots: int = slots,
            motif_slots: int = motif_slots,
            members: Sequence[Sequence[int]] = members,
        ) -> float:
            kept, kept_motifs = np.ones(slots, np.float32), np.ones(motif_slots, np.float32)
            whole = _log_likelihood(model, batch, kept, kept_motifs)
            kept[hidden] = 0
            kept_motifs[[motif for motif, atoms in enumerate(members) if set(atoms) & set(hidden.tolist())]] = 0
            return float(whole - _log_likelihood(model, batch, kept, kept_motifs))

        losses["most_attended"].append(lost(np.argsort(-attention)[:count]))
        draws = [lost(rng.permutation(len(attention))[:count]) for _ in range(5)]
        losses["random"].append(float(np.mean(draws)))
    values = {name: np.array(each) for name, each in losses.items()}
    values["difference"] = values["most_attended"] - values["random"]
    count = len(values["random"])
    if not count:
        raise ConfigError("no molecule to hide atoms of; give others with --data")
    found = intervals.intervals(count, {name: intervals.mean(each) for name, each in values.items()})
    scores = {name: {"mean": float(each.mean()), "interval": found[name]} for name, each in values.items()}
    return {"molecules": count, "share_of_atoms": share, **scores}


def words_of(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The answer's words, and which of its tokens each is made of; special tokens at the end are none.

    >>> words_of([" This", " mole", "cule", ".", ""])
    [('This', [0]), ('molecule.', [1, 2, 3])]
    """
    words: list[tuple[str, list[int]]] = []
    begins = True
    for index, token in enumerate(tokens):
        begins = begins or token[:1].isspace()
        if not token.strip():
            continue
        if not begins:
            word, places = words[-1]
            words[-1] = (word + token.rstrip(), [*places, index])
        else:
            words.append((token.strip(), [index]))
        begins = token[-1].isspace()
    return words


def highlights(weights: np.ndarray) -> dict[str, Any]:
    """For data_pipeline.drawing: every atom in the colour of its share of the largest weight."""
    largest = float(weights.max()) or 1.0
    colours = {
        atom: (1.0, 1 - 0.7 * float(w) / largest, 1 - 0.9 * float(w) / largest) for atom, w in enumerate(weights)
    }
    return {"highlightAtoms": list(colours), "highlightAtomColors": colours, "highlightBonds": []}


_STYLE = """body{font:15px/1.6 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
.w{border-bottom:2px dotted #c62828;cursor:pointer;margin-right:.3em}.w:hover,.w:focus{background:#fde0dc}
.p{display:none;position:absolute;background:#fff;border:1px solid #ccc;padding:.5rem}
.w:hover .p,.w:focus .p{display:block}
figure{display:inline-block;margin:.3rem;text-align:center}svg{max-width:100%;height:auto}"""


def page(smiles: str, question: str, words: Sequence[tuple[str, np.ndarray]], sources: Mapping[str, np.ndarray]) -> str:
    """One HTML page that needs no other file: pointing at a word shows where it looked; below, each source's atoms."""
    mol = parse_smiles(smiles)

    def svg(weights: np.ndarray) -> str:
        return drawing.svg(mol, SIZE, **highlights(weights))

    spans = [
        f'<span class="w" tabindex="0">{html.escape(word)}<span class="p">{svg(weights)}</span></span>'
        for word, weights in words
    ]
    figures = [
        f"<figure>{svg(weights)}<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, weights in sources.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Attention: {html.escape(smiles)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(smiles)}</h1><p>{html.escape(question)}</p>"
        f"<p>{''.join(spans)}</p><h2>By what graph tokens are made of</h2>{''.join(figures)}</body></html>\n"
    )


def grid(smiles: str, words: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """A PNG of the words whose attention is least evenly spread, each with the molecule."""
    from matplotlib import image
    from matplotlib.figure import Figure

    mol = parse_smiles(smiles)
    spread = [float(np.std(weights / weights.sum())) for _, weights in words]
    chosen = sorted(np.argsort(spread)[::-1][:SHOWN_WORDS])
    columns = 4
    rows = -(-max(1, len(chosen)) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, index in zip(figure.axes, chosen, strict=False):
        word, weights = words[index]
        content = io.BytesIO(drawing.png(mol, SIZE, **highlights(weights)))
        axes.imshow(image.imread(content, format="png"))  # type: ignore[arg-type]
        axes.set_title(word, fontsize=10)
    return pages.png(figure)


def analyse(options: argparse.Namespace) -> tuple[dict[str, Any], bytes, str]:
    """What attention.json holds, the picture, and the HTML page."""
    generator, _ = load_generator(options.checkpoint)
    model, encoder = load_model(options.checkpoint), generator.encoder
    mol = parse_smiles(options.smiles)
    asked = featurized(Conversation((options.smiles,), (Message("user", options.question),)))
    answer = options.answer or generator.answer_records([asked])[0]
    messages = (Message("user", options.question), Message("assistant", answer))
    attention = attend(model, encoder, asked._replace(conversation=asked.conversation._replace(messages=messages)))
    motifs = motif_atoms(read_mol(mol))
    per_token = attention.of_atoms(motifs)
    words = [(word, per_token[places].mean(axis=0)) for word, places in words_of(attention.tokens)]
    by_source = {each: attention.of_atoms(motifs, each).mean(axis=0) for each in dict.fromkeys(attention.sources)}
    result: dict[str, Any] = {
        "smiles": options.smiles,
        "question": options.question,
        "answer": answer,
        "tokens": attention.tokens,
        "sources": attention.sources,
        "motif_atoms": motifs,
        "graph": attention.graph.tolist(),
        "atoms": attention.atoms.tolist(),
        "motifs": attention.motifs.tolist(),
        "words": [{"word": word, "atoms": weights.tolist()} for word, weights in words],
    }
    if options.faithfulness:
        folder = options.data or prepare_embedded(options.cache_dir) / "description"
        records = [record for record in read_records(folder, options.split) if len(record.graphs) == 1]
        if not records:
            raise DataError(f"{folder} has no molecules in its split {options.split!r}")
        chosen = records[:: max(1, len(records) // options.faithfulness)][: options.faithfulness]
        result["faithfulness"] = faithfulness(model, encoder, chosen, options.hidden, options.seed)
    return result, grid(options.smiles, words), page(options.smiles, options.question, words, by_source)


def sections(result: Mapping[str, Any]) -> list[pages.Section]:
    """What stands in attention.md."""
    mol = parse_smiles(result["smiles"])
    symbols = [f"{atom.GetSymbol()}{atom.GetIdx()}" for atom in mol.GetAtoms()]
    rows = []
    for each in result["words"]:
        weights = np.array(each["atoms"])
        most = np.argsort(-weights)[:3]
        rows.append([html.escape(each["word"]), f"{weights.sum():.3f}", ", ".join(symbols[atom] for atom in most)])
    table = pages.Table(("word", "attention to the graph", "most attended atoms"), rows)
    asked = html.escape(f"{result['smiles']}: {result['question']}")
    found = [pages.Section(html.escape(result["answer"]), [asked, table])]
    if "faithfulness" in result:
        scores = result["faithfulness"]
        told = (
            f"Nats of log-likelihood that the answers of {scores['molecules']} molecules lose without "
            f"{scores['share_of_atoms']:.0%} of their atoms:"
        )
        cells = [[name.replace("_", " "), pages.with_interval(scores[name])]
                 for name in ("most_attended", "random", "difference")]  # fmt: skip
        found.append(pages.Section("Faithfulness", [told, pages.Table(("atoms hidden", "lost"), cells)]))
    return found


@program("attention")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--smiles", default="CC(=O)Oc1ccccc1C(=O)O")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--answer", help="to look at; default: the model's own")
    parser.add_argument("--faithfulness", type=int, default=0, metavar="N", help="molecules to ask; default: none")
    parser.add_argument("--hidden", type=float, default=0.2, help="share of atoms to hide")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared; default: the embedded descriptions")
    parser.add_argument("--split", default="test", help="of the data")
    parser.add_argument("--seed", type=int, default=0, help="of the random atoms")
    parser.add_argument("--cache_dir", default="data", help="of the embedded corpus")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        if reason := drawing.why_not():  # before what takes minutes
            raise DataError(reason)
        result, picture, html_page = analyse(options)
        pages.write(options.output, "attention", "Attention", result, sections(result), picture)
        storage.write_text(options.output / "attention.html", html_page)
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.attention: {error}")


if __name__ == "__main__":
    main()
