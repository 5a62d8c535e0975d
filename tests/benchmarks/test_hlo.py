"""The reading of compiled programs, and the FLOPs that a step needs: against programs whose work is known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import hlo
from configs import stage2
from data_pipeline.batch import collate
from llamo_jax import runs, sharding
from llamo_jax.config import MeshConfig
from llamo_jax.training.flops import minimal_flops
from llamo_jax.training.program import abstract_batches, batch_shape, make_program
from tests import helpers


def analysed(function, *arguments):
    return hlo.analyse(jax.jit(function).lower(*arguments).compile().as_text())


def test_loops_count_as_often_as_they_run():
    def product(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    x, w = jax.ShapeDtypeStruct((8, 64), jnp.float32), jax.ShapeDtypeStruct((7, 64, 64), jnp.float32)
    assert analysed(product, x, w).matmul_flops == 7 * 2 * 8 * 64 * 64
    # backward: gradients by activations alone; the first one is not wanted
    assert analysed(jax.grad(lambda x, w: jnp.sum(product(x, w))), x, w).matmul_flops <= 2 * 7 * 2 * 8 * 64 * 64


def test_of_a_conditional_the_dearest_branch_counts():
    def either(x):
        return jax.lax.cond(jnp.sum(x) > 0, lambda: x @ x @ x, lambda: x @ x)

    assert analysed(either, jax.ShapeDtypeStruct((32, 32), jnp.float32)).matmul_flops == 2 * 2 * 32**3


def test_collectives_are_counted_in_bytes_by_kind():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
    work = hlo.analyse(gather.lower(x).compile().as_text())
    assert work.collective_bytes == {"all-gather": 64 * 16 * 4}


@pytest.mark.parametrize(
    ("window", "shapes", "expected"),
    [
        # one product of [5, 7] and [7, 3]; one matrix by two others (the window slides over padding); two pairs (holes)
        ("", ("5,7", "7,3", "5,3", "bf_io->bf"), 2 * 5 * 7 * 3),
        (" window={size=2 pad=1_1 rhs_reversal=1},", ("5,7,1", "2,3,7", "5,2,3", "bf0_0oi->b0f"), 2 * 2 * 5 * 7 * 3),
        (" window={size=2 stride=1 lhs_dilate=2},", ("2,5,7", "2,7,3", "2,5,3", "0bf_0io->0bf"), 2 * 2 * 5 * 7 * 3),
    ],
)
def test_convolutions_that_are_products(window, shapes, expected):
    """The TPU compiler's forms of (batched) matrix products, as they stand in its output."""
    left, right, out, labels = shapes
    text = f"""ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[{out}] {{
  %a = f32[{left}]{{0}} parameter(0)
  %b = f32[{right}]{{0}} parameter(1)
  ROOT %c = f32[{out}]{{0}} convolution(%a, %b),{window} dim_labels={labels}
}}"""
    assert hlo.analyse(text).matmul_flops == expected


def test_a_gather_that_is_fused_with_products_counts_once():
    """XLA for TPUs writes it in the fusions of its start, of each step in a loop, and of its end, with one channel."""
    gather = "%g = bf16[16,64]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}"
    text = f"""%start (p: bf16[4,64]) -> (bf16[4,64], bf16[16,64]) {{
  %p = bf16[4,64]{{1,0}} parameter(0)
  {gather}
  ROOT %c = (bf16[4,64]{{1,0}}, bf16[16,64]{{1,0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%step (p: bf16[4,64]) -> bf16[16,64] {{
  %p = bf16[4,64]{{1,0}} parameter(0)
  ROOT {gather}
}}

%other (p: bf16[4,64]) -> bf16[16,64] {{
  %p = bf16[4,64]{{1,0}} parameter(0)
  ROOT {gather.replace("channel_id=7", "channel_id=8")}
}}

ENTRY %main (a: bf16[4,64]) -> bf16[16,64] {{
  %a = bf16[4,64]{{1,0}} parameter(0)
  %one = (bf16[4,64]{{1,0}}, bf16[16,64]{{1,0}}) fusion(%a), kind=kCustom, calls=%start
  %two = bf16[16,64]{{1,0}} fusion(%a), kind=kCustom, calls=%step
  %three = bf16[16,64]{{1,0}} fusion(%a), kind=kCustom, calls=%step
  ROOT %four = bf16[16,64]{{1,0}} fusion(%a), kind=kCustom, calls=%other
}}"""
    assert hlo.analyse(text).collective_bytes == {"all-gather": 2 * 16 * 64 * 2}


def test_loops_that_the_compiler_unrolled():
    """A collective matrix product: its counter grows by 2, and is compared with 8."""
    text = """%body (p: (f32[4,4], u32[])) -> (f32[4,4], u32[]) {
  %p = (f32[4,4]{1,0}, u32[]) parameter(0)
  %two = u32[] constant(2)
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = u32[] add(%i, %two)
  ROOT %out = (f32[4,4]{1,0}, u32[]) tuple(%y, %next)
}

%condition (q: (f32[4,4], u32[])) -> pred[] {
  %q = (f32[4,4]{1,0}, u32[]) parameter(0)
  %end = u32[] constant(8)
  %j = u32[] get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (a: (f32[4,4], u32[])) -> (f32[4,4], u32[]) {
  %a = (f32[4,4]{1,0}, u32[]) parameter(0)
  ROOT %loop = (f32[4,4]{1,0}, u32[]) while(%a), condition=%condition, body=%body
}"""
    assert hlo.analyse(text).matmul_flops == 4 * 2 * 4**3
    with pytest.raises(ValueError, match="how often the loop"):
        hlo.analyse(text.replace("direction=LT", "direction=NE"))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_nothing_is_spent_on_gradients_of_frozen_weights(remat):
    """The train step of stage 2, compiled: its matrix products are those that are needed, and one more forward pass."""
    config = runs.read_config(stage2.get_config("tiny"))
    sizes = helpers.model_config(lora_rank=4, width=128, head_width=32, mlp_width=512, num_layers=6).language_model
    model = dataclasses.replace(
        config.model, language_model=dataclasses.replace(sizes, vocab_size=256), remat=remat, attention="xla"
    )
    config = helpers.with_row(dataclasses.replace(config, model=model), helpers.ROW._replace(tokens=64))
    mesh = sharding.single_device_mesh()
    shape = batch_shape(config, 1)
    program = make_program(config, mesh)
    batches = abstract_batches(collate([], shape), mesh)
    compiled = program.train_step.lower(program.state, program.frozen, batches).compile()
    found = hlo.analyse(compiled.as_text()).matmul_flops
    parts = minimal_flops(model, shape, program.state.trained)
    needed = sum(part.total() for part in parts.values())
    again = parts["decoder_layers"].forward if remat == "full" else 0
    assert needed * 0.95 < found < (needed + again) * 1.06
    frozen_gradients = parts["decoder_layers"].forward
    assert found + frozen_gradients > (needed + again) * 1.06  # the bound would notice them


def test_programs_that_do_not_fit_say_what_they_need():
    whole = "RESOURCE_EXHAUSTED: ... Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G."
    assert hlo.exhausted(whole) == {"total": int(17.5 * 2**30), "limit": int(15.75 * 2**30)}
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (129.98G) exceeds "
        "available HBM (15.75G)."
    )
    assert hlo.exhausted(temporaries) == {"total": int(129.98 * 2**30), "limit": int(15.75 * 2**30)}
    assert hlo.exhausted("RESOURCE_EXHAUSTED: other words") == {"total": None}
