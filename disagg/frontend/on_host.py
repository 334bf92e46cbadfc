"""What was published for frontends, made to fit the host where one is to run.

Way:   Published, OnHost (what the operator said here) -> [on_this_host] -> FrontendSpec
Fails: StartError: a model, a file of TLS or one of keys is not here, or a model is another one than the engines have
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from disagg.config.addresses import is_loopback_host
from disagg.errors import StartError
from disagg.frontend.published import Published
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.frontend.tls import TlsSpec
from disagg.models.digest import text_digest
from disagg.models.resolve import resolve_model
from disagg.registry.shared import Shared

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OnHost:
    """None, "": as the deployment says."""

    host: str | None = None
    port: int | None = None
    models: Mapping[str, str] = field(default_factory=dict)  # what clients say -> a folder, a name, a hub id
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    keys_file: str = ""


def on_this_host(what: Published, said: OnHost, shared: Shared, peer_host: str, *, shares_port: bool) -> FrontendSpec:
    """Its number is still to be set. May fetch a model, and takes as long. Raises StartError."""
    spec, host = what.spec, said.host or what.spec.host
    unknown = set(said.models) - {model.name for model in spec.models}
    if unknown and spec.models:  # those that come and go are in the registry
        names = ", ".join(model.name for model in spec.models)
        raise StartError("--model", f"{', '.join(unknown)} is no model of the deployment", f"it has {names}")
    is_open, keys_file = not is_loopback_host(host), said.keys_file or spec.keys_file
    if keys_file and not Path(keys_file).expanduser().is_file():
        raise StartError("--keys-file", f"{keys_file} is no file here", "bring it here, or name another one")
    if is_open and not (spec.api_keys or spec.limited_keys or keys_file):
        log.warning("%s is open beyond this machine, without keys: set security.api_keys of the deployment", host)
    return msgspec.structs.replace(
        spec,
        shared=shared,
        host=host,
        port=said.port or spec.port,
        peer_host=peer_host,
        shares_port=shares_port,
        models=tuple(model_here(model, said.models) for model in spec.models),
        folders=dict(said.models),
        tls=_tls(spec.tls, said),
        keys_file=keys_file,
        origins=() if is_open and not what.origins_said else spec.origins,
    )


def model_here(model: ModelSpec, said: Mapping[str, str]) -> ModelSpec:
    """With its path on this host. May fetch it. Raises StartError."""
    if model.tokenization == "engine":
        return model
    where, would_do = f"model {model.name}", f"say --model {model.name}=PATH"
    try:
        folder = _folder(model, said)
        is_same = not model.digest or text_digest(folder) == model.digest
    except StartError as error:
        raise StartError(
            where, f"is in {model.path} of the deployment, and not here: {error.message}", would_do
        ) from None
    except OSError as error:
        raise StartError(where, f"{error.filename} cannot be read: {error.strerror}", would_do) from None
    if not is_same:
        what = f"{folder} has other texts (tokenizer, template, config.json) than the deployment's engines"
        raise StartError(where, what, f"bring the same files here, and {would_do}")
    return msgspec.structs.replace(model, path=str(folder))


def _folder(model: ModelSpec, said: Mapping[str, str]) -> Path:
    if model.name in said:
        return resolve_model(said[model.name])
    if Path(model.path).is_dir():
        return Path(model.path)
    return resolve_model(model.said_path, model.revision)


def _tls(of_deployment: TlsSpec | None, said: OnHost) -> TlsSpec | None:
    if of_deployment is None:
        if said.tls_cert or said.tls_key or said.tls_client_ca:
            raise StartError("--tls-cert", "the deployment has no TLS", "set frontend.tls of it")
        return None
    return TlsSpec(
        said.tls_cert or of_deployment.cert,
        said.tls_key or of_deployment.key,
        said.tls_client_ca or of_deployment.client_ca,
    )
