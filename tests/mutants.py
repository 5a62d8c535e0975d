"""Planted faults: each changes one place of core logic, and the named tests must notice.

    python -m tests.mutants                 # all of them, two at a time: some 40 minutes on two cores
    python -m tests.mutants packing loss    # those whose file or name has one of these words

Works on copies of the checkout. The tests must pass on an unchanged copy first. Ends with status 1 if they don't, if a
fault survives, or if a text that it changes is not there once.
"""

import argparse
import concurrent.futures
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
HANG_SECONDS = 1200  # a fault may make a loop endless: that counts as noticed

BATCHING = "tests/data_pipeline/test_batching.py"
PREPARE = "tests/data_pipeline/test_prepare.py"
STORAGE = "tests/data_pipeline/test_storage.py"
GOLDEN = "tests/llamo_jax/test_golden.py"
MODELS = "tests/llamo_jax/test_models.py"
TRAINING = "tests/llamo_jax/test_training.py"
FAULTS = "tests/llamo_jax/test_faults.py"
DECODING = "tests/llamo_jax/test_decoding.py"
EVALUATION = "tests/llamo_jax/test_evaluation.py"
CONFIG = "tests/llamo_jax/test_config.py"
KINDS = "tests/llamo_jax/test_kinds.py"
SMOOTHING = "tests/llamo_jax/test_smoothing.py -k 'not program'"
CHECKSUMS = "tests/llamo_jax/test_checksums.py"
RECORD_FILES = "tests/data_pipeline/test_record_files.py -k 'any_records or joined'"
TOPOLOGIES = "tests/llamo_jax/test_topologies.py -k 'layout or together'"
CLUSTERS = "tests/llamo_jax/test_clusters.py"
INSTRUCT = "tests/data_pipeline/test_instruct.py -k 'not rules and not planted and not sheets and not judges'"
INSTRUCT_JOB = "tests/data_pipeline/test_instruct_job.py -k 'not kills and not streams and not slowest'"
BATCHER = "tests/llamo_jax/test_batcher.py"
OBSERVABILITY = "tests/llamo_jax/test_observability.py -k 'progress or utilisation'"


