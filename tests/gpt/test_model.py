"""The two models: equal to each other, causal, well initialised, trainable, clear when misused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

import tinytensor as tt
from gpt.model import (
    GPT,
    GPT2,
    GPT_37M,
    BigramLanguageModel,
    GPTConfig,
    LanguageModel,
    MultiHeadAttention,
    parameter_groups,
    with_padding,
    without_padding,
)
from tinytensor import nn
from tinytensor.nn import functional as F

V, T = 11, 8

MODELS: dict[str, Callable[[], LanguageModel]] = {
    "bigram": lambda: BigramLanguageModel(V, T, embed_size=16, num_head=2, num_layers=2),
    "gpt": lambda: GPT(GPTConfig(V, T, n_layer=2, n_head=2, n_embd=16)),
    "gpt untied, no bias, erf": lambda: GPT(
        GPTConfig(V, T, 2, 2, 16, bias=False, tied=False, activation="gelu")
    ),
    "gpt of one head and block": lambda: GPT(GPTConfig(V, T, 1, 1, 16, activation="relu")),
}

every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def seed() -> None:
    tt.manual_seed(1)


def random_ids(*shape: int, vocab_size: int = V) -> tt.Tensor:
    return tt.randint(vocab_size, shape)


def shake(model: nn.Module) -> None:
    """Random biases and gains too: at their initial 0 and 1 they could be misplaced unnoticed."""
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * tt.randn(*parameter.shape) + (parameter.ndim == 1))


# ---- Values ----


def test_masked_softmax_of_the_article():
    q = tt.tensor([[[2, 8, 8], [4, 2, 4], [1, 2, 9]]])
    v = tt.tensor([[[9, 5, 7], [3, 1, 4], [6, 2, 9]]])
    weights = q @ v.transpose(2, 1) / 3**0.5
    expected = [
        [65.8179, 26.5581, 57.7350],
        [42.7239, 17.3205, 36.9504],
        [47.3427, 23.6714, 52.5389],
    ]
    np.testing.assert_allclose(weights.numpy()[0], expected, atol=5e-5)

    tril = tt.tril(tt.ones(3, 3))
    masked = weights.masked_fill(tril == 0, float("-inf"))
    future = np.triu(np.ones((3, 3), bool), k=1)
    np.testing.assert_array_equal(np.isneginf(masked.numpy()[0]), future)
    np.testing.assert_array_equal(masked.numpy()[0][~future], weights.numpy()[0][~future])

    # Five digits are printed. The exponents are near 65, where float32 is exact to 4e-6 only, and
    # exp turns that into a relative error.
    attention = F.softmax(masked, dim=2).numpy()[0]
    printed = [[1.0, 0.0, 0.0], [1.0, 9.2777e-12, 0.0], [5.5073e-03, 2.8880e-13, 9.9449e-01]]
    np.testing.assert_allclose(attention, printed, rtol=3e-5)
    np.testing.assert_array_equal(attention[future], 0.0)


def copy_bigram_into_gpt(bigram: BigramLanguageModel, gpt: GPT) -> None:
    """The same weights in the other layout: heads stacked into c_attn, q then k then v."""
    theirs = bigram.state_dict()

    def heads(block: int, part: str) -> tt.Tensor:
        prefix = f"block.{block}.multihead.sa_head"
        count = len(bigram.block[block].multihead.sa_head)
        return tt.cat([theirs[f"{prefix}.{head}.{part}.weight"] for head in range(count)], dim=0)

    ours = {
        "transformer.wte.weight": theirs["token_embedding_table.weight"],
        "transformer.wpe.weight": theirs["positional_embedding.weight"],
        "transformer.ln_f.weight": theirs["layer_norm.weight"],
        "transformer.ln_f.bias": theirs["layer_norm.bias"],
        "lm_head.weight": theirs["linear.weight"],
        "lm_head.bias": theirs["linear.bias"],
    }
    renamed = {
        "ln_1": "ll1",
        "attn.c_proj": "multihead.proj",
        "ln_2": "ll2",
        "mlp.c_fc": "ff.ff.0",
        "mlp.c_proj": "ff.ff.2",
    }
    for i in range(len(bigram.block)):
        stacked = tt.cat([heads(i, part) for part in ("query", "key", "value")], dim=0)  # (3C, C)
        ours[f"transformer.h.{i}.attn.c_attn.weight"] = stacked
        # The article's queries, keys and values have no bias.
        ours[f"transformer.h.{i}.attn.c_attn.bias"] = tt.zeros(len(stacked), dtype=stacked.dtype)
        for new, old in renamed.items():
            for kind in ("weight", "bias"):
                ours[f"transformer.h.{i}.{new}.{kind}"] = theirs[f"block.{i}.{old}.{kind}"]
    gpt.load_state_dict(ours)


def test_gpt_with_the_articles_weights_gives_the_articles_logits():
    bigram = BigramLanguageModel(V, T, embed_size=24, num_head=3, num_layers=2)
    config = GPTConfig(V, T, 2, 3, 24, tied=False, activation="relu", head_bias=True)
    gpt = GPT(config)
    shake(bigram)
    bigram, gpt = bigram.to(tt.float64), gpt.to(tt.float64)
    copy_bigram_into_gpt(bigram, gpt)
    idx, targets = random_ids(3, T), random_ids(3, T)
    theirs, their_loss = bigram(idx, targets)
    ours, our_loss = gpt(idx, targets)
    assert ours.shape == (3, T, V)
    np.testing.assert_allclose(
        ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-12
    )
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-13)


@every_model
def test_loss_is_the_mean_over_all_positions(build):
    model = build()
    idx, targets = random_ids(3, T), random_ids(3, T)
    logits, loss = model(idx, targets)
    without, none = model(idx)
    assert none is None
    np.testing.assert_array_equal(without.detach().numpy(), logits.detach().numpy())
    scores = logits.detach().numpy().astype(np.float64)
    log_total = np.log(np.exp(scores).sum(-1))
    rows, columns = np.indices((3, T))
    expected = (log_total - scores[rows, columns, targets.numpy()]).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# ---- Causality ----


@every_model
def test_a_token_moves_no_logit_before_it(build):
    model = build()
    shake(model)
    model.eval()
    idx = random_ids(2, T)
    before = model(idx)[0].detach().numpy()
    for t in range(T):
        changed = idx.clone()
        changed[:, t] = (idx[:, t] + 1) % V
        after = model(changed)[0].detach().numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=(0, 2)).all()  # and it moves all the others


@every_model
def test_shorter_input_gives_the_same_logits(build):
    model = build()
    idx = random_ids(2, T)
    whole = model(idx)[0].detach().numpy()
    part = model(idx[:, :3])[0].detach().numpy()
    np.testing.assert_allclose(part, whole[:, :3], rtol=1e-5, atol=1e-5)


@every_model
def test_rows_of_a_batch_do_not_see_each_other(build):
    model = build()
    idx = random_ids(3, T)
    alone = np.concatenate([model(idx[b : b + 1])[0].detach().numpy() for b in range(3)])
    np.testing.assert_allclose(model(idx)[0].detach().numpy(), alone, rtol=1e-5, atol=1e-5)


# ---- Sizes and initialisation ----


@pytest.mark.parametrize(
    ("name", "sizes", "parameters"),
    [
        ("gpt2", (12, 12, 768), 124_439_808),
        ("gpt2-medium", (24, 16, 1024), 354_823_168),
        ("gpt2-large", (36, 20, 1280), 774_030_080),
        ("gpt2-xl", (48, 25, 1600), 1_557_611_200),
    ],
)
def test_the_four_sizes_of_gpt2(name, sizes, parameters):
    config = GPT2[name]
    assert config == GPTConfig(50_257, 1024, *sizes)  # and all else is the default
    assert config.n_embd // config.n_head == 64
    assert config.parameter_count() == parameters
    padded = dataclasses.replace(config, vocab_multiple=128)
    assert padded.parameter_count() == parameters + (50_304 - 50_257) * config.n_embd


def test_there_are_four():
    assert len(GPT2) == 4


def test_the_model_of_37_million():
    assert GPT_37M.padded_vocab_size == 50_304
    assert round(GPT_37M.parameter_count() / 1e6) == 37
    blocks = GPT_37M.n_layer * (12 * 384**2 + 13 * 384)
    assert GPT_37M.parameter_count() == (50_304 + 1024) * 384 + blocks + 2 * 384


def test_a_real_model_of_a_named_size_has_that_many():
    """The smallest of GPT-2's with its vocabulary and depth reduced, so that it fits in a test."""
    config = dataclasses.replace(GPT2["gpt2"], vocab_size=1000, block_size=16, n_layer=1)
    model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameter_count()
    removed = (50_257 - 1000) * 768 + (1024 - 16) * 768
    per_block = config.parameter_count() - 1000 * 768 - 16 * 768 - 2 * 768
    assert config.parameter_count() + removed + 11 * per_block == 124_439_808


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_counted_parameters_are_those_that_exist(bias, tied, head_bias, multiple):
    config = GPTConfig(
        V, T, 3, 2, 16, bias=bias, tied=tied, head_bias=head_bias, vocab_multiple=multiple
    )
    model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameter_count()
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied


def test_a_tied_weight_gets_both_gradients():
    tied = GPT(GPTConfig(V, T, 1, 2, 16))
    untied = GPT(GPTConfig(V, T, 1, 2, 16, tied=False))
    untied.load_state_dict(tied.state_dict())
    idx, targets = random_ids(2, T), random_ids(2, T)
    for model in (tied, untied):
        model(idx, targets)[1].backward()
    both = untied.transformer.wte.weight.grad + untied.lm_head.weight.grad
    grad = tied.transformer.wte.weight.grad
    np.testing.assert_allclose(grad.numpy(), both.numpy(), rtol=1e-5, atol=1e-7)


def test_article_model_has_the_articles_size():
    # 2 embeddings, then per block: q, k, v without bias, projection, feed-forward, 2 norms.
    block = 3 * 64 * 64 + (64 * 64 + 64) + (64 * 256 + 256 + 256 * 64 + 64) + 4 * 64
    expected = 65 * 64 + 8 * 64 + 4 * block + 2 * 64 + (64 * 65 + 65)
    assert sum(p.numel() for p in BigramLanguageModel(65).parameters()) == expected


def test_initialisation_of_gpt():
    model = GPT(GPTConfig(512, 64, n_layer=8, n_head=4, n_embd=128, tied=False))
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if parameter.ndim == 1:
            expected = 0.0 if name.endswith("bias") else 1.0
            np.testing.assert_array_equal(values, expected, err_msg=name)
            continue
        std = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
        # The standard error of a standard deviation of n values is std / √(2n); five of them.
        assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * values.size)), name
        assert abs(values.mean()) < 5 * std / math.sqrt(values.size), name


