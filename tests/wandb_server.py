"""A W&B server in memory for the real client, CLI and agents: GraphQL by the operation's name, file streams, files.

It answers what they ask, and says nothing of what the real server would refuse. An operation that it doesn't know is
an error to the client and stays in `unknown`, which the fixture asserts to be empty.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import yaml

ENTITY = "tester"
KEY = "0123456789abcdef" * 2 + "01234567"
NOW = "2026-01-01T00:00:00Z"
PROJECT_NUMBER = 1
USER = {
    "id": "VXNlcjox",
    "name": ENTITY,
    "username": ENTITY,
    "email": f"{ENTITY}@example.org",
    "entity": ENTITY,
    "admin": False,
    "flags": "{}",
    "deletedAt": None,
    "apiKeys": {"edges": []},
    "teams": {"edges": []},
}
LAST_PAGE = {"endCursor": None, "hasNextPage": False}
Variables = Mapping[str, Any]


def encoded(kind: str, *parts: object) -> str:
    """An id as W&B writes it: base64 of kind and parts."""
    return base64.b64encode(":".join([kind, *map(str, parts)]).encode()).decode()


@dataclass
class Run:
    """One run: what the client has sent of it, and what its sweep wants of it."""

    entity: str
    project: str
    name: str
    sweep: Sweep | None = None
    agent: str | None = None
    state: str = "pending"
    told: dict[str, Any] = field(default_factory=dict)  # display name, group, job type, tags, notes
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stopping: bool = False
    exit_code: int | None = None
    starts: int = 0

    @property
    def id(self) -> str:
        return encoded("Run", "v1", self.name, self.project, self.entity)

    @property
    def values(self) -> dict[str, Any]:
        """The config without W&B's wrapping."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}

    def metric(self, name: str) -> list[float]:
        return [line[name] for line in self.history if isinstance(line.get(name), int | float)]

    def close(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.state = "killed" if self.stopping else "finished" if exit_code == 0 else "failed"

    def node(self) -> dict[str, Any]:
        """Everything that a query may ask of a run."""
        keys = {key for line in self.history for key in line}
        return {
            "id": self.id,
            "projectId": str(PROJECT_NUMBER),
            "name": self.name,
            "displayName": self.told.get("displayName") or self.name,
            "sweepName": self.sweep.name if self.sweep else None,
            "state": self.state,
            "config": json.dumps(self.config),
            "group": self.told.get("groupName"),
            "jobType": self.told.get("jobType"),
            "tags": self.told.get("tags") or [],
            "notes": self.told.get("notes"),
            "description": None,
            "commit": None,
            "readOnly": False,
            "createdAt": NOW,
            "heartbeatAt": NOW,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(self.history),
            "historyKeys": {"lastStep": len(self.history) - 1, "keys": {key: {} for key in keys}},
            "user": USER,
            "project": project_node(self.entity, self.project),
            "exitcode": self.exit_code,
            "shouldStop": self.stopping,
            "stopped": self.state == "killed",
            "failed": self.state == "failed",
            "running": self.state == "running",
            "fileCount": len(self.files),
        }


@dataclass
class Artifact:
    """What the client has uploaded of one: its manifest, and its files by their path."""

    id: str
    kind: str
    collection: str
    digest: str
    committed: bool = False
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)

    def node(self) -> dict[str, Any]:
        sequence = {"id": encoded("ArtifactSequence", self.collection), "latestArtifact": None}
        state = "COMMITTED" if self.committed else "PENDING"
        return {"id": self.id, "digest": self.digest, "state": state, "artifactSequence": sequence}


