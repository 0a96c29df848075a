"""Strictness for every test: 8 virtual devices, no silent promotion of dtype or rank."""

import os

# In the environment, so that the processes that tests start have it too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling, not running, costs
# Many files compile the same programs: what one compiled, the others read. Bounded; the least
# recently used goes first.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/mend_jax/compiled_by_tests")
)
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 << 30))  # bytes
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Stack traces in every instruction take a twentieth of the time, and nothing reads them.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# A collective that waits holds a thread of XLA's pool, which can lock up when it has few.
os.environ.setdefault("PJRT_NPROC", "64")

import jax
import jax.numpy as jnp
import jaxlib
import pytest
from support.failure_text import describe_test

if jaxlib.__version__.startswith("0.10."):  # XLA ends a process whose flags it does not know
    # XLA's older emitters of a fusion's code compile in half of the time. And 8 devices on few busy
    # cores can take longer to meet in a collective than the 40 s after which it ends the process.
    flags = "--xla_cpu_use_fusion_emitters=false"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    os.environ.setdefault("XLA_FLAGS", flags)  # read when used

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true",
        help="run all tests, slow ones too, with full counts (see support/full_counts.py)",
    )  # fmt: skip
    parser.addoption("--time-profile", metavar="FILE", help="write where the time goes to FILE")


def pytest_configure(config):
    if config.getoption("--full"):
        os.environ["MEND_FULL_COUNTS"] = "1"
    # A test that is named is run, slow or not.
    if config.getoption("--full") or any("::" in argument for argument in config.args):
        config.option.markexpr = ""
    if path := config.getoption("--time-profile"):
        from support.time_profile import TimeProfile

        config.pluginmanager.register(TimeProfile(path))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Add to a failure what was expected, of which subject, and how to run the test alone."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.insert(0, ("about this failure", describe_test(item)))


# Files that take minutes, longest first. Begun last, one of them keeps one worker busy while the
# others wait (xdist by itself begins with the files that have most tests).
LONG = (
    "test_real_base.py", "test_guides.py", "test_many_processes.py", "test_run_kinds.py",
    "test_paper_tasks.py", "test_editor_contract.py", "test_train_and_evaluate.py",
    "test_original_program.py", "test_model_contract.py", "test_model_editing_contract.py",
    "test_meshes.py", "test_compile_steps.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:  # `-m slow` would run a case that is left to --full
        if item.get_closest_marker("slow") and item.get_closest_marker("full"):
            raise pytest.UsageError(f"{item.nodeid} is marked slow and full: choose one")
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def fresh_caches():
    """What a file's tests compiled goes with them: kept to the end it took gigabytes.

    Keeping it while memory allows saved nothing: files have few programs in common.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def float64(monkeypatch):
    """Every float32 that the program names is float64, and so is what it does not name.

    Under strict promotion a float32 that is left over is an error where it meets a float64.
    """
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        yield
