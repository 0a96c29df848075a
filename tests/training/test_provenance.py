"""The description of code, packages and machine in results.json."""

import jax

from mend_jax.parallel import distributed, processor
from mend_jax.training import provenance


def test_the_code_fingerprint_depends_on_each_file(monkeypatch):
    mine = provenance.code_fingerprint()
    assert mine == provenance.code_fingerprint() and len(mine) == 16 and int(mine, 16) >= 0
    lines = distributed.source_digests()
    assert any(line.startswith("editors/mend.py ") for line in lines)
    for changed in (lines[1:], [*lines, "more.py 0"], [lines[0][:-1] + "x", *lines[1:]]):
        monkeypatch.setattr(provenance, "source_digests", lambda changed=changed: changed)
        assert provenance.code_fingerprint() != mine


def test_one_byte_of_a_source_file_changes_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "__file__", str(tmp_path / "parallel/distributed.py"))
    (tmp_path / "a.py").write_text("x = 1\n")
    before = distributed.source_digests()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert len(before) == 1 and before != distributed.source_digests()


def test_versions_cover_all_packages_that_compute():
    found = provenance.versions()
    assert {"jax", "jaxlib", "flax", "optax", "tokenizers", "python"} <= found.keys()
    assert found["jax"] == jax.__version__ and all(found.values())


def test_the_processor_is_named(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert processor.processor_name() == "" and " x cpu, " in provenance.hardware()
    path.write_text("processor : 0\nmodel name\t: Some CPU 9 @ 2 GHz\nmodel name : other\n")
    assert processor.processor_name() == "Some CPU 9 @ 2 GHz"
    assert f"{jax.device_count()} x Some CPU 9 @ 2 GHz, " in provenance.hardware()
