"""Incremental text: never half a character, never a part of a stop string, in sum what `decode` says."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted import make_model_folder
from tokenizers import Tokenizer, decoders, models

from disagg.coordinator.request import Request
from disagg.models.catalogue import model_folder
from disagg.tokenizer.codec import Codec, load_codec
from disagg.tokenizer.text import UNFINISHED_IDS_MAX, Texts, TextStream

PROSE = st.text(st.sampled_from("ab \n\u00e9\u20ac\U0001f3be\U0001f468\u200d\U0001f469\ufffd"), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_codec(make_model_folder(tmp_path_factory.mktemp("text"))).texts.tokenizer


def steps(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """The ids in groups of these sizes, over and over."""
    rest, groups = iter(ids), []
    for size in itertools.cycle(sizes):
        group = list(itertools.islice(rest, size))
        if not group:
            return groups
        groups.append(group)
    return groups


def run(stream: TextStream, groups: list[list[int]]) -> list[str]:
    shown = []
    for group in groups:
        shown.append(stream.push(group))
        if stream.stopped:
            return shown
    return [*shown, stream.flush()]


def cut_at_first_stop(text: str, stop: list[str]) -> str:
    """The definition: read letter by letter, the first stop string to be complete ends the text before its start."""
    for end in range(len(text) + 1):
        starts = [end - len(each) for each in stop if text[:end].endswith(each)]
        if starts:
            return text[: min(starts)]
    return text


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 258), max_size=UNFINISHED_IDS_MAX), sizes=SIZES)
def test_any_ids_in_any_groups_give_what_decode_gives(tokenizer: Tokenizer, ids: list[int], sizes: list[int]) -> None:
    assert "".join(run(TextStream(Texts(tokenizer)), steps(ids, sizes))) == tokenizer.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=PROSE, sizes=SIZES)
def test_no_character_is_shown_in_halves(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    text = text.replace("\ufffd", "")
    shown = run(TextStream(Texts(tokenizer)), steps(tokenizer.encode(text).ids, sizes))
    assert "".join(shown) == text
    assert all("\ufffd" not in each for each in shown)


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\u20ac"), max_size=30),
    stop=st.lists(st.text(st.sampled_from("ab\u20ac"), min_size=1, max_size=4), min_size=1, max_size=4),
    sizes=SIZES,
)
def test_stop_strings_are_met_across_any_borders(
    tokenizer: Tokenizer, text: str, stop: list[str], sizes: list[int]
) -> None:
    stream = TextStream(Texts(tokenizer), tuple(stop))
    shown = "".join(run(stream, steps(tokenizer.encode(text).ids, sizes)))
    assert shown == cut_at_first_stop(text, stop)
    assert stream.stopped == any(each in text for each in stop)


@pytest.mark.parametrize("size", range(1, 15))
def test_an_answer_ends_with_its_stop_string_however_many_ids_come_at_once(tokenizer: Tokenizer, size: int) -> None:
    """What comes in one piece with its last id is no part of it: nobody counts it, and nobody is told its logprobs."""
    stream = TextStream(Texts(tokenizer), ("STOP", "never"))
    request = Request("a" * 32, [1], {}, 99, stream, 0.0)
    for group in steps(tokenizer.encode("one STOP, two").ids, [size]):
        request.add(group, 1.0)
        if stream.stopped:
            break
    assert tokenizer.decode(request.emitted_ids) == "one STOP"
    assert request.usage["completion_tokens"] == len("one STOP")
    assert group == request.emitted_ids[-len(group) :]


def test_what_may_begin_a_stop_string_is_held_and_let_go(tokenizer: Tokenizer) -> None:
    stream = TextStream(Texts(tokenizer), ("###", "\n\nUser:"))

    def push(text: str) -> str:
        return stream.push(tokenizer.encode(text).ids)

    assert [push("a#"), push("#"), push("b\n"), push("\nUse"), push("d")] == ["a", "", "##b", "", "\n\nUsed"]
    assert [push("\n\nUser"), push(": x"), stream.stopped, stream.flush()] == ["", "", True, ""]


def test_an_unfinished_character_at_the_end_is_shown_as_decode_would(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f3be").ids[:-1]
    stream = TextStream(Texts(tokenizer))
    assert [stream.push(ids), stream.flush()] == ["a", "\ufffd"]


def test_bytes_that_form_no_character_do_not_pile_up(codec: Codec) -> None:
    stray = codec.texts.tokenizer.encode("\U0001f3be").ids[-1]  # a continuation byte
    stream = TextStream(codec.texts)
    shown = [stream.push([stray]) for _ in range(10 * UNFINISHED_IDS_MAX)]
    assert "".join([*shown, stream.flush()]) == "\ufffd" * 10 * UNFINISHED_IDS_MAX
    assert max(map(len, shown)) <= UNFINISHED_IDS_MAX + 1


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 257), max_size=40))
@example(ids=[128, 98])
def test_a_byte_fallback_decoder_never_breaks_the_stream(ids: list[int]) -> None:
    """Llama's kind: there, a stray byte takes back characters that were already shown; no text is lost after it."""
    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581a", "b"]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    stream = TextStream(Texts(tokenizer))
    shown = "".join(run(stream, [[each] for each in ids]))
    # A byte that would be "b" may stand beside a stray one: `decode` shows that run of bytes as U+FFFD, byte for byte.
    assert ids.count(257) <= shown.count("b") <= ids.count(257) + ids.count(ord("b"))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_of_a_real_vocabulary_give_what_decode_gives(data: st.DataObject) -> None:
    file = model_folder("smollm2") / "tokenizer.json"
    if not file.exists():
        pytest.skip("run `make setup`")
    codec = real_codec()
    ids = data.draw(st.lists(st.integers(0, codec.texts.tokenizer.get_vocab_size() - 1), max_size=UNFINISHED_IDS_MAX))
    assert codec.texts.of(codec.texts.tokenizer.encode("the").ids[0]) == "the", "the table of texts is used"
    assert "".join(run(TextStream(codec.texts), steps(ids, data.draw(SIZES)))) == codec.texts.tokenizer.decode(ids)


@functools.cache
def real_codec() -> Codec:
    return load_codec(model_folder("smollm2"))


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Metaspace(),
        decoders.WordPiece(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence(
            [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("\u2581", " "), decoders.ByteLevel()]
        ),
    ],
)
def test_no_text_is_kept_of_tokens_whose_text_depends_on_others(decoder: decoders.Decoder) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "\u2581b": 1, "<0x41>": 2}, []))
    tokenizer.decoder = decoder
    texts = Texts(tokenizer)
    assert [texts.of(each) for each in range(3)] == [None] * 3