class Mutant(NamedTuple):
    """In `file`, `old`, which stands there once, becomes `new`; `tests` are arguments for pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def _mutants() -> list[Mutant]:
    found: list[Mutant] = []

    def plant(file: str, tests: str, **changes: tuple[str, str]) -> None:
        found.extend(Mutant(name, file, old, new, tests) for name, (old, new) in changes.items())

    plant(
        "data_pipeline/packing.py",
        BATCHING,
        a_full_row_takes_nothing=("(free[0, :, first:end] >= size[0]", "(free[0, :, first:end] > size[0]"),
        rows_are_overfilled=("        free[:, every, row] -= size\n", "        free[:, every, row] -= size // 2\n"),
        short_ones_first=("np.argsort(-sizes[windows, 0]", "np.argsort(sizes[windows, 0]"),
        tokens_alone_count=("(free[1:, every, row] < size[1:])", "(free[1:, every, row] < 0)"),
        cut_rows_are_empty=("starts[cut] + sizes[cut] // 2", "starts[cut] + sizes[cut]"),
        mixture_repeats_a_block=("block * _block_counts(weights)[source] +", "0 *"),
    )
    plant(
        "data_pipeline/batch.py",
        BATCHING,
        targets_are_the_tokens=("= conversation.tokens[1:]  #", "= conversation.tokens[:-1]  #"),
        mask_is_one_off=("= conversation.is_target[1:]", "= conversation.is_target[:-1]"),
        slots_of_the_first_conversation=("molecule + len(graphs), -1)", "molecule, -1)"),
        positions_go_on=("= np.arange(length)", "= np.arange(start, end)"),
        edges_of_the_first_molecule=("graph.receivers + offset", "graph.receivers"),
        padding_edges_meet_real_atoms=("np.arange(offsets[-1], num_atoms, dtype", "np.arange(num_atoms, dtype"),
        segments_are_one=("segments[index, start:end] = segment", "segments[index, start:end] = 1"),
    )
    plant(
        "data_pipeline/loader.py",
        BATCHING,
        every_epoch_alike=("if attempt else (seed, epoch))", "if attempt else (seed, 0))"),
        seed_is_ignored=("rng = np.random.default_rng((seed, 0))", "rng = np.random.default_rng((0, 0))"),
        epochs_differ_in_length=("rows.split(count).shuffled(rng))", "rows.shuffled(rng))"),
        the_last_target_is_cut=("np.minimum(tokens, row.tokens + 1)", "np.minimum(tokens, row.tokens)"),
        no_target_is_kept=("first_target >= length", "first_target > length"),
        another_process_rows=("step * self.shape.rows + position)", "step * self.shape.rows)"),
    )
    plant(
        "data_pipeline/prompt.py",
        BATCHING,
        truncation_loses_one=("    length = max_tokens + 1  #", "    length = max_tokens  #"),
        graph_tokens_are_cut=(
            "np.any(conversation.molecule[length:] >= 0)",
            "np.any(conversation.molecule[length:] > 0)",
        ),
    )
    plant(
        "llamo_jax/models/products.py",
        "tests/llamo_jax/test_products.py",
        sums_are_bfloat16=(
            "jnp.matmul(x, matrix, preferred_element_type=jnp.float32).astype(x.dtype)",
            "jnp.matmul(x, matrix)",
        ),
        inputs_of_frozen_matrices_are_kept=("x.value if matrix.perturbed else None", "x.value"),
        the_matrix_is_not_transposed=("_matmul(cotangent, matrix.T)", "_matmul(cotangent, matrix)"),
    )
    plant(
        "llamo_jax/generation/prompts.py",
        "tests/llamo_jax/test_generation.py -k other_graphs",
        other_graphs_as_molecules=("row, *vocabulary.widths)", "row)"),
    )
    plant(
        "data_pipeline/tables.py",
        "tests/data_pipeline/test_files.py -k 'lines_are or smi'",
        the_first_piece_is_known_by_its_text=("                if place:", "                if place and part:"),
    )
    plant(
        "data_pipeline/shards.py",
        f"{PREPARE} -k 'scaffolds or accounted or without_its_records or product or held_out or rows_time'",
        split_by_molecule=("murcko_scaffold(text) or text", "text or text"),
        reactions_go_by_their_solvent=('if task in ("forward_reaction", ', 'if task in ("no_reaction", '),
        one_of_several_decides=("min(found.values(), key=order.index)", "found[places[0]]"),
        lengths_are_the_last_rows_time=("    on_row(None)\n    if job.prompt", "    if job.prompt"),
        a_cut_chunk_is_done=("return outcome if done else None", "return outcome"),
    )
    plant(
        "data_pipeline/molecule.py",
        GOLDEN,
        charge_is_shifted=("charge + 5 if -5 <= charge", "charge + 6 if -5 <= charge"),
        hydrogens_without_limit=("np.minimum(graph.hydrogens, 9)", "np.minimum(graph.hydrogens, 2)"),
        edges_point_one_way=("both[::-1].T.reshape(-1)", "both.T.reshape(-1)"),
    )
    plant(
        "data_pipeline/motifs.py",
        GOLDEN,
        fused_rings_stay_apart=("if len(other & ring) > 2]\n        while", "if len(other & ring) > 3]\n        while"),
        acetals_are_no_group=("if count >= 2 and", "if count >= 3 and"),
        last_slot_overflows=("numbers.count(element)", "numbers.count(element) // 2"),
    )
    plant(
        "data_pipeline/storage.py",
        STORAGE,
        not_on_the_disk=("        _synchronise(partial)\n", ""),
        a_cut_line_counts=('*lines, _cut = path.read_bytes().split(b"\\n")', 'lines = path.read_bytes().split(b"\\n")'),
        half_a_file_stays=("            partial.unlink(missing_ok=True)\n", "            pass\n"),
        nobody_waits=(
            "filelock.FileLock(os.fspath(folder / LOCK), timeout=0)",
            "filelock.FileLock(os.fspath(folder / LOCK) + str(os.getpid()), timeout=0)",
        ),
        addresses_are_folders=('return "://" in os.fspath(path)', "return False"),
    )
    plant(
        "data_pipeline/record_files.py",
        RECORD_FILES,
        a_files_end_is_its_last=('side="right")', 'side="left")'),
        files_stay_open=("if len(self._open) >= MOST_OPEN:", "if False:"),
    )
    plant(
        "llamo_jax/sharding.py",
        TOPOLOGIES,
        a_process_has_what_others_have=("any(device.process_index == process", "all(device.process_index == process"),
        axes_stay_whole=("return layout(allow_split_physical_axes=True)", "return layout()"),
    )
    plant(
        "llamo_jax/clusters.py",
        CLUSTERS,
        one_gpu_for_a_machine=("if count == 1 or", "if"),
        the_first_gpus_for_all=("range(rank * each, (rank + 1) * each)", "range(each)"),
        two_slices_share_numbers=("return job * in_job + place", "return place"),
    )
    plant(
        "llamo_jax/models/quantization.py",
        f"{MODELS} -k 'pieces or takes_less_memory'",
        the_first_piece_alone=("start = (layer, 0, 0, piece, 0)", "start = (layer, 0, 0, 0, 0)"),
    )
    plant(
        "llamo_jax/training/metrics.py",
        OBSERVABILITY,
        the_first_step_counts=("share = counted / (step - self._logged)", "share = 1.0"),
        validations_take_no_time=("(now - self._began) / (step - self._first)", "seconds / counted"),
        accumulated_batches_are_free=("rest * self._batches +", "rest +"),
    )
    plant(
        "llamo_jax/training/workdir.py",
        "tests/llamo_jax/test_validations.py",
        any_step_of_the_base_will_do=("which != at_step and", "False and"),
    )
    plant(
        "llamo_jax/training/metrics.py",
        "tests/llamo_jax/test_validations.py",
        the_last_validation_is_the_best=("if loss < self.best:", "if True:"),
        patience_never_ends=("return 0 < patience <= self.since", "return False"),
    )
    plant(
        "llamo_jax/training/checkpoints.py",
        "tests/llamo_jax/test_validations.py",
        the_worst_is_the_best=("return (min(known)[1], min(known)[0])", "return (max(known)[1], max(known)[0])"),
        the_newest_is_meant=("return int(which or steps[0])", "return steps[0]"),
        the_best_is_not_kept=("checkpoint.step == kept[0]", "False"),
    )
    plant(
        "llamo_jax/checksums.py",
        CHECKSUMS,
        a_linear_hash=("jnp.sum(_mixed(bits ^", "jnp.sum((bits ^"),
        places_do_not_count=("_mixed(index + np.uint32(0x9E3779B9))", "np.uint32(1)"),
    )
    plant(
        "llamo_jax/models/layers.py",
        f"{MODELS} {TRAINING} {GOLDEN} -k 'dropout or statistics or padding or golden or layer or logits'",
        dropout_keeps_its_rate=(
            "jax.random.bernoulli(key, 1 - rate, x.shape)",
            "jax.random.bernoulli(key, rate, x.shape)",
        ),
        dropout_shrinks=("jnp.where(keep, x / (1 - rate), 0)", "jnp.where(keep, x, 0)"),
        padding_counts_in_the_mean=(
            "weight = mask[..., None].astype(x.dtype)",
            "weight = jnp.ones_like(mask)[..., None].astype(x.dtype)",
        ),
        rms_norm_subtracts_the_mean=("jnp.mean(jnp.square(x32), axis=-1", "jnp.var(x32, axis=-1"),
        normalisation_without_its_bias=("* scale + bias, running", "* scale, running"),
    )
    plant(
        "llamo_jax/models/lora.py",
        f"{GOLDEN} {TRAINING} -k 'logits or adapter or merged'",
        alpha_without_the_rank=("else rank)", "else 1)"),
        adapters_keep_all_inputs=("key = None if self.dropout_key is None else", "key = None if True else"),
        one_mask_for_all_layers=(
            "jax.random.split(own, stack[0]) if stack",
            "jnp.broadcast_to(own, stack[:1]) if stack",
        ),
    )
    plant(
        "llamo_jax/models/attention.py",
        f"{MODELS} -k 'attention or packed or cached'",
        tokens_see_the_future=("return same & causal", "return same"),
        conversations_see_each_other=("return same & causal", "return causal & (segments > 0)[:, :, None]"),
        scale_is_lost=("q = (q * width**-0.5)", "q = (q * 1.0)"),
    )
    plant(
        "llamo_jax/models/llama.py",
        f"{GOLDEN} {MODELS} -k 'logits or cached or rope'",
        rotation_mirrored=(
            "first * cos - second * sin, second * cos + first * sin",
            "first * cos + second * sin, second * cos - first * sin",
        ),
        a_token_misses_itself=("jnp.arange(cache.slots) <= positions", "jnp.arange(cache.slots) < positions"),
        mlp_without_its_gate=("jax.nn.silu(self.gate(h)) * self.up(h)", "jax.nn.silu(self.gate(h)) + self.up(h)"),
        rope_scaling_is_ignored=("if config.rope_scaling is not None:", "if False:"),
    )
    plant(
        "llamo_jax/models/graph_encoders/gin.py",
        f"{GOLDEN} -k layer",
        eps_is_ignored=("(1 + self.eps[...].astype(nodes.dtype)) * nodes", "nodes"),
        messages_without_relu=("jax.nn.relu(sent + edges)", "(sent + edges)"),
    )
    plant(
        "llamo_jax/models/graph_encoders/gatv2.py",
        f"{KINDS} -k gatv2",
        an_atom_forgets_itself=("jnp.concatenate([senders, atoms])", "jnp.concatenate([senders, atoms * 0])"),
        the_sender_alone_decides=("sent[senders] + received[receivers] +", "sent[senders] +"),
    )
    plant(
        "llamo_jax/models/projectors/mlp_nodes.py",
        f"{KINDS} -k pooled",
        nodes_are_shown_once=("(token * nodes // queries <= place)", "(token * nodes / queries <= place)"),
    )
    plant(
        "llamo_jax/models/projectors/multi_level_without_motifs.py",
        f"{KINDS} -k shared_out",
        the_last_levels_get_more=("few + (level < more)", "few + (level >= levels - more)"),
    )
    plant(
        "llamo_jax/models/projectors/parts.py",
        f"{KINDS} -k 'its_own or no_slot'",
        everybody_s_atoms_count=(
            "total = jraph.segment_sum(weights, ids, num_segments)",
            "total = jraph.segment_sum(weights, ids, num_segments).sum(0)",
        ),
        padding_is_in_the_last_slot=("ids, len(slots))", "ids, len(slots) - 1)"),
    )
    plant(
        "llamo_jax/analysis/smoothing.py",
        SMOOTHING,
        energy_of_the_normalised_graph=(
            "edges[:, 1]], dtype=np.float64)) / norm",
            "edges[:, 1]], dtype=np.float64)) / norm / 2",
        ),
        components_are_forgotten=("stays = values > 1 - 1e-9", "stays = np.arange(len(values)) == len(values) - 1"),
        zeros_count_as_distances=("np.maximum(others, 1)", "max(len(x) - 1, 1)"),
    )
    plant(
        "llamo_jax/training/words.py",
        "tests/llamo_jax/test_words.py -k 'counts_more or yes_no'",
        all_words_weigh_the_same=(
            "weights = 1 + inverse_document_frequency(",
            "weights = 1 + 0 * inverse_document_frequency(",
        ),
    )
    plant(
        "llamo_jax/models/llamo.py",
        f"{GOLDEN} -k logits",
        the_first_molecule_is_text=("(batch.molecule_slot >= 0)[..., None]", "(batch.molecule_slot > 0)[..., None]"),
    )
    plant(
        "llamo_jax/training/loss.py",
        f"{TRAINING} -k loss_and",
        everything_counts=(
            "mask = (x.reshape(shards, -1, *x.shape[2:]) for x in (hidden, batch.targets, batch.target_mask))",
            "mask = (x.reshape(shards, -1, *x.shape[2:]) for x in (hidden, batch.targets, batch.segments > 0))",
        ),
        gradient_without_the_target=(
            "jnp.exp(logits - normaliser[..., None]) - is_target",
            "jnp.exp(logits - normaliser[..., None])",
        ),
        gradient_in_another_order=(
            "to_hidden = _take(to_hidden, jnp.argsort(order, axis=1))",
            "to_hidden = _take(to_hidden, order)",
        ),
    )
    plant(
        "llamo_jax/training/step.py",
        f"{TRAINING} {FAULTS} -k 'accumulation or finite_changes or lowers or repeat'",
        a_batch_is_a_batch=(
            "gradients = jax.tree.map(lambda g: g / targets, gradients)",
            "gradients = jax.tree.map(lambda g: g / batches.tokens.shape[0], gradients)",
        ),
        infinity_is_learned=("finite = jnp.isfinite(total) & jnp.isfinite(norm)", "finite = jnp.isfinite(norm) | True"),
    )
    plant(
        "llamo_jax/training/program.py",
        f"{TRAINING} -k statistics_move",
        a_frozen_encoder_moves=("batch_statistics=moves_statistics", "batch_statistics=True"),
    )
    plant(
        "llamo_jax/training/trainable.py",
        f"{TRAINING} -k 'trainable_rules or schedule'",
        the_last_rule_decides=("if name not in decided and re.fullmatch", "if re.fullmatch"),
        biases_decay=('_DECAYED = ("kernel",', '_DECAYED = ("kernel", "bias",'),
        no_warm_up=("peak / (warmup + 1), peak, warmup,", "peak, peak, warmup,"),
    )
    plant(
        "llamo_jax/training/loop.py",
        f"{TRAINING} -k 'accumulates or repeat or never_random'",
        a_run_reads_again=("step * settings.accumulate, shards)", "step, shards)"),
        frozen_ones_are_drawn=("random = [name for name in wanted if name in program.frozen]", "random = []"),
    )
    plant(
        "llamo_jax/training/checkpoints.py",
        f"{FAULTS} -k 'damaged or another_run or reader or full_disk'",
        damage_is_loaded=('if saved["checksums"].get(name) != value]', "if False]"),
        a_foreign_run_is_loaded=("owner not in (None, self._run_id)", "False"),
        another_step_is_loaded=("if int(state.step) != step:", "if False:"),
        readers_clean_up=("cleanup_tmp_directories=self._run_id is not None", "cleanup_tmp_directories=True"),
    )
    plant(
        "llamo_jax/training/workdir.py",
        f"{FAULTS} -k 'continued'",
        any_data_will_do=('if "data" in there and there["data"] != here["data"]:', "if False:"),
        any_tokenizer_will_do=('if "prompt" in there and there["prompt"] != here["prompt"]:', "if False:"),
        any_base_will_do=("if began != origin or (", "if ("),
        steps_go_back=("if steps and max(steps) > config.train.steps:", "if False:"),
        the_seed_may_change=("MAY_CHANGE = (\n", 'MAY_CHANGE = (\n    "seed",\n'),
    )
    plant(
        "llamo_jax/config.py",
        CONFIG,
        anything_is_finite=("allow_inf_nan=False", "allow_inf_nan=True"),
        unknown_keys_pass=('extra="forbid"', 'extra="ignore"'),
    )
    plant(
        "llamo_jax/evaluation/run.py",
        f"{EVALUATION} -k 'probability_of_yes'",
        yes_and_no_are_swapped=("math.exp(min(700.0, no - yes))", "math.exp(min(700.0, yes - no))"),
        the_first_answer_counts=(
            "row[count] for row, count in zip(values, before",
            "row[-1] for row, count in zip(values, before",
        ),
    )
    plant(
        "llamo_jax/evaluation/graph_use.py",
        f"{EVALUATION} -k 'graph_use'",
        a_graph_beside_itself=("[*records[half:], *records[:half]]", "records"),
    )
    plant(
        "llamo_jax/evaluation/answers.py",
        f"{EVALUATION} -k 'regression or classification or number'",
        spread_around_zero=("np.sum((y - y.mean()) ** 2)", "np.sum(y**2)"),
        squared_errors_are_mean_errors=("np.sqrt(np.mean((x - y) ** 2))", "np.mean(np.abs(x - y))"),
        no_answer_is_no=("right = sum(answer is truth", "right = sum(bool(answer) is truth"),
        auc_upside_down=("rankdata(scores)", "rankdata(-np.array(scores))"),
    )
    plant(
        "data_pipeline/claims.py",
        f"{EVALUATION} -k 'denied or claims'",
        only_no_denies=("without|lacks?|lacking|free of|devoid of", "without"),
        denials_are_claims=("return self._occurrences(kind, name)[0] == 0", "return True"),
    )
    plant(
        "data_pipeline/claims.py",
        "tests/llamo_jax/test_claims.py",
        what_was_replaced_is_there=("for unsaid in (_ELSEWHERE, _REPLACED, _OF_A_PART)", "for unsaid in (_ELSEWHERE,)"),
        hydrogenated_rings_are_of_no_class=(
            'return (has_ring_of_class(self._mol, name.removesuffix("s")),)',
            'return (has_ring(self._mol, name.removesuffix("s")),)',
        ),
    )
    plant(
        "data_pipeline/instruct/asking.py",
        INSTRUCT_JOB,
        replies_are_not_kept=("        self._replies.keep(request.key, answer)\n", ""),
        a_busy_server_is_asked_by_others=("max(self._not_before, time.monotonic() + error.after)", "self._not_before"),
        attempts_are_free=("self._spend(Spent(requests=1))", "self._spend(Spent())"),
        useless_replies_are_free=("            self._spend(Spent(0, *error.usage))", "            pass"),
        tokens_go_at_any_rate=("        for part in _parts(size, self._tokens.max_rate):", "        for part in ():"),
    )
    plant(
        "data_pipeline/instruct/grounding.py",
        INSTRUCT,
        yes_is_never_wrong=("            if not molecules[0].has(claim):", "            if False:"),
        the_second_is_the_first=('else [1] if mention["second"]', 'else [0] if mention["second"]'),
        roles_need_no_text=("            if not _stands_in(words, text):", "            if False:"),
    )
    plant(
        "data_pipeline/instruct/quality.py",
        INSTRUCT,
        what_follows_a_fault_is_kept=("min((finding.turn for", "max((finding.turn for"),
        smiles_may_be_told=("        if words & spellings:", "        if False:"),
    )
    plant(
        "data_pipeline/instruct/openai_teacher.py",
        INSTRUCT_JOB,
        redirects_are_followed=("follow_redirects=False", "follow_redirects=True"),
        answers_may_be_endless=("if len(received) > MAX_BYTES", "if len(received) > 1e9"),
    )
    plant(
        "llamo_jax/generation/processing.py",
        DECODING,
        penalty_rewards=(
            "jnp.where(scores < 0, scores * penalty, scores / penalty)",
            "jnp.where(scores < 0, scores / penalty, scores * penalty)",
        ),
        top_p_keeps_too_few=("jnp.sum(before < jnp", "jnp.sum(before + probabilities < jnp"),
        early_ends_are_allowed=("early = chosen < decoding.min_new_tokens", "early = chosen < 0"),
    )
    plant(
        "llamo_jax/generation/processing.py",
        BATCHER,
        temperature_of_a_row_is_passed_over=(
            "choices.temperature, 1e-6)[:, None]",
            "0 * choices.temperature, 1.0)[:, None]",
        ),
    )
    plant(
        "llamo_jax/generation/processing.py",
        DECODING,
        every_row_draws=("jnp.where(choices.temperature > 0, found,", "jnp.where(choices.temperature >= 0, found,"),
    )
    plant(
        "llamo_jax/generation/decode.py",
        BATCHER,
        limit_of_a_row_is_passed_over=("jnp.minimum(rows.choices.limit, ", "jnp.maximum(rows.choices.limit, "),
        nothing_is_released=("rows.finished.at[places].set(True", "rows.finished.at[places].set(False"),
    )
    plant(
        "llamo_jax/generation/batcher.py",
        BATCHER,
        samples_share_a_key=("np.array([each.seed, each.sample]", "np.array([each.seed, 0]"),
        cancelled_rows_go_on=("            self._engine.release(list(ended))\n", "            pass\n"),
        queue_has_no_end=("if waiting + len(tickets) >", "if waiting + len(tickets) > 10**9 +"),
        deadlines_do_not_count=('"deadline") if time.monotonic() > self.deadline', '"deadline") if False'),
    )
    plant(
        "llamo_jax/generation/texts.py",
        BATCHER,
        stops_are_shown_in_part=("(_overlap(text, each) for each in self._stop)", "(0 for each in self._stop)"),
        first_stop_in_the_list_wins=("min(ends)", "ends[0]"),
    )
    plant(
        "llamo_jax/apps/assistant.py",
        "tests/llamo_jax/test_explain.py",
        every_claim_is_true=("Verdict(claim, claim in true)", "Verdict(claim, True)"),
        first_molecule_is_looked_at=("encoder, record, number)", "encoder, record, 0)"),
    )
    plant(
        "llamo_jax/analysis/attention.py",
        "tests/llamo_jax/test_explain.py",
        atoms_of_the_first_molecule=("atoms=atoms[first_atom :", "atoms=atoms[0 :"),
        all_answers_are_the_last=("+ 1)[-1]  # of the last answer", "+ 1)[0]  # of the last answer"),
    )
    plant(
        "llamo_jax/generation/beams.py",
        f"{GOLDEN} {DECODING} -k beam",
        length_counts_nothing=("penalty = (state.step + 1.0) ** length_penalty", "penalty = 1.0"),
        beams_keep_their_cache=("cache = state.cache.map(lambda x: x[origin])", "cache = state.cache"),
    )
    plant(
        "llamo_jax/generation/likelihood.py",
        f"{DECODING} -k log_probabilities",
        a_token_predicts_itself=("conversations[index].is_target[1:]", "conversations[index].is_target[:-1]"),
    )
    # what readers planted in thought, and no test of then noticed
    plant(
        "data_pipeline/loader.py",
        f"{BATCHING} -k 'mixture_has or small_splits'",
        weights_are_alike=("self._weights = tuple(map(float, weights))", "self._weights = (1.0,) * len(weights)"),
        everything_stays_in_memory=("if len(self._reader) <= KEPT_IN_MEMORY:", "if True:"),
    )
    plant(
        "data_pipeline/jobs.py",
        f"{PREPARE} -k 'another_job or chunks_of'",
        leavings_of_another_job=(
            "if not previous.exists() or previous.read_text() != digest:",
            "if not previous.exists():",
        ),
        chunks_of_one_row=("lines, length = [], 0", "lines = []"),
    )
    plant(
        "data_pipeline/records.py",
        "tests/data_pipeline/test_generic_graph.py",
        place_of_the_graph_is_lost=(
            'Conversation(tuple(content["smiles"]), messages, graph_at)',
            'Conversation(tuple(content["smiles"]), messages)',
        ),
    )
    plant(
        "data_pipeline/tasks.py",
        "tests/data_pipeline/test_tasks.py -k reagents",
        reagents_are_reactants=('names.get("reagents") if reagents else None', 'names.get("reagents")'),
    )
    plant(
        "data_pipeline/prompt.py",
        "tests/data_pipeline/test_prompt.py -k 'fingerprint or answers_end or stand_where'",
        lengths_of_another_q=("            self.num_graph_tokens,\n", ""),
        eos_ends_nothing=(
            "self.stop_ids = tuple(dict.fromkeys((self.end_id, tokenizer.eos_id)))",
            "self.stop_ids = (self.end_id,)",
        ),
        graphs_come_first=(
            'pieces += [Text(f" {before}"), *map(Graph, range(len(conversation.smiles)))] if before else []',
            'pieces += [*map(Graph, range(len(conversation.smiles))), Text(f" {before}")] if before else []',
        ),
    )
    plant(
        "data_pipeline/tables.py",
        "tests/data_pipeline/test_tables.py -k lists_of",
        lists_become_decimals=(
            "not thousands and not any(_POINT_NUMBER.fullmatch(field) for field in fields)",
            "not thousands",
        ),
    )
    plant(
        "data_pipeline/functional_groups.py",
        "tests/data_pipeline/test_corpus.py -k part_of_another",
        amides_are_amines=(
            '"[NX3;H0;!$(N[C,S,P]=[O,S,N]);!$(NC#N)]([#6])([#6])[#6]"',
            '"[NX3;H0;!$(NC#N)]([#6])([#6])[#6]"',
        ),
    )
    plant(
        "data_pipeline/claims.py",
        "tests/llamo_jax/test_claims.py -k what_texts",
        lactone_rings_are_one_ring=('_NUMBER = r"(?<![\\w.])', '_NUMBER = r"(?<!\\d)'),
        formulas_in_one_order=(
            "return _composition(str(claim.number)) == _composition(self.facts.formula)",
            "return str(claim.number) == self.facts.formula",
        ),
        ten_acceptors_are_five=("donors > 5, acceptors > 10", "donors > 5, acceptors > 5"),
        any_charge_is_positive=('(count > 0) == (claim.number == "positive") and count != 0', "count != 0"),
    )
    plant(
        "data_pipeline/instruct/seeds.py",
        "tests/data_pipeline/test_instruct.py -k 'excluded or other_hand'",
        salts_are_let_in=("mols = (mol, rdMolStandardize.ChargeParent(mol))", "mols = (mol,)"),
    )
    plant(
        "data_pipeline/instruct/rule_turns.py",
        "tests/data_pipeline/test_instruct.py -k rules_say",
        grease_dissolves=("elif facts.logp > 3:", "elif facts.logp < 3:"),
        the_lighter_is_heavier=(
            "_FIRST if masses[0] > masses[1] else _SECOND",
            "_FIRST if masses[0] < masses[1] else _SECOND",
        ),
    )
    plant(
        "data_pipeline/instruct/mending.py",
        "tests/data_pipeline/test_instruct.py -k mending_that",
        any_mending_is_better=("return kept[0] >= kept[1]", "return True"),
    )
    plant(
        "data_pipeline/instruct/assembly.py",
        "tests/data_pipeline/test_instruct.py -k depend_on_the_molecule",
        a_question_without_answer=("repeats[0].turn - 1]", "repeats[0].turn]"),
    )
    plant(
        "llamo_jax/training/loss.py",
        f"{TRAINING} -k 'logits_of or drops_anew'",
        bfloat16_logits=(
            "logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)",
            "logits = jnp.matmul(hidden, kernel)",
        ),
        training_never_drops=(
            "hidden, _ = model.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=dropout_key)",
            "hidden, _ = model.hidden_states(batch, batch_statistics=batch_statistics)",
        ),
        one_chunk=("chunks = -(-length // model.config.loss_chunk)", "chunks = 1"),
    )
    plant(
        "llamo_jax/training/trainable.py",
        f"{TRAINING} -k 'clipped or schedule_and'",
        clipped_one_by_one=("optax.clip_by_global_norm(config.clip)", "optax.clip(config.clip)"),
        adapters_do_not_decay=('"embedding", "lora_a", "lora_b")', '"embedding")'),
    )
    plant(
        "llamo_jax/training/step.py",
        f"{TRAINING} -k 'drops_anew or go_through_all'",
        every_step_drops_the_same=(
            "key = jax.random.fold_in(jax.random.key(seed), state.step)",
            "key = jax.random.key(seed)",
        ),
        the_last_batch_s_statistics=(
            "state.trained, statistics, frozen, batch, key",
            "state.trained, state.statistics, frozen, batch, key",
        ),
    )
    plant(
        "llamo_jax/training/program.py",
        "tests/llamo_jax/test_words.py -k objectives",
        words_are_forgotten=(
            '"answers+words": (answer_and_word_likelihood, answer_likelihood),',
            '"answers+words": (answer_likelihood, answer_likelihood),',
        ),
        stage_0_validates_answers=("make_eval_step(definition, measured),", "make_eval_step(definition),"),
    )
    plant(
        "llamo_jax/training/words.py",
        "tests/llamo_jax/test_words.py -k 'objectives or the_table_is'",
        statistics_stand_still=(
            "hidden, out = model.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=dropout_key)\n    answers, count",
            "hidden, out = model.hidden_states(batch, dropout_key=dropout_key)\n    answers, count",
        ),
        the_table_follows=(
            "table = jax.lax.stop_gradient(model.language_model.embedding[...])",
            "table = (model.language_model.embedding[...])",
        ),
    )
    plant(
        "llamo_jax/training/metrics.py",
        "tests/llamo_jax/test_validations.py -k in_a_row",
        since_goes_on=(
            "self.best, self.best_step, self.since = loss, step, 0",
            "self.best, self.best_step = loss, step",
        ),
    )
    plant(
        "llamo_jax/training/loop.py",
        "tests/llamo_jax/test_validations.py tests/llamo_jax/test_observability.py tests/llamo_jax/test_words.py -k 'mean_over or line_has or stage_0_learns'",
        a_mean_of_means=(
            "return total / count",
            "return sum(float(t) / max(float(c), 1) for t, c in sums) / len(sums)",
        ),
        losses_of_all_tokens=('sums["loss"] / max(sums["targets"], 1)', 'sums["loss"] / max(sums["tokens"], 1)'),
        graph_use_upside_down=(
            '_mean(sums["other"], settings.objective) - loss',
            'loss - _mean(sums["other"], settings.objective)',
        ),
    )
    plant(
        "llamo_jax/training/checkpoints.py",
        "tests/llamo_jax/test_validations.py -k no_number",
        no_number_is_the_best=("if validation_loss is not None and not math.isfinite(validation_loss):", "if False:"),
    )
    plant(
        "llamo_jax/training/workdir.py",
        "tests/llamo_jax/test_observability.py tests/llamo_jax/test_peft.py -k 'decides or has_no_adapters'",
        any_weight_decay=('"train.steps",', '"train.steps",\n    "train.weight_decay",'),
        earlier_runs_trained_nothing=(
            "return base.folder if trained_language_model(base.folder) else trainer_of_language_model(base.folder)",
            "return None",
        ),
    )
    plant(
        "llamo_jax/training/flops.py",
        "tests/llamo_jax/test_observability.py -k peaks",
        v5_lite_is_v5=("max(names, key=len)", "min(names, key=len)"),
    )
    plant(
        "llamo_jax/models/graph_encoders/parts.py",
        f"{KINDS} -k encoders_drop",
        encoders_never_drop=(
            "keys = None if dropout_key is None else jax.random.split(dropout_key, num_layers)",
            "keys = None",
        ),
    )
    plant(
        "llamo_jax/models/graph_encoders/gatv2.py",
        f"{KINDS} -k gatv2",
        no_relu_between_layers=("graphs.nodes + jnp.where(is_last, x, jax.nn.relu(x))", "graphs.nodes + x"),
    )
    plant(
        "llamo_jax/models/projectors/resampler.py",
        f"{KINDS} -k resampler_add",
        queries_are_forgotten=("x = x + attended", "x = attended"),
    )
    plant(
        "llamo_jax/models/projectors/queries.py",
        f"{KINDS} -k normalised_before",
        tokens_are_not_normalised=("parts.apply_mlp(self.mlp, self.norm(tokens))", "parts.apply_mlp(self.mlp, tokens)"),
    )
    plant(
        "llamo_jax/models/llama.py",
        f"{MODELS} -k tied_embeddings",
        tied_embeddings_start_large=("scale = config.width**-0.5 if config.tie_embeddings else 1.0", "scale = 1.0"),
    )
    plant(
        "llamo_jax/models/layers.py",
        f"{MODELS} -k without_molecules",
        nothing_moves_the_statistics=(
            "jnp.where(count > 0, self.momentum, 0.0)",
            "jnp.where(count >= 0, self.momentum, 0.0)",
        ),
    )
    plant(
        "llamo_jax/models/attention.py",
        f"{MODELS} -k kernels_are",
        splash_divides_heads=('if platform == "tpu" and splash and divided:', 'if platform == "tpu" and splash:'),
    )
    plant(
        "llamo_jax/loading.py",
        "tests/llamo_jax/test_generation.py -k asked_as_it",
        smiles_are_always_shown=("show_smiles=prompt.show_smiles,", "show_smiles=True,"),
        graphs_are_always_shown=("        show_graph=prompt.show_graph,\n", ""),
    )
    plant(
        "llamo_jax/generation/likelihood.py",
        f"{DECODING} -k whole_pass",
        later_likelihoods_are_the_first_rows=(
            "for row, index in zip(found, chunk, strict=False):",
            "for row, index in zip(found, order, strict=False):",
        ),
    )
    plant(
        "llamo_jax/generation/generator.py",
        f"{DECODING} -k 'beams_of_many or whatever_is_processed or seed_and_number or fit_the_fullest'",
        later_beams_are_the_first_prompts=(
            "for row, index in enumerate(chunk):",
            "for row, index in enumerate(indices[: len(chunk)]):",
        ),
        a_score_is_a_mean=("float(np.sum(log_probabilities))", "float(np.mean(log_probabilities))"),
        neighbours_share_draws=("number * self.decoding.num_samples + sample", "number + sample"),
        each_process_its_own_rows=("fit = distributed.least(", "fit = float("),
    )
    plant(
        "llamo_jax/generation/decode.py",
        f"{DECODING} -k whatever_is_processed",
        processed_log_probabilities=(
            "log_probability = logits[everyone, token] - jax.nn.logsumexp(logits, axis=-1)",
            "log_probability = scores[everyone, token] - jax.nn.logsumexp(scores, axis=-1)",
        ),
    )
    plant(
        "llamo_jax/generation/engine.py",
        f"{BATCHER} -k leaves_takes",
        who_leaves_ends_row_0=(
            "places = np.full(self._count, self._count, np.int32)",
            "places = np.zeros(self._count, np.int32)",
        ),
    )
    plant(
        "llamo_jax/generation/batcher.py",
        f"{BATCHER} -k 'leaves_takes or made_anew'",
        free_rows_are_no_room=("self.waiting_limit + max(0, self.rows - len(self._running))", "self.waiting_limit"),
        who_queues_is_not_told=("rest = list(self._waiting)", "rest = list[Ticket]()"),
    )
    plant(
        "llamo_jax/generation/embeddings.py",
        "tests/llamo_jax/test_embed.py -k large_molecules",
        large_molecules_go_at_once=("while slots > 1 and slots * _atoms", "while False and slots * _atoms"),
    )
    plant(
        "llamo_jax/evaluation/examples.py",
        f"{EVALUATION} -k test_split",
        validation_is_the_test=(
            'for name in ("test", "validation") if name in splits',
            'for name in ("validation", "test") if name in splits',
        ),
    )
    plant(
        "llamo_jax/evaluation/run.py",
        f"{EVALUATION} -k 'another_evaluation or groups_are or their_context'",
        another_model_s_answers=('for name in ("model", "data", "prompt")', 'for name in ("data", "prompt")'),
        answers_in_the_order_of_finishing=(
            "[answers[index][0].text for index in range(len(questions))],",
            "[samples[0].text for samples in answers.values()],",
        ),
        context_is_ignored=('numbers=missing, questions_only=config.context == "questions_only")', "numbers=missing)"),
    )
    plant(
        "llamo_jax/evaluation/functional_groups.py",
        f"{EVALUATION} -k graphs_that_are_given",
        always_the_own_graph=(
            "Record(record.conversation._replace(messages=ask), other.graphs)",
            "Record(record.conversation._replace(messages=ask), record.graphs)",
        ),
    )
    plant(
        "llamo_jax/evaluation/questions.py",
        f"{EVALUATION} -k absent_groups",
        absent_groups_are_drawn_alike=(
            "rng.choices(absent, [frequency[group] for group in absent])[0]",
            "rng.choice(absent)",
        ),
    )
    plant(
        "llamo_jax/apps/serve/service.py",
        "tests/llamo_jax/test_serve.py -k 'settings_of or same_answer_in'",
        all_choices_are_one=(
            "samplings = [first._replace(sample=number) for number in range(request.n or 1)]",
            "samplings = [first for _ in range(request.n or 1)]",
        ),
        no_seed_is_zero=("secrets.randbits(32) if request.seed is None else request.seed", "request.seed or 0"),
        tokens_behind_the_end=("            if is_said\n", ""),
    )
    plant(
        "llamo_jax/training/step.py",
        f"{FAULTS} -k gradient_that_is_not",
        infinite_gradients_are_taken=(
            "finite = jnp.isfinite(total) & jnp.isfinite(norm)",
            "finite = jnp.isfinite(total)",
        ),
    )
    plant(
        "llamo_jax/training/step.py",
        f"{TRAINING} -k 'every_batch_of or lowers_the_loss'",
        batches_drop_the_same=(
            "jax.random.split(key, batches.tokens.shape[0])",
            "jnp.broadcast_to(key, batches.tokens.shape[:1])",
        ),
        graph_tokens_do_not_count=("jnp.count_nonzero(batches.segments)", "jnp.count_nonzero(batches.tokens)"),
    )
    plant(
        "llamo_jax/training/loss.py",
        f"{TRAINING} -k by_the_head",
        head_gradients_are_rounded=(
            'jnp.einsum("skd,skv->dv", h, error, preferred_element_type=jnp.float32)',
            'jnp.einsum("skd,skv->dv", h, error)',
        ),
    )
    plant(
        "llamo_jax/training/loop.py",
        "tests/llamo_jax/test_observability.py -k no_stall",
        epochs_of_steps=("epochs(step * settings.accumulate)", "epochs(step)"),
        the_next_rate=("schedule(max(0, updates(state.optimizer) - 1))", "schedule(updates(state.optimizer))"),
    )
    plant(
        "llamo_jax/training/loop.py",
        f"{FAULTS} -k skipped_steps_read",
        other_batches_are_blamed=(
            "range((skipped - 1) * train.accumulate, skipped * train.accumulate)",
            "range(skipped - 1, skipped)",
        ),
    )
    plant(
        "llamo_jax/training/metrics.py",
        "tests/llamo_jax/test_validations.py -k of_the_first",
        own_validations=(
            "distributed.from_main([self.best, self.best_step, self.since])",
            "[self.best, self.best_step, self.since]",
        ),
    )
    plant(
        "llamo_jax/distributed.py",
        f"{CLUSTERS} -k all_processes_see",
        what_any_process_sees=("set.intersection(", "set.union("),
    )
    plant(
        "llamo_jax/training/preemption.py",
        f"{CLUSTERS} -k request_to_stop_stays",
        asked_once_alone=(
            "reached_preemption_sync_point(self._asked) or self._reached",
            "reached_preemption_sync_point(self._asked)",
        ),
    )
    plant(
        "llamo_jax/training/workdir.py",
        "tests/llamo_jax/test_observability.py -k runs_identity",
        lengths_may_change=('    "data.cache_dir",\n', '    "data.cache_dir",\n    "data.tokens_per_row",\n'),
    )
    plant(
        "llamo_jax/training/workdir.py",
        "tests/llamo_jax/test_workdir.py",
        rows_are_forgotten=('for name in ("rows", *BUDGETS) if', "for name in BUDGETS if"),
        adapters_of_any_scale=('(part == "lora" and not base.lora.rank)', 'part == "lora"'),
        embeddings_are_never_trained=(
            'rules = [("language_model/embedding", True)] if train.get("train_token_embedding") else []',
            "rules = []",
        ),
    )
    plant(
        "llamo_jax/weights.py",
        "tests/llamo_jax/test_convert.py -k parts_of_other",
        parts_are_stacked=("process_allgather(array, tiled=True)", "process_allgather(array)"),
    )
    plant(
        "llamo_jax/training/words.py",
        "tests/llamo_jax/test_words.py -k beyond_the_most",
        rare_words_are_the_last=("    said &= words[place] == targets\n", ""),
    )
    plant(
        "llamo_jax/models/graph_encoders/parts.py",
        f"{KINDS} -k 'encoder_drops or embedded_exactly'",
        layers_drop_the_same=(
            "jax.random.split(dropout_key, num_layers)",
            "jnp.broadcast_to(dropout_key, (num_layers,))",
        ),
        embeddings_are_rounded=("jnp.matmul(ones, table, precision=jax.lax.Precision.HIGHEST)", "ones @ table"),
    )
    plant(
        "llamo_jax/models/definition.py",
        f"{TRAINING} -k not_depend_on_the_mesh",
        seeds_draw_the_same=("(np.uint32(seed))", "(np.uint32(0))"),
    )
    plant(
        "llamo_jax/models/projectors/resampler.py",
        f"{KINDS} -k scaled_products",
        scaled_twice=(
            "parts.of_segment(q, ids, 0.0)) * q.shape[-1] ** -0.5",
            "parts.of_segment(q, ids, 0.0)) / q.shape[-1]",
        ),
    )
    plant(
        "llamo_jax/models/llama.py",
        "tests/llamo_jax/test_convert.py -k sliding_window",
        answers_outgrow_the_window=("        self._check_length(cache.slots)\n", ""),
    )
    plant(
        "llamo_jax/models/attention.py",
        f"{MODELS} -k kernels_are",
        heads_of_any_width=("length % 128 == 0 and head_width % 64 == 0", "length % 128 == 0"),
    )
    plant(
        "llamo_jax/generation/decode.py",
        f"{DECODING} -k no_words_that",
        graph_tokens_were_said=("text = (batch.segments > 0) & (batch.molecule_slot < 0)", "text = batch.segments > 0"),
    )
    plant(
        "llamo_jax/generation/memory.py",
        f"{DECODING} -k rows_are_those",
        heads_are_always_shared=(
            "decoder.num_kv_heads // tensor if decoder.num_kv_heads % tensor == 0 else decoder.num_kv_heads",
            "max(1, decoder.num_kv_heads // tensor)",
        ),
    )
    plant(
        "data_pipeline/prompt.py",
        "tests/data_pipeline/test_prompt.py -k shown_apart",
        styles_are_alike=("            self._style_name,\n", ""),
    )
    plant(
        "data_pipeline/shards.py",
        f"{PREPARE} -k crashes_the_process",
        aborts_end_the_job=("-signal.SIGSEGV, -signal.SIGABRT, ", "-signal.SIGSEGV, "),
    )
    plant(
        "data_pipeline/mol_graph.py",
        "tests/data_pipeline/test_molecule.py -k polymer",
        a_thousand_matches=("GetSubstructMatches(pattern, maxMatches=10**7)", "GetSubstructMatches(pattern)"),
    )
    plant(
        "data_pipeline/storage.py",
        f"{STORAGE} -k before_it_gets_its_name",
        folders_are_not_synchronised=("_synchronise(as_path(parent) / name)", "pass"),
    )
    plant(
        "data_pipeline/lengths.py",
        f"{PREPARE} -k 999",
        one_of_a_hundred_is_left_out=("np.percentile(used, 99.9,", "np.percentile(used, 99,"),
        refused_records_need_room=("np.flatnonzero(lengths[:, 0])[:_SAMPLE]", "np.arange(len(lengths))[:_SAMPLE]"),
    )
    plant(
        "data_pipeline/records.py",
        f"{PREPARE} -k another_version",
        old_features_are_read=(
            '(("format_version", FORMAT_VERSION), ("feature_version", FEATURE_VERSION))',
            '(("format_version", FORMAT_VERSION),)',
        ),
    )
    plant(
        "data_pipeline/generic_graph.py",
        "tests/data_pipeline/test_generic_graph.py",
        loops_go_both_ways=("if not graph.is_directed() and begin != end:", "if not graph.is_directed():"),
    )
    plant(
        "data_pipeline/instruct/openai_teacher.py",
        "tests/data_pipeline/test_instruct.py -k another_attempt",
        the_same_again=('asked["seed"] + again', 'asked["seed"]'),
    )
    plant(
        "llamo_jax/distributed.py",
        f"{CLUSTERS} -k smallest",
        what_the_largest_can=("float(np.min(multihost_utils", "float(np.max(multihost_utils"),
    )
    plant(
        "llamo_jax/generation/batcher.py",
        f"{BATCHER} -k of_the_settings",
        ends_of_the_style_alone=(
            "tokens[-1] in self._generator.stop_ids",
            "tokens[-1] in self._generator.encoder.stop_ids",
        ),
    )
    plant(
        "llamo_jax/generation/generator.py",
        f"{BATCHER} -k of_the_settings",
        ends_are_said=("ids[-1] in self.stop_ids", "ids[-1] in self.encoder.stop_ids"),
    )
    plant(
        "llamo_jax/evaluation/claims.py",
        f"{EVALUATION} -k are_listed",
        targets_are_checked=('check(row["prediction"], row["smiles"][0])', 'check(row["target"], row["smiles"][0])'),
    )
    plant(
        "llamo_jax/evaluation/graph_use.py",
        f"{EVALUATION} -k changes_nothing_is",
        equal_is_preferred=('float(np.mean(sums["true"] > sums[name]))', 'float(np.mean(sums["true"] >= sums[name]))'),
    )
    plant(
        "llamo_jax/evaluation/report.py",
        "tests/llamo_jax/test_intervals.py -k best",
        worst_first=("np.argsort(-scores", "np.argsort(scores"),
    )
    plant(
        "llamo_jax/evaluation/overview.py",
        "tests/llamo_jax/test_intervals.py -k best",
        yes_is_more_frequent=("max(np.mean(truths), 1 - np.mean(truths))", "np.mean(truths)"),
    )
    plant(
        "llamo_jax/analysis/oversmoothing.py",
        "tests/llamo_jax/test_smoothing.py -k every_seed",
        one_seed_for_all=("run(np.uint32(seed))", "run(np.uint32(0))"),
    )
    plant(
        "llamo_jax/convert/peft.py",
        "tests/llamo_jax/test_peft.py -k from_peft_and",
        no_dropout=('"lora_dropout": lora.dropout,', '"lora_dropout": 0.0,'),
    )
    plant(
        "llamo_jax/apps/demo/talk.py",
        "tests/llamo_jax/test_demo.py -k explanations_are_kept",
        of_any_molecule=("key = (tuple(smiles), tuple(turns))", "key = tuple(turns)"),
        all_are_kept=("while len(self._explained) > KEPT:", "while False:"),
    )
    plant(
        "llamo_jax/apps/serve/limits.py",
        "tests/llamo_jax/test_serve.py -k body_that",
        every_piece_has_its_time=("asyncio.timeout_at(deadline)", "asyncio.timeout(self._seconds)"),
    )
    plant(
        "llamo_jax/apps/serve/service.py",
        "tests/llamo_jax/test_serve.py -k 'settings_of or temperature_where'",
        one_choice_is_paid=(
            "for choice in self.choices)\n        return",
            "for choice in self.choices[:1])\n        return",
        ),
        nought_is_none=(
            "self._temperature if request.temperature is None else request.temperature",
            "request.temperature or self._temperature",
        ),
    )
    plant(
        "llamo_jax/apps/serve/api.py",
        "tests/llamo_jax/test_serve.py -k answers_no_more",
        always_well=("200 if alive else 503", "200"),
    )
    plant(
        "llamo_jax/apps/serve/api.py",
        "tests/llamo_jax/test_serve.py -k settings_of",
        streams_are_of_one_choice=(
            '"index": number,\n                                        "delta"',
            '"index": 0,\n                                        "delta"',
        ),
    )
    plant(
        "llamo_jax/apps/predict.py",
        "tests/llamo_jax/test_predict.py -k interrupted",
        another_model_goes_on=('        "model": fingerprint[:16],\n', ""),
    )
    plant(
        "llamo_jax/analysis/cells.py",
        "tests/llamo_jax/test_ablation.py -k 'their_seeds or as_many'",
        one_seed=("values.seed = cell.seed", "values.seed = 0"),
        text_takes_the_place_of_answers=(
            "values.data.tokens_per_row += round(longer",
            "values.data.tokens_per_row += 0 * round(longer",
        ),
    )
    plant(
        "llamo_jax/analysis/attention.py",
        "tests/llamo_jax/test_attention_analysis.py -k most_attended",
        the_least_attended=("lost(np.argsort(-attention)[:count])", "lost(np.argsort(attention)[:count])"),
    )
    plant(
        "llamo_jax/analysis/ablation.py",
        "tests/llamo_jax/test_ablation.py -k another_graph_costs",
        another_graph_pays=("float(own.mean() - other.mean())", "float(other.mean() - own.mean())"),
    )
    plant(
        "llamo_jax/analysis/instruction_effect.py",
        "tests/llamo_jax/test_instruction_effect.py -k about_the_test",
        judged_on_training_rows=('split="test",', 'split="train",'),
    )
    plant(
        "llamo_jax/convert/official.py",
        "tests/llamo_jax/test_convert.py -k without_a_projector",
        no_projector_is_the_original_s=(
            "shared = projector is not None and not any(",
            "shared = projector is None or not any(",
        ),
    )
    return found


def unfit(selections: list[str], workers: int) -> dict[str, str]:
    """The selections of tests that fail, and how, on an unchanged copy: what they notice would prove nothing."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        runs = tqdm(pool.map(_run, selections), total=len(selections), desc="unchanged", unit=" selections")
        return {tests: run.reason for tests, run in zip(selections, runs, strict=True) if not run.passed}


