"""Written texts judged by a function, and by a model behind an endpoint."""

import http.server
import json
import threading

import pytest

from mend_jax.errors import ConfigError, DataError
from mend_jax.evaluation import judge

RECORDS = [
    {"prompt": "France:", "target": "Lyon", "answers": {
        "edit_continued": " Lyon, a city.", "edit_continued_before": " Paris."}},
    {"prompt": "Peru:", "target": "Cusco", "answers": {
        "edit_continued": " Lima.", "edit_continued_before": " Cusco."}},
    {"prompt": "Chad:", "target": "Moundou", "answers": {
        "edit_continued": " Moundou.", "edit_continued_before": " N'Djamena."}},
]  # fmt: skip


def by_words(prompt, target, written):
    return target in written


@pytest.fixture
def endpoint():
    """An endpoint that says yes where the target stands in the continuation; it keeps requests."""
    seen, replies = [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][0]["content"]
            seen.append((self.path, self.headers.get("Authorization"), body))
            written = question.split("Continuation: ")[1].split("\n")[0]
            target = question.split("Answer: ")[1].split("\n")[0]
            text = replies.get("text", "Yes." if target in written else "No.")
            reply = replies.get("reply", {"choices": [{"message": {"content": text}}]})
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen, replies
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_share_is_beside_the_share_before():
    found = judge.judge_records(RECORDS, by_words)
    assert found.value == pytest.approx(2 / 3) and found.before == pytest.approx(1 / 3)
    low, high = found.ci95
    assert 0 < low < 2 / 3 < high < 1
    short = [{**r, "answers": {"edit": "x", "edit_before": r["target"]}} for r in RECORDS]
    assert judge.judge_records(short, by_words).before == 1
    with pytest.raises(DataError, match="no record has a written text"):
        judge.judge_records([{**RECORDS[0], "answers": {}}], by_words)


def test_a_model_behind_an_endpoint_judges(endpoint, tmp_path, capsys, monkeypatch):
    url, seen, _ = endpoint
    monkeypatch.setenv(judge.KEY, "secret")
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{json.dumps(r)}\n" for r in RECORDS))
    assert judge.main([f"--records={path}", f"--endpoint={url}/", "--model=m"]) == 0
    assert "right, by m: 0.667 [" in capsys.readouterr().out
    assert len(seen) == 6
    where, key, body = seen[0]
    assert (where, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["model"] == "m" and body["temperature"] == 0
    assert "Text: France:" in body["messages"][0]["content"]


def test_an_endpoint_that_cannot_judge_is_named(endpoint):
    url, _, replies = endpoint
    ask = judge.endpoint_judge(url, "m")
    replies["text"] = "Perhaps"
    with pytest.raises(DataError, match="the judge replied 'perhaps', not yes or no"):
        ask("a", "b", "c")
    replies["reply"] = {"error": "x"}
    with pytest.raises(DataError, match="replied in another form than chat completions"):
        ask("a", "b", "c")
    with pytest.raises(DataError, match="cannot be asked .*is the server running"):
        judge.endpoint_judge("http://127.0.0.1:9/v1", "m")("a", "b", "c")
    with pytest.raises(ConfigError, match="is no web address"):
        judge.endpoint_judge("file:///etc", "m")("a", "b", "c")


def test_a_damaged_file_is_an_error(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert judge.main([f"--records={path}", "--endpoint=http://x/v1", "--model=m"]) == 2
    assert "field 'target' is missing" in capsys.readouterr().err
