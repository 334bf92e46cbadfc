"""What a frontend and an engine host say to each other; the body of one frame each (see framing.py).

Way:   coordinator -> client.py -> [Submit, Abort] -> host -> engine; back come Steps, and reports nobody asked for
In/out: msgpack arrays, decoded straight into these structs; a prompt's token ids travel as little-endian uint32 bytes,
       a vector as little-endian float32
Owns:  the wire format. A leg is named by a number that its frontend connection chose and never uses twice
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from disagg.kv_events.changes import Change
from disagg.token_ids import TokenIds, packed

WELL = ("stop", "length")  # a LegEnd's reason when nothing went wrong
REFUSED = "refused"
NO_ADAPTER = "no adapter"
INVALID = "invalid"
NOT_A_NUMBER = "not a number"
UNTRACED = f"00-{1:032x}-{1:016x}-00"  # a traceparent: of the control plane's own legs no engine is to tell
BUSY, LOST_READER, TOO_COMPLEX = READ_FAILURES = ("busy", "reader lost", "too complex")
MAX_FRAME_BYTES = 64 << 20  # a 16M-token prompt; anything larger is a broken or hostile peer
READ_BYTES_MAX = MAX_FRAME_BYTES // 2  # of bodies that a host has to read for one frontend (Read)


class Wire(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Bootstrap(Wire, frozen=True):
    """Where both legs of a request meet. `room` is congruent to `prefill_dp_rank` modulo the prefill's dp size."""

    host: str
    port: int
    room: int
    prefill_dp_rank: int


class TextWanted(Wire, frozen=True):
    """Of a leg whose host is to say the text of its tokens, too: the frontend has no tokenizer."""

    end_ids: list[int] = []  # one of these ends the answer, and has no text
    shows_special: bool = False  # special tokens have theirs
    emitted: int = 0  # of the prompt's last ids: what earlier tries of the request have answered


# frontend -> host


class Submit(Wire, frozen=True, tag="submit"):
    leg: int
    leg_id: str  # unique among all legs of all frontends, of one length: SGLang aborts by prefix
    prompt: bytes  # uint32 little-endian token ids
    sampling: dict[str, Any]  # SGLang's own names; max_new_tokens is already this leg's
    dp_rank: int
    bootstrap: Bootstrap | None = None  # None: an aggregated engine
    is_canary: bool = False  # granted beyond capacity: a full engine must still be able to prove that it lives
    asks: dict[str, Any] = {}  # beside sampling, in SGLang's words: return_logprob, top_logprobs_num, …
    embeds: bool = False  # it asks for a vector; an engine that makes tokens refuses it, and the other way round
    second_at: int = 0  # where the second text of a pair begins, for a model that reads pairs; 0: there is none
    adapter: str = ""  # the name of a LoRA adapter, the same on both legs; empty: the model as it is
    text: TextWanted | None = None
    to_read: int = 0  # tokens of the prompt that this engine is expected to read: those that it has not cached
    salt: str = ""  # its cached KV is shared among legs with the same one alone, and with none that has another
    trace: str = ""  # W3C's traceparent for the engine's own spans; empty: the request has none


class Read(Wire, frozen=True, tag="read"):
    """A client's body, for the host's tokenizer: JSON, checks, chat template, token ids (frontend/reading.py)."""

    number: int  # chosen by its frontend connection, as a leg's
    words: str  # the endpoint, and the adapters that may be named
    body: bytes


class ReadOff(Wire, frozen=True, tag="read off"):
    """Nobody waits for the answer any more."""

    number: int


class Abort(Wire, frozen=True, tag="abort"):
    leg: int


class Ping(Wire, frozen=True, tag="ping"):
    sent_at_s: float  # the sender's monotonic clock


class LoadsWanted(Wire, frozen=True, tag="loads?"):
    pass


class MetricsWanted(Wire, frozen=True, tag="metrics?"):
    labels: str  # `name="value",…`, for each sample


class HealthWanted(Wire, frozen=True, tag="health?"):
    pass


class LoadAdapter(Wire, frozen=True, tag="load adapter"):
    """One that is there already, from the same folder, is left as it is."""

    name: str
    path: str
    pinned: bool = False
    number: int = 0  # chosen by its connection, as a leg's


class UnloadAdapter(Wire, frozen=True, tag="unload adapter"):
    """Ends the legs that still run with it. One that is not there is no error."""

    name: str
    number: int = 0  # chosen by its connection, as a leg's


class AdaptersWanted(Wire, frozen=True, tag="adapters?"):
    pass


