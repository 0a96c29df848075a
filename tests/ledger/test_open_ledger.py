"""Opening a ledger with its base model."""

from support.tiny import save_tiny

from mend_jax.io.files import write_json
from mend_jax.ledger.open_ledger import open_base
from mend_jax.training.config import to_json_dict
from mend_jax.training.config_keys import default_config


def test_a_new_ledger_has_the_blocks_that_its_editor_edits(tmp_path):
    """The tiny model has four blocks, and the usual ones of ROME are the first three."""
    base = str(save_tiny(tmp_path / "base"))

    def blocks(folder, *options, **more):
        return open_base(str(tmp_path / folder), *options, **more)[1].base.last_n_blocks

    assert blocks("rome", base, editor="rome") == 4
    assert blocks("tuned", base, editor="fine_tune") == 3
    assert blocks("rome", editor="fine_tune") == 4  # as it was created
    assert blocks("own", base, "float32", 2, "rome") == 2


def test_a_new_ledger_has_the_settings_of_its_editors_run(tmp_path):
    base, run = str(save_tiny(tmp_path / "base")), tmp_path / "run"
    config = default_config()
    config.model.update(dict(dtype="bfloat16", last_n_blocks=2, edit_roles=("mlp/down",)))
    run.mkdir()
    write_json(run / "config.json", to_json_dict(config))
    _, ledger = open_base(str(tmp_path / "ledger"), base, editor=str(run))
    found = ledger.base
    assert (found.dtype, found.last_n_blocks) == ("bfloat16", 2)
    assert tuple(found.edit_roles) == ("mlp/down",)