def test_initial_loss_is_that_of_a_guess():
    model = GPT(GPTConfig(65, 32, 4, 4, 64))
    idx, targets = random_ids(8, 32, vocab_size=65), random_ids(8, 32, vocab_size=65)
    assert model(idx, targets)[1].item() == pytest.approx(math.log(65), abs=0.1)


def test_a_tied_table_like_an_ordinary_embedding_would_start_far_off():
    """Why the table is not N(0, 1), as embeddings are elsewhere: it is also the head's matrix."""
    model = GPT(GPTConfig(65, 32, 4, 4, 64))
    idx, targets = random_ids(8, 32, vocab_size=65), random_ids(8, 32, vocab_size=65)
    nn.init.normal_(model.transformer.wte.weight)
    assert model(idx, targets)[1].item() > 2 * math.log(65)


@pytest.mark.nightly
def test_the_whole_of_gpt2_has_124_million():
    model = GPT(GPT2["gpt2"])
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


# ---- Padding of the vocabulary ----


def padded_pair(**choices: object) -> tuple[GPT, GPT]:
    """The same model without and with five rows of padding (11 tokens, 16 rows)."""
    config = GPTConfig(V, T, 2, 2, 16, **choices)
    plain, padded = GPT(config), GPT(dataclasses.replace(config, vocab_multiple=8))
    shake(plain)
    padded.load_state_dict(with_padding(plain.state_dict(), padded.config))
    return plain, padded


