"""The parts of `benchmark_cpu.py`, in the order in which they are read.

- `workloads`: the models, the shapes of their batches, the optimizer's settings, the targets;
- `engines`, `torch_source`, `jax_engine`: a class for each library, which trains a workload;
- `by_hand`: the same step in NumPy alone, forward and backward of each layer side by side;
- `trainer` and `processes`: each engine in a process of its own, and what one asks of it;
- `race`: the engines compared number by number, then timed in turns;
- `machine`: what the processor, its BLAS and the environment are;
- `tables`: medians, spreads and ratios, as text and as Markdown;
- `profiling`: where our time in a step goes, by operation;
- `floor`, `replay` and `breakdown`: what the parts of a step and our operations take when nothing
  else is in the way, and what that means for a target.
"""
