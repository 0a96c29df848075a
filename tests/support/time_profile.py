"""Where the time of a test run goes: `pytest --time-profile=FILE` writes it test by test.

`python tests/support/time_profile.py FILE` prints the sums of such a file by room and by file.
A nested trace is counted once for each level, so `trace` is an upper bound.
"""

import collections
import csv
import resource
import sys
import time
from pathlib import Path

EVENTS = {  # what JAX reports: columns of the profile, in seconds
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/compilation_cache/cache_retrieval_time_sec": "cache_read",
}
COLUMNS = ("wall", "cpu", "processes", *EVENTS.values())  # processes: CPU of child processes


def _clocks(events: dict) -> dict:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": time.perf_counter(),
        "cpu": own.ru_utime + own.ru_stime,
        "processes": children.ru_utime + children.ru_stime,
        **{name: events[name] for name in EVENTS.values()},
    }


class TimeProfile:
    """A pytest plugin, in the controller and in each worker of xdist."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.file = None
        self.events: dict[str, float] = collections.defaultdict(float)
        self.started: dict[str, dict] = {}
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_) -> None:
        if event in EVENTS:
            self.events[EVENTS[event]] += duration

    def pytest_runtest_logstart(self, nodeid):
        self.started[nodeid] = _clocks(self.events)

    def pytest_runtest_makereport(self, item, call):
        if call.when == "teardown" and item.nodeid in self.started:
            start, end = self.started.pop(item.nodeid), _clocks(self.events)
            # In a property, because properties travel from xdist's workers to the controller.
            item.user_properties.append(("time", {c: end[c] - start[c] for c in COLUMNS}))

    def pytest_runtest_logreport(self, report):
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == "time" and self.file:
                seconds = [f"{value[c]:.3f}" for c in COLUMNS]
                csv.writer(self.file).writerow([report.nodeid, *seconds])
                self.file.flush()  # a run that is stopped leaves what it measured

    def pytest_sessionstart(self, session):
        if not hasattr(session.config, "workerinput"):
            self.file = self.path.open("w", newline="")
            csv.writer(self.file).writerow(["test", *COLUMNS])

    def pytest_sessionfinish(self):
        if self.file:
            self.file.close()


def print_sums(path: str) -> None:
    rows = list(csv.DictReader(Path(path).open()))
    for title, key in (
        ("room", lambda test: test.split("/")[1] if "/" in test else test),
        ("file", lambda test: test.split("::")[0]),
    ):
        sums: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        for row in rows:
            for name in (key(row["test"]), "all"):
                sums[name].update({"tests": 1, **{c: float(row[c]) for c in COLUMNS}})
        print(f"{title:55}" + "".join(f"{c:>11}" for c in ("tests", *COLUMNS)))
        for name, total in sorted(sums.items(), key=lambda pair: -pair[1]["wall"]):
            print(f"{name:55}" + "".join(f"{total[c]:11.0f}" for c in ("tests", *COLUMNS)))
        print()


if __name__ == "__main__":
    print_sums(sys.argv[1])
