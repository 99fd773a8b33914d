"""What operators need: health, figures, keys, ids, logs; and clients that are slow, or go."""

import json
import logging
import signal
import subprocess
import sys
import time

import openai
import pytest

from zipar.serving.door import JSONLines

PROMPT = "a red fox in the snow"


def figures(server):
    """What Prometheus would read of the model "words", by name."""
    text = server.ask("GET", "/metrics")[2].decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.endswith(tuple("0123456789"))]
    label = '{model_name="words"}'
    return {name.removesuffix(label): float(value) for name, _, value in lines if name.endswith(label)}


def test_health_readiness_and_documents(server):
    assert server.ask("GET", "/health")[0] == server.ask("GET", "/ready")[0] == 200
    assert server.ask("GET", "/docs")[0] == 404  # it would load its scripts from elsewhere
    body = server.ask("GET", "/openapi.json")[2]["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert "guidance_scale" in body["content"]["application/json"]["schema"]["properties"]


def test_figures(serving, gate, helpers, request_of):
    with serving(rows=2) as server:
        told = []
        for n in (2, 1):  # two at once, lest the gate close between them
            server.scheduler.submit(request_of(n=n), told.append)
        helpers.until(lambda: figures(server)["zipar:num_requests_running"] == 2)
        assert figures(server)["zipar:num_requests_waiting"] == 1
        gate.set()
        helpers.until(lambda: figures(server)["zipar:images_total"] == 3)
        server.images(n=2)
        found = figures(server)
    assert found["zipar:request_success_total"] == found["zipar:e2e_request_latency_seconds_count"] == 1
    assert found["zipar:images_total"] == found["zipar:request_decode_time_seconds_count"] == 5
    assert found["zipar:num_requests_running"] == found["zipar:num_requests_waiting"] == 0
    for name in ("queue", "prefill", "decode"):
        assert found[f"zipar:request_{name}_time_seconds_sum"] > 0
    assert found["zipar:forward_passes_total"] > 10
    assert found["zipar:admission_rejections_total"] == 0


def test_keys(serving):
    with serving(api_key="sesame") as server:
        for key in ("none", "sesam", "sesame2"):
            with server.openai(key=key) as client:
                with pytest.raises(openai.AuthenticationError) as caught:
                    client.models.list()
                assert caught.value.body["code"] == "invalid_api_key"
        with server.openai(key="sesame") as client:
            assert client.models.list().data
            assert client.images.generate(prompt=PROMPT).data
        for value in (None, "sesame", "Basic sesame", "Bearer", "Bearer s\u00e9same"):
            headers = {} if value is None else {"authorization": value.encode()}
            for path in ("/v1/images/generations", "/proxy/openai/images/generations", "/%761/images/generations"):
                status, found, body = server.ask("POST", path, {"prompt": PROMPT}, headers)
                assert (status, body["error"]["type"]) == (401, "invalid_request_error")
                assert found["x-request-id"]
        for path in ("/health", "/ready", "/metrics"):
            assert server.ask("GET", path)[0] == 200
        assert server.ask("OPTIONS", "/v1/images/generations")[0] == 405


def test_origins(serving, server):
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in server.ask("OPTIONS", "/v1/models", headers=asked)[1]
    with serving(allowed_origins=["https://a.example"], api_key="sesame") as guarded:
        status, headers, _ = guarded.ask("OPTIONS", "/v1/models", headers=asked)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert "access-control-allow-origin" not in guarded.ask("GET", "/health", headers={"origin": "https://b"})[1]
        status, headers, _ = guarded.ask("GET", "/v1/models", headers={"origin": "https://a.example"})
        assert (status, headers["access-control-allow-origin"]) == (401, "https://a.example")  # a page can say why


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False), ("", False)],
)
def test_request_ids(server, given, kept):
    for path in ("/health", "/nowhere"):
        found = server.ask("GET", path, headers={"x-request-id": given.encode()})[1]["x-request-id"]
        assert found == given if kept else found.startswith("req_")


def test_a_line_of_json_a_request(server, caplog, helpers):
    with caplog.at_level(logging.INFO, "zipar.serving"):
        server.ask("POST", "/v1/images/generations", {"prompt": PROMPT, "n": 2, "seed": 9}, {"x-request-id": "mine"})
        server.ask("GET", "/a%0ab")
        helpers.until(lambda: len(caplog.records) == 2)  # the line comes after the answer
    first, second = (json.loads(JSONLines().format(record)) for record in caplog.records)
    assert first["seconds"] > 0
    expected = {"request_id": "mine", "method": "POST", "status": 200, "model": "words", "images": 2, "seed": 9}
    assert expected.items() <= first.items()
    assert (second["path"], second["status"]) == ("/a\nb", 404)
    assert "\n" not in caplog.records[1].getMessage()
    assert PROMPT not in caplog.text


