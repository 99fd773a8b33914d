"""Whatever comes in by HTTP: it is answered as OpenAI's clients read it, and nothing breaks."""

import json
import logging
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATH = "/v1/images/generations"
MOST = {
    "n": "use a whole number from 1 to 10",
    "partial_images": "use a whole number from 0 to 3",
    "output_compression": "use a whole number from 0 to 100",
    "response_format": "use 'b64_json' or 'url'",
    "output_format": "use 'png' or 'jpeg' or 'webp'",
    "background": "use 'auto' or 'opaque'",
    "stream": "use True or False",
    "trace": "use True or False",
    "size": "use",
    "seed": "use",
    "prompt": "use",
    "model": "use",
    "negative_prompt": "use",
    "guidance_scale": "use a number, 1 for none",
    "temperature": "use a number, 0 (greedy) or more",
    "top_k": "use",
    "top_p": "use a number above 0 and at most 1",
    "strategy": "use",
}
"""Of each field, what an error over it says."""
NEVER = [-1, 0.5, "x", [], {}, [1], {"a": 1}, "9" * 5000, float("nan"), float("inf"), -(10**4000), "\0", "64X64 "]
"""Good for few fields."""
GOOD = {
    "output_compression": [0.5],
    "guidance_scale": [0.5],
    "temperature": [0.5],
    "top_p": [0.5],
    "prompt": ["x", "\0", "64X64 "],
    "negative_prompt": ["x", "\0", "64X64 "],
}


@pytest.fixture(scope="module")
def errors():
    """What the library and the server log as errors."""
    records = []

    class Kept(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.ERROR:
                records.append(record)

    handler = Kept()
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_breaks(server, errors):
    yield
    assert not errors, [record.getMessage() for record in errors]
    assert server.ask("GET", "/health")[0] == 200


def check(answer, *statuses):
    status, headers, body = answer
    assert status in (statuses or (400,)), answer
    assert headers["x-request-id"]
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].count("\n") == 0
    assert "Traceback" not in body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize("field", MOST)
def test_bad_values_are_told_what_is_allowed(server, field):
    tried = 0
    for value in NEVER:
        if any(value is good or value == good for good in GOOD.get(field, ())) and field != "output_compression":
            continue
        answer = server.ask("POST", PATH, {"prompt": "a fox", field: value})
        error = check(answer, *([404, 400] if field == "model" else [400]))
        if error["param"] is not None or field != "strategy":
            assert error["param"] == field, error
        assert MOST[field] in error["message"], error
        tried += 1
    assert tried >= 10


def test_what_is_left_out_or_null(server):
    assert check(server.ask("POST", PATH, {}))["message"] == "prompt is missing: say what to paint"
    assert check(server.ask("POST", PATH, {"prompt": None}))["param"] == "prompt"
    everything = dict.fromkeys(MOST)
    status, _, body = server.ask("POST", PATH, {**everything, "prompt": "a fox"})
    assert status == 200, body
    for empty in ("", " ", "\n\t", "\u2003"):
        assert "say what to paint" in check(server.ask("POST", PATH, {"prompt": empty}))["message"]


def test_prompts_that_a_model_does_not_know(server):
    error = check(server.ask("POST", PATH, {"prompt": "shurt", "model": "clothes"}))
    assert "did you mean" in error["message"]
    assert error["param"] == "prompt"
    assert check(server.ask("POST", PATH, {"prompt": "a fox", "strategy": "zipar:0"}))["param"] == "strategy"
    error = check(server.ask("POST", PATH, {"prompt": "a fox", "negative_prompt": "rain"}))
    assert error["message"].startswith("negative_prompt does nothing at guidance scale 1")
    error = check(server.ask("POST", PATH, {"prompt": "fox " * 1001}))
    assert error["message"] == "prompt of 4004 characters is too long: use 4000 at most"
    long = "supercalifragilistic " * 190  # takes no time to think about
    check(server.ask("POST", PATH, {"prompt": long, "model": "clothes"}))


