"""Opening a ledger with its base model."""

from support.tiny import save_tiny

from mend_jax.ledger.open_ledger import open_base


def test_a_new_ledger_has_the_blocks_that_its_editor_edits(tmp_path):
    """The tiny model has four blocks, and the usual ones of ROME are the first three."""
    base = str(save_tiny(tmp_path / "base"))

    def blocks(folder, *options, **more):
        return open_base(str(tmp_path / folder), *options, **more)[1].base.last_n_blocks

    assert blocks("rome", base, editor="rome") == 4
    assert blocks("tuned", base, editor="fine_tune") == 3
    assert blocks("rome", editor="fine_tune") == 4  # as it was created
    assert blocks("own", base, "float32", 2, "rome") == 2
