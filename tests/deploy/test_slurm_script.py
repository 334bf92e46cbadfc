"""The sbatch script: what it asks of SLURM, what shellcheck says, its way with recorders for SLURM, Ray and disagg."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rendered import deploy, refused, thirteen_nodes

from disagg.config.extends import layers_of, merged
from disagg.config.find import shipped_names

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 20.0


def directives(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    return dict(found)


def shellcheck(script: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


EVERYTHING = [
    "--partition=gpu",
    "--time=1-00:00",
    "--account=a",
    "--sbatch=--constraint=h200",
    "--interface=ib0",
    "--setup=module load cuda",
    "--setup=source 'my venv'/bin/activate",
    "--ray-start=--labels=a b",
    "--set=model.name=it's",
]


@pytest.mark.parametrize("options", [[], EVERYTHING], ids=["as it is", "every option"])
def test_shellcheck_has_nothing_to_say(options: list[str]) -> None:
    assert shellcheck(deploy("slurm", "two-gpus", *options)) == ""


def test_shellcheck_would_say_so() -> None:
    assert "SC2086" in shellcheck(deploy("slurm", "two-gpus").replace('rm -rf "$folder"\n', "rm -rf $folder\n"))


def test_sbatch_is_asked_for_the_nodes_that_the_plan_needs(tmp_path: Path) -> None:
    asked = directives(deploy("slurm", thirteen_nodes(tmp_path)))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("13", "8", "1")
    assert "gpus-per-node" not in directives(deploy("slurm", "local-cpu"))
    assert directives(deploy("slurm", "local-cpu", "--cpus-per-node", 1))["nodes"] == "2"


def test_options_become_directives() -> None:
    asked = directives(deploy("slurm", "two-gpus", *EVERYTHING))
    wanted = {"partition": "gpu", "time": "1-00:00", "account": "a", "constraint": "h200", "job-name": "two-gpus"}
    assert wanted.items() <= asked.items()


def test_every_shipped_configuration_lies_in_its_script_unchanged() -> None:
    for name in shipped_names():
        script = deploy("slurm", name)
        (inside,) = re.findall(r"<<'END_OF_DISAGG_CONFIG'\n(.*?\n)END_OF_DISAGG_CONFIG\n", script, re.DOTALL)
        said = yaml.safe_load((ROOT / "configs" / name).read_text())
        layers, problems = layers_of(said, name, ROOT / "configs" / name)  # one that extends another is written out
        assert not problems
        assert yaml.safe_load(inside) == merged(layers)


def test_every_mistake_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    made = tmp_path / "job.sh"
    bad = ["--time=soon", "--partition=a b", "--account=$(id)", "--interface=ib 0", "--sbatch=--nodes=2"]
    found = refused("slurm", "local-cpu", *bad, "--setup=a\nb", "--set", "frontend.port=x", "-o", made)
    assert set(found) == {"--time", "--partition", "--account", "--interface", "--sbatch", "--setup", "frontend.port"}
    assert not made.exists()


class Allocation:
    """A batch job of two nodes, both here: srun runs what it is told; ray, python3 and disagg write down what they see.

    A program is one process, so that what ends it ends all of it.
    """

    def __init__(self, folder: Path, *words: str, **programs: str) -> None:
        self.folder, self.notes = folder, folder / "notes"
        self.number = f"test-{uuid.uuid4().hex[:8]}"
        self.on_node = Path(f"/tmp/disagg-{self.number}")
        self.log = folder / "log"
        programs_folder = folder / "bin"
        programs_folder.mkdir()
        for name, text in (self.usual() | programs).items():
            (programs_folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (programs_folder / name).chmod(0o755)
        deploy("slurm", "local-cpu", "--cpus-per-node", 1, *words, "-o", folder / "job.sh")
        self.environment = {
            "PATH": f"{programs_folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": self.number,
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_ON_NODE": "4",
            "SLURMD_NODENAME": "n1",
        }

    def usual(self) -> dict[str, str]:
        words = "$(basename $0) $* RAY_ADDRESS=${RAY_ADDRESS:-} TOKEN=${RAY_AUTH_TOKEN:-}"
        note = f'echo "{words}" >> {self.notes}\n'
        return {
            "srun": f'echo $$ >> {self.folder}/steps\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"',
            "scancel": f"""[[ "$*" == "--signal=TERM $SLURM_JOB_ID" ]] || exit 1
                until [[ $(wc -l < {self.folder}/steps) == 2 ]]; do /bin/sleep 0.02; done
                kill $(< {self.folder}/steps)""",
            "scontrol": "echo '   NodeAddr=127.0.0.2 NodeHostName=n1'",
            "ray": f"{note}exec sleep 60",
            "python3": note,
            "disagg": f'{note}cp "$2" {self.folder}/served.yaml\nexec sleep 60',
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                ["bash", self.folder / "job.sh"], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(self.on_node, ignore_errors=True)

    def result(self) -> int:
        """Its status; everything of it is gone, or this fails."""
        with self.running() as process:
            status = process.wait(LIMIT_S)
            assert not self.on_node.exists()
            return status

    def said(self, program: str) -> list[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line for line in lines if line.startswith(f"{program} ")]

    def wait_for(self, program: str, count: int = 1) -> list[str]:
        until = time.monotonic() + LIMIT_S
        while len(self.said(program)) < count:
            assert time.monotonic() < until, f"no {program} after {LIMIT_S} s: {self.log.read_text()}"
            time.sleep(0.02)
        return self.said(program)


def test_ray_starts_on_every_node_then_disagg_serves_the_configuration(tmp_path: Path) -> None:
    job = Allocation(tmp_path, "--set", "model.name=a b", "--ray-start=--labels=x=1")
    with job.running():
        (serve,) = job.wait_for("disagg")
        head, other = sorted(job.wait_for("ray", 2), key=lambda line: "--head" not in line)
    assert "start --head --port 6379 --include-dashboard=false --node-ip-address 127.0.0.2 --num-cpus 4" in head
    assert "start --address 127.0.0.2:6379 --node-ip-address 127.0.0.2 --num-cpus 4" in other
    assert all("--labels=x=1 --block" in line for line in (head, other))
    assert "-m disagg.deploy.wait_for_nodes 2 300" in job.said("python3")[0]
    assert "--set model.name=a b --set ray.address=auto RAY_ADDRESS=127.0.0.2:6379" in serve
    assert yaml.safe_load((tmp_path / "served.yaml").read_text())["device"] == "cpu"
    tokens = {line.rpartition("TOKEN=")[2] for line in (head, other, serve)}
    assert len(tokens) == 1
    assert re.fullmatch("[0-9a-f]{64}", tokens.pop())


def test_the_token_is_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    job = Allocation(tmp_path)
    with job.running():
        (serve,) = job.wait_for("disagg")
        file = job.on_node / "ray-auth-token"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert file.read_text().strip() == serve.rpartition("TOKEN=")[2]


# It takes a signal only between two commands: short ones, then.
HEEDS = """
trap 'echo {name} is told >> {notes}; sleep 0.3; echo {name} is done >> {notes}; exit {status}' TERM
echo {name} runs >> {notes}
while true; do sleep 0.05; done
"""


def test_a_signal_ends_what_serves_in_order_before_ray_and_its_status_is_the_jobs(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    serve, ray = HEEDS.format(name="disagg", notes=notes, status=7), HEEDS.format(name="ray", notes=notes, status=0)
    job = Allocation(tmp_path, disagg=serve, ray=ray)
    with job.running() as process:
        job.wait_for("disagg")
        job.wait_for("ray", 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 7, job.log.read_text()
        assert not job.on_node.exists()
    lines = notes.read_text().splitlines()
    assert lines.index("disagg is done") < lines.index("ray is told")
    assert lines.count("ray is done") == 2


def test_a_job_ends_when_what_serves_ends(tmp_path: Path) -> None:
    job = Allocation(tmp_path, disagg="exit 2")
    assert job.result() == 2
    assert "disagg serve has ended with 2" in job.log.read_text()


@pytest.mark.parametrize(
    "programs",
    [{"python3": "exit 1"}, {"python3": "exec sleep 60", "ray": "exit 1"}],
    ids=["a node does not come", "the head's Ray ends"],
)
def test_nothing_is_served_unless_ray_is_up_on_every_node(tmp_path: Path, programs: dict[str, str]) -> None:
    job = Allocation(tmp_path, **programs)
    assert job.result() == 1
    assert "Ray is not up on all nodes" in job.log.read_text()
    assert job.said("disagg") == []


def test_a_node_without_the_interface_is_named(tmp_path: Path) -> None:
    job = Allocation(tmp_path, "--interface", "ib0", ip="exit 0")
    assert job.result() != 0
    assert "this node has no address on ib0" in job.log.read_text()


def test_another_nodes_ray_comes_again_when_it_dies(tmp_path: Path) -> None:
    ray = f"echo ray $* >> {tmp_path / 'notes'}; [[ $2 == --head ]] || exit 1; exec /bin/sleep 60"
    job = Allocation(tmp_path, ray=ray, sleep="exec /bin/sleep $(($1 == 5 ? 0 : $1))")
    with job.running():
        job.wait_for("ray", 4)


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    """Its name can be guessed, and the token would lie in it."""
    job = Allocation(tmp_path)
    job.on_node.mkdir()
    with job.running() as process:
        assert process.wait(LIMIT_S) != 0
    assert job.said("disagg") == job.said("ray") == []
