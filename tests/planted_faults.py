"""python -m tests.planted_faults [--only=WORDS,...] [--tier=default|all] [--own-room] [--least=N]

Plant one fault after another in a copy of the project, and run the tests: a suite is as good as
the faults that it catches. The tests of the fault's own room come first, then all others; the first
failure ends the run. Print, for each fault, whether a test failed and which. Fail if fewer than
--least faults are caught.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIERS = {"default": "not slow and not full", "slow": "slow"}  # pytest's -m


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault: in `file` below mend_jax/, `old` (which occurs once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    @property
    def room(self) -> str:
        return self.file.split("/")[0]


FAULTS = (
    Fault("merging rounds the delta before the sum", "core/weight_edit.py",
          "kernel.astype(jnp.float32) + delta.dense().astype(jnp.float32)",
          "kernel + delta.dense().astype(kernel.dtype)"),
    Fault("a composed edit forgets the facts of the second", "core/weight_edit.py",
          "facts=self.facts + other.facts", "facts=self.facts"),
    Fault("the standard deviation divides by n, not n - 1", "core/factors.py",
          "jnp.maximum(self.count - 1.0, 1.0)", "jnp.maximum(self.count, 1.0)"),
    Fault("merged moments count the gap of the means twice", "core/factors.py",
          "jnp.square(gap) * x.count * share", "jnp.square(gap) * y.count"),
    Fault("a key may equal the threshold", "core/nearest_key.py",
          "jnp.where(scores > 0, scores", "jnp.where(scores >= 0, scores"),
    Fault("the subject alone decides", "core/nearest_key.py",
          "jnp.minimum(subject, question)", "subject"),
    Fault("a name counts where its word goes on", "core/mentions.py",
          "closed = ~goes_on |", "closed = goes_on | ~goes_on |"),
    Fault("the question is read where the trunk ends", "models/blocks.py",
          "jnp.where(layer[_IS_QUESTION], h, question)", "h"),
    Fault("an edit goes on after its answer", "core/nearest_key.py",
          "is_answered(names, ends), -jnp.inf", "is_answered(names, ends), 0.0"),
    Fault("an edit goes on two tokens after its answer", "core/nearest_key.py",
          "jnp.concatenate([here, before], axis=-1)", "here"),
    Fault("later tokens see an edit", "models/blocks.py",
          "match=gate.of_base_stream(match), keep_keys", "match=match, keep_keys"),
    Fault("edited tokens attend to edited keys", "models/attention.py",
          "if context.keys_given:", "if False:"),
    Fault("the trunk's sums are bfloat16", "models/layers.py",
          "kernel.astype(dtype), 0).astype(x.dtype)",
          "kernel.astype(dtype), 0).astype(dtype).astype(x.dtype)"),
    Fault("of equal matches the earlier wins", "core/nearest_key.py",
          "jnp.where(equal, priority, -1).max(-1", "jnp.where(equal, priority, 99).min(-1"),
    Fault("an empty row of a bank matches", "core/nearest_key.py",
          "table.mask & table.active[:, None]", "table.mask | ~table.active[:, None]"),
    Fault("a removed fact leaves its deltas", "core/bank.py",
          "_clear_row((bank.table, bank.deltas), np.int32(fact.row))",
          "(_clear_row(bank.table, np.int32(fact.row)), bank.deltas)"),
    Fault("a removed fact is still overruled", "core/bank.py",
          "over=tuple(o for o in f.over if o != id_)", "over=f.over"),
    Fault("a token without a match is edited by the first fact", "core/gated_bank.py",
          "jnp.where((match.fact >= 0)[..., None], y + self", "jnp.where(True, y + self"),
    Fault("matched tokens come last and return to wrong places", "core/gated_bank.py",
          "jnp.zeros_like(changes).at[order].set(changes)", "changes"),
    Fault("kept rows have the match of the first tokens", "models/attention.py",
          "leaf if leaf.shape[1] == 1 else jnp.take_along_axis(leaf, rows, axis=1)",
          "leaf[:, : rows.shape[1]]"),
    Fault("the cache forgets the match of the source", "models/encoder_decoder.py",
          'match=source["memory_match"]', "match=None"),
    Fault("padding counts in the mean of a text's states", "models/gate_site.py",
          "jnp.where(real_BxTx1, h.astype(jnp.float32), 0.0)", "h.astype(jnp.float32)"),
    Fault("other places of a fact are negatives", "core/contrastive_loss.py",
          "negative = ~same_fact &", "negative = ~positive &"),
    Fault("one false match more than allowed", "core/match_threshold.py",
          "[n - 1 - allowed]", "[max(n - 2 - allowed, 0)]"),
    Fault("KL in the other direction", "core/losses.py",
          "base, edited = base.astype(jnp.float32), edited.astype(jnp.float32)",
          "edited, base = base.astype(jnp.float32), edited.astype(jnp.float32)"),
    Fault("a value that is not finite counts outside of the mask", "core/losses.py",
          "jnp.where(mask, values, 0.0).sum(axes)", "(values * mask.astype(kept.dtype)).sum(axes)"),
    Fault("far texts get the share of near texts", "core/meta_loss.py",
          '"far": 1.0 - near_share', '"far": near_share'),
    Fault("the token after the answer weighs no more than the others", "core/meta_loss.py",
          'kl_of_set(name, edit, _half_on_the_first)', 'kl_of_set(name, edit)'),
    Fault("a window of local attention is one too wide", "models/attention.py",
          "(back_BxTxS < window)", "(back_BxTxS <= window)"),
    Fault("left padding shifts positions", "models/attention.py",
          "jnp.maximum(steps_1xT - first_Bx1, 0)", "jnp.maximum(steps_1xT - 0 * first_Bx1, 0)"),
    Fault("GPT-J's rotation turns the wrong way", "models/rotary.py",
          "odd * cos + even * sin", "odd * cos - even * sin"),
    Fault("an exact GELU is the tanh approximation", "models/layers.py",
          '"gelu": gelu_exact', '"gelu": gelu_tanh'),
    Fault("a decoding step attends to one slot less", "models/generation.py",
          "(slots_S < T + i)", "(slots_S < T + i - 1)"),
    Fault("the ReLU of the editor has derivative 0 at 0", "editors/low_rank_mlp.py",
          "jnp.where(x >= 0, x", "jnp.where(x > 0, x"),
    Fault("Xavier U without its gain", "editors/low_rank_mlp.py",
          "xavier(key_u, (dim, mid)) * jnp.sqrt(2.0)", "xavier(key_u, (dim, mid))"),
    Fault("the original's statistics count rows twice", "editors/chain_links.py",
          "if context.train and not one_by_one:", "if context.train:"),
    Fault("padding of the last chunk of facts is scored", "editors/ridge_editor.py",
          "score_mask=texts.score_mask & is_real", "score_mask=texts.score_mask"),
    Fault("MEMIT spreads the residual over one block less", "editors/memit.py",
          "(len(layers) - number)", "max(len(layers) - number - 1, 1)"),
    Fault("the value search never stops early", "editors/value_search.py",
          "is_done = loss_EN < self.enough", "is_done = loss_EN < -self.enough"),
    Fault("the value of a row's edit has the wrong sign", "editors/ridge_regression.py",
          "delta=-eta * (at * f.u)", "delta=eta * (at * f.u)"),
    Fault("a leftover tensor of another shard is read", "hub/safetensors_folder.py",
          "if weight_map.get(name, shard) == shard:", "if True:"),
    Fault("the end of text is not scored", "hub/text_encoding.py",
          "[*after, tokenizer.eos_id] if append_eos else after", "after"),
    Fault("plain text is scored one token off", "hub/text_encoding.py",
          "return pad(tokenizer, tokens, 0, tokens[1:], length, length - 1)",
          "return pad(tokenizer, tokens, 1, tokens[1:], length, length - 1)"),
    Fault("a target longer than the limit is accepted", "hub/text_encoding.py",
          "if scored > max_target:", "if scored > max_target + 1:"),
    Fault("a near fact that the edit changes is scored", "data/batches.py",
          "scored[e, k] = other is not None", "scored[e, k] = True"),
    Fault("a subject is in two splits", "data/rows.py",
          'taken |= {canonical_name(row[by]) for row in splits[name]} - {""}', "taken |= set()"),
    Fault("the first of several mentions is the subject's position", "data/subject_positions.py",
          "last = matches[-1].end() - 1", "last = matches[0].end() - 1"),
    Fault("a near fact may mention the edit's subject", "data/neighbours.py",
          'and not mentions_subject(other, row["subject"])', "and True"),
    Fault("step sizes learn at the networks' rate", "training/optimizer.py",
          'return "layer_lr" if is_step_size else "net"', 'return "net"'),
    Fault("a step that is not finite changes the editor", "training/step.py",
          "jnp.where(advances & finite, n, o)", "jnp.where(advances, n, o)"),
    Fault("cached states are stored in another row", "training/trunk_cache.py",
          "self._filled[part][name][rows] = True", "self._filled[part][name][:] = True"),
    Fault("a gradient norm of 300 times the median is no warning", "training/guards.py",
          "NORM_TIMES = 30.0", "NORM_TIMES = 3000.0"),
    Fault("the drawdown of accuracy has the wrong sign", "evaluation/metrics.py",
          'mean["right_before"] - mean["right"]', 'mean["right"] - mean["right_before"]'),
    Fault("agreement is with the target", "evaluation/position_scores.py",
          "jnp.argmax(before, -1) == jnp.argmax(after, -1)", "jnp.argmax(after, -1) == target"),
    Fault("an interval of a mean has the population's deviation", "evaluation/statistics.py",
          "half = _Z95 * float(values.std(ddof=1))", "half = _Z95 * float(values.std())"),
    Fault("half of the paraphrases must be exceeded", "ledger/verdict.py",
          "2 * sum(paraphrases) >= len(paraphrases)", "2 * sum(paraphrases) > len(paraphrases)"),
    Fault("a revert is confirmed before it is on the disk", "ledger/journal.py",
          "            _write(file, line, before.end)\n            os.fsync(file)\n",
          "            _write(file, line, before.end)\n"),
    Fault("an axis is split that the mesh does not divide", "parallel/sharding.py",
          "n if n and size % mesh.shape[n] == 0 else None", "n if n else None"),
    Fault("the body of a scan counts once", "tpu/flops.py",
          'eqn.params["length"] if eqn.primitive.name == "scan" else 1', "1"),
    Fault("the checksum does not cover the shapes", "io/array_files.py",
          '|{list(array.shape)}|".encode()', '|".encode()'),
    Fault("a grid runs a cell before the one it begins with", "apps/grid.py",
          "for one in reversed(chain)}", "for one in chain}"),
)  # fmt: skip


def copy_of_project(folder: Path) -> Path:
    """Copy the files that git knows to folder/project."""
    target = folder / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)  # some tests list the files
    subprocess.run(["git", "add", "-A"], cwd=target, check=True)
    return target


def first_failure(project: Path, *arguments: str) -> str | None:
    """Run pytest until a test fails; return the test's name, or None if all passed."""
    environment = os.environ | {
        name: str(Path(os.environ.get(name, ROOT.parent / "shared" / default)).resolve())
        for name, default in (("MEND_DATA_DIR", "data"), ("MEND_GOLDEN_DIR", "golden_mend"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-n", "2", "--dist", "loadfile", *arguments],
        cwd=project, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode in (0, 5):  # 5: every test was deselected
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else done.stdout[-2000:] + done.stderr[-2000:]


def plant(project: Path, fault: Fault) -> None:
    """Change the file of a fault; raise ValueError unless `old` is there exactly once."""
    path = project / "mend_jax" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.old!r} is {text.count(fault.old)} times in {path}")
    path.write_text(text.replace(fault.old, fault.new))


def caught_by(
    project: Path, fault: Fault, tiers: dict[str, str], own_room: bool
) -> tuple[str, str] | None:
    """Return (tier, test) of the first failure with this fault, or None."""
    own = f"tests/{fault.room}"
    places = [[own]] if own_room else [[own], [f"--ignore={own}"]]
    for tier, markers in tiers.items():
        for where in places:
            if test := first_failure(project, "-m", markers, *where):
                return tier, test
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted_faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", default="", help="words that the names of the faults contain")
    parser.add_argument("--tier", choices=("default", "all"), default="all")
    parser.add_argument("--own-room", action="store_true", help="only the tests of its room")
    parser.add_argument("--least", type=int, help="faults that must be caught; default: all")
    args = parser.parse_args()
    tiers = TIERS if args.tier == "all" else {"default": TIERS["default"]}
    words = [word for word in args.only.split(",") if word]
    chosen = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        project = copy_of_project(Path(folder))
        for fault in chosen:
            path = project / "mend_jax" / fault.file
            whole, began = path.read_text(), time.monotonic()
            plant(project, fault)
            found = caught_by(project, fault, tiers, args.own_room)
            path.write_text(whole)
            caught += found is not None
            tier, test = found or ("-", "NOT CAUGHT")
            seconds = time.monotonic() - began
            print(f"{fault.file:28} {fault.name:58} {tier:9} {seconds:5.0f} s  {test}", flush=True)
    print(f"{caught} of {len(chosen)} faults are caught")
    return 0 if caught >= (len(chosen) if args.least is None else args.least) else 1


if __name__ == "__main__":
    sys.exit(main())
