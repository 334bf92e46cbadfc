"""`disagg report`: one archive for a bug report, of a deployment that runs or of one that will not start.

Way:   command line -> [report] =HTTP=> a frontend; this machine -> a .tar.gz
Out:   versions, this machine, states, loads, metrics, complaints, the last events, revisions with the configuration as
       it is wanted now, timelines, engines' logs, a configuration that is named. None of these has prompts or answers,
       unless the YAML makes SGLang log its requests. Keys are left out: of configurations, of their environments, and
       the operator's own wherever it stands
Fails: StartError when the archive cannot be written. What cannot be had is left out, and `missing.txt` says why
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
import yaml

from disagg.cli.check import Sets
from disagg.cli.configs import names_like
from disagg.cli.doctor import complaints_of, look
from disagg.cli.events import sentence
from disagg.cli.feed import Event, follow
from disagg.cli.observe import KEY_VARIABLE, Url, ask
from disagg.errors import ConfigError, DisaggError, StartError

LINES = 2000  # of each engine's log
TIMELINES_MAX = 100
LEFT_OUT = "left out"
_SECRET_NAME = re.compile(r"key|token|secret|passw|passphrase|credential|authori[sz]ation|cookie", re.IGNORECASE)
_OF_A_USER = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]*(?=@)")  # and password, in an address


def report(
    out: Annotated[Path | None, typer.Argument(help="The archive; else disagg-report-TIME.tar.gz, here.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Add this configuration, without its keys.", autocompletion=names_like)
    ] = None,
    sets: Sets = None,
    requests: Annotated[
        list[str] | None, typer.Option("--request", help="Add its timeline, by its x-request-id.")
    ] = None,
    url: Url = None,
) -> None:
    """Put what a bug report needs into one archive: versions, states, logs, metrics; no prompts, no keys."""
    out = out or Path(f"disagg-report-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    files, missing = gathered(url, config, sets or [], requests or [])
    if missing:
        files["missing.txt"] = "".join(f"{line}\n" for line in missing)
    try:
        _write(out, files)
    except OSError as error:
        raise StartError(str(out), f"cannot be written: {error.strerror}", "name another file") from None
    for line in missing:
        sys.stderr.write(f"left out: {line}\n")
    sys.stdout.write(
        f"{out}: {len(files)} files, {out.stat().st_size / 1024:.0f} KiB; look at them before you send it\n"
    )


def gathered(
    url: str | None, config: str | None, sets: list[str], requests: list[str]
) -> tuple[dict[str, str], list[str]]:
    """(files by name, what is missing and why)."""
    files: dict[str, str] = {}
    missing: list[str] = []

    def add(name: str, make: Callable[[], str]) -> None:
        try:
            files[name] = make()
        except (DisaggError, OSError, subprocess.SubprocessError) as error:
            missing.append(f"{name}: {error}")

    add("versions.txt", _versions)
    add("machine.txt", _machine)
    if config is not None:
        add("configuration.json", lambda: _configuration(config, sets))
    status: dict[str, Any] = {"engines": [], "frontend": {"live": []}}
    try:
        status = ask(url, "/disagg/status")
    except StartError as error:
        missing.append(f"all of the deployment: {error}")
    else:
        files["status.json"] = _json(status)
        add("events.txt", lambda: _story(url))
        add("revisions.json", lambda: _json(_revisions(url)))
        add("loads.json", lambda: _json(ask(url, "/disagg/loads")))
        add("metrics.txt", lambda: str(ask(url, "/metrics")))
        add("doctor.txt", lambda: "".join(f"{each.what}\n    {each.would_do}\n" for each in complaints_of(look(url))))
    for request in [*requests, *(each["id"] for each in status["frontend"]["live"])][:TIMELINES_MAX]:
        where = f"/disagg/requests/{quote(request, safe='')}"
        add(f"requests/{_as_file(request)}.json", lambda where=where: _json(ask(url, where)))  # type: ignore[misc]
    for engine in status["engines"]:
        where = f"/disagg/logs/{quote(engine['id'], safe='')}"
        add(f"logs/{_as_file(engine['id'])}.txt", lambda where=where: str(ask(url, where, lines=LINES)))  # type: ignore[misc]
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return ({name: text.replace(key, LEFT_OUT) for name, text in files.items()} if key else files), missing


def _story(url: str | None) -> str:
    """What happened, as `disagg events` has it."""
    with follow(url) as coming:
        story: list[Event] = next((event["story"] for event in coming if event["type"] == "snapshot"), [])
    return "".join(f"{sentence(chapter)}\n" for chapter in story)


def _revisions(url: str | None) -> Any:
    """What the deployment was wanted to be, and what it is wanted to be now, without secrets."""
    newest = max((each["number"] for each in ask(url, "/disagg/revisions")["revisions"]), default=0)
    told = ask(url, "/disagg/revisions", show=newest)
    for each in told["revisions"]:
        each["config"] = without_secrets(yaml.safe_load(each.get("config", "")))  # pools' environments are in it
    return told


def _versions() -> str:
    names = sorted({each.metadata["Name"] for each in importlib.metadata.distributions()}, key=str.lower)
    return f"Python {sys.version}\n" + "".join(f"{name} {importlib.metadata.version(name)}\n" for name in names)


def _machine() -> str:
    memory = Path("/proc/meminfo").read_text().splitlines()[:3]
    lines = [platform.platform(), f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} of them for us", *memory]
    try:
        lines += subprocess.run(
            ["nvidia-smi"], capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()
    except FileNotFoundError:
        lines.append("no nvidia-smi")
    except subprocess.SubprocessError as error:
        lines.append(f"nvidia-smi: {error}")
    return "\n".join(lines) + "\n"


def _configuration(config: str, sets: list[str]) -> str:
    from disagg.config.find import find_config
    from disagg.load import load_config

    try:
        deployment = load_config(find_config(config), sets)
    except ConfigError as error:
        raise StartError(error.where, "; ".join(map(str, error.problems))) from None
    return _json(without_secrets(deployment.model_dump(mode="json")))


def without_secrets(tree: Any) -> Any:
    """What stands under a name as API_TOKEN is left out, if it is text, and what is before a host in an address. The
    rest is as it was."""
    if isinstance(tree, dict):
        return {
            name: LEFT_OUT if isinstance(value, str) and _SECRET_NAME.search(str(name)) else without_secrets(value)
            for name, value in tree.items()
        }
    if isinstance(tree, str):
        return _OF_A_USER.sub(LEFT_OUT, tree)
    return [without_secrets(each) for each in tree] if isinstance(tree, list) else tree


def _json(tree: Any) -> str:
    return json.dumps(tree, indent=1) + "\n"


def _as_file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100]


def _write(out: Path, files: dict[str, str]) -> None:
    folder = out.name.partition(".")[0]
    with tarfile.open(out, "x:gz") as archive:
        for name, text in files.items():
            data = text.encode(errors="replace")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
