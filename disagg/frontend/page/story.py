"""What happened, as a story: engines that died and came back, and requests that had to go elsewhere.

Way:   the registry's changes, lost tries -> [Story] -> Feed
Owns:  the last CHAPTERS of it, whether or not somebody looks: it is written at an engine's change or a lost try, which
       are rare, and never at a request that goes well
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice

import msgspec

from disagg.registry.records import EngineRecord, State

CHAPTERS = 200
MERGED_S = 2.0  # what is alike, and so close together, is told once
LOOKED_AT = 16  # newest chapters, for one that is alike
LOST = ("retried", "moved")
LOST_TRIES = 20  # newest chapters of a frontend's own, that others are told
SUBJECTS = 4  # named in a chapter; the others are counted


class Chapter(msgspec.Struct):
    number: int
    at_s: float  # wall clock
    kind: str  # a State; what became of requests: retried, moved; what somebody did
    subjects: list[str]  # engines, or their lives; who did it
    count: int = 1
    detail: str = ""
    frontend: int | None = None  # another one, whose requests they were


class Story:
    """The last CHAPTERS; `changes` tells what is new.

    `records`: that are known already; where there are none, the first that come are no news.
    """

    def __init__(self, records: Mapping[str, EngineRecord]) -> None:
        self.chapters: deque[Chapter] = deque(maxlen=CHAPTERS)
        self._known = dict(records)
        self._next = 0
        self._changed: dict[int, Chapter] = {}
        self.lost_tries: deque[Chapter] = deque(maxlen=LOST_TRIES)  # of this frontend's requests
        self._of_others: dict[tuple[int, float, str], Chapter] = {}

    def on_records(self, records: Mapping[str, EngineRecord | None], now_s: float) -> None:
        is_beginning = not self._known
        for engine_id, record in records.items():
            known = self._known.pop(engine_id, None)
            if record is not None:
                self._known[engine_id] = record
            if is_beginning:
                continue
            if record is None:
                self.tell("removed", [engine_id], now_s)
            elif known is None or (record.incarnation, record.state) != (known.incarnation, known.state):
                if (
                    known is not None
                    and record.restarts > known.restarts
                    and State.DEAD not in (known.state, record.state)
                ):
                    self.tell(State.DEAD, [engine_id], now_s)  # for less time than between two views of the registry
                self.tell(record.state, [engine_id], now_s, record.detail.partition("\n")[0])

    def tell(self, kind: str, subjects: Iterable[str], now_s: float, detail: str = "") -> None:
        for chapter in islice(reversed(self.chapters), LOOKED_AT):
            is_alike = chapter.kind == kind and chapter.detail == detail and chapter.frontend is None
            if is_alike and now_s - chapter.at_s < MERGED_S:
                chapter.count += 1
                chapter.subjects += [each for each in subjects if each not in chapter.subjects]
                del chapter.subjects[SUBJECTS:]
                break
        else:
            chapter = self._add(Chapter(self._next, now_s, kind, list(subjects)[:SUBJECTS], detail=detail))
            if kind in LOST:
                self.lost_tries.append(chapter)
        self._note(chapter)

    def hear(self, frontend: int, lost_tries: Iterable[Chapter]) -> None:
        """What another frontend tells of its requests, each time all of it."""
        for told in lost_tries:
            known = self._of_others.get(key := (frontend, told.at_s, told.kind))
            if known is None:
                known = self._of_others[key] = self._add(
                    msgspec.structs.replace(told, number=self._next, frontend=frontend)
                )
                if len(self._of_others) > CHAPTERS:
                    self._of_others.pop(next(iter(self._of_others)))
            elif known.count == told.count:
                continue
            known.count, known.subjects = told.count, told.subjects
            self._note(known)

    def _add(self, chapter: Chapter) -> Chapter:
        self._next += 1
        self.chapters.append(chapter)
        return chapter

    def _note(self, chapter: Chapter) -> None:
        self._changed[chapter.number] = chapter
        if len(self._changed) > CHAPTERS:  # nobody asks for them
            self._changed.pop(next(iter(self._changed)))

    def changes(self) -> list[Chapter]:
        """What is new since it was asked last."""
        changed, self._changed = self._changed, {}
        return list(changed.values())
