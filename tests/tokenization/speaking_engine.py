"""An engine that says what its prompt asks for: `<say 4869>` is answered with these tokens.

Two hex digits are a byte, which is a token of the model's folder in scripted.py; S0 to S2 are its special tokens.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

from tokenizers import pre_tokenizers

from disagg.plane.engine import EngineFacts, Leg, LegSink
from disagg.plane.messages import RankHealth, RankLoad
from disagg.simulated_engine.tokens import logprobs_of, prompt_logprobs_of, vector
from disagg.tokenizer.token_bytes import LETTERS

ID_OF_BYTE = {LETTERS[letter]: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
BYTE_OF_ID = {token_id: byte for byte, token_id in ID_OF_BYTE.items()}
END_ID = 258  # <|im_end|>, as the folder's config names it


def say(text: str | bytes, end: str = "S2") -> str:
    """A prompt that makes the engine say this."""
    said = text.encode() if isinstance(text, str) else text
    return f"<say {said.hex()}{end}>"


@dataclass(slots=True, eq=False)
class _Running:
    leg: Leg
    sink: LegSink
    left: list[int]
    made: int = 0
    is_over: bool = False


@dataclass
class SpeakingEngine:
    per_step: int = 1000
    tokens_max: int | None = None  # then it stands still
    legs: list[_Running] = field(default_factory=list)

    def start(self) -> EngineFacts:
        return EngineFacts(kv_tokens=1 << 20, request_tokens_max=1 << 20, requests_max=256)

    def submit(self, leg: Leg, sink: LegSink) -> object:
        running = _Running(leg, sink, _answer(list(leg.prompt_ids)))
        self.legs.append(running)
        if leg.embeds:
            asyncio.get_running_loop().call_soon(_embed, running)
        else:
            asyncio.get_running_loop().call_soon(self._step, running)
        return running

    def _step(self, running: _Running) -> None:
        leg, asks = running.leg, running.leg.asks
        if running.is_over or (self.tokens_max is not None and running.made >= self.tokens_max):
            return
        end_at = running.left.index(END_ID) + 1 if not leg.sampling.get("ignore_eos") else len(running.left)
        ids = running.left[: min(self.per_step, end_at, leg.sampling["max_new_tokens"] - running.made)]
        del running.left[: len(ids)]
        logprobs = None
        if asks.get("return_logprob"):
            logprobs = logprobs_of(ids, asks.get("top_logprobs_num", 0), asks.get("token_ids_logprob", ()))
        if logprobs is not None and not running.made and "logprob_start_len" in asks:
            logprobs = prompt_logprobs_of(leg.prompt_ids, asks.get("top_logprobs_num", 0)) + logprobs
        running.sink.on_tokens(ids, logprobs)
        running.made += len(ids)
        if len(ids) == end_at:
            self._end(running, "stop", END_ID)
        elif running.made == leg.sampling["max_new_tokens"]:
            self._end(running, "length")
        else:
            asyncio.get_running_loop().call_soon(self._step, running)

    def _end(self, running: _Running, reason: str, matched: int | None = None) -> None:
        running.is_over = True
        running.sink.on_end(reason, "", 0, {}, matched)

    def abort(self, handle: object) -> None:
        assert isinstance(handle, _Running)
        if not handle.is_over:
            self._end(handle, "abort")

    def loads(self) -> list[RankLoad]:
        return [RankLoad(0, 0, 0, 0, 1 << 20, time.time())]

    def health(self) -> list[RankHealth]:
        return [RankHealth(0, "", 0.0, 0.0)]

    def drop_peer(self, life: str) -> None: ...

    def stop(self) -> None: ...


def _embed(running: _Running) -> None:
    running.is_over = True
    running.sink.on_embedding(vector(running.leg.prompt_ids, running.leg.second_at))
    running.sink.on_end("stop", "", 0, {})


def _answer(prompt_ids: list[int]) -> list[int]:
    """What is left to say after a prompt that ends with what another engine has said. END_ID for ever after it."""
    text = bytes(BYTE_OF_ID.get(token_id, 0x20) for token_id in prompt_ids).decode(errors="replace")
    asked = re.findall(r"<say ((?:[0-9a-f]{2}|S[0-2])*)>", text)
    said = [_id_of(each) for each in re.findall("..", asked[-1])] if asked else []
    for count in range(len(said), 0, -1):
        if prompt_ids[-count:] == said[:count]:
            return said[count:] + [END_ID] * 600
    return said + [END_ID] * 600


def _id_of(two: str) -> int:
    return 256 + int(two[1]) if two[0] == "S" else ID_OF_BYTE[int(two, 16)]
