"""``zipar serve`` as a process: what it says, how it goes down, and what it refuses before anything is loaded."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager


@contextmanager
def started(*options, **environment):
    """A server as a process, and its port, once it is ready."""
    command = [sys.executable, "-m", "zipar", "serve", "--host", "127.0.0.1", *map(str, options)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        said = ""
        while "ready" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        log = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr))
        reader.start()
        yield process, int(re.search(r"http://127\.0\.0\.1:(\d+)/v1 is ready", said)[1]), said, log
        reader.join()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def ask(port, method="GET", path="/health", body=None, key=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


def paint(port, found, **fields):
    """Ask for an image in a thread; ``found`` gets the answer, or the error."""

    def run():
        try:
            found.append(ask(port, "POST", "/v1/images/generations", {"prompt": "a fox", **fields}, "sesame"))
        except (OSError, http.client.HTTPException) as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def images(port):
    """How many the server holds, and how many it has made."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    names = ("running", "waiting", "images_total")
    return [sum(float(x) for x in re.findall(rf"{name}{{.*}} (\S+)", text)) for name in names]


def test_killed_and_started_again_and_told_to_end(text_model):
    """Whoever is killed comes back at the same address; SIGTERM loses nothing that was accepted."""
    with started("--model", text_model, "--port", "0", "--api-key", "sesame") as (process, port, said, _):
        assert re.search(r"2 lanes of 8 images: \d+ MiB of keys and values at most", said)
        found = []
        threads = [paint(port, found, n=10) for _ in range(3)]
        while not sum(images(port)):
            time.sleep(0.01)
        process.kill()
        for thread in threads:
            thread.join()
        assert any(isinstance(answer, Exception) for answer in found)
    options = ("--model", text_model, "--port", port, "--log-json", "--rows", "2", "--alias", "gpt-image-1")
    with started(*options, ZIPAR_API_KEY="sesame") as (process, again, said, log):
        assert again == port
        assert "16x16 pixels" in said
        assert ask(port, path="/v1/models")[0] == 401
        assert [model["id"] for model in ask(port, path="/v1/models", key="sesame")[1]["data"]] == [
            text_model,
            "gpt-image-1",
        ]
        found = []
        threads = [paint(port, found, n=5, seed=i, model="gpt-image-1") for i in range(6)]
        while sum(images(port)) < 30:  # whoever comes after the signal is refused
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(60) == 0
        assert [status for status, _ in found] == [200] * 6
        assert sorted(body["data"][0]["seed"] for _, body in found) == list(range(6))
    lines = [json.loads(line) for line in log]
    assert {line["status"] for line in lines if line.get("path") == "/v1/images/generations"} == {200}
    assert not any("exception" in line for line in lines)


def test_slips_end_in_one_line_before_anything_is_loaded(zipar, text_model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        code, _, err = zipar("serve", "--port", taken)
        assert code == 2
        assert re.search(rf"127\.0\.0\.1:{taken} cannot be listened at \(Address already in use\)", err)
    for options, message in (
        (["--host", "example.invalid"], r"example\.invalid:0 cannot be listened at"),
        (["--size", "8"], "size '8' is none"),
        (["--api-key", " "], "the API key is empty"),
        (["--strategy", "zipar:x"], "first_row 'x' is not possible"),
        (["--queue", "3"], "--queue.*10"),
        (["--replicas", "0"], "replicas '0' are none: use a number or two"),
        (["--replicas", "2"], "--replicas 2 are of a Ray cluster: add --ray"),
        (["--ray"], "port 0 is not possible with --ray"),
        (["--model", "nowhere/at/all"], "nowhere/at/all is no checkpoint"),
        (["--model", text_model, "--size", "8x8"], "makes no images of 8x8 pixels"),
        (["--model", text_model, "--alias", "a=b"], "alias 'a' is of 'b', which is not served"),
    ):
        code, _, err = zipar("serve", "--port", "0", *options)
        assert (code, err.rstrip().count("\n")) == (2, 0), err
        assert re.search(message, err), err
