"""Meshes over TPUs that are not here: every process builds its part of a batch, whatever the torus gives it.

`python -m tests.llamo_jax.test_topologies`, with libtpu (extra [tpu]), writes topologies.json: the chips of each
topology as libtpu describes them.
"""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import stage1
from data_pipeline.batch import BatchShape, RowSize
from data_pipeline.loader import BatchLoader, PackedDataset
from llamo_jax import loading, runs, sharding
from llamo_jax.config import ConfigError, MeshConfig
from llamo_jax.models.definition import define_model
from tests import helpers

STORED = Path(__file__).parent / "topologies.json"
NAMES = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v6e:4x4", "v5p:2x2x4", "v5p:4x4x4", "2 x v5e:4x4")
LARGE = ("llama2_7b", "llama3_8b", "qwen2_7b")
GB = {"v5e": 16, "v6e": 32, "v5p": 95}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX's mesh code looks at."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int
    slice_index: int
    device_kind: str
    platform: str = "tpu"


def chips(name: str) -> list[Chip]:
    """The chips of a topology."""
    stored = json.loads(STORED.read_text())[name]
    return [Chip(*values[:2], tuple(values[2]), *values[3:], stored["kind"]) for values in stored["chips"]]


def factorisations(count: int) -> list[tuple[int, int, int]]:
    """All sizes of the three mesh axes."""
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    return [triple for triple in itertools.product(sizes, repeat=3) if np.prod(triple) == count]


def mesh_over(grid: np.ndarray) -> Mesh:
    return Mesh(grid, sharding.AXES)


@pytest.fixture(scope="module")
def dataset():
    encoded = [helpers.conversation((smiles,), 9 + 3 * i, i) for i, smiles in enumerate(helpers.SMILES * 9)]
    return PackedDataset(helpers.EncodedSource(encoded), RowSize(260, 3, 20, 40, 9))


@pytest.mark.parametrize("name", NAMES)
def test_every_factorisation_has_a_layout(name):
    devices = chips(name)
    slices = len({chip.slice_index for chip in devices})
    for sizes in factorisations(len(devices)):
        config = MeshConfig(*sizes)
        if sizes[0] % slices:
            with pytest.raises(ConfigError, match=rf"data={sizes[0]} does not divide over the {slices} slices"):
                sharding.device_grid(config, devices)
            continue
        grid = sharding.device_grid(config, devices)
        assert grid.shape == sizes
        assert {chip.id for chip in grid.flat} == {chip.id for chip in devices}
        count = sizes[0] * sizes[1]
        held = {
            process: sharding.local_shards(mesh_over(grid), process).numbers
            for process in {chip.process_index for chip in devices}
        }
        # every device finds its shard in what its process has built
        for place, chip in np.ndenumerate(grid):
            assert place[0] * sizes[1] + place[1] in held[chip.process_index]
        assert set(itertools.chain(*held.values())) == set(range(count))


@pytest.mark.parametrize(("name", "first"), [
    ("v5e:2x4", (0, 1, 2, 3)),
    ("v5e:4x4", (0, 1, 6, 15)),
    ("v5e:8x8", (0, 1, 8, 9)),
    ("v6e:4x4", (0, 1, 6, 15)),
    ("v5p:2x2x4", (0, 4, 8, 12)),
    ("v5p:4x4x4", (0, 4, 16, 20)),
    ("2 x v5e:4x4", (0, 1, 6, 15)),
])  # fmt: skip
def test_all_processes_together_build_the_batch_of_one(name, first, dataset):
    """On the default mesh; `first`: the shards of process 0, which are no neighbours."""
    devices = chips(name)
    slices = len({chip.slice_index for chip in devices})
    mesh = mesh_over(sharding.device_grid(MeshConfig(slices, -1, 1), devices))
    count = sharding.batch_shards(mesh)
    loader = BatchLoader([dataset], [1.0], BatchShape(2 * count, count, dataset.row))
    whole = next(loader.training_batches(3, 2))
    assert sharding.local_shards(mesh, 0).numbers == first
    for process in sorted({chip.process_index for chip in devices}):
        shards = sharding.local_shards(mesh, process)
        part = next(loader.training_batches(3, 2, shards))
        rows = [2 * shard + row for shard in shards.numbers for row in range(2)]
        np.testing.assert_array_equal(part.tokens, whole.tokens[rows])
        np.testing.assert_array_equal(part.molecule_slot, whole.molecule_slot[rows])
        np.testing.assert_array_equal(part.molecules.atoms.nodes, whole.molecules.atoms.nodes[list(shards.numbers)])


@pytest.fixture(scope="module")
def models():
    """Definitions and configurations of the large presets."""
    configs = {name: runs.read_config(stage1.get_config(name)).model for name in LARGE}
    return {name: (define_model(model), model) for name, model in configs.items()}


@pytest.mark.parametrize("preset", LARGE)
@pytest.mark.parametrize("name", NAMES)
def test_every_topology_decodes_large_models(name, preset, models):
    """Weights in bfloat16 of 14 to 16 GB: on two chips of a v5e, on one of the others; answers fit beside them."""
    definition, model = models[preset]
    kind = name.rpartition(" ")[2].partition(":")[0]
    mesh = loading.decoding_mesh(definition, model, 0, 128, devices=chips(name), limit=GB[kind] * 2**30)
    assert mesh.size == len(chips(name))
    assert mesh.shape["tensor"] == {"v5e": 2, "v6e": 1, "v5p": 1}[kind]


def test_a_model_that_does_not_fit_is_said(models):
    definition, model = models["llama2_7b"]
    with pytest.raises(ConfigError, match=r"do not fit 8 devices of 1 GB; use more devices, or train .*quantize"):
        loading.decoding_mesh(definition, model, 0, 128, devices=chips("v5e:2x4"), limit=1e9)


def test_rows_reach_their_devices_in_any_order():
    mesh = mesh_over(np.array(jax.devices())[[0, 3, 5, 1, 7, 2, 6, 4]].reshape(2, 4, 1))
    rows = np.arange(2 * 16 * 3).reshape(2, 16, 3)
    placed = sharding.put_batch(rows, mesh, leading=1)
    np.testing.assert_array_equal(np.asarray(placed), rows)
    for shard in placed.addressable_shards:
        position = mesh.devices.ravel().tolist().index(shard.device)
        np.testing.assert_array_equal(np.asarray(shard.data), rows[:, 2 * position : 2 * position + 2])


def describe(name: str) -> dict:
    """What libtpu says of a topology."""
    from jax.experimental import topologies

    slices, _, topology = name.rpartition(" x ")
    settings = {"num_slices": int(slices)} if slices else {}
    devices = topologies.get_topology_desc(topology, platform="tpu", **settings).devices
    table = [
        [x.id, x.process_index, [*x.coords], x.core_on_chip, getattr(x, "slice_index", 0)]
        for x in devices
        for chip in devices
    ]
    return {"kind": devices[0].device_kind, "chips": table}


if __name__ == "__main__":
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    lines = [f"{json.dumps(name)}: {json.dumps(describe(name))}" for name in NAMES]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
