"""Parts as blocks that follow each other: what Responses calls output items, and Messages content blocks.

Way:   parts of a choice -> [Blocks] -> a BlockWriter, which says each step in its API's words -> bytes
Out:   one block is open at a time: of reasoning, of text, or one call. All text of a block goes into it
Owns:  the blocks so far
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from disagg.frontend.parts import CallArguments, CallBegins, ChoiceAnswer, Content, Part, Reasoning, TokenLogprobs

BlockKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    index: int  # among the answer's blocks
    kind: BlockKind
    call_id: str = ""
    name: str = ""  # of a call's function
    texts: list[str] = field(default_factory=list)  # of a call: its arguments
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    told_logprobs: list[bytes] = field(default_factory=list)  # of a stream: those that went out, as JSON, one a token
    is_last: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)


class BlockWriter(Protocol):
    def opens(self, block: Block) -> bytes: ...

    def adds(self, block: Block, text: str) -> bytes: ...

    def closes(self, block: Block) -> bytes: ...


class Blocks:
    """The blocks of a choice as they come. White space between calls is no text: parsers leave it over."""

    def __init__(self, writer: BlockWriter) -> None:
        self._writer = writer
        self.all: list[Block] = []
        self._open: Block | None = None
        self._calls: dict[int, Block] = {}
        self._space = ""  # white space that may yet be the begin of a text

    def add(self, parts: Sequence[Part]) -> bytes:
        return b"".join([self._part(part) for part in parts])

    def end(self) -> bytes:
        """Closes what is open. White space that stood alone is the answer where there are no calls."""
        said = self._text(self._space) if self._space and not self._calls else b""
        if self.all:
            self.all[-1].is_last = True
        return said + self._close()

    def _part(self, part: Part) -> bytes:
        match part:
            case Content():
                if not self._is_open("text") and (not part.text or part.text.isspace()):
                    self._space += part.text
                    return b""
                return self._text(self._space + part.text)
            case Reasoning():
                if not part.text:
                    return b""
                begin = b"" if self._is_open("reasoning") else self._begin("reasoning")
                return begin + self._add(self.all[-1], part.text)
            case CallBegins():
                self._space = ""
                begin = self._begin("call", part.id, part.name)
                self._calls[part.index] = self.all[-1]
                return begin
            case CallArguments():
                return self._add(self._calls[part.index], part.text) if part.text else b""

    def _text(self, text: str) -> bytes:
        self._space = ""
        if not text:
            return b""
        begin = b"" if self._is_open("text") else self._begin("text")
        return begin + self._add(self.all[-1], text)

    def _is_open(self, kind: BlockKind) -> bool:
        return self._open is not None and self._open.kind == kind

    def _begin(self, kind: BlockKind, call_id: str = "", name: str = "") -> bytes:
        closed = self._close()
        self._open = Block(len(self.all), kind, call_id, name)
        self.all.append(self._open)
        return closed + self._writer.opens(self._open)

    def _add(self, block: Block, text: str) -> bytes:
        assert block is self._open, "what goes on with a closed call: the output parser brings it before other parts"
        block.texts.append(text)
        return self._writer.adds(block, text)

    def _close(self) -> bytes:
        block, self._open = self._open, None
        return self._writer.closes(block) if block is not None else b""


def blocks_of(answer: ChoiceAnswer) -> list[Block]:
    """A whole choice's: reasoning, text, calls."""
    blocks = [
        Block(index, kind, call_id, name, [text], answer.logprobs if kind == "text" else [])
        for index, (kind, call_id, name, text) in enumerate(_said(answer))
    ]
    if blocks:
        blocks[-1].is_last = True
    return blocks


def _said(answer: ChoiceAnswer) -> Iterator[tuple[BlockKind, str, str, str]]:
    if answer.reasoning:
        yield "reasoning", "", "", answer.reasoning
    if answer.text and not (answer.calls and answer.text.isspace()):
        yield "text", "", "", answer.text
    for call in answer.calls:
        yield "call", call.id, call.name, call.arguments
