"""What happened, as a story: engines that died and came back, and requests that had to go elsewhere.

Way:   the registry's changes, lost tries -> [Story] -> Feed
Owns:  the last CHAPTERS of it, whether or not somebody looks: it is written at an engine's change or a lost try, which
       are rare, and never at a request that goes well. Of each other frontend, what it told last
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
TOLD = ("retried", "moved", "did")  # of one frontend alone; what engines did each sees for itself
TOLD_CHAPTERS = 20  # newest ones, that others are told
OTHERS_MAX = 1000  # frontends of which it is known what they have told
SUBJECTS = 4  # named in a chapter; the others are counted


class Chapter(msgspec.Struct):
    number: int
    at_s: float  # wall clock
    kind: str  # a State; what became of requests: retried, moved; what somebody did
    subjects: list[str]  # engines, or their lives; who did it
    count: int = 1
    detail: str = ""
    frontend: int | None = None  # another one, whose requests they were, or through which it was done


class Story:
    """The last CHAPTERS; `changes` tells what is new.

    `records`: that are known already; where there are none, the first that come are no news.
    """

    def __init__(self, records: Mapping[str, EngineRecord]) -> None:
        self.chapters: deque[Chapter] = deque(maxlen=CHAPTERS)
        self._known = dict(records)
        self._next = 0
        self._changed: dict[int, Chapter] = {}
        self.told: deque[Chapter] = deque(maxlen=TOLD_CHAPTERS)  # of this frontend
        self._of_others: dict[int, dict[tuple[float, str, str], Chapter]] = {}  # what each has told last

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
            if kind in TOLD:
                self.told.append(chapter)
        self._note(chapter)

    def hear(self, frontend: int, chapters: Iterable[Chapter]) -> None:
        """What another frontend tells of itself, each time all of it."""
        before = self._of_others.pop(frontend, {})
        now = self._of_others[frontend] = {}
        for told in chapters:
            known = before.get(key := (told.at_s, told.kind, told.detail))
            is_news = known is None or known.count != told.count
            if known is None:
                known = self._add(msgspec.structs.replace(told, number=self._next, frontend=frontend))
            now[key] = known
            if is_news:
                known.count, known.subjects = told.count, told.subjects
                self._note(known)
        if len(self._of_others) > OTHERS_MAX:  # the one that was heard the longest ago
            self._of_others.pop(next(iter(self._of_others)))

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
