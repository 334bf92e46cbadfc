"""Where traces go, as the YAML says it.

Way:   Deployment.telemetry -> [Traces] -> FrontendSpec; engines' arguments and environment
Fails: pydantic's ValidationError, as in schema.py
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from disagg.config.section import Section

HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"  # it holds secrets
TRACES_PATH = "/v1/traces"  # OTLP's, where the URL has none
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[ -~]*")


def _whole_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(f"{url[:100]!r} is no URL of a collector; say http://HOST:4318, for OTLP over HTTP")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a password, which logs would show; say it as a header, under headers")
    return url if parts.path.strip("/") else url.rstrip("/") + TRACES_PATH


def _headers_can_be_sent(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name of a header; use letters, digits and -")
        if not _VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"{name} has a line end or a letter beyond ASCII; use letters, digits and signs")
    return headers


class Traces(Section):
    """OpenTelemetry traces, one span tree a request."""

    endpoint: Annotated[str, AfterValidator(_whole_url)]
    """The collector, OTLP over HTTP: http://HOST:4318."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of requests whose client sends no traceparent; one that does decides for itself."""
    headers: Annotated[dict[str, SecretStr], AfterValidator(_headers_can_be_sent)] = Field({})
    """Sent with each batch of spans, as a collector's key: from the environment, "${env:NAME}"."""
    engines: bool = False
    """SGLang's own spans too, below ours: engines run with --enable-trace, which costs each request there, sampled or
    not."""

    @property
    def engine_arguments(self) -> dict[str, Any]:
        return {"enable_trace": True, "otlp_traces_endpoint": self.endpoint} if self.engines else {}

    @property
    def engine_environment(self) -> dict[str, str]:
        """What OpenTelemetry reads inside SGLang."""
        if not self.engines:
            return {}
        said = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
        if self.headers:
            pairs = (f"{name}={quote(value.get_secret_value(), safe='')}" for name, value in self.headers.items())
            said[HEADERS_VARIABLE] = ",".join(pairs)
        return said