def bodies():
    """More than 300 bodies that ask for nothing that can be had."""
    draw = random.Random(0)
    good = json.dumps({"prompt": "a red fox in the snow, 3d style", "n": 2, "size": "6x6", "stream": True}).encode()
    yield from (good[:end] for end in range(len(good)))
    for _ in range(150):
        broken = bytearray(good)
        broken[draw.randrange(len(good))] = draw.randrange(128, 256)
        yield bytes(broken)
    yield from (draw.randbytes(draw.randrange(1, 200)) for _ in range(50))
    values = [None, True, 1, 1.5, "a fox", [], [{"prompt": "a fox"}], [["a fox"]], {}, {"Prompt": "a fox"}]
    yield from (json.dumps(value).encode() for value in values)
    yield from (b'{"prompt": ' + b"[" * depth for depth in (1, 100, 10_000, 500_000))
    yield from (b'{"a": ' * depth for depth in (100, 100_000))
    yield from (b'{"prompt": "\\ud800"}', b'{"prompt": "\\udc00\\ud800"}', b'{"prompt": "a fox", "n": 1e999}')
    yield b'{"prompt": "a fox", "seed": ' + b"9" * 100_000 + b"}"
    yield b'{"prompt": "a fox", "n": 0, "n": 11}'
    yield from (encoding for encoding in (good.decode().encode(name) for name in ("utf-16", "utf-32", "utf-8-sig")))
    yield from (
        b"\0" * 100,
        b"prompt=a+fox&n=1",
        b"--x\r\ncontent-disposition: form-data; name=prompt\r\n\r\nfox\r\n--x--",
    )
    yield from (
        b'{"prompt": "a fox"} {"prompt": "a fox"}',
        b"{'prompt': 'a fox'}",
        b'{"prompt": "a fox",}',
        b"NaN",
        b"1e9",
    )


def test_bodies_that_are_none(server):
    count = 0
    for body in bodies():
        check(server.ask("POST", PATH, body, {"content-type": "application/json"}))
        count += 1
    assert count > 300


def test_bodies_that_are_too_large(server):
    for size in (1 << 20, 5 << 20):
        body = json.dumps({"prompt": "a fox", "user": "x" * size}).encode()
        error = check(server.ask("POST", PATH, body), 413)
        assert error["message"] == "the body is too large: 1048576 bytes are the most"
    assert server.ask("POST", PATH, {"prompt": "a fox", "user": "x" * 900_000})[0] == 200


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from([*MOST, "user", "lora", "\0"]), odd, min_size=1, max_size=3))
def test_fields_of_all_types(server, fields):
    """Whatever they hold, nothing is painted: the prompt is the last that is looked at."""
    check(server.ask("POST", PATH, {**fields, "model": "clothes", "prompt": "shurt"}))


@pytest.mark.parametrize(
    "word", ["zipar:0", "zipar:x", "zipar:1:1:1:1:1", "jacobi:inf", "adaptive:-1", "zipar:4@2:", ""]
)
def test_strategies_that_there_are_not(server, word):
    check(server.ask("POST", PATH, {"prompt": "a fox", "strategy": word}))


@pytest.mark.parametrize("word", ["zipar:2147483647", "zipar:2:2147483647", "jacobi:2147483647", "zipar:2@99"])
def test_strategies_of_great_numbers(server, word):
    assert server.ask("POST", PATH, {"prompt": "a fox", "strategy": word})[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[("POST", path, 404) for path in ("/v1/images/edits", "/v1/images/variations", "/v1/chat/completions", "/x")],
        *[(method, PATH, 405) for method in ("GET", "PUT", "DELETE", "PATCH")],
        *[
            ("GET", path, 404)
            for path in ("/v1", "//v1/models", "/v1/models/%00", "/v1/models/" + "x" * 5000, "/%0d%0a")
        ],
        ("POST", "/health", 405),
    ],
)
def test_paths_that_there_are_not(server, method, path, status):
    check(server.ask(method, path, b"{}" if method == "POST" else None), status)


RAW = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nno colon here\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET " + b"/x" * 50_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 9x\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n{}",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a\x00b\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: \xff\xfe\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
]


@pytest.mark.parametrize("content", RAW, ids=range(len(RAW)))
def test_what_is_hardly_http(server, content):
    with server.socket(content) as connection:
        connection.settimeout(1)
        answer = b""
        try:
            while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
    assert not answer or answer.split()[1] in (b"100", b"200", b"400", b"404", b"405", b"431")
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/json; charset=latin-1", "x"]
)
def test_the_content_type_does_not_matter(server, kind):
    assert server.ask("POST", PATH, {"prompt": "a fox"}, {"content-type": kind})[0] == 200


def test_compressed_bodies_are_no_json(server):
    check(server.ask("POST", PATH, b"\x1f\x8b\x08\x00", {"content-encoding": "gzip"}))
