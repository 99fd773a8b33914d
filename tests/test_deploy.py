"""The files of deploy/: they can be read, and name no option, path or figure that there is not."""

import json
import re
from pathlib import Path

import pytest
import typer

from zipar.cli.main import app

FOLDER = Path(__file__).parents[1] / "deploy"


def options(*command):
    """Of a command line, that it has: the names of the options."""
    name, *arguments = command
    known = {option for each in typer.main.get_command(app).commands[name].params for option in each.opts}
    used = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    assert used <= known, used - known
    return used


@pytest.fixture(scope="module")
def kubernetes():
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_the_container():
    text = (FOLDER / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])$", text, re.M)[1])
    assert {"--host", "--port"} <= options(*command)
    assert re.search(r"^ENTRYPOINT \[\"zipar\"\]$", text, re.M)
    assert text.index("\nUSER 10001") < text.index("\nENTRYPOINT")
    assert "HEALTHCHECK" in text
    assert not re.search(r"(API_KEY|TOKEN|PASSWORD|SECRET)\s*=", text)
    root = FOLDER.parent
    copied = [name for line in re.findall(r"^COPY (.*) \./?\w*$", text, re.M) for name in line.split()]
    kept = {line.removeprefix("!") for line in (root / ".dockerignore").read_text().split() if line.startswith("!")}
    assert kept == set(copied)
    assert all((root / name).exists() for name in copied)


def test_kubernetes(kubernetes):
    deployment, service = kubernetes
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "--model" in options(*container["args"])
    probes = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert probes == ["/health", "/ready", "/health"]
    assert pod["terminationGracePeriodSeconds"] > 30
    assert container["lifecycle"]["preStop"]["exec"]["command"][0] == "sleep"
    assert pod["securityContext"]["runAsNonRoot"]
    (key,) = container["env"]
    assert key["name"] in (FOLDER.parent / "src/zipar/cli/serve.py").read_text()
    assert key["valueFrom"].keys() == {"secretKeyRef"}
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_dashboard_shows_figures_that_there_are():
    pytest.importorskip("prometheus_client")
    from zipar.serving.metrics import Metrics

    metrics = Metrics()
    metrics.watch(["emoji"], running=lambda name: 0, waiting=lambda name: 0)
    for each in (metrics.queue_seconds, metrics.prefill_seconds, metrics.decode_seconds, metrics.latency):
        each.labels("emoji").observe(1)
    there = set(re.findall(r"^(zipar:\w+)\{", metrics.text().decode(), re.M))
    board = json.loads((FOLDER / "grafana.json").read_text())
    shown = [set(re.findall(r"zipar:\w+", each["expr"])) for panel in board["panels"] for each in panel["targets"]]
    assert all(names and names <= there for names in shown), set().union(*shown) - there
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in there if not name.endswith("_created")}
    assert {name.removesuffix("_bucket") for name in set().union(*shown)} == families  # and all of them
