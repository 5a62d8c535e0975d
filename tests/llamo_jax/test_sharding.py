"""Where every array lives. `python -m tests.llamo_jax.test_sharding` writes shardings.json anew; review its changes."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from configs import stage1, stage2
from configs.presets import PRESETS
from llamo_jax import runs, sharding
from llamo_jax.config import ConfigError, MeshConfig
from llamo_jax.models import layers
from llamo_jax.models.definition import initial_arrays
from llamo_jax.training.program import make_program
from tests import helpers

SNAPSHOT = Path(__file__).parent / "shardings.json"


def described(preset: str) -> dict[str, str]:
    """Every array of stage 2: dtype, shape, the mesh axis of each dimension, and whether it is trained."""
    values = stage2.get_config(preset)
    if preset == "smollm2":  # whose dtypes follow the machine
        values.model.update({"compute_dtype": "float32", "frozen_dtype": "float32"})
    program = make_program(runs.read_config(values), sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    lines = {}
    for kind, arrays in (
        ("trained", program.state.trained),
        ("statistic", program.state.statistics),
        ("frozen", program.frozen),
    ):
        for name, spec in arrays.items():
            places = [*spec.sharding.spec, *[None] * len(spec.shape)][: len(spec.shape)]
            axes = ", ".join(f"{size} {axis or '-'}" for size, axis in zip(spec.shape, places, strict=True))
            lines[name] = f"{spec.dtype}[{axes}] {kind}"
    return dict(sorted(lines.items()))


@pytest.mark.parametrize("preset", PRESETS)
def test_shardings_are_those_of_the_snapshot(preset):
    assert described(preset) == json.loads(SNAPSHOT.read_text())[preset]


def test_moments_live_where_their_parameters_do():
    program = make_program(
        runs.read_config(stage1.get_config("small")), sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    )
    kernel = "language_model/layers/gate/kernel"
    moments = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.optimizer)
        if path[-1] == jax.tree_util.DictKey(kernel)
    ]
    assert moments == [program.state.trained[kernel].sharding.spec] * 2 == [PartitionSpec(None, "fsdp", "tensor")] * 2


def test_an_unknown_axis_and_a_size_that_does_not_divide_are_named():
    class Typo(nnx.Module):
        def __init__(self):
            self.kernel = layers.parameter(layers.ones, (8, 6), ("embed", "mpl"), rngs=nnx.Rngs(0))

    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    with pytest.raises(ConfigError, match=r"kernel: no rule for the logical axis 'mpl'; known: embed, mlp, "):
        sharding.parameter_shardings(nnx.state(nnx.eval_shape(Typo)), mesh)
    config = runs.read_config(stage1.get_config("tiny"))
    model = dataclasses.replace(config.model, language_model=helpers.model_config(width=36).language_model)
    with pytest.raises(ConfigError, match=r"language_model/.*: size 36 does not divide over 8 devices of 'fsdp'"):
        make_program(dataclasses.replace(config, model=model), mesh)
    with pytest.raises(ConfigError, match=r"data=3, fsdp=-1, tensor=1.*8 devices"):
        sharding.make_mesh(MeshConfig(data=3, fsdp=-1, tensor=1))


def test_only_data_goes_from_slice_to_slice():
    """Two slices of four chips each, as TPUs tell of themselves."""
    devices = [
        types.SimpleNamespace(
            id=index, platform="tpu", device_kind="TPU v4", process_index=index // 4, slice_index=index // 4,
            coords=(index % 2, index // 2 % 2, 0), core_on_chip=0,
        )
        for index in range(8)
    ]  # fmt: skip
    grid = sharding.device_grid(MeshConfig(data=2, fsdp=-1, tensor=1), devices)
    assert grid.shape == (2, 4, 1)
    assert [{device.slice_index for device in part.flat} for part in grid] == [{0}, {1}]
    with pytest.raises(ConfigError, match="data=1 does not divide over the 2 slices"):
        sharding.device_grid(MeshConfig(data=1, fsdp=-1, tensor=1), devices)


def test_a_program_keeps_its_shardings_compiles_once_and_donates():
    config = runs.read_config(stage1.get_config("tiny"))
    config = dataclasses.replace(config, model=helpers.model_config())
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        arrays = initial_arrays(config.model, program.arrays(), seed=0)
        for name, array in arrays.items():
            assert array.sharding == program.arrays()[name].sharding
            whole = int(np.prod(array.shape))
            assert array.addressable_shards[0].data.size == whole // (array.sharding.num_devices // copies(array))
        first = state = program.initial_state(arrays)
        batches = jax.tree.map(lambda x: x[None], helpers.host_batch(sharding.batch_shards(mesh)))
        for _ in range(3):
            state, _ = program.train_step(state, {}, sharding.put_batch(batches, mesh, leading=1))
    assert program.train_step._cache_size() == 1
    assert all(array.is_deleted() for array in first.trained.values())
    jax.tree.map(lambda array, spec: check(array.sharding, spec.sharding), state, program.state)


def copies(array: jax.Array) -> int:
    """On how many devices each part of an array is."""
    return sum(shard.index == array.addressable_shards[0].index for shard in array.addressable_shards)


def check(ours, theirs):
    assert ours == theirs


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps({preset: described(preset) for preset in PRESETS}, indent=1) + "\n")