class FlushWanted(Wire, frozen=True, tag="flush?"):
    """The engine is to empty its prefix cache, once it is idle: within `wait_s`, or not at all."""

    wait_s: float


class KvWanted(Wire, frozen=True, tag="kv?"):
    """From now on this connection is told what the engine's prefix caches hold: KvStart, and what follows it."""


class PeerGone(Wire, frozen=True, tag="peer gone"):
    """The controller's word that an engine incarnation is dead; the first host hands it on to the engine's others."""

    life: str


# another host of the same engine -> the first one's (disagg/process/members.py)


class ProcessSample(NamedTuple):
    """One scheduler process at one moment."""

    dp_rank: int
    group: int  # processes of one group step together: each waits for the others
    beat_age_s: float  # since its loop last came round
    batch_tokens: int  # of the batch it is in; 0: in none
    step_longest_s: float  # 0: it has made none
    step_longest_tokens: int
    steps: int  # that it has made
    state: str  # of its main thread, as /proc says it: R, S, D, T, Z, …; "" when there is no such process
    stopped_s: float  # how long it has been seen stopped
    watched_s: float  # since its loop was last seen to come round
    cpu_s: float  # CPU time of its main thread in those `watched_s`


class MemberSamples(Wire, frozen=True, tag="samples"):
    """What member `member` sees of its own schedulers: sent at the start, then twice a second."""

    member: int
    samples: list[ProcessSample]


class MemberStage(Wire, frozen=True, tag="member stage"):
    leg_id: str
    name: str  # as in Stage
    cached_tokens: int | None = None


class MemberKv(Wire, frozen=True, tag="member kv"):
    """What a scheduler of that member says of its prefix cache. `telling`: a Telling (disagg/kv_events/events.py);
    empty: it is not heard any more."""

    dp_rank: int
    telling: bytes


_FromFrontend = (
    Submit | Abort | Read | ReadOff | LoadsWanted | MetricsWanted | HealthWanted | FlushWanted | KvWanted | Ping
)
_FromController = PeerGone | LoadAdapter | UnloadAdapter | AdaptersWanted
ToHost = _FromFrontend | _FromController | MemberSamples | MemberStage | MemberKv

# host -> frontend


class TokenLogprobs(Wire, frozen=True):
    """Of one token, of the likeliest in its place, and of ids that were asked for (token_ids_logprob): (id, logprob).
    None: of a prompt's first token."""

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = []
    chosen: list[tuple[int, float]] = []


class Delta(Wire, frozen=True):
    leg: int
    offset: int  # index of the first of these tokens among all that this leg emitted
    tokens: list[int]
    logprobs: list[TokenLogprobs] | None = None  # where asked for: of the prompt, with the first token; one a token


class Shown(Wire, frozen=True):
    """The text of a Delta's tokens: of each what it completes. Only of legs that want it; it goes before its Delta."""

    leg: int
    texts: list[str]
    unfinished: str = ""  # what would be shown beside, if the answer ended here: of a character that is not whole
    token_bytes: dict[int, bytes] = {}  # of all tokens that the Delta's logprobs name


class Stage(Wire, frozen=True):
    """A leg has come to `name`: bootstrapping, prefilling or transferring (see coordinator/phases.py).
    `cached_tokens`: of its prompt, where that is known by then."""

    leg: int
    name: str
    cached_tokens: int | None = None


class LegEnd(Wire, frozen=True):
    """The last word on a leg. `reason`: stop, length, abort (asked for), error, refused (it never began), no adapter
    (it names one that is not here; it never began), invalid (the engine does not take what it asks: the client's to
    mend), or not a number (among its logits, and nothing else is wrong with the engine)."""

    leg: int
    reason: str
    detail: str = ""
    cached_tokens: int = 0
    stats: dict[str, float] = {}  # name -> host's monotonic seconds, and "kv_bytes", "kv_transfer_s"
    matched: int | str | None = None  # the token, or the stop pattern, that ended it
    embedding: bytes = b""  # float32, little-endian: a vector, or a score for each class


class Step(Wire, frozen=True, tag="step"):
    """What one engine step yielded for all legs of this connection."""

    incarnation: int  # frames of a dead incarnation are dropped
    deltas: list[Delta]
    ends: list[LegEnd]
    stages: list[Stage] = []
    shown: list[Shown] = []


class HasRead(Wire, frozen=True, tag="has read"):
    """`answer`: as the reader says it (frontend/readers.py). `failed`: why there is none, one of READ_FAILURES."""

    number: int
    answer: bytes
    failed: str = ""
    detail: str = ""


