"""Batch jobs and servers on a Ray cluster of several nodes, where workers and nodes come to their ends."""

import json
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import openai
import pytest

from zipar.conversion.llamagen import write
from zipar.errors import ZipARError

ray = pytest.importorskip("ray", reason="needs the extra zipar-torch[ray]")
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from zipar.serving import replicas  # noqa: E402
from zipar.serving.batch import Recipe, finished  # noqa: E402
from zipar.serving.cluster import Worker, workers  # noqa: E402
from zipar.serving.folder import Folder, Manifest  # noqa: E402
from zipar.serving.lines import PromptFile  # noqa: E402
from zipar.serving.machines import connected  # noqa: E402


def patiently(start, **options):
    """Start a node: Ray gives it half a minute, in which a busy machine may not come to it."""
    for left in (2, 1, 0):
        try:
            return start(**options)
        except Exception as error:
            if "timed out during startup" not in str(error) or not left:
                raise
    return None


@pytest.fixture(scope="module")
def cluster():
    """Three nodes: one of the driver, on which nothing works, and two with a CPU each."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # or what others take of the memory would end workers
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    options |= {"include_log_monitor": False, "no_monitor": True}  # fewer processes start sooner
    made = patiently(Cluster, initialize_head=True, head_node_args=options)
    for _ in range(2):
        patiently(made.add_node, num_cpus=1, object_store_memory=2**27)
    yield made
    place = made.head_node.get_session_dir_path()
    ray.shutdown()
    made.shutdown()
    shutil.rmtree(place, ignore_errors=True)
    patch.undo()


@pytest.fixture(scope="module")
def clothes(pipes, tmp_path_factory):
    """The directory of the model of clothes."""
    directory = tmp_path_factory.mktemp("models") / "clothes"
    write(pipes["clothes"].model, directory)
    return directory


@pytest.fixture
def job(tmp_path, clothes):
    """What it takes: job("out") -> recipe, lines."""

    def make(name, **options):
        (tmp_path / name).mkdir()
        return Recipe("clothes", clothes, tmp_path / name, device="cpu", rows=2, **options)

    return make


def processes(node, name="ray::Worker"):
    """Of the workers on a node."""
    import psutil

    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    found = []
    for each in raylet.children(recursive=True):
        with suppress(psutil.Error):  # some end meanwhile
            found += [each] * " ".join(each.cmdline()).startswith(name)
    return found


def run(recipe, make, lines):
    with Manifest(Folder(recipe.out)) as manifest:
        for record in finished(make, lines):
            manifest.add(record)
            Folder(recipe.out).forget(record["id"])
    return [json.loads(line) for line in manifest.path.read_text().splitlines()]


def test_a_worker_and_a_node_are_killed(cluster, job, tmp_path, helpers):
    """Every id has one result, with the very bytes of the local run."""
    count = 120
    lines = [{"id": f"i{n}", "prompt": ("a coat", "a bag")[n % 2], "seed": n} for n in range(count)]
    lines[7] = {"id": "bad", "prompt": "a fox"}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = PromptFile(tmp_path / "prompts.jsonl")
    recipe, alone = job("ray"), job("alone")
    killed = []

    def images():
        return len(list(recipe.out.glob("*.png")))

    def kill():
        first, second = cluster.worker_nodes
        while images() < 15:
            time.sleep(0.01)
        for process in processes(first):
            process.send_signal(signal.SIGKILL)
            killed.append(images())
        while images() < 40:
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        killed.append(images())

    killer = threading.Thread(target=kill, daemon=True)
    Folder(recipe.out).hidden.mkdir()  # workers look for it when they start
    with workers(recipe, cluster.address, 2) as make:
        helpers.until(lambda: all(map(processes, cluster.worker_nodes)), 120)  # or one of them makes all
        killer.start()
        found = run(recipe, make, lines)
    killer.join()
    assert len(killed) >= 2
    assert max(killed) < count - 1  # in the middle
    with alone.started() as make:
        expected = run(alone, make, lines)

    def told(records):
        return sorted((record["id"], record.get("file"), record.get("error")) for record in records)

    assert told(found) == told(expected)
    assert len(found) == count
    for path in alone.out.glob("*.png"):
        assert (recipe.out / path.name).read_bytes() == path.read_bytes()
    assert not list(recipe.out.glob(".zipar/*.tries"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nowhere.invalid:6379"])
def test_no_cluster_at_an_address(address):
    error = pytest.raises(ZipARError, match=rf"no Ray cluster {address} .*give the address of one that runs")
    with error, connected(address):
        pass


def test_machines_that_do_not_share_the_directory(job):
    with pytest.raises(ZipARError, match="is not there on"):
        Worker().start(job("elsewhere"))


@pytest.fixture(scope="module")
def address(cluster, clothes):
    """Where two replicas answer."""
    setup = replicas.Setup({"clothes": clothes}, device="cpu", rows=2, lanes=1, queue=10, longest_prompt=16)
    while len(cluster.worker_nodes) < 2:
        patiently(cluster.add_node, num_cpus=1, object_store_memory=2**27)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with connected(cluster.address):
        replicas.deploy(setup, "127.0.0.1", port, (2, 2), "HeadOnly")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


@pytest.fixture
def client(address):
    with openai.OpenAI(
        base_url=f"{address}/v1", api_key="none", max_retries=0, http_client=httpx2.Client(trust_env=False)
    ) as made:
        yield made


def test_replicas_answer_as_one_server_does(client, expected, helpers):
    for seed in range(4):
        made = client.images.generate(prompt="a coat", extra_body={"seed": seed})
        assert (helpers.pixels(made.data[0].b64_json) == expected("clothes", "a coat", seed)).all()
    events = list(client.images.generate(prompt="a bag", stream=True, partial_images=2, extra_body={"seed": 1}))
    assert [event.type for event in events][-1] == "image_generation.completed"
    assert "image_generation.partial_image" in [event.type for event in events]
    assert (helpers.pixels(events[-1].b64_json) == expected("clothes", "a bag", 1)).all()
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a bag", size="7x7")
    assert refused.value.body["type"] == "invalid_request_error"


def test_too_much_is_refused_as_by_one_server(client):
    """Both have room for 2 images at work and 10 that wait."""

    def ask(seed):
        try:
            client.with_options(timeout=120).images.generate(prompt="a coat", n=10, extra_body={"seed": seed})
        except openai.APIStatusError as error:
            return error

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    errors = [answer for answer in answers if answer is not None]
    assert len(errors) < 16
    assert errors
    for error in errors:
        assert (error.status_code, error.body["code"]) == (503, "overloaded")
        assert int(error.response.headers["retry-after"]) >= 1


def test_a_replica_is_killed(client, cluster):
    victims = [each for node in cluster.worker_nodes for each in processes(node, "ray::ServeReplica")]
    assert len(victims) == 2
    victims[0].kill()
    made = 0
    end = time.monotonic() + 120
    while made < 10:
        assert time.monotonic() < end
        try:  # what it was at is lost, and clients try such again
            client.images.generate(prompt="a coat")
            made += 1
        except (openai.InternalServerError, openai.APIConnectionError):
            time.sleep(0.2)
