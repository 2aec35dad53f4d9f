"""The encoder-decoder: each mask hides what it should and nothing else, and the halves fit."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import tinytensor as tt
from gpt.encoder_decoder import EncoderDecoder, Memory
from gpt.model import GPTConfig
from tinytensor import nn
from tinytensor.nn import functional as F

PADDING, START, END = range(3)
V_SOURCE, V_TARGET, S, T = 13, 11, 9, 7
SOURCE = GPTConfig(V_SOURCE, S, n_layer=2, n_head=2, n_embd=16)
TARGET = GPTConfig(V_TARGET, T, n_layer=3, n_head=4, n_embd=16)

CHOICES = {
    "tied": {},
    "untied": {"tied": False},
    "untied, no bias, padded": {"tied": False, "bias": False, "vocab_multiple": 8},
    "head with a bias, ReLU": {"head_bias": True, "activation": "relu"},
}
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


def build(source: GPTConfig = SOURCE, target: GPTConfig = TARGET, **choices) -> EncoderDecoder:
    """A model whose weights are large enough that everything has an influence."""
    target = dataclasses.replace(target, **choices)
    model = EncoderDecoder(source, target, PADDING)
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * tt.randn(*parameter.shape) + (parameter.ndim == 1))
    return model


def tokens(*shape: int, vocab_size: int = V_SOURCE) -> tt.Tensor:
    return tt.randint(3, vocab_size, shape)


def both(batch: int = 3) -> tuple[tt.Tensor, tt.Tensor]:
    return tokens(batch, S), tokens(batch, T, vocab_size=V_TARGET)


def scores(model: EncoderDecoder, source: tt.Tensor, idx: tt.Tensor) -> np.ndarray:
    return model(source, idx)[0].detach().numpy()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-4, atol=1e-4)


# ---- Masks ----


@every_choice
def test_a_target_token_moves_no_score_before_it(choices):
    model = build(**choices)
    source, idx = both()
    before = scores(model, source, idx)
    assert before.shape == (3, T, V_TARGET)
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = 3 + (idx[:, t] - 2) % (V_TARGET - 3)
        after = scores(model, source, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=(0, 2)).all()


@every_choice
def test_every_source_token_moves_every_score(choices):
    """The encoder looks both ways, and the first target token sees the last of the source."""
    model = build(**choices)
    source, idx = both()
    before = scores(model, source, idx)
    memory = model.encode(source).keys_and_values
    for s in range(S):
        changed = source.clone()
        changed[:, s] = 3 + (source[:, s] - 2) % (V_SOURCE - 3)
        assert (scores(model, changed, idx) != before).any(axis=(0, 2)).all()
        for (keys, _), (others, _) in zip(
            model.encode(changed).keys_and_values, memory, strict=True
        ):
            assert (keys.detach().numpy() != others.detach().numpy()).any(axis=(0, 1, 3)).all()


@every_choice
@hypothesis.given(length=st.integers(1, S), extra=st.integers(0, S))
@hypothesis.settings(max_examples=10)
def test_padding_of_the_source_changes_nothing(choices, length, extra):
    model = build(**choices)
    source, idx = tokens(2, length), tokens(2, T, vocab_size=V_TARGET)
    fill = tt.full((2, min(extra, S - length)), PADDING, dtype=tt.long)
    before = scores(model, source, idx)
    assert close(scores(model, tt.cat((source, fill), dim=1), idx), before)
    with tt.no_grad():  # whatever stands in the row of the padding
        model.encoder.wte.weight[PADDING] = 100.0
    assert close(scores(model, tt.cat((source, fill), dim=1), idx), before)


def test_rows_padded_to_different_lengths_are_as_alone():
    model = build()
    lengths = [S, 4, 1]
    rows = [tokens(1, n) for n in lengths]
    fills = [tt.full((1, S - n), PADDING, dtype=tt.long) for n in lengths]
    together = tt.cat([tt.cat(pair, dim=1) for pair in zip(rows, fills, strict=True)])
    idx = tokens(3, T, vocab_size=V_TARGET)
    alone = np.concatenate([scores(model, row, idx[i : i + 1]) for i, row in enumerate(rows)])
    assert close(scores(model, together, idx), alone)


def test_padding_of_the_source_has_no_gradient():
    model = build(tied=False)
    source, idx = both()
    source[0, 5:] = source[2, 1:] = PADDING
    model(source, idx, tokens(3, T, vocab_size=V_TARGET))[1].backward()
    gradient = model.encoder.wte.weight.grad.numpy()
    np.testing.assert_array_equal(gradient[PADDING], 0.0)
    used = np.unique(source.numpy())
    assert (gradient[used[used != PADDING]] != 0).any(axis=1).all()


def test_a_source_of_nothing_but_padding_is_read_as_nothing():
    model = build()
    source, idx = both()
    source[1] = PADDING
    found = scores(model, source, idx)
    assert np.isfinite(found).all()
    source[1, : S // 2] = PADDING
    np.testing.assert_array_equal(scores(model, source[:, : S // 2], idx)[1], found[1])


def test_padding_of_the_target_counts_for_nothing():
    model = build()
    source, idx = both()
    targets = tokens(3, T, vocab_size=V_TARGET)
    targets[0, 4:] = targets[1, 2:] = PADDING
    logits, loss = model(source, idx, targets)
    log_p = F.log_softmax(logits, -1).detach().numpy()
    chosen = np.take_along_axis(log_p, targets.numpy()[..., None], -1)[..., 0]
    assert loss.item() == pytest.approx(-chosen[targets.numpy() != PADDING].mean(), rel=1e-5)
    idx[0, 5:] = idx[1, 3:] = PADDING  # what the decoder is given there moves nothing either
    assert model(source, idx, targets)[1].item() == pytest.approx(loss.item(), rel=1e-6)


def test_without_positions_the_order_of_the_source_does_not_matter():
    """Attention itself knows no order: the encoder is equivariant, its reader invariant."""
    model = build()
    source, idx = both()
    order = np.random.default_rng(0).permutation(S)
    with_positions = scores(model, source, idx)
    assert not close(scores(model, source[:, order], idx), with_positions)
    with tt.no_grad():
        model.encoder.wpe.weight.zero_()
    before = scores(model, source, idx)
    assert close(scores(model, source[:, order], idx), before)
    memory, permuted = model.encode(source), model.encode(source[:, order])
    for ours, theirs in zip(memory.keys_and_values, permuted.keys_and_values, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert close(a.detach().numpy()[:, :, order], b.detach().numpy())
    # The decoder's own order remains: it is causal.
    assert not close(scores(model, source, idx.flip(1)), np.flip(before, 1))


def looks_back_only(call, q, k, v, mask=None, **options):
    return call(q, k, v, mask, **(options | {"is_causal": q.shape[-2] == k.shape[-2]}))


def no_mask(call, q, k, v, mask=None, **options):
    return call(q, k, v, None, **options)


def inverted_mask(call, q, k, v, mask=None, **options):
    return call(q, k, v, None if mask is None else mask == 0, **options)


def no_causality(call, q, k, v, mask=None, is_causal=False, **options):
    return call(q, k, v, mask, **options)


PLANTED = {
    "the encoder looks back only": (looks_back_only, test_every_source_token_moves_every_score),
    "padding is read": (no_mask, test_rows_padded_to_different_lengths_are_as_alone),
    "only padding is read": (inverted_mask, test_rows_padded_to_different_lengths_are_as_alone),
    "the decoder looks ahead": (no_causality, test_a_target_token_moves_no_score_before_it),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    original, (planted, catches) = F.scaled_dot_product_attention, PLANTED[fault]
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, **options: planted(original, *args, **options),
    )
    with pytest.raises(AssertionError):
        catches(*[{}] * catches.__code__.co_argcount)


# ---- The halves ----


@every_choice
def test_every_parameter_learns(choices):
    model = EncoderDecoder(SOURCE, dataclasses.replace(TARGET, **choices), PADDING)
    source, idx = both()
    model(source, idx, tokens(3, T, vocab_size=V_TARGET))[1].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


@every_choice
def test_starts_as_a_guess(choices):
    model = EncoderDecoder(SOURCE, dataclasses.replace(TARGET, **choices), PADDING)
    source, idx = both(20)
    _, loss = model(source, idx, tokens(20, T, vocab_size=V_TARGET))
    assert loss.item() == pytest.approx(math.log(V_TARGET), abs=0.1)


def test_tables_are_tied_as_asked():
    def names(target: GPTConfig, **choices: bool) -> set[str]:
        model = EncoderDecoder(TARGET, target, PADDING, **choices)
        return {n for n, _ in model.named_parameters() if "wte" in n or "head" in n}

    untied = dataclasses.replace(TARGET, tied=False)
    assert names(TARGET) == {"encoder.wte.weight", "decoder.wte.weight"}
    assert names(untied) == {"encoder.wte.weight", "decoder.wte.weight", "lm_head.weight"}
    assert names(TARGET, shared_table=True) == {"encoder.wte.weight"}
    assert names(untied, shared_table=True) == {"encoder.wte.weight", "lm_head.weight"}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    source, idx = both()
    source[0, 4:] = PADDING
    targets = tokens(3, T, vocab_size=V_TARGET)
    found = []
    for checkpointing in (False, True):
        tt.manual_seed(2)
        changes = {"dropout": dropout, "checkpointing": checkpointing}
        halves = [dataclasses.replace(half, **changes) for half in (SOURCE, TARGET)]
        model = EncoderDecoder(*halves, PADDING)
        _, loss = model(source, idx, targets)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# ---- Writing ----


def test_greedy_takes_the_likeliest_and_stops_at_the_end(monkeypatch):
    model = build()
    source = tokens(4, S)
    encoded = []
    encode = EncoderDecoder.encode

    def watched(self: EncoderDecoder, source: tt.Tensor) -> Memory:
        encoded.append(source)
        return encode(self, source)

    monkeypatch.setattr(EncoderDecoder, "encode", watched)
    written = model.greedy(source, START, END, T).numpy()
    assert len(encoded) == 1  # once, however many tokens are written
    assert model.training

    # The same, token by token and row by row, from the whole model.
    for row, found in zip(source.numpy(), written, strict=True):
        expected = [START]
        while len(expected) <= T and expected[-1] != END:
            logits, _ = model(tt.tensor(row[None]), tt.tensor([expected]))
            expected.append(int(logits.detach().numpy()[0, -1].argmax()))
        expected = (expected[1:] + T * [PADDING])[: len(found)]
        assert found.tolist() == expected


def test_greedy_fills_up_after_the_end():
    model = build(tied=False, head_bias=True)
    with tt.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[END] = 1.0
    written = model.greedy(tokens(3, S), START, END, T)
    assert written.tolist() == [[END]] * 3


def test_a_small_task_is_learned():
    """Reversing a row of tokens: each target position has to find its own place in the source."""
    half = GPTConfig(9, 6, n_layer=1, n_head=2, n_embd=32)
    tt.manual_seed(0)
    model = EncoderDecoder(half, half, PADDING)
    optimizer = tt.optim.AdamW(model.parameters(), lr=5e-3)

    def example(batch: int) -> tuple[tt.Tensor, tt.Tensor]:
        rows = tokens(batch, 4, vocab_size=9)
        start, end = (tt.full((batch, 1), token, dtype=tt.long) for token in (START, END))
        return rows, tt.cat((start, rows.flip(1), end), dim=1)

    for _ in range(250):
        source, target = example(64)
        _, loss = model(source, target[:, :-1], target[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source, target = example(100)
    written = model.greedy(source, START, END, 6)
    assert (written.numpy()[:, :5] == target.numpy()[:, 1:]).all(axis=1).mean() > 0.9


# ---- What is refused ----


def half(**changes: int) -> GPTConfig:
    return dataclasses.replace(TARGET, **changes)


REFUSED = [
    (
        lambda: EncoderDecoder(half(n_embd=8), TARGET),
        "the source's n_embd is 8 and the target's 16",
    ),
    (lambda: EncoderDecoder(SOURCE, TARGET, 11), "at most 10, but it is 11"),
    (lambda: EncoderDecoder(SOURCE, TARGET, -1), "but it is -1"),
    (lambda: EncoderDecoder(SOURCE, TARGET, shared_table=True), "the source has 13 tokens"),
    (lambda: build()(tokens(3, S), tokens(2, T)), "3 sources and 2 targets"),
    (lambda: build()(tokens(2, S + 1), tokens(2, T)), r"10 tokens but the model's context .* is 9"),
    (lambda: build()(tokens(2, S), tokens(2, T + 1)), r"8 tokens but the model's context .* is 7"),
    (
        lambda: build()(*both(2), tokens(2, T - 1)),
        r"targets are \(2, 6\) but the input is \(2, 7\)",
    ),
    (lambda: build().greedy(tokens(2, S), START, END, T + 1), "max_new_tokens is 8, but"),
    (lambda: build().greedy(tokens(2, S), START, END, 0), "max_new_tokens is 0, but"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[r[1] for r in REFUSED])
def test_what_does_not_fit_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_tokens_that_are_none_are_refused():
    model = build(vocab_multiple=8)
    source, idx = both()
    with pytest.raises(IndexError, match="the source: token 13 is out of range"):
        model(source * 0 + V_SOURCE, idx)
    with pytest.raises(IndexError, match="the target: token 11 is out of range"):
        model(source, idx * 0 + V_TARGET)
    with pytest.raises(TypeError, match="token ids are integers"):
        model(source.float(), idx)


# ---- PyTorch ----


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # it is only said to be unused
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_torch_transformer_with_the_same_weights(activation):
    torch = pytest.importorskip("torch")
    size = {"n_layer": 2, "n_head": 4, "n_embd": 16, "activation": activation, "tied": False}
    model = build(GPTConfig(V_SOURCE, S, **size), GPTConfig(V_TARGET, T, **size)).to(tt.float64)
    theirs = torch.nn.Transformer(
        16, 4, 2, 2, 64, dropout=0.0, activation=activation, batch_first=True, norm_first=True
    ).double()
    theirs.load_state_dict(
        {name: torch.tensor(array) for name, array in in_torch_names(model).items()}
    )
    source, idx = both()
    source[0, 6:] = source[2, 2:] = PADDING

    def embedded(half: nn.Module, ids: tt.Tensor) -> object:
        T = ids.shape[1]
        return torch.tensor((half.wte(ids) + half.wpe(tt.arange(T))).detach().numpy())

    padding = torch.tensor(source.numpy() == PADDING)
    stream = theirs(
        embedded(model.encoder, source),
        embedded(model.decoder, idx),
        tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
        tgt_is_causal=True,
    )
    expected = stream @ torch.tensor(model.lm_head.weight.detach().numpy()).T
    np.testing.assert_allclose(
        scores(model, source, idx), expected.detach().numpy(), rtol=1e-9, atol=1e-9
    )


def in_torch_names(model: EncoderDecoder) -> dict[str, np.ndarray]:
    """Our weights as `torch.nn.Transformer` names and stacks them."""
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    renamed = {
        "ln_1": "norm1",
        "attn.c_proj": "self_attn.out_proj",
        "crossattention.c_proj": "multihead_attn.out_proj",
        "mlp.c_fc": "linear1",
        "mlp.c_proj": "linear2",
    }
    found = {}
    for half in ("encoder", "decoder"):
        last = {"encoder": "norm2", "decoder": "norm3"}[half]
        names = renamed | {"ln_2": last, "ln_cross_attn": "norm2"}
        for kind in ("weight", "bias"):
            found[f"{half}.norm.{kind}"] = ours[f"{half}.ln_f.{kind}"]
            for i in range(2):
                here, there = f"{half}.h.{i}", f"{half}.layers.{i}"
                for name, theirs in names.items():
                    if f"{here}.{name}.{kind}" in ours:
                        found[f"{there}.{theirs}.{kind}"] = ours[f"{here}.{name}.{kind}"]
                found[f"{there}.self_attn.in_proj_{kind}"] = ours[f"{here}.attn.c_attn.{kind}"]
                if half == "decoder":
                    parts = [f"{here}.crossattention.{p}_attn.{kind}" for p in "qc"]
                    found[f"{there}.multihead_attn.in_proj_{kind}"] = np.concatenate(
                        [ours[part] for part in parts]
                    )
    return found