@dataclass
class Sweep:
    """A sweep, the values it has yet to hand out, and its runs in the order they were handed out."""

    entity: str
    project: str
    name: str
    config: dict[str, Any]
    state: str = "PENDING"
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.points = itertools.islice(points(self.config), self.config.get("run_cap"))

    @property
    def id(self) -> str:
        return encoded("Sweep", "v1", self.name, self.project, self.entity)

    def node(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "displayName": None,
            "method": self.config["method"],
            "state": self.state,
            "description": self.config.get("description"),
            "config": yaml.safe_dump(self.config),
            "createdAt": NOW,
            "updatedAt": NOW,
            "heartbeatAt": NOW,
            "bestLoss": None,
            "earlyStopJobRunning": False,
            "controller": None,
            "scheduler": None,
            "runCount": len(self.runs),
            "runCountExpected": self.config.get("run_cap"),
            "project": project_node(self.entity, self.project),
        }

    def next_run(self, number: int, agent: str) -> Run | None:
        """A run with the next values, or None where there are none left."""
        values = next(self.points, None)
        if values is None:
            self.state = "FINISHED"
            return None
        self.state = "RUNNING"
        run = Run(self.entity, self.project, f"sweeprun{number}", self, agent)
        run.config = {key: {"value": value} for key, value in values.items()}
        self.runs.append(run)
        return run

    def stop_the_hopeless(self) -> None:
        """Hyperband: a run that is worse at a rung than the best 1/eta of those that have come so far has to stop."""
        rule = self.config.get("early_terminate")
        if rule is None:
            return
        metric, eta = self.config["metric"], rule.get("eta", 3)
        sign = -1 if metric["goal"] == "maximize" else 1
        curves = {run.name: [sign * value for value in run.metric(metric["name"])] for run in self.runs}
        for rung in (rule["min_iter"] * eta**k for k in range(10)):
            reached = sorted(curve[rung] for curve in curves.values() if len(curve) > rung)
            for run in [run for run in self.runs if run.state == "running" and len(curves[run.name]) > rung]:
                run.stopping |= curves[run.name][rung] > reached[int(len(reached) / eta)]


