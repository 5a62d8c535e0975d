"""What the page shows as HTML: molecules, claims, and where an answer looked. Every text is escaped."""

import html
import json
from collections.abc import Sequence

from rdkit import Chem
from rdkit.Chem.Descriptors import MolWt  # type: ignore[attr-defined]  # made when it is imported
from rdkit.Chem.rdDepictor import Compute2DCoords
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from data_pipeline import drawing
from data_pipeline.claims import shown
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, featurize, parse_smiles
from llamo_jax.analysis.attention import highlights
from llamo_jax.apps.assistant import Explanation

LOOK_SIZE = (320, 240)
LONGEST_REFUSAL = 200  # characters of what was typed are repeated


def molecules(smiles: Sequence[str], names: Sequence[str] = ()) -> str:
    """A card for each: the drawing, its name if one is known, formula and mass; or why it is refused."""
    cards = []
    for number, each in enumerate(smiles):
        try:
            tried(featurize, each)
            picture = tried(drawing.card, each)
        except InvalidMoleculeError as error:
            text = html.escape(str(error)[:LONGEST_REFUSAL])
            cards.append(f'<figure class="llamo-card llamo-refused" role="alert">{text}</figure>')
            continue
        mol = parse_smiles(each)
        name = names[number] if number < len(names) else ""
        title = f"<b>{html.escape(name)}</b> " if name else ""
        facts = f"{title}{CalcMolFormula(mol)}, {MolWt(mol):.2f} g/mol"
        label = html.escape(f"structure of {name or each}", quote=True)
        cards.append(
            f'<figure class="llamo-card" role="img" aria-label="{label}">{picture}'
            f"<figcaption>{facts}</figcaption></figure>"
        )
    return f'<div class="llamo-cards">{"".join(cards)}</div>'


def explanation(found: Explanation, smiles: Sequence[str]) -> str:
    """Claims, true ones marked and false ones; and the answer's words, which show where they looked when pointed at."""
    if not found.answer.strip():
        return ""
    claims = "".join(
        f'<li class="{"llamo-true" if each.true else "llamo-false"}">'
        f"{'✓' if each.true else '✗'} {html.escape(shown(each.claim))}</li>"
        for each in found.claims
    )
    nothing = "<p>No claim that RDKit could check.</p>" if smiles else ""
    parts = [f'<h4>Claims, checked by RDKit</h4><ul class="llamo-claims">{claims}</ul>' if claims else nothing]
    for number, (look, each) in enumerate(zip(found.looks, smiles, strict=False), start=1):
        mol = parse_smiles(each)
        if mol.GetNumHeavyAtoms() <= drawing.LARGEST:
            Compute2DCoords(mol)  # once, and not for every word
        words = []
        for word, atoms in zip(look.words, look.atoms, strict=True):
            look_at = drawing.markup(mol, LOOK_SIZE, **highlights(atoms))
            words.append(
                f'<span class="llamo-word" tabindex="0">{html.escape(word)}'
                f'<span class="llamo-look">{look_at}</span></span> '
            )
        which = f" molecule {number}" if len(found.looks) > 1 else ""
        parts.append(
            f"<h4>Where each word looked{which}: point at it, or go there with Tab</h4>"
            f'<p class="llamo-words">{"".join(words)}</p>'
        )
    return f'<div class="llamo-explanation">{"".join(parts)}</div>'


def comparison(answer: str, other: str, name: str, mol: Chem.Mol) -> str:
    """The answer beside the one that another molecule's graph gives; words that the first has not are marked."""
    said = set(answer.split())
    words = " ".join(
        html.escape(word) if word in said else f"<mark>{html.escape(word)}</mark>" for word in other.split()
    )
    picture = drawing.markup(mol, drawing.CARD)
    return (
        f'<div class="llamo-other"><h4>With the graph of {html.escape(name)} instead</h4>{picture}'
        f"<p>{words}</p><p>{'The same answer.' if answer == other else 'What is new is marked.'}</p></div>"
    )


def as_jsonl(smiles: Sequence[str], turns: Sequence[tuple[str, str]]) -> str:
    """The conversation as `data_pipeline.prepare --task instruction` reads it."""
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]
    return json.dumps({"smiles": list(smiles), "messages": messages}, ensure_ascii=False) + "\n"


def as_markdown(smiles: Sequence[str], turns: Sequence[tuple[str, str]]) -> str:
    """The conversation for people; what was said stands in blocks, where nothing in it is markup."""
    lines = [f"Molecule: `{each.replace('`', '')}`\n" for each in smiles]
    for question, answer in turns:
        lines += [f"**Question**\n\n{_block(question)}\n", f"**Answer**\n\n{_block(answer)}\n"]
    return "\n".join(lines)


def _block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def line(text: str) -> str:
    """A line for people, which a screen reader says as well."""
    return f'<p role="status">{html.escape(text)}</p>' if text else ""