def test_failures_are_logged_with_their_traceback_and_not_told(server, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr("zipar.serving.scheduler.encode", fail)
    status, _, body = server.ask("POST", "/v1/images/generations", {"prompt": PROMPT})
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "secret" not in body["error"]["message"]
    assert "a secret" in JSONLines().format(caplog.records[0])
    monkeypatch.undo()
    monkeypatch.setattr("zipar.serving.protocol.answer", fail)
    status, headers, body = server.ask("POST", "/v1/images/generations", {"prompt": PROMPT}, {"x-request-id": "mine"})
    assert (status, body["error"]["type"], headers["x-request-id"]) == (500, "server_error", "mine")
    monkeypatch.undo()
    assert server.images()


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_vanish_leave_their_rows(serving, gate, helpers, expected, stream):
    with serving(rows=2, lanes=1) as server:
        gone = server.socket(helpers.post({"n": 2, "stream": stream, "partial_images": 3}))
        waiting = server.socket(helpers.post({"n": 2, "stream": stream, "strategy": "raster"}))
        helpers.until(lambda: figures(server)["zipar:num_requests_running"] == 2)
        helpers.until(lambda: figures(server)["zipar:num_requests_waiting"] == 2)
        gone.close()
        waiting.close()
        time.sleep(0.2)
        gate.set()
        helpers.until(lambda: not server.scheduler._images)
        found = figures(server)
        assert found["zipar:images_total"] == 0
        assert found["zipar:forward_passes_total"] <= 2
        (image,) = server.images(seed=4)["data"]
        assert (helpers.pixels(image["b64_json"]) == expected(seed=4)).all()


def test_a_body_that_stops_midway(server, helpers):
    for part in (10, 120, 150):
        server.socket(helpers.post({})[:part]).close()
    assert server.images()


def test_a_body_that_never_comes(server, helpers, monkeypatch):
    monkeypatch.setattr("zipar.serving.app.PATIENCE", 0.2)
    with server.socket(helpers.post({})[:-1]) as slow:
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert server.images()


def test_slow_readers_hold_up_nobody(server, helpers):
    with server.socket(helpers.post({"n": 10, "stream": True, "partial_images": 3})) as slow:
        for _ in range(3):
            assert server.images()
        slow.settimeout(30)
        content = b""
        while content.count(b"event: image_generation.completed") < 10 or not content.endswith(b"\r\n0\r\n\r\n"):
            content += slow.recv(50)  # bytes
            assert content


def test_streams_say_that_they_are_alive(server, gate, monkeypatch, helpers):
    monkeypatch.setattr("zipar.serving.app.PING", 0.05)
    with server.socket(helpers.post({"stream": True})) as connection:
        content = b""
        while content.count(b": ping") < 2:
            content += connection.recv(65536)
        gate.set()
        while b"image_generation.completed" not in content:
            content += connection.recv(65536)


def test_streams_that_wait_say_so_too(serving, gate, monkeypatch, helpers):
    monkeypatch.setattr("zipar.serving.app.PING", 0.05)
    with serving(rows=1, lanes=1) as server, server.socket(helpers.post({})):
        helpers.until(lambda: figures(server)["zipar:num_requests_running"] == 1)
        with server.socket(helpers.post({"stream": True})) as connection:
            content = b""
            while content.count(b": ping") < 2:
                content += connection.recv(65536)
            assert figures(server)["zipar:num_requests_waiting"] == 1
            gate.set()
            while b"image_generation.completed" not in content:
                content += connection.recv(65536)


def test_more_than_fits_is_refused(serving, gate, helpers):
    """Every request beyond the capacity is either answered or sent away, and told when to come again."""
    with serving(rows=2, lanes=1, queue=10) as server:
        sockets = [server.socket(helpers.post({"n": 2}))]
        helpers.until(lambda: figures(server)["zipar:num_requests_running"] == 2)
        sockets += [server.socket(helpers.post({"seed": seed})) for seed in range(2, 30)]
        helpers.until(lambda: figures(server)["zipar:admission_rejections_total"] == 18)
        with server.openai() as client, pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt=PROMPT)
        assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        gate.set()
        found = []
        for connection in sockets:
            connection.settimeout(60)
            head = connection.recv(65536)
            found.append(int(head.split()[1]))
            assert (found[-1] == 503) == (b"retry-after: " in head)
            connection.close()
        assert sorted(found) == [200] * 11 + [503] * 18
        with server.openai(max_retries=2) as client:
            assert client.images.generate(prompt=PROMPT).data


def test_a_second_signal_does_not_wait(serving, gate, helpers):
    with serving(rows=1) as server:
        held = server.socket(helpers.post({}))
        helpers.until(lambda: figures(server)["zipar:num_requests_running"] == 1)
        server.server.handle_exit(signal.SIGINT, None)
        assert server.ask("GET", "/ready")[0] == 503
        assert server.ask("GET", "/health")[0] == 200
        status, headers, _ = server.ask("POST", "/v1/images/generations", {"prompt": PROMPT})
        assert (status, headers["retry-after"]) == (503, "5")
        assert not server.server.should_exit
        server.server.handle_exit(signal.SIGINT, None)
        assert server.server.should_exit
        assert server.server.force_exit
        gate.set()
        held.close()


def test_the_http_side_needs_no_torch():
    script = """if True:
        import sys
        import zipar.serving.app, zipar.serving.server
        assert not {"torch", "transformers", "numpy", "PIL"} & sys.modules.keys()
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
