// The editor of a molecule: OpenChemLib's, in the page's own element; the page asks it for SMILES.
const place = element.querySelector(".llamo-editor");
import(place.dataset.source)
  .then(({ CanvasEditor, Molecule }) => {
    const editor = new CanvasEditor(place, { initialMode: "molecule" });
    window.llamoDrawn = () => editor.getMolecule().toIsomericSmiles();
    window.llamoDraw = (smiles) => {
      editor.setMolecule(Molecule.fromSmiles(smiles));
      editor.moleculeChanged();
    };
    place.dataset.ready = "yes";
  })
  .catch((error) => {
    place.textContent = `The editor did not load: ${error}`;
  });
