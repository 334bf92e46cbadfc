"""A SLURM cluster of two nodes on this machine's loopback, each with a /tmp of its own, as two machines have."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from disagg.cluster.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("slurmctld", "slurmd", "sbatch", "scontrol", "unshare")
UP_S = 20.0
END_S = 10.0

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.2 Port={ports[0]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.3 Port={ports[1]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# What lies below /tmp and is needed there is put back into the new one.
NODE = """
set -e
for each in "$@"; do mkdir -p "$keep$each"; mount --bind "$each" "$keep$each"; done
mount -t tmpfs tmpfs /tmp
for each in "$@"; do mkdir -p "$each"; mount --bind "$keep$each" "$each"; done
exec slurmd -D -N "$node" -f "$SLURM_CONF"
"""


@dataclass
class SlurmCluster:
    folder: Path
    environment: dict[str, str]
    nodes: list[int]  # pids of slurmd

    def run(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}\n{self.said()}"
        return done.stdout.strip()

    def submit(self, script: Path) -> str:
        return self.run("sbatch", "--parsable", "--chdir", str(self.folder), f"--output={self.log}", str(script))

    @property
    def log(self) -> Path:
        return self.folder / "job.log"

    def is_over(self, job: str) -> bool:
        return self.run("squeue", "--noheader", f"--jobs={job}", check=False) == ""

    def left_in_tmp(self) -> list[str]:
        """What jobs have left on the nodes, each with its own /tmp."""
        return [str(path) for pid in self.nodes for path in Path(f"/proc/{pid}/root/tmp").glob("disagg-*")]

    def said(self) -> str:
        logs = [self.log, *sorted(self.folder.glob("*.log"))]
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())


@contextlib.contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    assert not missing, f"{', '.join(missing)} not found: run .ci/tools (apt-get install slurmctld slurmd)"
    assert os.getuid() == 0, "two slurmd on one machine, each with its own /tmp: run this test as root"
    folder = Path(tempfile.mkdtemp(prefix="disagg-slurm-", dir="/var/tmp"))
    (folder / "state").mkdir()
    conf = folder / "slurm.conf"
    ports = [free_port(), free_port()]
    conf.write_text(CONF.format(host=os.uname().nodename, folder=folder, controller_port=free_port(), ports=ports))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    environment["SLURM_CONF"] = str(conf)
    cluster = SlurmCluster(folder, environment, [])
    needed = (ROOT, Path(os.environ.get("DISAGG_CACHE", "/")).resolve())
    below_tmp = [str(path) for path in needed if path.is_relative_to("/tmp")]
    daemons = []

    def start(*words: str, **more: str) -> None:
        with (folder / f"daemon-{len(daemons)}.log").open("wb") as log:
            daemons.append(subprocess.Popen(words, env=environment | more, stdout=log, stderr=log, cwd=folder))

    try:
        start("slurmctld", "-D", "-f", str(conf))
        for node in ("n1", "n2"):
            keep = folder / f"keep-{node}"
            node_words = ["unshare", "--mount", "bash", "-c", NODE, "bash", *below_tmp]
            start(*node_words, node=node, keep=str(keep))
            cluster.nodes.append(daemons[-1].pid)
        until = time.monotonic() + UP_S
        while cluster.run("sinfo", "--noheader", "--format=%D %t", check=False) != "2 idle":
            assert time.monotonic() < until, f"SLURM is not up after {UP_S} s\n{cluster.said()}"
            time.sleep(0.2)
        yield cluster
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(END_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
