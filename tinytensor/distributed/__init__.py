"""tinytensor.distributed: one model on many devices, started by `mpiexec`.

    import tinytensor.distributed as dist

    place = dist.init_process_group()           # place.rank, place.world_size, place.device
    model = dist.DistributedDataParallel(model)
    ...                                         # the training loop of one process, unchanged
    dist.destroy_process_group()

Names are PyTorch's. To read it: `parallel.py` (what happens to the gradients), `group.py` (who is
there, and the collectives), `machine.py` (where), `mpi.py`, `shared.py` and `nccl.py` (how bytes
move), `lane.py` (beside the computation), `witness.py` (what happens when somebody is missing),
`zero.py` (sharded optimizers) and `arriving.py` (parameters that come during the forward pass).
"""

from __future__ import annotations

from .agreement import check_agreement as check_agreement
from .agreement import last_words as last_words
from .group import DEFAULT_TIMEOUT as DEFAULT_TIMEOUT
from .group import Place as Place
from .group import all_gather as all_gather
from .group import all_gather_into_tensor as all_gather_into_tensor
from .group import all_gather_object as all_gather_object
from .group import all_reduce as all_reduce
from .group import barrier as barrier
from .group import broadcast as broadcast
from .group import destroy_process_group as destroy_process_group
from .group import get_device as get_device
from .group import get_node_local_rank as get_node_local_rank
from .group import get_rank as get_rank
from .group import get_world_size as get_world_size
from .group import init_process_group as init_process_group
from .group import is_available as is_available
from .group import is_initialized as is_initialized
from .group import reduce_scatter_tensor as reduce_scatter_tensor
from .lane import Work as Work
from .mpi import launched_rank as launched_rank
from .operations import ReduceOp as ReduceOp
from .parallel import DistributedDataParallel as DistributedDataParallel
from .parallel import seed_micro_batch as seed_micro_batch
from .zero import ZeroRedundancyOptimizer as ZeroRedundancyOptimizer
