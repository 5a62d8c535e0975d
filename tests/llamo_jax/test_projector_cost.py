"""What projectors cost: counts that are known, growth by known powers, and the report."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1, stage2
from llamo_jax import runs
from llamo_jax.analysis import projector_cost
from llamo_jax.models import MultiLevelConfig
from llamo_jax.models.projectors.budget import matched


def test_exponents():
    sizes = [1, 10, 100, 1000]
    assert projector_cost.exponent(sizes, [9.0, 5.0, 500.0, 50000.0]) == pytest.approx(2)
    assert projector_cost.exponent(sizes[::-1], [50000.0, 500.0, 5.0, 9.0]) == pytest.approx(2)  # in any order
    assert projector_cost.exponent([1], [2.0]) is None
    assert projector_cost.exponent([1, 2], [0.0, 0.0]) is None


def test_molecules_are_as_large_as_they_are_said_to_be():
    molecules = projector_cost.molecules_of(50, 3)
    assert molecules.atoms.n_node[0, :3].tolist() == [50] * 3
    assert molecules.atoms.n_edge[0, :3].tolist() == [98] * 3
    assert molecules.motifs.n_node[0, :3].tolist() == [18] * 3
    assert jnp.all(molecules.motifs.nodes.sum(axis=-1)[0, :54] == 1)


def test_flops_of_an_mlp_are_those_of_its_products():
    """Of 28 tokens of each molecule through two matrices: forward once, and backward twice as much."""
    config = matched("mlp_nodes", MultiLevelConfig.paper(depth=2), 24, 6, 32)
    found = projector_cost.costs(config, (24, 6, 32), atoms=10, count=7, repeats=1)
    slots = 8  # seven molecules and the padding slot
    products = 2 * slots * 28 * config.hidden_width * (24 + 32)
    assert found["forward"]["flops"] == pytest.approx(products, rel=0.2)
    assert found["forward_and_backward"]["flops"] == pytest.approx(3 * products, rel=0.2)
    assert found["forward"]["seconds"] > 0


def test_shares_of_a_step():
    stage_1, stage_2 = (runs.read_config(stage.get_config("tiny")) for stage in (stage1, stage2))
    shares = {kind: projector_cost.share_of_step(stage_1, matched(kind, stage_1.model.projector, 64, 6, 128))
              for kind in ("none", "mlp_nodes", "multi_level")}  # fmt: skip
    assert shares["none"] == 0
    # an MLP as wide as four attentions, on every graph token
    assert 0 < shares["multi_level"] < shares["mlp_nodes"] < 0.5
    # the more is frozen around it, the larger its part
    assert projector_cost.share_of_step(stage_2, stage_2.model.projector) > shares["multi_level"]


def test_the_program(tmp_path, capsys):
    settings = "--kinds none skip --atoms 4,8 --molecules 2 --repeats 1 --share configs/stage1.py:llama2_7b"
    projector_cost.main(["--output", str(tmp_path / "out"), *settings.split()])
    result = json.loads((tmp_path / "out" / "projector_cost.json").read_text())
    skip, none = result["kinds"]["skip"], result["kinds"]["none"]
    assert [(row["atoms"], row["molecules"]) for row in skip["measured"]] == [(4, 2), (8, 2)]
    assert (none["parameters"], none["graph_tokens"], none["exponents"]["atoms"]["flops"]) == (0, 0, None)
    assert 0 < skip["share_of_step"]["configs/stage1.py:llama2_7b"] < 0.1
    assert np.isfinite(skip["exponents"]["atoms"]["flops"])
    assert (tmp_path / "out" / "projector_cost.png").read_bytes().startswith(b"\x89PNG")
    assert "| skip | 28 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no configuration file 'nowhere\.py'"):
        projector_cost.main(["--output", str(tmp_path / "other"), "--of", "nowhere.py"])
