"""A nan or an infinity is traced to the operation that made it, forward or backward."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import tinytensor as tt
from gpt import UserError, train
from gpt.config import TrainConfig
from gpt.data import load_text
from gpt.diagnosis import explain
from gpt.model import GPT, MLP, GPTConfig
from gpt.runs import RunFolder
from tinytensor import nn
from tinytensor.inspect import first_nonfinite

SIZES = GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=16)


class Part(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(tt.tensor([1.0, 2.0, 4.0]))

    def forward(self, x):
        return self.function(x * self.weight)


class Whole(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second = Part(tt.tanh), Part(function)

    def forward(self, x):
        return self.second(self.first(x)).sum()


def birth(function, x=(0.5, -0.5, 1.0)):
    model = Whole(function)
    return first_nonfinite(lambda: model(tt.tensor(x)).backward(), model)


# ---- Who made it ----


@pytest.mark.parametrize(
    ("function", "operation", "direction", "what"),
    [
        (tt.log, "log", "forward", "nan"),  # of a negative number
        (lambda x: tt.log(x * 0), "log", "forward", "infinity"),
        (lambda x: tt.exp(x * 1e4), "exp", "forward", "infinity"),
        (lambda x: tt.sqrt(x * 0), "sqrt", "backward", "infinity"),  # the slope at 0
        (lambda x: (x - x) / (x - x), "divide", "forward", "nan"),
    ],
)
def test_the_operation_is_named_with_its_place_and_inputs(function, operation, direction, what):
    found = birth(function)
    assert (found.operation, found.direction, found.place) == (operation, direction, "second")
    assert bool(found.made.nans) == (what == "nan")
    assert all(numbers.nans == 0 for numbers in found.inputs) and found.inputs
    words = str(found)
    assert f"the first {what} was made by {operation} ({direction}) in second" in words
    assert "its inputs:" in words and "from " in words and len(words) < 1000


def test_the_first_of_many_is_found():
    found = birth(lambda x: tt.log(x) * 0 + tt.sqrt(x - 9))
    assert found.operation == "log"


def test_what_is_finite_or_masked_is_nobodys_fault():
    assert birth(lambda x: x * x) is None
    mask = tt.tensor([True, False, False])
    assert birth(lambda x: tt.softmax(x.masked_fill(mask, -math.inf), dim=0)) is None


def test_a_sum_of_finite_gradients():
    model = Whole(lambda x: x)

    def step():
        for _ in range(8):  # a weight's gradient is up to 6e37 each time
            model(tt.tensor([1.0, 1.0, 1.0])).backward(tt.tensor(6e37))

    found = first_nonfinite(step, model)
    assert found.direction == "sum" and found.place.endswith("weight")


def test_looking_leaves_no_trace():
    call, threads = tt.Operation.__call__, tt.get_num_threads()
    model = Whole(tt.log)
    first_nonfinite(lambda: model(tt.tensor([1.0, -1.0, 1.0])).backward(), model)
    assert tt.Operation.__call__ is call and tt.get_num_threads() == threads
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

    def fail():
        raise KeyError("something else")

    with pytest.raises(KeyError):
        first_nonfinite(fail, model)
    assert tt.Operation.__call__ is call


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_place_in_a_gpt(checkpointing):
    model = GPT(dataclasses.replace(SIZES, checkpointing=checkpointing))
    model.transformer.h[1].mlp.activation = lambda x: tt.sqrt(x)
    idx = tt.zeros(1, 8, dtype=tt.long)
    found = first_nonfinite(lambda: model(idx, idx)[1].backward(), model)
    assert (found.operation, found.place) == ("sqrt", "transformer.h.1.mlp")


# ---- In words ----


def test_a_parameter_that_was_damaged_before():
    model = GPT(SIZES)
    model.transformer.h[0].mlp.c_fc.bias.data[3] = math.nan
    words = explain(lambda: None, model)
    assert words.startswith("a parameter was not finite before the step: transformer.h.0.mlp.c_fc")
    assert "1 nan" in words


def test_gradients_whose_squares_overflow():
    model = GPT(SIZES)
    idx = tt.zeros(1, 8, dtype=tt.long)

    def step():
        model(idx, idx)[1].backward(tt.tensor(1e25))

    assert "too large for the sum of their squares: the largest is" in explain(step, model)


# ---- In a run ----


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(load_text("python").content[:6000], encoding="utf-8")
    sizes = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "batch_size": 4}
    return TrainConfig(
        data="text.txt", iterations=9, warmup=0, eval_batches=1, dropout=0.1,
        sample_chars=5, total_batch=64, **sizes,
    )  # fmt: skip


def test_a_run_stops_with_a_sentence_and_the_steps_checkpoint(config, monkeypatch):
    whole = train.train(dataclasses.replace(config, name="whole")).run
    forward, calls = MLP.forward, []

    def fail_from_the_fifth_step(self, x):
        y = forward(self, x)
        calls.append(self.training)
        return tt.log(y - 1e9) if calls.count(True) > 4 * 2 * 2 else y  # 2 batches, 2 blocks

    monkeypatch.setattr(MLP, "forward", fail_from_the_fifth_step)
    with pytest.raises(UserError) as caught:
        train.train(dataclasses.replace(config, name="broken"))
    words = str(caught.value)
    assert words.startswith("at step 5 the loss is nan: the training has diverged; the first nan ")
    assert "was made by log (forward) in transformer.h.0.mlp: result (4, 8, 16) float32" in words
    assert "checkpoint-000004 is whole" in words and "\n" not in words and len(words) < 1000

    # From what the step began with it can be looked at again, or, mended, go on as if never broken.
    run = RunFolder.open("runs/broken")
    with pytest.raises(UserError, match="at step 5 the loss is nan"):
        train.train(run.config(), run)
    monkeypatch.setattr(MLP, "forward", forward)
    train.train(run.config(), run)
    weights = [tt.load_file(r.checkpoint() / "model.safetensors") for r in (run, whole)]
    for name, tensor in weights[0].items():
        assert np.array_equal(tensor.numpy(), weights[1][name].numpy()), name


def test_a_step_size_far_too_large_leaves_the_last_checkpoint(config):
    # The parameters themselves become infinite; they are not worth keeping.
    absurd = dataclasses.replace(config, learning_rate=3e38, weight_decay=10.0, checkpoint_every=1)
    with pytest.raises(UserError, match="diverged") as caught:
        train.train(absurd)
    assert "a parameter was not finite before the step" in str(caught.value)
