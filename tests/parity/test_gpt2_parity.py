"""GPT-2 beside `transformers`: weights there and back, logits, greedy text, ten training steps."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from gpt.bpe import BytePairTokenizer
from gpt.export import save_pretrained
from gpt.model import GPT, GPTConfig, parameter_groups
from gpt.tokenizer import CharTokenizer
from gpt.tokenizers import load_tokenizer
from gpt.weights import TRANSPOSED, load_gpt2, load_pretrained
from tests.parity.compare import numbers, torch

pytestmark = [
    pytest.mark.parity,
    # Their libraries warn of their own affairs.
    pytest.mark.filterwarnings("ignore"),
]
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

B, T, V = 3, 24, 211


def their_model(**changes):
    """A small random GPT-2 whose weights are large enough for the order of logits to matter."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{"vocab_size": V, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4,
           "initializer_range": 0.1, **changes}
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():  # biases and gains that are not 0 and 1
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if "ln_" in name else 0.0, 0.1)
    return model


def our_model(seed=0, **changes):
    tt.manual_seed(seed)
    sizes = {"vocab_size": V, "block_size": 32, "n_layer": 3, "n_head": 4, "n_embd": 48}
    model = GPT(GPTConfig(**{**sizes, **changes})).eval()
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.add_(tt.randn(*parameter.shape) * 0.1)
    return model


def ids(seed=0, shape=(B, T), high=V):
    return np.random.default_rng(seed).integers(0, high, shape)


def same_logits(mine, theirs, high=V):
    x = ids(high=high)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).logits.float().numpy()
    found = mine(tt.tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(found[..., :high], expected, rtol=0, atol=1e-5)


def greedy(mine, prompt, new):
    x = tt.tensor(prompt)
    for _ in range(new):
        nxt = mine(x)[0][:, -1, :].argmax(-1, keepdim=True)
        x = tt.cat((x, nxt), dim=1)
    return x.numpy()


def same_generations(mine, theirs):
    prompt = ids(1, (4, 5))
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompt), max_new_tokens=20, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
    assert (greedy(mine, prompt, 20) == expected.numpy()).all()


# ---- theirs to ours ----


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_function": "gelu"},
        {"activation_function": "relu", "n_layer": 1},
        {"tie_word_embeddings": False},
        {"n_head": 1, "n_inner": 192},
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ],
    ids=str,
)
def test_their_weights_give_their_logits_and_their_text(changes, tmp_path):
    theirs = their_model(**changes)
    theirs.save_pretrained(tmp_path)
    mine = load_gpt2(tmp_path)
    assert mine.config.parameter_count() == theirs.num_parameters()
    assert mine.config.dropout == theirs.config.attn_pdrop
    same_logits(mine, theirs)
    same_generations(mine, theirs)


def test_weights_in_several_files(tmp_path):
    theirs = their_model()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    same_logits(load_gpt2(tmp_path), theirs)


def test_names_without_their_prefix_and_with_masks(tmp_path):
    """As the published file has them: saved from GPT2Model, with the masks of its attention."""
    from safetensors.torch import load_file, save_file

    theirs = their_model()
    theirs.transformer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "wte.weight" in tensors
    for i in range(3):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    same_logits(load_gpt2(path), theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves(dtype, tmp_path):
    theirs = their_model().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    same_logits(load_gpt2(tmp_path), theirs.float())


# ---- ours to theirs ----


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"tied": False}, {"activation": "gelu"}, {"vocab_multiple": 64}],
    ids=str,
)
def test_our_weights_give_our_logits_and_our_text(changes, tmp_path):
    mine = our_model(**changes)
    save_pretrained(mine, tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.eval()
    assert theirs.config.vocab_size == V
    same_logits(mine, theirs)
    same_generations(mine, theirs)
    same_logits(load_gpt2(tmp_path / "out"), theirs)


def test_our_bfloat16(tmp_path):
    mine = our_model()
    save_pretrained(mine, tmp_path / "out", dtype="bfloat16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    same_logits(load_gpt2(tmp_path / "out"), theirs.float().eval())


TEXTS = [
    "low lower lowest\n\n  newest, widest! it's 12345 times",
    "naïve café — \t日本語 🙂",
    "",
]


def test_our_tokenizer_is_theirs(tmp_path):
    tokenizer = BytePairTokenizer.train(["low lower lowest newest widest it's"] * 3, 280)
    model = our_model(vocab_size=tokenizer.vocab_size)
    save_pretrained(model, tmp_path / "out", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert theirs.encode(text) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.end_of_text
    assert len(theirs) == tokenizer.vocab_size
    _, again = load_pretrained(tmp_path / "out")
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_their_tokenizer_files_are_ours(tmp_path):
    tokenizer = BytePairTokenizer.train(["low lower lowest newest widest it's"] * 3, 280)
    save_pretrained(our_model(vocab_size=tokenizer.vocab_size), tmp_path / "out", tokenizer)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "out")
    theirs.save_pretrained(tmp_path / "again")
    if (tmp_path / "again" / "merges.txt").exists():
        again = load_tokenizer(tmp_path / "again")
        assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_our_characters_are_theirs(tmp_path):
    text = 'To be, or not to be:\n\tthat is "the" question — é🙂'
    tokenizer = CharTokenizer.of(text)
    save_pretrained(our_model(vocab_size=tokenizer.vocab_size), tmp_path / "out", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text


# ---- training ----


def test_ten_training_steps(tmp_path):
    """Ten steps of AdamW as GPT-2 is trained: every loss, norm, gradient and weight on the way.

    A loss agrees to 1e-5, a gradient to 1e-4 of its largest number. Only the biases of keys go
    their own ways: softmax does not see what all scores have in common, so their gradient is zero
    but for rounding, and AdamW makes whole steps of it; they change no logit.
    """
    theirs = their_model(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    theirs.save_pretrained(tmp_path)
    mine = load_gpt2(tmp_path).train()
    theirs.train()
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    my_optimizer = tt.optim.AdamW(parameter_groups(mine, weight_decay=0.1), **options)
    their_groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    their_optimizer = torch.optim.AdamW(their_groups, **options)
    mine_by_name, theirs_by_name = (dict(model.named_parameters()) for model in (mine, theirs))
    assert mine_by_name.keys() == theirs_by_name.keys()

    def agree(find):
        for name, parameter in theirs_by_name.items():
            a, b = numbers(find(mine_by_name[name])), numbers(find(parameter))
            b = b.T if TRANSPOSED.search(name) else b
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max(), err_msg=name)

    for step in range(10):
        tokens = ids(step, (B, T + 1))
        x, y = tt.tensor(tokens[:, :-1]), tt.tensor(tokens[:, 1:])
        my_optimizer.zero_grad()
        loss = mine(x, y)[1]
        loss.backward()
        their_optimizer.zero_grad()
        logits = theirs(torch.tensor(tokens[:, :-1])).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten()
        )
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=0, abs=1e-5), step
        agree(lambda parameter: parameter.grad)
        norms = [
            library.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            for library, model in ((tt, mine), (torch, theirs))
        ]
        assert norms[1] > 1  # it does clip
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
        my_optimizer.step()
        their_optimizer.step()
    for i, block in enumerate(mine.transformer.h):
        with tt.no_grad():
            keys = theirs_by_name[f"transformer.h.{i}.attn.c_attn.bias"][48:96]
            block.attn.c_attn.bias[48:96] = tt.tensor(numbers(keys))
    agree(lambda parameter: parameter)
