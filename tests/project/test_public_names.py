"""The public names of `mend_jax`: each is imported when it is first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import mend_jax
from mend_jax.training import pretrained

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", mend_jax.__all__)
def test_every_public_name_is_imported_on_first_use(name):
    assert callable(getattr(mend_jax, name))


def test_load_editor_is_the_pretrained_editor_of_a_base():
    assert mend_jax.load_editor is pretrained.load


def test_the_old_module_name_shipped_still_works():
    from mend_jax import shipped

    assert shipped is pretrained


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_edtior'"):
        mend_jax.load_edtior  # noqa: B018


def test_importing_the_package_does_not_import_jax():
    program = "import sys, mend_jax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
