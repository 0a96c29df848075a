"""Fake run processes for `mend_jax.apps.run_processes`."""

from mend_jax.apps import run_processes
from mend_jax.apps.run_command import parse
from mend_jax.io.files import as_path, write_json
from mend_jax.training import config as configs


class FakeProcess:
    """A fake subprocess.Popen that calls make_results(config, workdir) for the command line's run.

    Its return value is written as the results of the run, with the run's config, after a line of
    output; an int is the exit status of a run that fails.
    """

    started = []

    def __init__(self, make_results, line, stdout, stderr):
        config, workdir, _ = parse(line[3:])
        FakeProcess.started.append(workdir)
        if stdout is not None:
            stdout.write(f"output of {workdir}\n")
        results = make_results(config, workdir)
        self.returncode = results if isinstance(results, int) else 0
        if not isinstance(results, int):
            results = {"config": configs.to_json_dict(config), "seconds_total": 60.0} | results
            write_json(as_path(workdir) / "results.json", results)

    def poll(self):
        return self.returncode


def start_fake_runs(monkeypatch, make_results):
    """Replace run processes by `make_results`; return the list of folders of runs that started."""
    FakeProcess.started = []
    monkeypatch.setattr(
        run_processes.subprocess, "Popen", lambda line, **k: FakeProcess(make_results, line, **k)
    )
    return FakeProcess.started
