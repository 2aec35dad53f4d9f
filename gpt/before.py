"""What one can look at before a training: `python -m gpt check` and `python -m gpt plan`.

Both take the fields of `train` and begin nothing. Go back to `gpt/checks.py` for what is looked
for, and to `gpt/plan.py` for how memory is counted.
"""

from __future__ import annotations

import dataclasses

import tinytensor as tt
from gpt import devices, footprint
from gpt.checks import all_checks
from gpt.config import TrainConfig
from gpt.corpus import load_corpus
from gpt.fields import require
from gpt.plan import plan_for, size
from gpt.pretrained import check_start, starting_model
from gpt.progress import say
from gpt.shared import chosen_processes
from gpt.train import build_optimizer


def check(config: TrainConfig) -> bool:
    """Runs every check of `gpt/checks.py` on what `train` would begin, and prints their words."""
    where = devices.choose(config.device)
    corpus = load_corpus(config)
    check_start(config, corpus.vocab_size)
    processes = chosen_processes(config, corpus.vocab_size, where)
    plan_for(config, corpus.vocab_size, where, processes).check()
    tt.manual_seed(config.seed)
    model = starting_model(config, corpus.vocab_size).to(where)
    optimizer = build_optimizer(config, model)
    faults = 0
    for statement, look in all_checks(model, optimizer, corpus, config):
        fault = look()
        say(f"fault   {fault}" if fault else f"ok      {statement}")
        faults += bool(fault)
    return not faults


def show_plan(config: TrainConfig, measured: bool) -> None:
    """Prints what `train` would take; where `measured`, also what its first steps really take.

    Raises UserError for what cannot be trained, and for a device whose memory is not measured here.
    """
    where = devices.choose(config.device)
    vocab_size = load_corpus(config).vocab_size
    check_start(config, vocab_size)
    processes = chosen_processes(config, vocab_size, where)
    plan = plan_for(config, vocab_size, where, processes)
    print("\n".join(plan.table()), flush=True)
    if not measured:
        return
    require(where.type == "cpu", f"--measure looks at main memory, which --device {where} is not")
    plan.check()
    taken = footprint.measure(dataclasses.replace(config, processes=processes), vocab_size)
    ratio = plan.bytes() / taken
    print(f"        {'measured':<16} {size(taken):>9}, of which the plan is {ratio:.2f}")
