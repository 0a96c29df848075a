"""The fingerprint of a base: the same everywhere, different after any change."""

import ml_dtypes
import numpy as np

from mend_jax import hub


def test_fingerprint_is_stable():
    golden = "de9296da96769d4b"
    flat = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(1.5)}
    assert hub.fingerprint(flat) == golden
    assert hub.fingerprint(dict(reversed(flat.items()))) == golden
    assert hub.fingerprint(flat | {"a": np.asfortranarray(flat["a"])}) == golden
    assert hub.fingerprint(flat | {"a": flat["a"].astype(">f4")}) == golden


def test_quick_digests_depend_on_sizes_and_both_ends(tmp_path):
    def digest(data):
        (tmp_path / "model.safetensors").write_bytes(data)
        return hub.quick_digests(hub.Source("safetensors", tmp_path, ""))[0]

    data = bytes(3 << 20)
    prints = {digest(data), digest(data[:-1]), digest(b"\1" + data[1:]), digest(data[:-1] + b"\1")}
    assert len(prints) == 4
    assert digest(data) in prints and digest(data).startswith(f"model.safetensors {3 << 20} ")


def test_fingerprint_changes_with_every_change():
    rng = np.random.default_rng(0)
    shapes = {"embed": (10, 4), "norm": (4,), "up": (4, 6)}
    flat = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    prints = {hub.fingerprint(flat), hub.fingerprint({k: v.T for k, v in flat.items()})}
    prints.add(hub.fingerprint({k + "x": v for k, v in flat.items()}))
    prints.add(hub.fingerprint({k: v.view(np.int32) for k, v in flat.items()}))
    prints.add(hub.fingerprint({k: v.astype(ml_dtypes.bfloat16) for k, v in flat.items()}))
    n_changes = 5
    for path, array in flat.items():
        for i in range(array.size):
            changed = array.copy()
            changed.flat[i] = np.nextafter(changed.flat[i], np.float32(9))
            prints.add(hub.fingerprint(flat | {path: changed}))
            n_changes += 1
    assert len(prints) == n_changes
