"""Configurations: the two presets, what is refused and in which words, and config.json."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gpt import UserError
from gpt.config import CHANGEABLE, GenerateConfig, TrainConfig, from_json, to_json
from gpt.presets import PRESETS


def test_char_is_the_default_and_nanogpts_recipe_for_a_cpu():
    config = TrainConfig()
    assert config == PRESETS["char"]
    assert (config.block_size, config.batch_size, config.iterations) == (64, 12, 2000)
    assert (config.n_layer, config.n_head, config.n_embd, config.dropout) == (4, 4, 128, 0.0)
    assert (config.learning_rate, config.min_learning_rate, config.warmup) == (1e-3, 1e-4, 100)
    assert (config.beta1, config.beta2, config.weight_decay, config.clip) == (0.9, 0.99, 0.1, 1.0)


def test_bigram_is_the_articles_recipe():
    config = PRESETS["bigram"]
    assert (config.model, config.block_size, config.batch_size) == ("bigram", 8, 32)
    assert (config.n_layer, config.n_head, config.n_embd, config.iterations) == (4, 4, 64, 5000)
    assert (config.learning_rate, config.schedule, config.clip) == (1e-3, "constant", 0.0)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.999, 0.01)  # PyTorch's
    assert (config.eval_every, config.eval_batches, config.sample_chars) == (1000, 200, 2000)


def test_a_preset_is_known_by_its_own_name():
    assert all(config.preset == name for name, config in PRESETS.items())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("learning_rate", -1e-3, "--learning-rate must be greater than 0, but it is -0.001"),
        ("learning_rate", float("nan"), "but it is nan"),
        ("learning_rate", float("inf"), "but it is inf"),
        ("learning_rate", 1e-5, "--min-learning-rate 0.0001 is above --learning-rate 1e-05"),
        ("n_head", 3, "--n-head 3 does not divide --n-embd 128"),
        ("n_layer", 0, "--n-layer must be at least 1, but it is 0"),
        ("iterations", -5, "--iterations must be at least 1, but it is -5"),
        ("eval_every", 0, "--eval-every must be at least 1"),
        ("checkpoint_every", -1, "--checkpoint-every must be at least 0"),
        ("clip", float("nan"), "--clip must be at least 0, but it is nan"),
        ("dropout", 1.0, "--dropout must lie in [0, 1), but it is 1.0"),
        ("total_batch", 1000, "--total-batch 1,000 is not a multiple of --batch-size 12 times"),
        ("total_batch", 1000, "the nearest that is: 768"),
        ("keep_checkpoints", 0, "--keep-checkpoints must be at least 1"),
        ("vocab_multiple", 0, "--vocab-multiple must be at least 1"),
        ("beta2", 1.5, "--beta2 must lie in [0, 1)"),
        ("seed", -1, "--seed must lie in [0, 2^63)"),
        ("name", "../escape", "must be one folder name"),
        ("name", "..", "must be one folder name"),
    ],
)
def test_a_training_that_cannot_be_is_refused(field, value, words):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(TrainConfig(), **{field: value})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", -0.5, "--temperature must be at least 0, but it is -0.5"),
        ("temperature", float("nan"), "but it is nan"),
        ("top_k", -1, "--top-k must be at least 0"),
        ("top_p", 0.0, "--top-p must lie in (0, 1], but it is 0.0"),
        ("top_p", 1.1, "--top-p must lie in (0, 1]"),
        ("num_samples", 0, "--num-samples must be at least 1"),
        ("max_new_tokens", -1, "--max-new-tokens must be at least 0"),
    ],
)
def test_a_generation_that_cannot_be_is_refused(field, value, words):
    with pytest.raises(UserError) as caught:
        GenerateConfig(run="runs/char", **{field: value})
    assert words in str(caught.value)


def test_every_field_says_what_it_is_for():
    for config in (TrainConfig, GenerateConfig):
        for field in dataclasses.fields(config):
            assert len(field.metadata["help"]) > 20, field.name


def test_what_may_change_on_resuming_are_fields():
    assert {field.name for field in dataclasses.fields(TrainConfig)} >= CHANGEABLE


@pytest.mark.parametrize("preset", PRESETS)
def test_config_json_brings_the_same_configuration_back(preset):
    assert from_json(to_json(PRESETS[preset]), "config.json") == PRESETS[preset]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json is not JSON"),
        ("[1]", "config.json holds no configuration"),
        (json.dumps({"n_layers": 3}), "has fields that no run has: n_layers"),
        (json.dumps({"n_layer": "4"}), 'n_layer cannot be "4"'),
        (json.dumps({"n_layer": True}), "n_layer cannot be true"),
        (json.dumps({"clip": None}), "clip cannot be null"),
        (json.dumps({"model": "rnn"}), 'model cannot be "rnn"'),
        (json.dumps({"n_layer": 0}), "--n-layer must be at least 1"),
    ],
)
def test_a_damaged_config_json_is_a_sentence(text, words):
    with pytest.raises(UserError) as caught:
        from_json(text, "config.json")
    assert words in str(caught.value)
