import base64
import http.client
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import numpy as np
import openai
import pytest
import torch
import uvicorn
from PIL import Image

import zipar
from zipar.decoding.lane import Lane
from zipar.models.llamagen import LlamaGen
from zipar.serving.app import application
from zipar.serving.protocol import ImageRequest
from zipar.serving.scheduler import Scheduler
from zipar.serving.served import Served
from zipar.serving.server import Server, bind

WORDS = "a red fox in the snow"


@pytest.fixture(scope="session")
def pipes(tiny_models, class_names):
    """Pipelines by name: "words" takes any prompt and "clothes" ten; both make 6 x 6 tokens, a pixel each."""
    clothes = LlamaGen(tiny_models.by_class.decoder, tiny_models.by_class.image_tokenizer, vocabulary=class_names)
    models = {"words": tiny_models.by_text, "clothes": clothes.eval().requires_grad_(False)}
    return {name: zipar.pipeline(model) for name, model in models.items()}


@pytest.fixture(scope="session")
def scheduling(pipes):
    """A scheduler of both models: with scheduling(rows=2) as scheduler: ..."""

    def make(longest_prompt=16, **options):
        served = [Served.of(name, pipe, longest_prompt) for name, pipe in pipes.items()]
        return Scheduler(served, **{"rows": 3, "queue": 40, **options})

    return make


@pytest.fixture(scope="session")
def serving(scheduling):
    """A server in a thread: with serving(api_key="x") as server: server.ask("GET", "/health")."""

    @contextmanager
    def run(api_key=None, allowed_origins=(), scheduling=scheduling, **options):
        taken = bind("127.0.0.1", 0)
        with scheduling(**options) as scheduler:
            app = application(scheduler, api_key=api_key, allowed_origins=allowed_origins)
            ready = threading.Event()
            server = Server(uvicorn.Config(app, log_config=None, access_log=False), scheduler, ready.set)
            thread = threading.Thread(target=server.run, args=([taken],))
            thread.start()
            assert ready.wait(30)
            try:
                yield Client(taken.getsockname()[1], server, scheduler)
            finally:
                server.should_exit = True
                thread.join()

    return run


@pytest.fixture(scope="module")
def server(serving):
    """A server that the tests of a module share."""
    with serving(aliases={"gpt-image-1": "words"}) as running:
        yield running


class Client:
    """What talks to a running server."""

    def __init__(self, port, server, scheduler):
        self.port, self.server, self.scheduler = port, server, scheduler
        self.url = f"http://127.0.0.1:{port}"

    def openai(self, asynchronous=False, key="none", **options):
        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        http_client = (httpx2.AsyncClient if asynchronous else httpx2.Client)(trust_env=False)
        options = {"max_retries": 0, **options}
        return kind(base_url=f"{self.url}/v1", api_key=key, http_client=http_client, **options)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body, of JSON what it says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content, headers = response.read(), response.headers
        connection.close()
        return response.status, headers, json.loads(content) if "json" in headers.get_content_type() else content

    def images(self, **fields):
        """The body of a good answer to a request for images."""
        status, _, body = self.ask("POST", "/v1/images/generations", {"prompt": WORDS, **fields})
        assert status == 200, body
        return body

    def socket(self, content=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(content)
        return connection


def post(fields, **headers):
    """A request for images as bytes."""
    body = json.dumps({"prompt": WORDS, **fields}).encode()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = ["POST /v1/images/generations HTTP/1.1", "host: x", f"content-length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def pixels(content):
    """The pixels of a file, given as bytes or in base64."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    return np.asarray(Image.open(io.BytesIO(content)))


def until(condition, seconds=30.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never did"
        time.sleep(0.005)


@pytest.fixture
def helpers():
    return SimpleNamespace(post=post, pixels=pixels, until=until)


@pytest.fixture
def gate(monkeypatch):
    """Holds all lanes before their passes until it is set."""
    opened, step = threading.Event(), Lane.step

    def held(lane):
        assert opened.wait(60)
        return step(lane)

    monkeypatch.setattr(Lane, "step", held)
    yield opened
    opened.set()


@pytest.fixture
def expected(pipes):
    """The pixels that a pipeline makes of a request: expected(seed=3, temperature=0.5)."""

    def make(model="words", prompt=WORDS, seed=0, **options):
        made = pipes[model](prompt, seed=seed, **options)
        return np.asarray(made.images[0])

    return make


@pytest.fixture
def request_of():
    return lambda **fields: ImageRequest(**{"prompt": WORDS, **fields})


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