def survivors(mutants: list[Mutant], workers: int) -> dict[Mutant, str]:
    """The faults that their tests did not notice, and why."""
    found = {}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_run, mutant.tests, mutant): mutant for mutant in mutants}
        for future in tqdm(concurrent.futures.as_completed(futures), total=len(futures), unit=" faults"):
            run, mutant = future.result(), futures[future]
            if not run.noticed:
                found[mutant] = run.reason or "survived"
                tqdm.write(f"{mutant.file}: {mutant.name}: {found[mutant]}")
    return found


class Run(NamedTuple):
    """How a selection of tests ended: passed, noticed (a test failed or hung), or neither, for a reason."""

    passed: bool
    noticed: bool
    reason: str


def _run(tests: str, mutant: Mutant | None = None) -> Run:
    """Runs a selection of tests on a copy of the checkout with a planted fault, or without one."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for name in _files():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        if mutant is not None:
            path = copy / mutant.file
            text = path.read_text()
            if text.count(mutant.old) != 1:
                return Run(False, False, f"{mutant.old!r} stands there {text.count(mutant.old)} times, not once")
            path.write_text(text.replace(mutant.old, mutant.new))
        try:
            result = subprocess.run(
                f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}",
                shell=True,
                cwd=copy,
                capture_output=True,
                text=True,
                timeout=HANG_SECONDS,
                env={**os.environ, "PYTHONPATH": str(copy)},
            )
        except subprocess.TimeoutExpired:
            return Run(False, True, f"ran for {HANG_SECONDS} s")
        noticed = result.returncode == 1 and "ERROR collecting" not in result.stdout
        reason = f"pytest ended with {result.returncode}: {result.stdout[-300:]}" if result.returncode else ""
        return Run(result.returncode == 0, noticed, reason)


@functools.cache
def _files() -> list[str]:
    """What a clone of the checkout would hold, with what is not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    mutants = [
        mutant
        for mutant in _mutants()
        if not options.words or any(word in mutant.file or word in mutant.name for word in options.words)
    ]
    if failing := unfit(sorted({mutant.tests for mutant in mutants}), options.workers):
        for tests, reason in failing.items():
            print(f"{tests}: {reason}", file=sys.stderr)
        sys.exit(f"{len(failing)} selections of tests fail without a planted fault: nothing was planted")
    left = survivors(mutants, options.workers)
    print(f"{len(mutants) - len(left)} of {len(mutants)} planted faults were found")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