class Pong(Wire, frozen=True, tag="pong"):
    sent_at_s: float  # echoed
    here_at_s: float  # the host's monotonic clock


class RankLoad(Wire, frozen=True):
    """What the engine itself says of one dp rank."""

    dp_rank: int
    running: int
    waiting: int
    kv_tokens_used: int  # pages that the prefix cache could give up count as free
    kv_tokens_total: int
    reported_at_s: float  # the engine's own stamp, wall clock


class Loads(Wire, frozen=True, tag="loads"):
    incarnation: int
    ranks: list[RankLoad]


class MetricFamily(Wire, frozen=True):
    """The engine's own, in Prometheus' text format."""

    head: str  # its lines of HELP and TYPE
    samples: str  # its other lines


class Metrics(Wire, frozen=True, tag="metrics"):
    incarnation: int
    families: list[MetricFamily]


class RankHealth(Wire, frozen=True):
    """Whether one dp rank makes progress. `sick` says what is wrong; empty while nothing is."""

    dp_rank: int
    sick: str
    beat_age_s: float  # since the scheduler's loop last came round
    step_longest_s: float  # its longest step so far


class Health(Wire, frozen=True, tag="health"):
    incarnation: int
    ranks: list[RankHealth]


class AdapterChanged(Wire, frozen=True, tag="adapter"):
    """The answer to the LoadAdapter or UnloadAdapter with this number. `error`: why it did not succeed."""

    number: int
    error: str = ""


class Adapters(Wire, frozen=True, tag="adapters"):
    """The answer to AdaptersWanted: each adapter that requests may name here -> how many legs run with it."""

    legs: dict[str, int]


class Flushed(Wire, frozen=True, tag="flushed"):
    incarnation: int
    why_not: str  # empty: the prefix cache is


class RankTaken(Wire, frozen=True):
    """What a host has granted on one dp rank, to all frontends together."""

    requests: int
    kv_tokens: int
    canaries: int = 0  # among the requests: the control plane's own
    to_read: int = 0  # prompt tokens that wait to be read, without those that are expected to be cached
    # Since it came up (plane.ledger.Reading): prompts and tokens that it read, their area, and how long it was busy.
    read_prompts: int = 0
    read_tokens: int = 0
    read_area: float = 0.0
    read_s: float = 0.0
    read_loaded: int = 0  # cached tokens that came from the host's memory for it


class Taken(Wire, frozen=True, tag="taken"):
    """Sent after each change of the host's ledger, a few times a second at most. One entry a dp rank, in order."""

    incarnation: int
    ranks: list[RankTaken]


class KvStart(Wire, frozen=True, tag="kv"):
    """The answer to KvWanted: all that was told before is void. What the ranks hold follows as KvHeld, and what changes
    meanwhile and from then on as KvChanged."""

    incarnation: int
    block_tokens: int
    sequences: dict[int, int]  # of each dp rank that tells what it holds, the number of the next KvChanged's change
    why_not: str = ""  # nothing follows: this engine does not tell


class KvHeld(Wire, frozen=True, tag="kv held"):
    """A part of what a rank holds. `is_last`: it was the last one of all ranks."""

    dp_rank: int
    changes: list[Change]
    is_last: bool = False


class KvChanged(Wire, frozen=True, tag="kv changed"):
    """`begins`: the number of the first change. `lag_s`: since the scheduler did it."""

    dp_rank: int
    begins: int
    changes: list[Change]
    lag_s: float


class KvAgain(Wire, frozen=True, tag="kv again"):
    """To another host of the engine: its scheduler of that dp rank is to say anew all that it holds."""

    dp_rank: int


_Told = Step | HasRead | Pong | Loads | Metrics | Health | Flushed | Taken | PeerGone | AdapterChanged | Adapters
ToFrontend = _Told | KvStart | KvHeld | KvChanged | KvAgain

encode = msgspec.msgpack.Encoder().encode
decode_to_host = msgspec.msgpack.Decoder(ToHost).decode
decode_to_frontend = msgspec.msgpack.Decoder(ToFrontend).decode


def pack_floats(numbers: Iterable[float]) -> bytes:
    return array("f", numbers).tobytes()


def unpack_floats(octets: bytes) -> list[float]:
    numbers = array("f")
    numbers.frombytes(octets)
    return numbers.tolist()


def pack_ids(token_ids: Iterable[int]) -> bytes:
    return packed(token_ids).tobytes()


def unpack_ids(octets: bytes) -> TokenIds:
    ids = packed(())
    ids.frombytes(octets)
    return ids
