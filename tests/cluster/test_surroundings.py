"""What others have set in the environment: what reaches engines, what does not, what is refused by name and value."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import disagg_start
from disagg import surroundings
from disagg.cluster.actors import is_loopback, on_loopback
from disagg.errors import ConfigError, StartError
from disagg.folders import own_folder

OF_OTHERS = (
    *("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "ftp_proxy"),
    *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"),
    *("SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PBS_NODEFILE"),
    *("PYTHONWARNINGS", "PYTHONSTARTUP", "PYTHONINSPECT", "DISAGG_SECRET"),
)
OURS = {
    **{"PATH": "/bin", "PYTHONPATH": "/x", "HF_HOME": "/hf", "CUDA_VISIBLE_DEVICES": "1", "NCCL_IB_HCA": "mlx5_0"},
    **{"UCX_TLS": "all", "LD_PRELOAD": "/l.so", "OMP_NUM_THREADS": "4", "SGLANG_X": "1", "RANKING": "1"},
}


@pytest.mark.parametrize("name", OF_OTHERS)
def test_what_is_for_other_programs_reaches_no_engine_and_is_told_without_its_value(name: str) -> None:
    given = OURS | {name: "http://user:password@proxy:3128"}
    assert surroundings.of_our_processes(given) == OURS | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    assert surroundings.left_out(given) == [name]


def told(environment: dict[str, str]) -> list[str]:
    try:
        surroundings.refuse(environment)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_a_usable_environment_passes(tmp_path: Path) -> None:
    assert told({"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}) == []
    assert told({"DISAGG_CACHE": str(tmp_path / "a" / "b")}) == []
    assert list(tmp_path.iterdir()) == [], "it left something"


@pytest.mark.parametrize("name", ["TMPDIR", "DISAGG_CACHE"])
def test_folders_that_cannot_be_used_are_told_by_name_value_and_cause(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for value, why in ((file, "is no folder"), ("/proc/x" if name == "DISAGG_CACHE" else "/nowhere", "")):
        (said,) = told({"DISAGG_CACHE": str(tmp_path)} | {name: str(value)})
        assert said.startswith(f"{name}={value}: ")
        assert why in said
        assert "set " in said


def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    program = (
        f"from disagg import surroundings\nsurroundings.refuse({{'DISAGG_CACHE': '/', 'TMPDIR': {str(closed)!r}}})"
    )
    if os.getuid() == 0:  # who may write everywhere
        program = _without_capabilities() + program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=_ROOT)
    assert f"TMPDIR={closed}" in done.stderr
    assert "cannot be written: Permission denied" in done.stderr


_ROOT = Path(__file__).parents[2]


def _without_capabilities() -> str:
    """Root's right to write everywhere is given up, by capset(2)."""
    return (
        "import ctypes, struct\n"
        "head = struct.pack('Ii', 0x20080522, 0)\n"
        "assert ctypes.CDLL(None).capset(head, struct.pack('6I', *[0] * 6)) == 0\n"
    )


def test_no_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    assert told({}) == ["HOME: is not set, and this user has none; models and logs would go there; set DISAGG_CACHE"]


def test_a_relative_temporary_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    (said,) = told({"TMPDIR": "t", "DISAGG_CACHE": str(tmp_path)})
    assert said.startswith("TMPDIR=t: is a relative path")


# Where code comes from.


@pytest.mark.parametrize("name", ["disagg", "prefill", "decode", "transfer"])
@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_another_module_of_our_names_on_pythonpath_is_told(name: str, form: str, tmp_path: Path) -> None:
    file = tmp_path / form.format(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text("x = 1\n")
    said = disagg_start.shadow(["", str(tmp_path)])
    if file.parent.name == "disagg":
        assert said == "", "a checkout of ours"
        return
    assert said.startswith(f"PYTHONPATH={tmp_path}: has {form.format(name)}, which would be imported instead")


def test_a_checkout_and_other_folders_on_pythonpath_pass(tmp_path: Path) -> None:
    (tmp_path / "sglang").mkdir()
    assert disagg_start.shadow([str(tmp_path), str(_ROOT)]) == ""
    assert disagg_start.shadow([]) == ""


def test_the_command_runs_beside_files_of_our_names(tmp_path: Path) -> None:
    for name in ("decode", "prefill", "transfer", "disagg", "ray", "json", "typing"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the user')\n")
    program = Path(sys.executable).with_name("disagg")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [program, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_in_a_ray_job_the_working_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    link = tmp_path.parent / "link"
    link.symlink_to(tmp_path)
    path = ["/bin", str(tmp_path), "", "/lib"]
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "PYTHONPATH": f"{link}{os.pathsep}/sglang{os.pathsep}{os.pathsep}"}
    assert disagg_start.leave_the_folder(job, path) == ["/bin", "/lib"]
    assert (job["PYTHONPATH"], job["PYTHONSAFEPATH"]) == ("/sglang", "1")
    by_hand = {"PYTHONPATH": str(tmp_path)}
    assert disagg_start.leave_the_folder(by_hand, path) == path
    assert by_hand["PYTHONPATH"] == str(tmp_path)


# Folders.


def test_an_own_folder_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = own_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)] == [0o700, 0o700]
    folder.chmod(0o777)
    assert stat.S_IMODE(own_folder(folder).stat().st_mode) == 0o700


def test_a_folder_that_somebody_else_has_put_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StartError, match="another user's, or a link"):
        own_folder(tmp_path / "link")
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StartError, match="another user's, or a link"):
        own_folder(there)


# Loopback.


def test_what_an_engine_of_a_private_deployment_opens_is_on_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "10.0.0.1", "node1")] == [True] * 3 + [
        False
    ] * 2
    said = on_loopback()
    assert said["GLOO_SOCKET_IFNAME"] == "lo"
    assert said["NCCL_SOCKET_IFNAME"] == "=lo"
    assert "lo" not in said.get("UCX_NET_DEVICES", "^").removeprefix("^").split(",")
