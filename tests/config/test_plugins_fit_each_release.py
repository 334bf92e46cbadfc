"""What our plugins touch of SGLang is in every supported release as they need it; where it is not, that is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg.errors import StartError
from disagg.host_spec import OFF_VARIABLE, is_on
from disagg.sglang.fit import check_installed, misfits
from disagg.sglang.releases import RELEASES, installed_release
from disagg.sglang.signatures import Sources
from disagg.sglang.touched import PARTS, SEEDS, Part, Touch
from tests.config.sglang_touched import Told, behaves, paths, rows

SAMPLER = """
from elsewhere import imported


@decorated(1)
class Sampler(Base):
    declared: int = 0

    def __init__(self):
        self.assigned, self.other = 1, 2
        self.annotated: dict[str, int] = {}

    async def forward(
        self,
        logits,  # a remark with a bracket )
        sizes: tuple[int, int] = (1, 2),
        *,
        more=None,
        wanted,
        **rest,
    ) -> None: ...


def sample(probs, seed=None, *others): ...


def plain(): ...


class Other:
    def forward(self): ...
"""


@pytest.mark.parametrize("version", RELEASES)
def test_every_part_fits(version: str) -> None:
    told = Told(version, rows())
    found = {part.name: misfits(part, told) for part in PARTS}  # type: ignore[arg-type]
    assert {name for name, why in found.items() if why} == {part.name for part in PARTS if version < part.since}


def test_the_table_has_every_path_that_is_touched() -> None:
    assert {row["path"] for row in rows()} <= set(paths())
    assert [
        touch.paths for part in PARTS for touch in part.touches if not set(touch.paths) & {r["path"] for r in rows()}
    ] == []


def test_the_installed_release_is_as_the_table_says() -> None:
    sglang = installed_release()
    if sglang is None or sglang.version not in RELEASES:
        pytest.skip("no supported SGLang is installed")
    import importlib.util

    (root,) = importlib.util.find_spec("sglang").submodule_search_locations  # type: ignore[union-attr, misc]
    installed, told = Sources(Path(root).parent), Told(sglang.version, rows())
    assert {path: installed.of(path) for path in paths()} == {path: told.of(path) for path in paths()}


def test_what_seeds_asked_for_until_now_is_found_missing_in_0_5_16() -> None:
    """`return_filtered_probs`: any seed beside top_p, top_k or min_p ended the prefill engine there."""
    sampler = "sglang.srt.layers.sampler:top_k_top_p_min_p_sampling_from_probs_torch"
    old = Part("seeds", "", (Touch((sampler,), keywords="return_filtered_probs"),))
    assert misfits(old, Told("0.5.20", rows())) == []  # type: ignore[arg-type]
    (why,) = misfits(old, Told("0.5.16", rows()))  # type: ignore[arg-type]
    assert "and we give return_filtered_probs" in why


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("Sampler.forward", "self, logits, sizes=, *, more=, wanted, **rest"),
        ("Sampler.__init__", "self"),
        ("Sampler.assigned", "name"),
        ("Sampler.annotated", "name"),
        ("Sampler.declared", "name"),
        ("Sampler.nothing", ""),
        ("Other.forward", "self"),
        ("Other.assigned", ""),
        ("Nobody.forward", ""),
        ("sample", "probs, seed=, *others"),
        ("plain", "name"),
        ("imported", "name"),
        ("Sampler", "name"),
        ("nothing", ""),
    ],
)
def test_a_signature_is_read_from_source(tmp_path: Path, path: str, told: str) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "sampler.py").write_text(SAMPLER)
    assert Sources(tmp_path).of(f"fake.sampler:{path}") == told
    assert Sources(tmp_path).of(f"fake.nowhere:{path}") == ""


@pytest.mark.parametrize(
    ("touch", "why"),
    [
        (Touch(("fake.sampler:Sampler.forward",), "self, logits"), ""),
        (Touch(("fake.sampler:Sampler.forward",), "self, probs"), "and we give (self, probs)"),
        (Touch(("fake.sampler:Sampler.forward",), "self, logits", is_called=True), "wants wanted, too"),
        (Touch(("fake.sampler:Sampler.forward",), keywords="anything"), ""),
        (Touch(("fake.sampler:sample",), keywords="temperature"), "and we give temperature"),
        (Touch(("fake.sampler:sample",), "probs", is_called=True), ""),
        (Touch(("fake.sampler:sample",), "probs", is_whole=True), "takes seed=, *others, too"),
        (Touch(("fake.sampler:Other.forward",), "self", is_whole=True), ""),
        (Touch(("fake.sampler:Sampler.gone",)), "fake.sampler:Sampler.gone is not there"),
        (Touch(("fake.sampler:Sampler.gone", "fake.sampler:Sampler.assigned")), ""),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, touch: Touch, why: str) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "sampler.py").write_text(SAMPLER)
    found = misfits(Part("it", "", (touch,)), Sources(tmp_path))
    assert why in "".join(found) if why else found == []


def test_an_optional_part_that_does_not_fit_is_switched_off_in_all_the_engines_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment: dict[str, str] = {}
    off = check_installed("0.5.99", "cuda", Sources(tmp_path), (SEEDS,), environment)
    assert off == ("seeds",)
    assert "sglang 0.5.99: seeds is switched off, so a request with a seed is refused: " in caplog.text
    assert "top_k_top_p_min_p_sampling_from_probs_torch is not there" in caplog.text
    monkeypatch.setenv(OFF_VARIABLE, environment[OFF_VARIABLE])
    assert (is_on("seeds"), is_on("pace")) == (False, True)


def test_a_part_that_no_engine_can_do_without_refuses_the_start(tmp_path: Path) -> None:
    needed = Part("transfer", "", (Touch(("sglang.srt.managers.scheduler:Scheduler.run_batch",), "self, batch"),))
    with pytest.raises(StartError) as failed:
        check_installed("0.5.99", "cuda", Sources(tmp_path), (needed,), {})
    assert str(failed.value) == (
        "sglang 0.5.99: disagg's transfer part does not fit it: sglang.srt.managers.scheduler:Scheduler.run_batch is "
        "not there; install one of 0.5.16 to 0.5.23"
    )


def test_the_bridges_of_a_cpu_are_not_asked_for_on_a_gpu(tmp_path: Path) -> None:
    bridge = Part("cpu", "", (Touch(("sglang.srt.nowhere:gone",)),), only="cpu")
    assert check_installed("0.5.99", "cuda", Sources(tmp_path), (bridge,), {}) == ()
    with pytest.raises(StartError):
        check_installed("0.5.99", "cpu", Sources(tmp_path), (bridge,), {})


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_seeds_and_aborts_behave_in_the_installed_release() -> None:
    assert behaves(None) == []