PADDED = pytest.mark.parametrize(
    "choices", [{}, {"tied": False}, {"tied": False, "head_bias": True}], ids=str
)


@PADDED
def test_padding_changes_no_logit_loss_or_gradient(choices):
    plain, padded = padded_pair(**choices)
    with tt.no_grad():  # whatever the rows of padding hold
        for name in ("transformer.wte.weight", "lm_head.weight", "lm_head.bias"):
            if name in padded.state_dict():
                padded.state_dict()[name][V:] = 5.0
    idx, targets = random_ids(3, T), random_ids(3, T)
    theirs, ours = plain(idx, targets), padded(idx, targets)
    assert padded.transformer.wte.weight.shape == (16, 16)
    assert ours[0].shape == theirs[0].shape == (3, T, V)
    np.testing.assert_allclose(
        ours[0].detach().numpy(), theirs[0].detach().numpy(), rtol=1e-5, atol=1e-5
    )
    assert ours[1].item() == pytest.approx(theirs[1].item(), rel=1e-6)
    assert padded(idx)[0].shape == (3, T, V)
    for _, loss in (ours, theirs):
        loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), padded.named_parameters(), strict=True):
        rows = b.grad.numpy()
        if len(rows) != len(a.grad):
            np.testing.assert_array_equal(rows[V:], 0.0, err_msg=name)
            rows = rows[:V]
        np.testing.assert_allclose(rows, a.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


@PADDED
def test_padding_has_no_probability(choices):
    _, padded = padded_pair(**choices)
    with tt.no_grad():
        padded.lm_head.weight[V:] = 100.0
        scores = padded.logits(random_ids(4, T))
    assert scores.shape == (4, T, 16)
    assert np.isfinite(scores.numpy()).all()
    np.testing.assert_array_equal(F.softmax(scores, -1).numpy()[..., V:], 0.0)
    assert padded.generate(random_ids(50, 1), 2 * T).numpy().max() < V


def test_padding_is_zero_and_stays_zero():
    model = GPT(GPTConfig(V, T, 1, 2, 16, vocab_multiple=8))
    optimizer = tt.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(random_ids(4, T), random_ids(4, T))[1].backward()
        optimizer.step()
    table = model.transformer.wte.weight.detach().numpy()
    np.testing.assert_array_equal(table[V:], 0.0)
    assert (table[:V] != 0).all()


@PADDED
def test_padding_comes_off_and_on(choices):
    plain, padded = padded_pair(**choices)
    off = without_padding(padded.state_dict(), padded.config)
    assert off.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        np.testing.assert_array_equal(off[name].numpy(), tensor.numpy())
    plain.load_state_dict(off)
    on = with_padding(off, padded.config)
    assert {name: t.shape for name, t in on.items()} == {
        name: t.shape for name, t in padded.state_dict().items()
    }
    assert with_padding(off, plain.config).keys() == off.keys()
    assert "lm_head.padding" not in padded.state_dict()


@pytest.mark.parametrize("multiple", [1, 8])
def test_tokens_of_the_padding_are_refused(multiple):
    model = GPT(GPTConfig(V, T, 1, 2, 16, vocab_multiple=multiple))
    good, bad = random_ids(2, T), random_ids(2, T)
    bad[1, 2] = V
    with pytest.raises(IndexError, match="11 is out of range: there are 11"):
        model(bad)
    with pytest.raises(IndexError, match="11 is out of range: there are 11"):
        model(good, bad)


# ---- Checkpointing ----


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    config = GPTConfig(V, T, 3, 2, 16, dropout=dropout)
    idx, targets = random_ids(3, T), random_ids(3, T)
    found = []
    for checkpointing in (False, True):
        tt.manual_seed(4)
        model = GPT(dataclasses.replace(config, checkpointing=checkpointing))
        for _ in range(2):
            _, loss = model(idx, targets)
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_checkpointing_keeps_one_array_a_block():
    def kept(checkpointing: bool, n_layer: int) -> int:
        model = GPT(GPTConfig(V, T, n_layer, 2, 16, checkpointing=checkpointing))
        _, loss = model(random_ids(4, T), random_ids(4, T))
        arrays: dict[int, int] = {}
        seen, stack = set(), [loss.node]
        parameters = {p.value.__array_interface__["data"][0] for p in model.parameters()}
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack.extend(node.parents)
                for array in node.saved():
                    arrays[array.__array_interface__["data"][0]] = array.nbytes
        return sum(size for start, size in arrays.items() if start not in parameters)

    stream = 4 * T * 16 * 4
    assert kept(True, 5) - kept(True, 2) == 3 * stream
    assert kept(False, 5) - kept(False, 2) > 3 * 12 * stream


# ---- Learning ----


@every_model
def test_one_batch_is_learned_by_heart(build):
    model = build()
    # Each row begins with another token and repeats none: every next token can be told.
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(V) for _ in range(4)])
    rows[:, 0] = np.arange(4)
    idx, targets = tt.tensor(rows[:, :T].copy()), tt.tensor(rows[:, 1 : T + 1].copy())
    optimizer = tt.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        _, loss = model(idx, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@every_model
def test_every_parameter_learns(build):
    model = build()
    model(random_ids(4, T), random_ids(4, T))[1].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


def test_parameter_groups_decay_matrices_only():
    model = GPT(GPTConfig(V, T, 2, 2, 16))
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    ids = [id(p) for group in (decayed, kept) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())  # each one once, the tied too


# ---- Dropout and generation ----


@pytest.mark.parametrize(
    "build",
    [
        lambda p: BigramLanguageModel(V, T, 16, 2, 2, dropout=p),
        lambda p: GPT(GPTConfig(V, T, 2, 2, 16, dropout=p)),
    ],
    ids=["bigram", "gpt"],
)
def test_dropout_acts_in_training_only(build):
    model = build(0.5)
    idx = random_ids(2, T)
    in_training = [model(idx)[0].detach().numpy() for _ in range(2)]
    assert (in_training[0] != in_training[1]).any()
    model.eval()
    in_evaluation = [model(idx)[0].detach().numpy() for _ in range(2)]
    np.testing.assert_array_equal(*in_evaluation)


def test_dropout_acts_where_gpt2_has_it(monkeypatch):
    """After the embeddings; on the attention weights and twice on the stream in each block."""
    places = []
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def watched_dropout(x, p=0.5, training=True):
        if training and p:
            places.append(tuple(x.shape))
        return dropout(x, p, training)

    def watched_attention(q, k, v, *args, dropout_p=0.0, **choices):
        if dropout_p:
            places.append("attention")
        return attention(q, k, v, *args, dropout_p=dropout_p, **choices)

    monkeypatch.setattr(F, "dropout", watched_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched_attention)
    model = GPT(GPTConfig(V, T, 2, 2, 16, dropout=0.1))
    model(random_ids(3, T))
    stream = (3, T, 16)
    assert places == [stream] + 2 * ["attention", stream, stream]
    model.eval()
    model(random_ids(3, T))
    assert len(places) == 7


@every_model
def test_generate(build):
    model = build()
    start = random_ids(3, 2)

    def generated(seed: int) -> np.ndarray:
        generator = tt.Generator()
        generator.manual_seed(seed)
        return model.generate(start, 2 * T, generator=generator).numpy()

    ids = generated(5)
    assert ids.shape == (3, 2 + 2 * T)
    np.testing.assert_array_equal(ids[:, :2], start.numpy())
    assert ids.min() >= 0 and ids.max() < V
    np.testing.assert_array_equal(generated(5), ids)
    assert (generated(6) != ids).any()
    np.testing.assert_array_equal(model.generate(start, 0).numpy(), start.numpy())


@every_model
def test_generate_reads_the_whole_context_and_no_more(build, monkeypatch):
    model = build()
    read = []

    def logits(idx: tt.Tensor) -> tt.Tensor:
        read.append(idx.numpy().copy())
        return type(model).logits(model, idx)

    monkeypatch.setattr(model, "logits", logits)
    ids = model.generate(random_ids(2, 3), T).numpy()
    for step, context in enumerate(read):
        so_far = ids[:, : 3 + step]
        np.testing.assert_array_equal(context, so_far[:, -T:])
    assert len(read) == T


def test_generate_leaves_the_model_in_training_mode():
    model = MODELS["gpt"]()
    model.generate(random_ids(1, 1), 1)
    assert model.training
    model.eval()
    model.generate(random_ids(1, 1), 1)
    assert not model.training


def test_generation_follows_the_distribution():
    """With all weights at zero but the head's bias, the model's distribution is known."""
    model = BigramLanguageModel(3, 4, 8, 2, 1)
    probabilities = np.array([0.7, 0.1, 0.2])
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.linear.bias.copy_(tt.tensor(np.log(probabilities)))
    new = model.generate(tt.zeros((500, 1), dtype=tt.long), 8).numpy()[:, 1:]
    frequencies = np.bincount(new.ravel(), minlength=3) / new.size
    error = 5 * np.sqrt(probabilities * (1 - probabilities) / new.size)
    assert (abs(frequencies - probabilities) < error).all()


# ---- What is refused ----


def gpt_config(**changes: object) -> GPTConfig:
    sizes = {"vocab_size": V, "block_size": T, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return GPTConfig(**{**sizes, **changes})


REFUSED = [
    (lambda: gpt_config(n_head=3), ValueError, "16 channels do not split into 3 heads"),
    (lambda: gpt_config(n_layer=0), ValueError, "n_layer is at least 1, but it is 0"),
    (lambda: gpt_config(vocab_size=-1), ValueError, "vocab_size is at least 1"),
    (lambda: gpt_config(n_embd=16.0), TypeError, "n_embd is a whole number, but it is 16.0"),
    (lambda: gpt_config(block_size=True), TypeError, "block_size is a whole number"),
    (lambda: gpt_config(vocab_multiple=0), ValueError, "vocab_multiple is at least 1, but it is 0"),
    (lambda: gpt_config(dropout=1.0), ValueError, r"a probability in \[0, 1\), but it is 1.0"),
    (lambda: gpt_config(dropout=float("nan")), ValueError, "but it is nan"),
    (lambda: gpt_config(activation="tanh"), ValueError, "'tanh'; known are gelu_tanh, gelu, relu"),
    (lambda: BigramLanguageModel(V, num_head=5), ValueError, "64 channels do not split into 5"),
    (lambda: BigramLanguageModel(0), ValueError, "vocab_size is at least 1"),
    (lambda: BigramLanguageModel(V, dropout=-0.1), ValueError, "but it is -0.1"),
]


@pytest.mark.parametrize(("build", "error", "sentence"), REFUSED, ids=[r[2] for r in REFUSED])
def test_impossible_sizes_are_refused(build, error, sentence):
    with pytest.raises(error, match=sentence):
        build()


@every_model
def test_impossible_inputs_are_refused(build):
    model = build()
    with pytest.raises(ValueError, match=r"9 tokens but the model's context \(block_size\) is 8"):
        model(random_ids(2, T + 1))
    with pytest.raises(TypeError, match=r"token ids are integers, but the input is .*float32"):
        model(tt.zeros(2, T))
    with pytest.raises(TypeError, match=r"token ids are integers, but the input is .*bool"):
        model(tt.zeros(2, T, dtype=tt.bool))
    with pytest.raises(ValueError, match=r"at least one token, but the input is \(2, 0\)"):
        model(random_ids(2, 0))
    with pytest.raises(ValueError, match=r"are \(batch, time\).* but the input is \(8,\)"):
        model(random_ids(T))
    with pytest.raises(ValueError, match=r"targets are \(2, 7\) but the input is \(2, 8\)"):
        model(random_ids(2, T), random_ids(2, T - 1))
    with pytest.raises((IndexError, ValueError)):
        model(random_ids(2, T) + V)


# ---- Second derivatives ----


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_hessian_vector_product_of_the_whole_loss(tied):
    torch = pytest.importorskip("torch")
    config = GPTConfig(V, T, n_layer=2, n_head=2, n_embd=12, tied=tied, head_bias=not tied)
    model = GPT(config).to(tt.float64)
    shake(model)
    parameters = dict(model.named_parameters())
    idx, targets = random_ids(3, T), random_ids(3, T)
    rng = np.random.default_rng(2)
    direction = {name: rng.normal(size=tuple(p.shape)) for name, p in parameters.items()}

    def loss_of(weights):
        return tt.func.functional_call(model, weights, (idx, targets))[1]

    weights = {name: p.detach() for name, p in parameters.items()}
    ours_loss, ours = tt.func.hvp(
        loss_of, weights, {name: tt.tensor(d) for name, d in direction.items()}
    )

    leaves = {
        name: torch.tensor(p.detach().numpy(), requires_grad=True) for name, p in parameters.items()
    }
    loss = torch_gpt_loss(
        config, leaves, torch.tensor(idx.numpy()), torch.tensor(targets.numpy()), torch
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    slope = sum(
        (g * torch.tensor(d)).sum() for g, d in zip(gradients, direction.values(), strict=True)
    )
    theirs = torch.autograd.grad(slope, list(leaves.values()))

    assert ours_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    # Relative to the product as a whole: entries that cancel to nothing have no digits to compare.
    difference = np.concatenate(
        [(ours[n].numpy() - h.numpy()).ravel() for n, h in zip(leaves, theirs, strict=True)]
    )
    size = np.sqrt(sum(float((h**2).sum()) for h in theirs))
    assert np.linalg.norm(difference) < 1e-6 * size
    for name, h in zip(leaves, theirs, strict=True):
        largest = float(h.abs().max())
        np.testing.assert_allclose(ours[name].numpy(), h.numpy(), atol=1e-6 * largest, rtol=1e-6)


def torch_gpt_loss(config, weights, idx, targets, torch):
    """GPT in PyTorch's plain functions, attention written out: what `GPT` must agree with."""
    f = torch.nn.functional
    batch, time = idx.shape
    head = config.n_embd // config.n_head

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        size = (config.n_embd,)
        return f.layer_norm(x, size, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["transformer.wte.weight"][idx] + weights["transformer.wpe.weight"][:time]
    future = torch.ones(time, time, dtype=torch.bool).triu(1)
    for i in range(config.n_layer):
        block = f"transformer.h.{i}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = qkv.view(batch, time, 3, config.n_head, head).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) / math.sqrt(head)).masked_fill(future, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, time, config.n_embd)
        x = x + linear(y, f"{block}.attn.c_proj")
        hidden = f.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate="tanh")
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    head_weight = weights.get("lm_head.weight", weights["transformer.wte.weight"])
    logits = norm(x, "transformer.ln_f") @ head_weight.T + weights.get("lm_head.bias", 0.0)
    return f.cross_entropy(logits.reshape(-1, config.vocab_size), targets.reshape(-1))


def test_all_heads_together_are_the_heads_one_by_one():
    attention = MultiHeadAttention(embed_size=12, num_head=3, block_size=7)
    attention.double()
    x = tt.randn(2, 5, 12, dtype=tt.float64, requires_grad=True)
    cotangent = tt.randn(2, 5, 12, dtype=tt.float64)
    together = attention(x)
    one_by_one = attention.proj(tt.cat([head(x) for head in attention.sa_head], dim=-1))
    leaves = [x, *attention.parameters()]
    for a, b in zip(
        [together, *tt.autograd.grad(together, leaves, cotangent)],
        [one_by_one, *tt.autograd.grad(one_by_one, leaves, cotangent)],
        strict=True,
    ):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-10, atol=1e-12)
