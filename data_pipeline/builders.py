"""TFDS builders, one for each task: records of conversations about molecules, with graphs and motifs precomputed.

`python -m data_pipeline.prepare` drives them. What they write is an ordinary TFDS dataset, which
`tfds.builder_from_directory` reads without this module.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from data_pipeline.progress import watched
from data_pipeline.record_files import groups, join_files
from data_pipeline.records import FORMAT_VERSION, record_features
from data_pipeline.shards import read_outcome, shard_path
from data_pipeline.vocabulary import MOLECULES, GraphVocabulary

MakeShards = Callable[[tfds.download.DownloadConfig], tuple[epath.Path, Iterable[int]]]
"""Makes the shards of a job with the runner of the configuration; returns its work folder and chunks."""


_MOLECULENET = """\
@article{wu2018moleculenet,
  title={{MoleculeNet}: a benchmark for molecular machine learning},
  author={Wu, Zhenqin and others}, journal={Chemical Science}, year={2018}}"""


class ConversationsBuilder(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Conversations about molecules or other graphs; the base of the task builders.

    The shards come ready made from `make_shards` (see data_pipeline.shards): the builder gives them their place and
    their metadata. Records stand in the order of the input rows.
    """

    VERSION = tfds.core.Version(FORMAT_VERSION)
    CITATION: ClassVar[str] = ""

    def __init__(
        self, *, make_shards: MakeShards | None = None, vocabulary: GraphVocabulary = MOLECULES, **kwargs: Any
    ):
        self._make_shards = make_shards
        self._vocabulary = vocabulary
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=record_features(self._vocabulary),
            description=type(self).__doc__,
            citation=type(self).CITATION,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: tfds.download.DownloadConfig) -> None:
        del dl_manager  # nothing is downloaded
        if self._make_shards is None:
            raise ValueError(f"{self.name} reads local files; prepare it with data_pipeline.prepare")
        work, chunks = self._make_shards(download_config)
        found: dict[str, list[tuple[epath.Path, int]]] = {}
        for chunk in chunks:
            outcome = read_outcome(work, chunk)
            if outcome is None:
                raise ValueError(f"{work}: chunk {chunk} is not done")
            for split, sizes in outcome["sizes"].items():
                found.setdefault(split, []).append((shard_path(work, chunk, split), len(sizes)))
        infos = []
        for split, shards in sorted(found.items()):
            template = self._get_filename_template(split)
            sizes = [path.stat().length for path, _ in shards]
            joined = list(groups(sizes))
            progress = watched(joined, desc=f"writing {split}", unit=" files", delay=2)
            for index, group in enumerate(progress):
                # the chunks' files stay in the work folder: if something later fails, they need not be made again
                target = self.data_path / template.relative_filepath(shard_index=index, num_shards=len(joined))
                join_files([shards[place][0] for place in group], target, self.info.file_format.value)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[sum(shards[place][1] for place in group) for group in joined],
                    num_bytes=sum(sizes),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.splits.SplitDict(infos))


class Description(ConversationsBuilder):
    """Molecules and their descriptions: "Describe this molecule." → description.

    Inputs: ChEBI-20 (Edwards et al., 2021; BSD-3-Clause, texts from ChEBI, CC BY 4.0) as TSV; PubChem324k-style CSV,
    JSONL or torch files (Liu et al., 2023; PubChem's contributors keep their rights); any table with both columns.
    """

    CITATION = """\
@inproceedings{edwards2021text2mol,
  title={{Text2Mol}: Cross-Modal Molecule Retrieval with Natural Language Queries},
  author={Edwards, Carl and Zhai, ChengXiang and Ji, Heng}, booktitle={EMNLP}, year={2021}}
@inproceedings{liu2023molca,
  title={{MolCA}: Molecular Graph-Language Modeling with Cross-Modal Projector and Uni-Modal Adapter},
  author={Liu, Zhiyuan and others}, booktitle={EMNLP}, year={2023}}"""


class IupacName(ConversationsBuilder):
    """Molecules and their IUPAC names.

    Inputs: PubChem tables (names computed by LexiChem; PubChem's terms), or any table with both columns.
    """

    CITATION = """\
@article{kim2023pubchem,
  title={{PubChem} 2023 update}, author={Kim, Sunghwan and others}, journal={Nucleic Acids Research}, year={2023}}"""


class PropertyRegression(ConversationsBuilder):
    """Molecules and numbers; questions state the unit.

    Inputs: QM9 CSV (HOMO, LUMO and their gap in Hartree; Ramakrishnan et al., 2014; CC0), MoleculeNet CSV (ESOL in log
    mol/L, FreeSolv in kcal/mol, lipophilicity logD, BACE pIC50; Wu et al., 2018; MIT), any table with number columns.
    """

    CITATION = (
        """\
@article{ramakrishnan2014quantum,
  title={Quantum chemistry structures and properties of 134 kilo molecules},
  author={Ramakrishnan, Raghunathan and others}, journal={Scientific Data}, year={2014}}
"""
        + _MOLECULENET
    )


class PropertyClassification(ConversationsBuilder):
    """Molecules and yes/no properties.

    Inputs: MoleculeNet CSV (BACE, BBBP, HIV, ClinTox; Wu et al., 2018; MIT), any table with 0/1 columns.
    """

    CITATION = _MOLECULENET


class ForwardReaction(ConversationsBuilder):
    """Reactants and reagents, each shown as a graph, and the product.

    Inputs: USPTO reactions (Lowe, 2012; CC0) as `reactants>reagents>products` or in columns.
    """

    CITATION = """\
@phdthesis{lowe2012extraction,
  title={Extraction of chemical structures and reactions from the literature},
  author={Lowe, Daniel Mark}, school={University of Cambridge}, year={2012}}"""


class Retrosynthesis(ConversationsBuilder):
    """A product and the reactants that it can be made from.

    Inputs: USPTO-50k and other USPTO reactions (Lowe, 2012; CC0), as for forward reactions.
    """

    CITATION = ForwardReaction.CITATION


class Instruction(ConversationsBuilder):
    """Multi-turn conversations about molecules.

    Inputs: JSONL of {"smiles", "messages": [{"role", "content"}]}; LLaMo's instruction data as torch files (Park et
    al., 2024; generated with GPT-4, whose terms apply). The licence of other conversations is their source's.
    """

    CITATION = """\
@inproceedings{park2024llamo,
  title={{LLaMo}: Large Language Model-based Molecular Graph Assistant},
  author={Park, Jinyoung and others}, booktitle={NeurIPS}, year={2024}}"""


class MoleculeGeneration(ConversationsBuilder):
    """Descriptions and the molecules that fit them; inputs and licences as for descriptions."""

    CITATION = Description.CITATION


BUILDERS: dict[str, type[ConversationsBuilder]] = {
    "description": Description,
    "iupac_name": IupacName,
    "property_regression": PropertyRegression,
    "property_classification": PropertyClassification,
    "forward_reaction": ForwardReaction,
    "retrosynthesis": Retrosynthesis,
    "instruction": Instruction,
    "molecule_generation": MoleculeGeneration,
}
"""Task name → builder."""
