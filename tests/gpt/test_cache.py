"""The cache changes nothing but the time: same logits, same tokens, same window, any batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from gpt.cache import KeyValueCache
from gpt.contexts import CachedContexts, PlainContexts, contexts_of, window_start
from gpt.model import GPT, BigramLanguageModel, GPTConfig

V, CONTEXT = 13, 12
CONFIG = GPTConfig(V, CONTEXT, n_layer=2, n_head=2, n_embd=16, dropout=0.3, vocab_multiple=8)
# Sums of a few dozen float32 terms of size about 1, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def built(config=CONFIG, seed=3):
    """A model whose logits differ clearly, so that a wrong key cannot hide."""
    tt.manual_seed(seed)
    model = GPT(config)
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.add_(tt.randn_like(parameter), alpha=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return built()


def tokens(seed, *shape):
    return np.random.default_rng(seed).integers(V, size=shape)


def full(model, ids):
    with tt.no_grad():
        return model(tt.tensor(ids))[0].numpy()


# ---- The model with a cache ----


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [1, 10, 1], [3, 1, 4, 1, 3]])
@pytest.mark.parametrize("changes", [{}, {"bias": False, "tied": False}, {"checkpointing": True}])
def test_any_division_into_chunks_gives_the_logits_of_one_pass(chunks, changes):
    model = built(GPTConfig(**{**vars(CONFIG), **changes}))
    ids = tokens(0, 2, sum(chunks))
    cache = KeyValueCache(model.config, rows=2, capacity=CONTEXT)
    found, at = [], 0
    with tt.no_grad():
        for count in chunks:
            logits, loss = model(tt.tensor(ids[:, at : at + count]), cache=cache)
            assert loss is None
            found.append(logits.numpy())
            at += count
    assert cache.length == 12
    np.testing.assert_allclose(np.concatenate(found, axis=1), full(model, ids), **CLOSE)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_padding_on_the_left_is_not_seen(model, lengths, chunks, seed):
    """Each row of a padded batch, and what is added to it, as if it were alone."""
    longest = max(lengths)
    chunks = chunks[: 1 + (CONTEXT - longest) // 4]
    more = sum(chunks[1:])
    rows = [tokens(seed + b, length + more) for b, length in enumerate(lengths)]
    cache = KeyValueCache(model.config, len(rows), longest + more)
    cache.starts = [longest - length for length in lengths]
    padded = np.stack([np.pad(row, (longest + more - len(row), 0)) for row in rows])
    found, at = [], 0
    with tt.no_grad():
        for count in [longest, *chunks[1:]]:
            found.append(model(tt.tensor(padded[:, at : at + count]), cache=cache)[0].numpy())
            at += count
    found = np.concatenate(found, axis=1)
    for row, start, logits in zip(rows, cache.starts, found, strict=True):
        np.testing.assert_allclose(logits[start:], full(model, row[None])[0], **CLOSE)


def test_rows_can_be_chosen_and_repeated(model):
    ids = tokens(1, 3, 6)
    cache = KeyValueCache(model.config, rows=3, capacity=8)
    with tt.no_grad():
        model(tt.tensor(ids[:, :5]), cache=cache)
        chosen = cache.rows([2, 0, 2])
        logits, _ = model(tt.tensor(ids[[2, 0, 1], 5:]), cache=chosen)
        still, _ = model(tt.tensor(ids[:, 5:]), cache=cache)  # the cache itself is untouched
    whole = ids[[2, 0, 2]].copy()
    whole[2, 5] = ids[1, 5]
    np.testing.assert_allclose(logits.numpy()[:, 0], full(model, whole)[:, 5], **CLOSE)
    np.testing.assert_allclose(still.numpy()[:, 0], full(model, ids)[:, 5], **CLOSE)


def test_the_bytes_of_a_cache():
    gpt2 = GPTConfig(50_257, 1024, n_layer=12, n_head=12, n_embd=768)
    assert KeyValueCache(gpt2, rows=1, capacity=1).nbytes == 73_728


def test_what_a_cache_refuses(model):
    ids = tt.tensor(tokens(2, 1, 3))
    for rows, capacity in ((0, 4), (1, 0), (1, CONTEXT + 1)):
        with pytest.raises(ValueError, match=f"a cache of {rows} rows for {capacity} tokens"):
            KeyValueCache(model.config, rows, capacity)
    cache = KeyValueCache(model.config, rows=1, capacity=5)
    with pytest.raises(RuntimeError, match="keeps numbers and no gradients"):
        model(ids, cache=cache)
    with tt.no_grad():
        model(ids, cache=cache)
        with pytest.raises(ValueError, match="room for 5 tokens: 3 are in it, and 3 more came"):
            model(ids, cache=cache)
        with pytest.raises(ValueError, match="goes with no targets"):
            model(ids, ids, cache=cache)
        with pytest.raises(IndexError, match="token 13 is out of range"):
            model(tt.tensor([[V]]), cache=cache)
        with pytest.raises(ValueError, match="with at least one token"):
            model(ids[:, :0], cache=cache)


# ---- Windows ----


@given(n=st.integers(0, 200), block_size=st.integers(1, 40), data=st.data())
def test_a_window_is_the_last_tokens_and_never_too_long(n, block_size, data):
    slide = data.draw(st.integers(1, block_size))
    start = window_start(n, block_size, slide)
    assert start % slide == 0
    assert n - start <= block_size
    assert (start == 0) == (n <= block_size)
    if start:
        assert n - start > block_size - slide
    if slide == 1:
        assert start == max(0, n - block_size)


def steps(contexts, count, drop=()):
    """Continues with given tokens; all logits. `drop` says at which step which row leaves."""
    seen, drop = [], dict(drop)
    script = tokens(4, count, len(contexts.texts)).tolist()
    for step in range(count):
        logits = contexts.next_logits()
        seen.append(logits.numpy())
        contexts.append(script[step][: len(logits)])
        if step in drop:
            contexts.keep([row for row in range(len(logits)) if row != drop[step]])
    return contexts.texts, seen


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    slide=st.integers(1, CONTEXT),
    count=st.integers(1, 30),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_the_cache_keeps_to_the_definition_past_the_context(
    model, lengths, slide, count, seed, data
):
    """Prompts of any length, windows that slide at different times, rows that leave."""
    prompts = [tokens(seed + b, length).tolist() for b, length in enumerate(lengths)]
    drop = {}
    if len(lengths) > 1:
        drop[data.draw(st.integers(0, count - 1))] = data.draw(st.integers(0, len(lengths) - 1))
    cached = contexts_of(model, prompts, count, slide)
    plain = contexts_of(model, prompts, count, slide, cached=False)
    assert isinstance(cached, CachedContexts) and isinstance(plain, PlainContexts)
    (texts, found), (expected_texts, expected) = (
        steps(cached, count, drop),
        steps(plain, count, drop),
    )
    assert texts == expected_texts
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def test_a_token_is_read_once(model):
    """The work of a token with a cache: one column, whatever the length of the prompt."""
    widths = []
    contexts = contexts_of(model, [tokens(0, 6).tolist()], 6, 3)
    advance = contexts.cache.advance

    def watched(T):
        widths.append(T)
        return advance(T)

    contexts.cache.advance = watched
    steps(contexts, 6)
    assert widths == [6, 1, 1, 1, 1, 1]


def test_windows_slide_by_reading_what_is_kept_once(model):
    reads = []
    transformer = model.transformer.forward

    def watched(idx, cache=None):
        reads.append(tuple(idx.shape))
        return transformer(idx, cache)

    model.transformer.forward = watched
    try:
        steps(contexts_of(model, [tokens(0, CONTEXT).tolist()], 9, slide=4), 9)
    finally:
        del model.transformer.forward
    # 12 tokens, then the window is full: 8 are read again, and 4 single tokens fill it.
    assert reads == [(1, 12), (1, 8), *[(1, 1)] * 4, (1, 8), *[(1, 1)] * 4]


def test_a_model_without_a_cache_is_read_by_definition():
    tt.manual_seed(0)
    model = BigramLanguageModel(V, block_size=4, embed_size=8, num_head=2, num_layers=1)
    contexts = contexts_of(model, [[1, 2], [3]], 5, slide=1)
    assert isinstance(contexts, PlainContexts)
    texts, seen = steps(contexts, 5)
    with tt.no_grad():
        expected = model.eval()(tt.tensor([texts[1][1:5]]))[0].numpy()[0, -1]
    np.testing.assert_allclose(seen[4][1], expected, **CLOSE)


def test_a_planted_fault_would_be_seen(model):
    """Positions that do not count from a row's own start: the comparison above notices."""
    prompts = [tokens(1, 3).tolist(), tokens(2, 7).tolist()]
    contexts = contexts_of(model, prompts, 1, 1)
    contexts.cache.column_of_starts = lambda: tt.zeros(2, 1, 1, 1, dtype=tt.long)
    wrong = contexts.next_logits()[0].numpy()
    right = contexts_of(model, prompts, 1, 1, cached=False).next_logits()[0].numpy()
    assert np.abs(wrong - right).max() > 0.01
