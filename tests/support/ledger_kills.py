"""Kill processes that write ledgers, and let several write at once.

This is a separate program without JAX computations: it forks, and JAX starts threads.

    python ledger_kills.py random|calls|many FOLDER

Print a summary as one JSON object; fail if a ledger lost an edit that it had confirmed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from support.full_counts import KILLS
from support.small_edits import FINGERPRINT, small_edit

from mend_jax.ledger.edit_ledger import Base, Ledger

BASE = Base("tiny", FINGERPRINT, "float32", 2, ("mlp/up", "mlp/down"))
PER_LEDGER = 20  # kills of writers of one ledger
WRITERS, EACH = 4, 15
# C functions that write files; a process is killed before and after each call.
CALLS = {"open", "write", "flush", "fsync", "close", "replace", "pwrite", "ftruncate", "flock"}


def forked(work):
    """Start work(pipe to write to) in a process; return its id and the pipe to read from."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, os.fdopen(read, "rb")
    status = 1
    try:
        os.close(read)
        work(write)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def send(write, value):
    os.write(write, json.dumps(value).encode() + b"\n")


def receive_all(pipe):
    """Return the remaining complete JSON lines that a process wrote to its pipe."""
    with pipe:
        return [json.loads(line) for line in pipe if line.endswith(b"\n")]


def check(folder, confirmed):
    """Check that the ledger opens and has all confirmed edits, with undamaged latest files.

    Args:
      confirmed: {number: [fact, reverted]}.
    """
    ledger = Ledger.open(folder)
    entries = {entry.number: entry for entry in ledger.entries()}
    assert list(entries) == list(range(1, len(entries) + 1))
    for number, (fact, reverted) in confirmed.items():
        assert entries[number].facts[0][0] == fact, (number, fact, entries[number])
        assert entries[number].reverted or not reverted, number
    for number in list(entries)[-8:]:
        assert ledger.edit(number).facts == entries[number].facts
    return ledger, entries


def append_on(folder, write, first):
    """Append edits and revert some, endlessly; send what was confirmed."""
    ledger = Ledger.open(folder)
    for seed in range(first, first + 10**6):
        entry = ledger.append(small_edit(seed), {"seed": seed})
        send(write, [entry.number, f"fact {seed}", False])
        if seed % 3 == 0:
            ledger.revert(entry.number)
            send(write, [entry.number, f"fact {seed}", True])


def random_kills(root):
    """Kill a process that appends edits at random moments, many times."""
    rng = random.Random(0)
    done = {"kills": 0, "confirmed": 0, "unconfirmed": 0}
    for part in range(KILLS // PER_LEDGER):
        folder, confirmed = root / f"ledger-{part}", {}
        Ledger.create(folder, BASE)
        for kill in range(PER_LEDGER):
            first = 1000 * (PER_LEDGER * part + kill)
            child, pipe = forked(lambda write, at=folder, n=first: append_on(at, write, n))
            messages = [json.loads(pipe.readline()) for _ in range(rng.randrange(4))]
            time.sleep(rng.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            messages += receive_all(pipe)
            confirmed |= {number: (fact, reverted) for number, fact, reverted in messages}
            _, entries = check(folder, confirmed)
            done["kills"] += 1
        done["confirmed"] += len(confirmed)
        done["unconfirmed"] += len(entries) - len(confirmed)
    return done


def killed_at(n, calls=CALLS):
    """Return a profiler that kills this process at the nth start or end of a C call in `calls`."""
    left = [n]

    def count(frame, event, arg):
        if event in ("c_call", "c_return") and arg.__name__ in calls:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return count


def kills_at_calls(root):
    """Create, append and revert, killed before and after every call that touches files."""
    ready = root / "ready"
    ledger = Ledger.create(ready, BASE)
    ledger.append(small_edit(1))
    ledger.append(small_edit(2))
    ledger.revert(2)
    held = {1: ("fact 1", False), 2: ("fact 2", True)}
    acts = {
        "create": lambda folder: Ledger.create(folder, BASE),
        "append": lambda folder: Ledger.open(folder).append(small_edit(3)),
        "revert": lambda folder: Ledger.open(folder).revert(1),
    }
    done = {}
    for name, act in acts.items():
        finished = False
        while not finished:
            n = done[name] = done.get(name, -1) + 1
            folder = root / f"{name}-{n}"
            if name != "create":
                shutil.copytree(ready, folder)
            finished = survives_kill(n, act, folder, {} if name == "create" else held)
    return done


def survives_kill(n, act, folder, confirmed):
    """Whether act(folder) ended before its nth event; check the ledger in both cases."""

    def work(write):
        sys.setprofile(killed_at(n))
        act(folder)
        sys.setprofile(None)
        send(write, "done")

    child, pipe = forked(work)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finished = receive_all(pipe) == ["done"]
    assert status == (0 if finished else -signal.SIGKILL), status
    ledger = Ledger.open_or_create(folder, BASE)
    _, entries = check(folder, confirmed)
    assert ledger.append(small_edit(99)).number == len(entries) + 1
    assert not list((folder / "edits").glob(".*")), "scratch files are left"
    return finished


def many_writers(root):
    """Several processes append at once to a ledger that does not exist yet."""
    folder = root / "ledger"

    def work(write, first):
        ledger = Ledger.open_or_create(folder, BASE)
        for seed in range(first, first + EACH):
            send(write, [ledger.append(small_edit(seed)).number, f"fact {seed}", False])

    started = [forked(lambda write, k=k: work(write, 1000 * k)) for k in range(WRITERS)]
    for child, _ in started:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    messages = [receive_all(pipe) for _, pipe in started]
    for own in messages:  # each process' edits are in order
        assert [number for number, _, _ in own] == sorted(number for number, _, _ in own)
    confirmed = {number: (fact, reverted) for own in messages for number, fact, reverted in own}
    _, entries = check(folder, confirmed)
    turns = sum(a.facts[0][0][:-3] != b.facts[0][0][:-3] for a, b in zip(
        list(entries.values()), list(entries.values())[1:], strict=False))  # fmt: skip
    return {"confirmed": len(confirmed), "entries": len(entries), "turns": turns}


if __name__ == "__main__":
    acts = {"random": random_kills, "calls": kills_at_calls, "many": many_writers}
    print(json.dumps(acts[sys.argv[1]](Path(sys.argv[2]))))
