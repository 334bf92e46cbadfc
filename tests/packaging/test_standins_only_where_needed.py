"""The stand-ins for `sgl_kernel` and torchvision come first on the path only where the real ones cannot work."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from disagg.cpu_profile import paths

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """What is found here is not what is installed: later tests must not go by it."""
    paths.torchvision_loads.cache_clear()
    yield
    paths.torchvision_loads.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts files where torch and torchvision would be; nothing else is importable then."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(paths, "_imports", lambda module: pytest.fail(f"{module} was tried, which takes seconds"))

    def write(
        torch_cuda: str | None, torchvision: str | None, needs: bytes = b"", torch_has_cuda: bool = False
    ) -> None:
        for package in ("torch", "torchvision"):
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").touch()
        (tmp_path / "torch" / "version.py").write_text(
            f"from typing import Optional\ncuda: Optional[str] = {torch_cuda!r}\n"
        )
        (tmp_path / "torch" / "lib").mkdir()
        if torch_has_cuda:
            (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
        (tmp_path / "torchvision" / "version.py").write_text(f"__version__ = {torchvision!r}\n")
        (tmp_path / "torchvision" / "_C.so").write_bytes(b"\x7fELF..." + needs + b"...")

    return write


NEEDS_CUDA = b"libtorch_cuda.so"


def test_cuda_torchvision_beside_cpu_torch_gets_the_loader(install: Install) -> None:
    install(None, "0.28.0+cu130", NEEDS_CUDA)
    assert str(paths.TORCHVISION_ROOT) in paths.standin_paths()


def test_cuda_torchvision_beside_cuda_torch_is_left_alone(install: Install) -> None:
    install("13.0", "0.28.0+cu130", NEEDS_CUDA, torch_has_cuda=True)
    assert paths.standin_paths("cuda") == []
    assert paths.standin_paths("cpu") == [str(paths.KERNELS_ROOT)]


def test_cpu_torchvision_is_left_alone(install: Install) -> None:
    install(None, "0.28.0+cpu")
    assert paths.standin_paths("cpu") == [str(paths.KERNELS_ROOT)]


@pytest.mark.parametrize("works", [True, False])
def test_other_cuda_versions_are_settled_by_trying(
    install: Install, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    install("12.9", "0.28.0+cu130", NEEDS_CUDA, torch_has_cuda=True)
    monkeypatch.setattr(paths, "_imports", lambda module: works)
    assert (str(paths.TORCHVISION_ROOT) in paths.standin_paths("cuda")) is not works


def test_without_torchvision_there_is_nothing_to_bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert paths.standin_paths("cuda") == []


def test_a_cpu_build_of_the_kernels_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_installed", lambda package: package == "sgl-kernel-cpu")
    assert str(paths.KERNELS_ROOT) not in paths.standin_paths("cpu")


def test_an_environment_gets_each_root_once_and_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "standin_paths", lambda device: ["/kernels", "/torchvision"])
    once = paths.standin_environment({"PYTHONPATH": "/mine", "A": "b"})
    assert once == {"PYTHONPATH": "/kernels:/torchvision:/mine", "A": "b"}
    assert paths.standin_environment(once) == once


def test_the_kernels_stand_in_copies_slots_and_refuses_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    kernels = _kernels(monkeypatch)
    pool = torch.zeros(3, 6, dtype=torch.int32)
    slots = torch.tensor([10, 11, 12, 20, 30], dtype=torch.int64)
    rows, starts, ends = torch.tensor([2, 0, 1]), torch.tensor([1, 0, 4]), torch.tensor([4, 1, 4])
    kernels.assign_req_to_token_pool_cpu(rows, pool, starts, ends, slots, 6)
    assert pool.tolist() == [[20, 0, 0, 0, 0, 0], [0] * 6, [0, 10, 11, 12, 0, 0]]
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.silu_and_mul is a GPU kernel"):
        kernels.silu_and_mul(1)
    assert not hasattr(kernels, "__path_of_nothing__")


def _kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(paths.KERNELS_ROOT))
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    import sgl_kernel

    monkeypatch.delitem(sys.modules, "sgl_kernel")
    return sgl_kernel
