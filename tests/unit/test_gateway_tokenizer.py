"""The segment cache equals a full encode; detokenising and stop strings do not depend on how parts fall."""

import os
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from dualpath.core.errors import ConfigError, RequestError
from dualpath.gateway.chat_template import ChatTemplate
from dualpath.gateway.segments import SegmentCache, hard_tokens
from dualpath.gateway.text import Detokenizer, StopCutter
from dualpath.gateway.tokenizer import Tokenizer

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|im", "<s>", "<s><s>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "naïve café 日本語 🙂🙃",
    "def f(x): return x  # 123\n\n  ok",
]
CHATML = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train(specials: list[str | AddedToken] = SPECIALS) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return backend


BACKEND = train()
pieces = st.sampled_from(
    [*SPECIALS, "<", "|", "im", "_end|>", " ", "  ", "\n", "the quick", "é", "日", "🙂", "s>", "x"]
)
texts = st.lists(pieces | st.text(max_size=4), max_size=20).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5))
def test_segment_cache_equals_full_encode(turns: list[str]) -> None:
    cache = SegmentCache(BACKEND, max_chars=60)  # small enough that segments are dropped
    text = ""
    for turn in turns:
        text += turn
        assert cache.encode(text) == BACKEND.encode(text, add_special_tokens=False).ids
    assert cache._chars == sum(map(len, cache._ids)) <= 60


def test_a_long_session_is_not_encoded_from_the_start() -> None:
    cache = SegmentCache(BACKEND)
    history = "".join(f"<|im_start|>user\nturn {n} the lazy dog<|im_end|>\n" for n in range(200))
    cache.encode(history)
    before = cache.encoded_chars
    cache.encode(history + "<|im_start|>user\nnew<|im_end|>\n")
    assert cache.encoded_chars - before < 50


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_reach_out_switch_the_cache_off(option: str) -> None:
    backend = train(["<s>", AddedToken("<mask>", special=True, normalized=False, **{option: True})])
    assert hard_tokens(backend) is None
    text = "a <mask> b<s>  <mask>"
    assert SegmentCache(backend).encode(text) == backend.encode(text, add_special_tokens=False).ids


def test_a_pre_tokenizer_that_marks_the_first_piece_switches_the_cache_off() -> None:
    backend = train()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert hard_tokens(backend) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, BACKEND.get_vocab_size() - 1), max_size=4), max_size=15))
def test_detokenizer_parts_sum_up_and_hold_no_half_character(chunks: list[list[int]]) -> None:
    detokenizer = Detokenizer(BACKEND)
    parts = [detokenizer.push(chunk) for chunk in chunks]
    assert not any(part.endswith("\ufffd") for part in parts)
    whole = BACKEND.decode([token for chunk in chunks for token in chunk])
    assert "".join(parts) + detokenizer.finish() == whole


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_detokenizer_streams_text_token_by_token(text: str) -> None:
    ids = BACKEND.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(BACKEND)
    assert "".join(detokenizer.push([token]) for token in ids) + detokenizer.finish() == BACKEND.decode(ids)


def test_detokenizer_is_bounded_when_no_valid_text_comes() -> None:
    lead = BACKEND.encode("日", add_special_tokens=False).ids[0]
    bad = next(i for i in range(400) if BACKEND.decode([i]) == "\ufffd")
    detokenizer = Detokenizer(BACKEND)
    out = "".join(detokenizer.push([bad]) for _ in range(500))
    assert len(detokenizer._window) < 200 and out and lead is not None


def first_stop(text: str, stops: list[str]) -> str:
    hits = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(hits)[1]] if hits else text


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab<", max_size=30),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4),
    st.integers(0, 2**32),
)
def test_stop_cutter_equals_the_cut_of_the_whole(text: str, stops: list[str], seed: int) -> None:
    rng, cutter, out, at = random.Random(seed), StopCutter(stops), [], 0
    while at < len(text):
        step = rng.randint(1, 5)
        out.append(cutter.push(text[at : at + step]))
        at += step
        assert first_stop(text, stops).startswith("".join(out))  # nothing of a stop string was given out
    assert "".join(out) + cutter.finish() == first_stop(text, stops)


def save(folder: Path, backend: tokenizers.Tokenizer, **config: object) -> Path:
    import json

    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_load_renders_the_chat_template_and_adds_bos_only_to_plain_text(tmp_path: Path) -> None:
    backend = train()
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = Tokenizer.load(save(tmp_path, backend, chat_template=CHATML, eos_token={"content": "<|im_end|>"}))
    assert tokenizer.encode_text("the fox") == backend.encode("the fox").ids
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    expected = backend.encode(rendered, add_special_tokens=False).ids
    assert tokenizer.encode_chat([{"role": "user", "content": "hi"}]) == expected
    with pytest.raises(RequestError, match="no"):
        tokenizer.encode_chat([{"role": "bad", "content": ""}])


def test_template_file_wins_and_sees_special_tokens_and_helpers(tmp_path: Path) -> None:
    save(tmp_path, BACKEND, chat_template="unused", bos_token="<s>")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages | tojson }}{{ strftime_now('%Y')[:1] }}")
    ids = Tokenizer.load(tmp_path).encode_chat([{"role": "user", "content": "é"}])
    text = BACKEND.decode(ids, skip_special_tokens=False)
    assert text == '<s>[{"role": "user", "content": "é"}]2'


def test_template_has_the_names_and_tags_of_transformers() -> None:
    marked = "{% generation %}{{ m.content }}{% endgeneration %}"
    source = "{% for m in messages %}" + marked + "{% break %}{% endfor %}{{ tools is none }}"
    assert ChatTemplate(source, {}).render([{"content": "a"}, {"content": "b"}]) == "aTrue"
    sandboxed = ChatTemplate("{{ ''.__class__.__mro__ }}", {})
    with pytest.raises(RequestError):
        sandboxed.render([])


def test_what_cannot_be_loaded_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError):
        Tokenizer.load(tmp_path)
    save(tmp_path, BACKEND, chat_template="{% if %}")
    with pytest.raises(ConfigError, match="template"):
        Tokenizer.load(tmp_path)
    save(tmp_path, BACKEND)
    with pytest.raises(RequestError, match="chat template"):
        Tokenizer.load(tmp_path).encode_chat([{"role": "user", "content": "x"}])


def real_tokenizers() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dualpath"
    return sorted(path.parent for path in cache.rglob("tokenizer.json")) if cache.exists() else []


def test_real_tokenizers_encode_alike_with_and_without_the_cache() -> None:
    if not (folders := real_tokenizers()):
        pytest.skip("no prepared model in the cache folder of dualpath")
    for folder in folders:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        cache, tokenizer, chat = SegmentCache(backend), Tokenizer.load(folder), []
        for n in range(5):
            chat.append({"role": ("user", "assistant")[n % 2], "content": f"turn {n}: naïve 日本語 <|im_end|> \n\n x"})
            assert tokenizer._template is not None
            text = tokenizer._template.render(chat)
            expected = backend.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode_chat(chat) == expected == cache.encode(text)
