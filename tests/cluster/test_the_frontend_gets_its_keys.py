"""What the YAML says of keys and pages, and what is believed of the engines, reaches the frontend's process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from disagg.cluster.specs import frontend_spec, model_spec
from disagg.config.tls import TlsSection
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.frontend.tls import TlsSpec
from disagg.load import parse_config
from disagg.planning.plan import resolve
from disagg.routing.cost.prior import Prior

YAML = "version: 1\nmodel: {path: m}\nprefill: {}\ndecode: {}\n"
KEY, ADMIN = "first-key-0123456789", "admin-key-0123456789"


def test_all_of_it() -> None:
    security = f"security: {{api_keys: [{KEY}], admin_keys: [{ADMIN}], open_metrics: true}}\n"
    cors = "frontend: {host: 0.0.0.0, cors: {origins: ['https://chat.example.org'], max_age_s: 7}}\n"
    spec = frontend_spec(resolve(parse_config(YAML + security + cors), "cpu"), ())
    assert (spec.api_keys, spec.admin_keys, spec.open_metrics) == ((KEY,), (ADMIN,), True)
    assert (spec.origins, spec.origins_age_s) == (("https://chat.example.org",), 7)


def test_with_a_name_limits_an_end_and_a_file() -> None:
    limited = f"{{key: {KEY}, name: a, concurrent: 3, expires: 2027-01-31}}"
    security = f"security: {{api_keys: [{limited}], keys_file: /keys.yaml}}\n"
    spec = frontend_spec(resolve(parse_config(YAML + security), "cpu"), ())
    (key,) = spec.limited_keys
    assert (key.name, key.concurrent, key.expires_s) == ("a", 3, 1801353600.0)
    assert (spec.keys_file, spec.origins) == ("/keys.yaml", ())
    assert msgspec.json.decode(msgspec.json.encode(spec), type=FrontendSpec) == spec


def test_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detached deployment's frontends do not run in the command's."""
    monkeypatch.chdir(tmp_path)
    deployment = parse_config(YAML + "security: {keys_file: keys.yaml}\n")
    frontend = deployment.frontend.model_copy(update={"tls": TlsSection(cert="a.pem", key="../a.key")})
    deployment = deployment.model_copy(update={"frontend": frontend})
    spec = frontend_spec(resolve(deployment, "cpu"), ())
    assert spec.keys_file == f"{tmp_path}/keys.yaml"
    assert spec.tls == TlsSpec(f"{tmp_path}/a.pem", f"{tmp_path}/../a.key", "")


def test_by_default_nobody_needs_a_key_and_all_pages_may() -> None:
    spec = frontend_spec(resolve(parse_config(YAML), "cpu"), ())
    assert (spec.api_keys, spec.admin_keys, spec.open_metrics, spec.origins) == ((), (), False, ("*",))


def test_what_is_believed_of_the_engines_before_they_are_measured() -> None:
    believed = Prior(read_token_s=0.125, kv_bytes_per_token=7)
    spec = model_spec(resolve(parse_config(YAML), "cpu"), Path("m"), believed)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec).prior == believed
