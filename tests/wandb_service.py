"""A stand-in of the W&B service on this machine: as much of it as wandb's own client asks for, and no more."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import yaml

from tests.waiting import wait_for

HISTORY, SUMMARY, EVENTS, OUTPUT = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl", "output.log"
ME = {"id": "1", "name": "me"}
State = Literal["up", "down", "error", "deaf", "hang"]


@dataclass
class Page:
    """The state of a run in the service; `first` is the request that created it."""

    first: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    stream: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows by their step: one that is sent anew, as `wandb sync` does, takes the place of the one before."""
        rows = {row["_step"]: row for row in map(json.loads, self.stream[HISTORY])}
        return [rows[step] for step in sorted(rows)]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        return json.loads((self.stream[SUMMARY] or ["{}"])[-1])

    def steps(self, metric: str = "train/loss") -> list[int]:
        """The steps of the rows with a metric."""
        return [row["trainer/global_step"] for row in self.history if metric in row]


class Service:
    """The service, up within `with`.

    Attributes:
        state: `down` refuses connections; `error` answers 500; `deaf` stores what it receives but answers 500; `hang`
            accepts connections and does not answer.
        pages: Runs, by id.
        artifacts: Request for each artifact whose upload was completed, by type.
        points: Options that the agents of the sweep have not tried yet.
        sweeps: Request for each sweep, by name.
        asked: Names of all requests.
    """

    def __init__(self) -> None:
        self.state: State = "down"
        self.pages: dict[str, Page] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.points: list[dict[str, Any]] = []
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.lock = threading.RLock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._unfinished: dict[str, dict[str, Any]] = {}

    @property
    def env(self) -> dict[str, str]:
        """The settings of wandb: it sends every second, and retries as often."""
        url = {"WANDB_BASE_URL": f"http://127.0.0.1:{self._port}", "WANDB_API_KEY": "x" * 40, "WANDB_MODE": "online"}
        often = ("TRANSMIT_INTERVAL", "RETRY_WAIT_MIN_SECONDS", "RETRY_WAIT_MAX_SECONDS")
        return {**url, **{f"WANDB_X_FILE_STREAM_{name}": "1" for name in often}}

    def __enter__(self) -> Service:
        self.become("up")
        return self

    def __exit__(self, *error: object) -> None:
        self.become("down")

    def become(self, state: State) -> None:
        """Change the state; the address stays."""
        self.state = state
        if state == "down" and self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        elif state != "down" and self._server is None:
            handler = type("Handler", (_Handler,), {"service": self})
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def wait(self, until: Callable[[], Any]) -> None:
        """Wait until something is so."""
        try:
            wait_for(until)
        except AssertionError as error:
            raise AssertionError(f"{error}; asked were {self.asked[-20:]}") from error

    def answer(self, path: str, body: bytes) -> Any:
        """Answer a request."""
        if path == "/graphql":
            sent = json.loads(body)
            name = next(iter(re.findall(r"(?:query|mutation)\s+(\w+)", sent["query"])), "a query without a name")
            self.asked.append(name)
            if not hasattr(self, f"_{name}"):
                return {"errors": [{"message": f"{name} is not understood here"}]}
            return {"data": getattr(self, f"_{name}")(sent.get("variables") or {})}
        if path.startswith("/upload/"):
            run, name = path.removeprefix("/upload/").split("/", 1)
            if run in self.pages:
                self.pages[run].files[name] = body
        if path.endswith("/file_stream"):
            sent, page = json.loads(body), self.pages[path.split("/")[-2]]
            for name, chunk in sent.get("files", {}).items():
                lines, at, new = page.stream[name], chunk["offset"], chunk["content"]
                assert at <= len(lines), f"{name} has {len(lines)} lines; the next were to be those from {at} on"
                lines[at : at + len(new)] = new
            page.exit_code = sent.get("exitcode", page.exit_code)
        return {}

    def _Viewer(self, given: Any) -> Any:
        return {"viewer": {**ME, "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _ServerFeaturesQuery(self, given: Any) -> Any:
        return {"serverInfo": {"features": []}}

    def _UpsertBucket(self, given: Any) -> Any:
        new = given["name"] not in self.pages
        page = self.pages.setdefault(given["name"], Page(given))
        page.config = json.loads(given["config"]) if given.get("config") else page.config
        return {"upsertBucket": {"bucket": self._bucket(given["name"]), "inserted": new}}

    def _RunResumeStatus(self, given: Any) -> Any:
        bucket = self._bucket(given["name"]) if given["name"] in self.pages else None
        return {"model": {"id": "1", "name": given["project"], "entity": ME, "bucket": bucket}}

    def _bucket(self, run: str) -> Any:
        page = self.pages[run]
        stream = {"logLineCount": OUTPUT, "historyLineCount": HISTORY, "eventsLineCount": EVENTS}
        tails = {"historyTail": HISTORY, "eventsTail": EVENTS}
        return {
            **{"id": run, "name": run, "displayName": page.first["displayName"], "sweepName": page.first["sweep"]},
            **{"project": {"id": "1", "name": page.first["project"], "entity": ME}, "tags": [], "notes": None},
            **{"config": json.dumps(page.config), "summaryMetrics": json.dumps(page.summary)},
            **{key: len(page.stream[name]) for key, name in stream.items()},
            **{key: json.dumps(page.stream[name][-1:]) for key, name in tails.items()},
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _CreateRunFiles(self, given: Any) -> Any:
        files = [{"name": f, "uploadUrl": self._upload(given["run"], f)} for f in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _upload(self, run: str, name: str) -> str:
        return f"http://127.0.0.1:{self._port}/upload/{run}/{name}"

    def _CreateArtifact(self, given: Any) -> Any:
        number = str(len(self._unfinished))
        self._unfinished[number] = given["input"]
        return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": {}}}}

    def _CreateArtifactManifest(self, given: Any) -> Any:
        file = {"id": "1", "uploadUrl": self._upload("artifact", "manifest"), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "1", "file": file}}}

    def _CreateArtifactFiles(self, given: Any) -> Any:
        files = given["input"]["artifactFiles"]
        nodes = [{"uploadUrl": self._upload("artifact", f["name"]), "artifact": {"id": f["artifactID"]}} for f in files]
        return {"createArtifactFiles": {"files": {"edges": [{"node": {**n, "uploadHeaders": []}} for n in nodes]}}}

    def _CommitArtifact(self, given: Any) -> Any:
        made = self._unfinished[given["artifactID"]]
        self.artifacts[made["artifactTypeName"]] = made
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": made["digest"]}}}

    def _UpsertSweep(self, given: Any) -> Any:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = given
        project = {"id": "1", "name": given["projectName"], "entity": ME}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, given: Any) -> Any:
        sweep = {"id": given["sweep"], "name": given["sweep"], "config": self.sweeps[given["sweep"]]["config"]}
        return {"project": {"sweep": {**sweep, "state": "RUNNING", "runs": {"edges": []}}}}

    def _CreateAgent(self, given: Any) -> Any:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, given: Any) -> Any:
        commands: list[dict[str, Any]] = [{"type": "exit"}]
        if json.loads(given["runState"]):  # one is under way
            commands = []
        elif self.points:
            args = {name: {"value": value} for name, value in self.points.pop().items()}
            program = yaml.safe_load(self.sweeps["sweep0"]["config"])["program"]
            commands = [{"type": "run", "run_id": f"point{len(self.points)}", "program": program, "args": args}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_POST(self) -> None:
        service, path = self.service, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while service.state == "hang":
            time.sleep(0.05)
        status, answer = 500, b""
        if service.state in ("up", "deaf"):
            with service.lock:
                answer = json.dumps(service.answer(path, body)).encode()
            status = 200 if service.state == "up" else 500
        with contextlib.suppress(OSError):  # who asked may have gone
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_PUT = do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
