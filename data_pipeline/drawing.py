"""Drawings of molecules, by RDKit, whose drawing code alone needs libraries of X11: bare servers do not have them."""

import functools
import html
from types import ModuleType
from typing import Any

from rdkit import Chem

from data_pipeline.errors import DataError
from data_pipeline.molecule import parse_smiles

CARD = (260, 180)
"""Pixels, width and height, of a molecule among others on a page."""

LARGEST = 300
"""Heavy atoms of a molecule that is drawn for people: coordinates take time by their cube, 16 s for 2,000."""


@functools.cache
def why_not() -> str | None:
    """Why molecules cannot be drawn on this machine, and what to do about it; None if they can."""
    try:
        _rdkit()
    except ImportError as error:
        return f"molecules cannot be drawn here: {error}; on Debian or Ubuntu: apt-get install libxrender1 libxext6"
    return None


def _rdkit() -> ModuleType:
    from rdkit.Chem.Draw import rdMolDraw2D

    return rdMolDraw2D


def svg(mol: Chem.Mol, size: tuple[int, int], **options: Any) -> str:
    """The molecule as an <svg> element of `size` pixels (width, height).

    options: of RDKit's PrepareAndDrawMolecule. Raises DataError where nothing can be drawn, and what RDKit does.
    """
    text = str(_drawn("MolDraw2DSVG", mol, size, options))
    return text[text.index("<svg") :]  # without the XML declaration before it


def png(mol: Chem.Mol, size: tuple[int, int], **options: Any) -> bytes:
    """As `svg`, but the content of a PNG file."""
    content = _drawn("MolDraw2DCairo", mol, size, options)
    assert isinstance(content, bytes)
    return content


def markup(mol: Chem.Mol, size: tuple[int, int], **options: Any) -> str:
    """HTML: as `svg`; the molecule's SMILES where nothing can be drawn (see why_not), a line for more than LARGEST."""
    if mol.GetNumHeavyAtoms() > LARGEST:
        return f"<p>more than {LARGEST} atoms, not drawn</p>"
    return f"<code>{html.escape(Chem.MolToSmiles(mol))}</code>" if why_not() else svg(mol, size, **options)


def card(smiles: str) -> str:
    """`markup` of CARD pixels, for data_pipeline.guard.tried; raises InvalidMoleculeError."""
    return markup(parse_smiles(smiles), CARD)


def _drawn(kind: str, mol: Chem.Mol, size: tuple[int, int], options: dict[str, Any]) -> str | bytes:
    if reason := why_not():
        raise DataError(reason)
    rdkit = _rdkit()
    drawer = getattr(rdkit, kind)(*size)
    rdkit.PrepareAndDrawMolecule(drawer, mol, **options)
    drawer.FinishDrawing()
    content: str | bytes = drawer.GetDrawingText()
    return content
