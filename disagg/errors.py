"""Every error a user or a client can meet: where it happened, what is wrong, what would do.

DisaggError
├─ ConfigError          the YAML or the command line; exit 2, nothing was started
├─ StartError           a deployment that cannot become ready; exit 1, everything is taken down
└─ RequestError         becomes an OpenAI error object (see `http_status`)
   ├─ BadRequest        400, 404, 413: the client's to mend; names the parameter
   ├─ Overloaded        429: no room now; it is not a failure of any engine
   ├─ RateLimited       429: the key has used up what it may; says when to come again
   ├─ FrontendFull      503: too many connections, or too much of requests that are not complete
   ├─ NoReadyPair       503: no prefill and decode engine that have met are READY
   ├─ ReaderLost        503: the process that read a long body ended
   ├─ LegLost           502: an engine ended its leg under the request
   │  └─ EngineLost     502: the connection to the engine ended, and with it all legs there: it died, or was cut off
   ├─ SuspectedPoison   422: engines died under this request, the last one with nothing else on it: no further try
   ├─ NotAccepted       400: the engine does not take what the request asks (a grammar that is none); not tried again
   ├─ NoAdapter         404: the adapter that it names was unloaded while it was on its way; not tried again
   ├─ ParserFailed      500: the parser of tool calls or of reasoning threw; the request ends, and no other
   ├─ NotANumber        500: the model, or the request's own values, gave logits that are no numbers; not tried again
   ├─ Refused           429: a live engine had no room after all; the request waits again (nobody else sees it)
   ├─ DeadlineExceeded  504: a phase outlived its deadline
   └─ Cancelled         499: the client went away (nobody reads it but logs and timelines)
"""

from __future__ import annotations

from dataclasses import dataclass


class DisaggError(Exception):
    """`where` names hosts, rooms, files: for logs and operators. `what` and `would_do` may be shown to clients."""

    def __init__(self, where: str, what: str, would_do: str = "") -> None:
        super().__init__(where, what, would_do)  # positional: crossing Ray, an error is rebuilt as cls(*args)
        self.where, self.what, self.would_do = where, what, would_do

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"

    @property
    def message(self) -> str:
        return f"{self.what}; {self.would_do}" if self.would_do else self.what


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration: the YAML path, what is wrong, what would do, and why it would fail later."""

    path: str
    what: str
    would_do: str = ""
    why: str = ""

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"{self.path}: {self.what}{why}" + (f"; {self.would_do}" if self.would_do else "")


class ConfigError(DisaggError):
    """All problems of a configuration at once."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(source, "\n".join(map(str, problems)))
        self.args = (source, problems)
        self.problems = problems


class StartError(DisaggError):
    """The deployment cannot become ready."""


class RequestError(DisaggError):
    http_status = 500
    code = "internal_error"
    kind = "server_error"


class BadRequest(RequestError):
    http_status = 400
    kind = "invalid_request_error"

    def __init__(self, param: str | None, code: str, message: str, http_status: int = 400) -> None:
        super().__init__(param or "request", message)
        self.args = (param, code, message, http_status)
        self.param, self.code, self.http_status = param, code, http_status


class Overloaded(RequestError):
    http_status, code, kind = 429, "overloaded", "overloaded_error"


class RateLimited(RequestError):
    """`wait_s`: until it may be tried again; 0: never, as it is."""

    http_status, code, kind = 429, "rate_limit_exceeded", "rate_limit_error"

    def __init__(self, where: str, what: str, would_do: str = "", wait_s: float = 0.0) -> None:
        super().__init__(where, what, would_do)
        self.args = (where, what, would_do, wait_s)
        self.wait_s = wait_s


class FrontendFull(RequestError):
    http_status, code, kind = 503, "frontend_full", "overloaded_error"


class NoReadyPair(RequestError):
    http_status, code = 503, "no_ready_pair"


class ReaderLost(RequestError):
    http_status, code = 503, "reader_lost"


class LegLost(RequestError):
    http_status, code = 502, "leg_lost"


class NotAccepted(RequestError):
    http_status, code, kind = 400, "not_accepted", "invalid_request_error"


class NoAdapter(RequestError):
    """As the frontend says it of a name that is not there at all."""

    http_status, code, kind = 404, "model_not_found", "invalid_request_error"


class NotANumber(RequestError):
    http_status, code = 500, "not_a_number"


class ParserFailed(RequestError):
    http_status, code = 500, "parser_failed"


class EngineLost(LegLost):
    """`code` is LegLost's: to a client it is the same."""


class SuspectedPoison(RequestError):
    """422, not a 5xx: OpenAI's clients repeat a 5xx by themselves, and each repetition would cost more engines."""

    http_status, code, kind = 422, "suspected_poison", "invalid_request_error"


class Refused(RequestError):
    http_status, code, kind = 429, "overloaded", "overloaded_error"


class DeadlineExceeded(RequestError):
    http_status, code = 504, "deadline_exceeded"


class Cancelled(RequestError):
    http_status, code = 499, "cancelled"