def points(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The values a sweep tries: every combination, or draws without end. bayes draws like random."""
    parameters = config["parameters"]
    if config["method"] == "grid":
        choices = [one.get("values", [one.get("value")]) for one in parameters.values()]
        yield from (dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*choices))
        return
    rng = random.Random(0)
    while True:
        yield {name: drawn(one, rng) for name, one in parameters.items()}


def drawn(one: Mapping[str, Any], rng: random.Random) -> Any:
    if "value" in one:
        return one["value"]
    if "values" in one:
        return rng.choice(one["values"])
    low, high = one["min"], one["max"]
    return {
        "uniform": lambda: rng.uniform(low, high),
        "int_uniform": lambda: rng.randint(low, high),
        "log_uniform_values": lambda: math.exp(rng.uniform(math.log(low), math.log(high))),
    }[one["distribution"]]()


def project_node(entity: str, project: str) -> dict[str, Any]:
    return {
        "__typename": "Project",
        "id": encoded("Project", "v1", project, entity),
        "internalId": encoded("ProjectInternalId", PROJECT_NUMBER),
        "name": project,
        "entityName": entity,
        "entity": {"id": encoded("Entity", entity), "name": entity},
        "createdAt": NOW,
        "isBenchmark": False,
        "user": USER,
        "description": None,
        "access": "PRIVATE",
        "views": None,
        "readOnly": False,
    }


class Backend:
    """The server's state, and an answer to every operation."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Sweep] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.created: set[str] = set()  # projects that were made before any run
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.operations: dict[str, Callable[[Variables], dict[str, Any]]] = {
            "Viewer": lambda _: {"viewer": USER},
            "GetViewer": lambda _: {"viewer": USER},
            "GetDefaultEntity": lambda _: {"viewer": USER},
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda _: {"entity": {"organization": None}},
            "XXHashDigestsEnabled": lambda _: {"entity": {"xxhashDigestsEnabled": False}},
            "ArtifactType": lambda _: {"project": None},
            "FetchArtifactDigestAlgorithm": lambda _: {"project": None},
            "GetProjects": self.projects,
            "CreateProject": self.create_project,
            "ProjectInternalId": lambda v: {"project": self.known_project(v["entityName"], v["projectName"])},
            "UpsertBucket": self.upsert_run,
            "RunResumeStatus": self.resume_status,
            "CreateRunFiles": self.create_files,
            "CreateArtifact": self.create_artifact,
            "CreateArtifactManifest": self.create_manifest,
            "UpdateArtifactManifest": self.update_manifest,
            "CreateArtifactFiles": self.create_artifact_files,
            "CommitArtifact": self.commit_artifact,
            "Runs": self.list_runs,
            "Run": self.of_run(lambda run, _: run.node()),
            "RunState": self.of_run(lambda run, _: run.node()),
            "QueryRunInfo": self.of_run(lambda run, _: run.node()),
            "RunHistoryKeys": self.of_run(lambda run, _: run.node()),
            "RunFullHistory": self.of_run(lambda run, _: {"history": [json.dumps(line) for line in run.history]}),
            "RunSampledHistory": self.of_run(sampled),
            "RunParquetHistory": self.of_run(
                lambda run, _: {"parquetHistory": {"parquetUrls": [], "liveData": run.history}}
            ),
            "HistoryPage": self.of_run(page),
            "RunFiles": self.of_run(self.list_files),
            "UpsertSweep": self.upsert_sweep,
            "GetSweep": self.of_sweep(lambda sweep: sweep.node()),
            "GetSweepState": self.of_sweep(lambda sweep: sweep.node()),
            "SweepWithRuns": self.of_sweep(with_runs),
            "CreateAgent": self.create_agent,
            "Heartbeat": self.heartbeat,
            "UpsertView": self.upsert_view,
            "UpsertView2": self.upsert_view,
            "upsertView": self.upsert_view,
        }

    def execute(self, query: str, variables: Variables) -> dict[str, Any]:
        """A GraphQL response; the fields that a query asks for are not looked at: all are sent."""
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else query[:60]
        with self.lock:
            self.asked.append(name)
            if name not in self.operations:
                self.unknown.append(name)
                return {"errors": [{"message": f"unknown operation {name}"}]}
            return {"data": self.operations[name](variables)}

    # Runs

    def run(self, name: str, entity: str = ENTITY, project: str = "qtarget") -> Run:
        """A run, known from here on."""
        return self.runs.setdefault(name, Run(entity, project, name))

    def of_run(self, made: Callable[[Run, Variables], Any]) -> Callable[[Variables], dict[str, Any]]:
        def answer(v: Variables) -> dict[str, Any]:
            run = self.runs.get(v.get("name") or v.get("runName") or v.get("run") or "")
            held = project_node(v["entity"], v["project"])
            return {"project": held | {"run": made(run, v) if run else None}}

        return answer

    def upsert_run(self, v: Variables) -> dict[str, Any]:
        by_id = {run.id: run for run in self.runs.values()}
        run = by_id.get(v.get("id") or "") or self.run(v["name"], v.get("entity") or ENTITY, v["project"])
        starting = run.state != "running" and v.get("id") is None
        if starting:
            run.state, run.starts = "running", run.starts + 1
        run.told |= {key: value for key, value in v.items() if value is not None}
        run.config |= json.loads(v.get("config") or "{}")
        run.summary |= json.loads(v.get("summaryMetrics") or "{}")
        return {"upsertBucket": {"bucket": run.node(), "inserted": starting}}

    def resume_status(self, v: Variables) -> dict[str, Any]:
        """A run that a sweep has only planned is none yet."""
        run = self.runs.get(v["name"])
        held = project_node(v.get("entity") or ENTITY, v["project"])
        return {"model": held | {"bucket": resumable(run) if run and run.starts else None}}

    def list_runs(self, v: Variables) -> dict[str, Any]:
        wanted = json.loads(v.get("filters") or "{}")
        nodes = [run.node() for run in self.runs.values() if run.project == v["project"] and self.matches(run, wanted)]
        nodes = ordered(nodes, v.get("order") or "")
        edges = [{"node": node, "cursor": node["id"]} for node in nodes]
        listed = {"runCount": len(nodes), "runs": {"edges": edges, "pageInfo": LAST_PAGE}}
        held = self.known_project(v["entity"], v["project"])
        return {"project": held | listed if held else None}

    def matches(self, run: Run, wanted: Mapping[str, Any]) -> bool:
        known = {"sweep": run.sweep.name if run.sweep else None, "group": run.told.get("groupName"), "state": run.state}
        for key, value in wanted.items():
            if key == "$and":
                if not all(self.matches(run, part) for part in value):
                    return False
            elif key not in known:
                self.unknown.append(f"filter {key}")
            elif known[key] != value:
                return False
        return True

    def stream(self, name: str, sent: Mapping[str, Any]) -> None:
        """What the client streams of a run: lines of history from an offset, the summary, and its end."""
        with self.lock:
            run = self.run(name)
            for file, chunk in (sent.get("files") or {}).items():
                lines = [json.loads(line) for line in chunk["content"]] if file.startswith("wandb-") else []
                if file == "wandb-history.jsonl":
                    run.history[chunk["offset"] : chunk["offset"] + len(lines)] = lines
                if file == "wandb-summary.json":
                    run.summary = lines[-1]
            if sent.get("complete"):
                run.close(sent.get("exitcode") or 0)

    # Files

    def create_files(self, v: Variables) -> dict[str, Any]:
        at = f"{self.url}/storage/{v['entity']}/{v['project']}/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{at}/{quote(name)}"} for name in v["files"]]
        run = self.run(v["run"], v["entity"], v["project"])
        return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}

    def list_files(self, run: Run, v: Variables) -> dict[str, Any]:
        wanted = v.get("fileNames") or list(run.files)
        edges = [
            {
                "node": {
                    "id": encoded("File", name),
                    "name": name,
                    "url": f"{self.url}/storage/{run.entity}/{run.project}/{run.name}/{quote(name)}",
                    "directUrl": None,
                    "sizeBytes": len(run.files[name]),
                    "mimetype": "",
                    "updatedAt": NOW,
                    "md5": None,
                },
                "cursor": name,
            }
            for name in wanted
            if name in run.files
        ]
        return {"fileCount": len(edges), "files": {"edges": edges, "pageInfo": LAST_PAGE}}

    def create_artifact(self, v: Variables) -> dict[str, Any]:
        asked = v["input"]
        name = encoded("Artifact", len(self.artifacts))
        made = Artifact(name, asked["artifactTypeName"], asked["artifactCollectionName"], asked["digest"])
        self.artifacts[name] = made
        return {"createArtifact": {"artifact": made.node()}}

    def create_manifest(self, v: Variables) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self.manifest(v["artifactID"], v["includeUpload"])}}

    def update_manifest(self, v: Variables) -> dict[str, Any]:
        return {
            "updateArtifactManifest": {"artifactManifest": self.manifest(v["artifactManifestID"], v["includeUpload"])}
        }

    def manifest(self, artifact: str, upload: bool) -> dict[str, Any]:
        """A manifest goes by the id of its artifact."""
        url = {"uploadUrl": f"{self.url}/manifest/{quote(artifact)}", "uploadHeaders": []} if upload else {}
        return {"id": artifact, "file": {"id": artifact, **url}}

    def create_artifact_files(self, v: Variables) -> dict[str, Any]:
        edges = [{"node": self.artifact_file(one)} for one in v["input"]["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def artifact_file(self, asked: Variables) -> dict[str, Any]:
        artifact, name = asked["artifactID"], asked["name"]
        return {
            "storagePath": name,
            "uploadUrl": f"{self.url}/artifact/{quote(artifact)}/{quote(name)}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": artifact},
        }

    def commit_artifact(self, v: Variables) -> dict[str, Any]:
        artifact = self.artifacts[v["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": artifact.node()}}

    # Projects and views

    def projects(self, v: Variables) -> dict[str, Any]:
        edges = [{"node": project_node(v["entity"], name)} for name in sorted(self.project_names())]
        return {"models": {"pageInfo": {"__typename": "PageInfo", **LAST_PAGE}, "edges": edges}}

    def project_names(self) -> set[str]:
        return self.created | {one.project for one in (*self.runs.values(), *self.sweeps.values())}

    def known_project(self, entity: str, name: str) -> dict[str, Any] | None:
        return project_node(entity, name) if name in self.project_names() else None

    def create_project(self, v: Variables) -> dict[str, Any]:
        asked = v.get("input") or v
        name = asked.get("name") or asked["project"]
        self.created.add(name)
        made = project_node(asked.get("entityName") or asked.get("entity") or ENTITY, name)
        return {
            "result": {"project": made, "model": made, "inserted": True},
            "upsertModel": {"project": made, "model": made},
        }

    def upsert_view(self, v: Variables) -> dict[str, Any]:
        name = v.get("id") or encoded("View", len(self.views))
        view = self.views[name] = self.views.get(name, {}) | dict(v) | {"id": name}
        project = project_node(v["entityName"], v["projectName"])
        node = view | {"project": project, "updatedAt": NOW, "createdAt": NOW}
        return {"upsertView": {"view": node, "inserted": v.get("id") is None}}

    # Sweeps

    def of_sweep(self, made: Callable[[Sweep], Any]) -> Callable[[Variables], dict[str, Any]]:
        def answer(v: Variables) -> dict[str, Any]:
            sweep = self.sweeps.get(v.get("sweep") or v.get("name") or "")
            held = project_node(v.get("entity") or ENTITY, v["project"])
            return {"project": held | {"sweep": made(sweep) if sweep else None}}

        return answer

    def upsert_sweep(self, v: Variables) -> dict[str, Any]:
        sweep = next((sweep for sweep in self.sweeps.values() if sweep.id == v.get("id")), None)
        if sweep is None:
            sweep = Sweep(
                v.get("entityName") or ENTITY, v["projectName"], f"sweep{len(self.sweeps)}", yaml.safe_load(v["config"])
            )
            self.sweeps[sweep.name] = sweep
        if v.get("state"):
            sweep.state = v["state"]
        return {"upsertSweep": {"sweep": sweep.node(), "configValidationWarnings": []}}

    def create_agent(self, v: Variables) -> dict[str, Any]:
        name = f"agent{len(self.agents)}"
        self.agents[name] = self.sweeps[v["sweep"]]
        return {"createAgent": {"agent": {"id": name}}}

    def heartbeat(self, v: Variables) -> dict[str, Any]:
        """What an agent has to do next: stop a run, start one, or leave."""
        agent, alive = v["id"], json.loads(v["runState"])
        sweep = self.agents[agent]
        for run in [run for run in sweep.runs if run.agent == agent and run.name not in alive]:
            run.state = "crashed" if run.state in ("pending", "running") else run.state
        sweep.stop_the_hopeless()
        commands = [{"type": "stop", "run_id": name} for name in alive if self.runs[name].stopping]
        commands += [] if alive else [self.order(sweep, agent)]
        return {"agentHeartbeat": {"agent": {"id": agent}, "commands": json.dumps(commands)}}

    def order(self, sweep: Sweep, agent: str) -> dict[str, Any]:
        run = sweep.next_run(len(self.runs), agent) if sweep.state in ("PENDING", "RUNNING") else None
        if run is None:
            return {"type": "exit"}
        self.runs[run.name] = run
        return {"type": "run", "run_id": run.name, "args": run.config, "program": sweep.config.get("program", "")}


def resumable(run: Run) -> dict[str, Any]:
    tail = json.dumps([json.dumps(line) for line in run.history[-1:]])
    started = run.config.get("_wandb", {}).get("value", {}).get("t", {})
    counts = {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "historyTail": tail}
    return run.node() | counts | {"wandbConfig": json.dumps({"t": started})}


def with_runs(sweep: Sweep) -> dict[str, Any]:
    edges = [{"node": run.node() | {"sampledHistory": [run.history]}} for run in sweep.runs]
    return sweep.node() | {"runs": {"edges": edges}}


def sampled(run: Run, v: Variables) -> dict[str, Any]:
    """The lines that have all keys of a specification."""
    specs = [json.loads(spec)["keys"] for spec in v["specs"]]
    lines = [[{key: line[key] for key in keys} for line in run.history if set(keys) <= line.keys()] for keys in specs]
    return {"sampledHistory": lines}


def page(run: Run, v: Variables) -> dict[str, Any]:
    lines = [line for line in run.history if v["minStep"] <= line["_step"] < v["maxStep"]]
    return {"history": [json.dumps(line) for line in lines]}


def ordered(nodes: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """By a metric of the summary, those without it last; any other order is that of creation."""
    metric = order[1:].removeprefix("summary_metrics.")
    if metric == order[1:]:
        return nodes
    values = {node["id"]: json.loads(node["summaryMetrics"]).get(metric) for node in nodes}
    values = {name: value for name, value in values.items() if isinstance(value, int | float)}
    known = sorted((node for node in nodes if node["id"] in values), key=lambda node: values[node["id"]])
    return (known[::-1] if order[0] == "-" else known) + [node for node in nodes if node["id"] not in values]


class Handler(BaseHTTPRequestHandler):
    """HTTP around a backend."""

    protocol_version = "HTTP/1.1"
    backend: Backend

    def do_POST(self) -> None:
        sent = json.loads(self.body() or b"{}")
        parts = self.parts()
        if parts == ["graphql"]:
            self.answer(self.backend.execute(sent["query"], sent.get("variables") or {}))
        elif parts[0] == "files" and parts[-1] == "file_stream":
            self.backend.stream(parts[3], sent)
            self.answer({})
        else:
            self.refuse()

    def do_PUT(self) -> None:
        kind, *parts = self.parts()
        if kind == "storage":
            self.backend.run(parts[2]).files["/".join(parts[3:])] = self.body()
        elif kind == "artifact":
            self.backend.artifacts[parts[0]].files["/".join(parts[1:])] = self.body()
        elif kind == "manifest":
            self.backend.artifacts[parts[0]].manifest = self.body()
        else:
            return self.refuse()
        self.answer({})

    def do_GET(self) -> None:
        parts = self.parts()
        run = self.backend.runs.get(parts[3]) if parts[0] == "storage" and len(parts) > 4 else None
        content = run.files.get("/".join(parts[4:])) if run else None
        if content is None:
            return self.refuse()
        self.reply(200, content, "application/octet-stream")

    def parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b"".join(iter(self.chunk, b""))
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def answer(self, content: Mapping[str, Any]) -> None:
        self.reply(200, json.dumps(content).encode(), "application/json")

    def refuse(self) -> None:
        self.backend.unknown.append(f"{self.command} {self.path}")
        self.reply(404, b"{}", "application/json")

    def reply(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has ended resets its connections; anything else is an error of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Backend]:
    """A backend on a port of its own, on this machine alone."""
    backend = Backend()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"backend": backend}))
    backend.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(backend: Backend, folder: Path) -> dict[str, str]:
    """What has a client talk to the backend, and to nothing else."""
    return {
        "WANDB_BASE_URL": backend.url,
        "WANDB_API_KEY": KEY,
        "WANDB_MODE": "online",
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "wandb-cache"),
        "WANDB_CONFIG_DIR": str(folder / "wandb-config"),
        "WANDB_DATA_DIR": str(folder / "wandb-data"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "false",
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",  # hyperband has to see a short run before it is over
    }
