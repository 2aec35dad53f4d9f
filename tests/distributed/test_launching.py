"""How ranks find each other: machines, their GPUs and addresses, the launcher, one voice for all.

Ranks are threads here. Several machines are made of network namespaces by hand, if at all.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import tinytensor as tt
import tinytensor.distributed as dist
from gpt import ranks as gpt_ranks
from tinytensor.distributed import agreement, group, machine, mpi, nccl, watch
from tinytensor.distributed.group import Group, Place
from tinytensor.distributed.watch import Meeting, Ticket, Watch, reach
from tinytensor.distributed.witness import Witness

PATIENCE = 60  # seconds, on a machine that has other things to do


class Comm:
    """As much of MPI's communicator as joining the ranks takes, among threads."""

    def __init__(self, size: int) -> None:
        self._here = threading.local()
        self._values: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=PATIENCE)

    def enter(self, rank: int) -> None:
        self._here.rank = rank

    def Get_rank(self) -> int:
        return self._here.rank

    def allgather(self, value: Any) -> list[Any]:
        self._values[self._here.rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found


def on_ranks(size: int, work: Callable[[Comm], Any]) -> list[Any]:
    """What `work` answers, or raises, on each of `size` ranks."""
    comm, found = Comm(size), [None] * size

    def one(rank: int) -> None:
        comm.enter(rank)
        try:
            found[rank] = work(comm)
        except RuntimeError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return found


# ---- GPUs ----

PAIR = ("0000:1b:00.0", "0000:43:00.0")
# Of each rank: its machine, and the GPUs that it sees there; then the number of the one it takes.
SHARES = {
    "two machines of two": ([("a", PAIR), ("a", PAIR), ("b", PAIR), ("b", PAIR)], [0, 1, 0, 1]),
    "dealt out in turn": ([("a", PAIR), ("b", PAIR), ("a", PAIR), ("b", PAIR)], [0, 0, 1, 1]),
    "SLURM shows each task its own": ([("a", PAIR[:1]), ("a", PAIR[1:])], [0, 0]),
    "one container for each": ([("a", PAIR[1:]), ("a", PAIR[:1])], [0, 0]),
}


def shared_out(seen: list[tuple[str, tuple[str, ...]]], where: str, monkeypatch: Any) -> list[Any]:
    comms: list[Comm] = []
    monkeypatch.setattr(nccl, "library", lambda: None)
    monkeypatch.setattr(machine, "gpus", lambda: seen[comms[0].Get_rank()][1])

    def work(comm: Comm) -> Any:
        comms.append(comm)
        return group._shared_out(comm, tt.device(where), seen[comm.Get_rank()][0])

    return on_ranks(len(seen), work)


@pytest.mark.parametrize("case", SHARES)
def test_ranks_that_see_the_same_gpus_take_one_each(case: str, monkeypatch: pytest.MonkeyPatch):
    seen, expected = SHARES[case]
    found = shared_out(seen, "cuda", monkeypatch)
    assert [(one.type, one.index) for one in found] == [("cuda", number) for number in expected]
    # A number that was asked for is that number.
    assert [one.index for one in shared_out(seen, "cuda:1", monkeypatch)] == [1] * len(seen)


def test_more_ranks_than_gpus_is_refused_on_all(monkeypatch: pytest.MonkeyPatch):
    found = shared_out([("a", PAIR)] * 3 + [("b", PAIR)], "cuda", monkeypatch)
    refusal = f"3 ranks on {socket.gethostname()}, where CuPy sees 2 GPUs; NCCL needs one for each"
    assert all(refusal in str(error) for error in found)
    assert str(found[3]).startswith("rank 0 cannot take part: ")


def test_what_fails_on_one_rank_is_raised_on_all():
    def work(comm: Comm) -> Any:
        def task() -> str:
            if comm.Get_rank() == 1:
                raise OSError("no such thing")
            return "done"

        return group._agreed(comm, task)

    assert [str(error) for error in on_ranks(3, work)] == [
        "rank 1 cannot take part: no such thing",
        "no such thing",
        "rank 1 cannot take part: no such thing",
    ]
    assert on_ranks(2, lambda comm: group._agreed(comm, comm.Get_rank)) == [0, 1]


# ---- machines and their addresses ----


def test_a_machine_is_known_by_its_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    assert machine.identity() == machine.identity() != ""
    monkeypatch.setattr(machine, "BOOT_ID", tmp_path / "boot_id")
    assert machine.identity() == socket.gethostname()
    (tmp_path / "boot_id").write_text("one-of-many\n")
    assert machine.identity() == "one-of-many"


def test_addresses_begin_with_the_name_and_end_at_home(monkeypatch: pytest.MonkeyPatch):
    interfaces = {"lo": "127.0.0.1", "eth0": "10.0.0.7", "ib0": "10.1.0.7", "down": None}
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(interfaces)))
    monkeypatch.setattr(machine, "_address_of", interfaces.get)
    assert machine.addresses() == [socket.gethostname(), "10.0.0.7", "10.1.0.7", "127.0.0.1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is Linux that is asked")
def test_the_address_of_an_interface():
    assert machine._address_of("lo") == "127.0.0.1"
    assert machine._address_of("no such one") is None


@contextmanager
def listening(address: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server((address, port)) as listener:
        yield listener


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere 127.0.0.2 is nowhere")
def test_the_witness_is_found_among_wrong_addresses():
    """Nobody listens at the first, somebody else at the second and third."""
    with listening("127.0.0.1") as listener:
        port = listener.getsockname()[1]
        with listening("127.0.0.3", port) as greeter, listening("127.0.0.4", port) as mute:

            def greet() -> None:
                with greeter.accept()[0] as caller:
                    caller.sendall(b"220 mail\r\n")
                mute.accept()[0].close()

            others = threading.Thread(target=greet)
            others.start()
            thread = threading.Thread(target=Witness(listener, 1, 10, "word").serve)
            thread.start()
            addresses = [f"127.0.0.{n}" for n in (2, 3, 4)]
            wrong = Meeting(addresses, port, "word")
            connection = reach(wrong._replace(addresses=[*addresses, "127.0.0.1"]), 0, 10)
            others.join(PATIENCE)
        assert connection.getpeername()[0] == "127.0.0.1"
        connection.sendall(watch.message(goodbye=True))
        connection.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        with pytest.raises(ConnectionError) as caught:
            reach(wrong._replace(addresses=["127.0.0.2", "127.0.0.3"]), 0, 10)
    assert re.fullmatch(
        rf"{socket.gethostname()} does not reach the process on rank 0's machine that watches the "
        rf"ranks: port {port} of 127\.0\.0\.2 \(.*refused\), 127\.0\.0\.3 \(.*refused\); machines "
        "must accept connections from one another",
        str(caught.value),
    )


def test_a_machine_with_other_versions_is_named(monkeypatch: pytest.MonkeyPatch):
    def gather(mine: dict[str, str], name: str) -> list[dict[str, str]]:
        return [mine, {**mine, "the versions of Python and NumPy": "3.9.1 and 1.26.0"}]

    monkeypatch.setattr(agreement, "current", lambda: SimpleNamespace(gather_objects=gather))
    expected = r"rank 1 differs in the versions of Python and NumPy \(3\.9\.1 and 1\.26\.0 there, "
    with pytest.raises(RuntimeError, match=expected):
        dist.check_agreement()


# ---- a rank's own end ----


@pytest.fixture
def line() -> Iterator[tuple[Watch, socket.socket]]:
    """A watch, and the other end of its line."""
    here, there = socket.socketpair()
    one = Watch(3, 4, here, 20.0, lambda: None, lambda: None)
    with there:
        yield one, there
        one.close()


def test_a_rank_that_nobody_answers_stops_by_itself(
    line: tuple[Watch, socket.socket], monkeypatch: pytest.MonkeyPatch
):
    """Rank 0's machine is gone without a word, or cut off."""
    one, there = line
    said: list[str] = []
    monkeypatch.setattr(one, "stop", said.append)
    ticket = Ticket(7, "barrier", None)
    ticket.since -= 10_000  # all processes were stopped for a while: no reason to end at once
    one._complain_of(ticket)
    one._complain_of(ticket)
    assert said == []
    number, since = one._complaint
    one._complaint = number, since - watch.NO_ANSWER * 3 - 1
    one._complain_of(ticket)
    assert said == [
        "it has been in collective 7 (barrier) for more than 20 seconds, and nothing is heard from "
        "rank 0's machine, where the ranks are watched"
    ]
    assert there.recv(1 << 16).count(b'"waited": 7') == 1  # complained once


def test_a_rank_that_parts_has_left_what_its_gpu_has_done(line: tuple[Watch, socket.socket]):
    """Or the witness would take it for one that is missing in a later collective of the others."""
    one, there = line
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "_news", threading.Event())  # the reporting thread hears nothing
        one.enter("all_reduce", lambda: True)
        one.enter("all_reduce", lambda: True)
        one.close()
    *_, place, goodbye = there.recv(1 << 16).splitlines()
    assert json.loads(place) == {"entered": 2, "name": "all_reduce", "inside": False}
    assert json.loads(goodbye) == {"goodbye": True}


def test_an_abort_that_never_returns_does_not_keep_the_process(
    line: tuple[Watch, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    one, _ = line
    codes, forever = [], threading.Event()
    monkeypatch.setattr(watch, "PARTING", 0.05)
    monkeypatch.setattr(watch.os, "_exit", codes.append)
    one.abort = forever.wait  # type: ignore[assignment]
    one.stop("rank 1 is missing")
    forever.set()
    assert codes == [watch.EXIT_CODE]
    assert capfd.readouterr().err == "tinytensor.distributed: rank 3 stops: rank 1 is missing\n"


@pytest.mark.parametrize("missed", [False, True])
def test_at_the_end_of_its_program_a_rank_waits_for_the_others(
    missed: bool, line: tuple[Watch, socket.socket], monkeypatch: pytest.MonkeyPatch
):
    """In MPI_Finalize it would wait as well, and could not be told that they are gone."""
    one, there = line
    codes: list[int] = []
    monkeypatch.setattr(watch, "LAST_WORDS", 0.0)
    monkeypatch.setattr(watch.os, "_exit", lambda code: (codes.append(code), one._parted.set()))
    leaving = threading.Thread(target=one._leave)
    leaving.start()
    leaving.join(0.1)
    assert leaving.is_alive()
    if missed:
        there.sendall(watch.message(stop="rank 3 ended its program"))
    else:
        there.shutdown(socket.SHUT_WR)
    leaving.join(PATIENCE)
    assert not leaving.is_alive()
    assert codes == ([watch.EXIT_CODE] if missed else [])


def test_a_group_parts_before_it_ends_its_communicators():
    """Ending NCCL's may wait for a missing rank; the barrier before it is watched."""
    done: list[str] = []

    def part(name: str) -> Any:
        return SimpleNamespace(close=lambda: done.append(name))

    def launch(name: str, task: Callable[[], Any]) -> Any:
        return SimpleNamespace(wait=lambda: done.append(name))

    one = Group(Place(0, 2, 0, tt.device("cuda", 0)))
    one.cpu, one.gpu, one.gpu_lane, one.watch = (part(n) for n in ("cpu", "gpu", "stream", "watch"))
    one.cpu_lane = SimpleNamespace(launch=launch, close=lambda: done.append("thread"))
    one.close()
    assert done == ["destroy_process_group", "stream", "thread", "gpu", "cpu", "watch"]


# ---- the launcher ----


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the variables of one launcher, and no other's."""

    def use(words: str) -> None:
        for name in (*mpi.SIZE_VARIABLES, *mpi.RANK_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for word in words.split():
            monkeypatch.setenv(*word.split("="))

    return use


@pytest.mark.parametrize(
    ("variables", "size", "rank"),
    [
        ("", 1, 0),
        ("PMI_SIZE=4 PMI_RANK=3", 4, 3),
        ("OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1", 2, 1),
        ("SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=2", 4, 2),
        # mpiexec inside a step of SLURM, whose own task this is
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=1 PMI_SIZE=4 PMI_RANK=2", 4, 2),
        # a batch script, which is no rank of anything
        ("SLURM_PROCID=0", 1, 0),
    ],
)
def test_what_the_launcher_says(launcher: Any, variables: str, size: int, rank: int):
    launcher(variables)
    assert (mpi.launched_size(), dist.launched_rank()) == (size, rank)


def test_an_mpi_that_does_not_know_the_launcher(launcher: Any, monkeypatch: pytest.MonkeyPatch):
    world = SimpleNamespace(COMM_WORLD=SimpleNamespace(size=1))
    world.Get_library_version = lambda: "MPICH Version:\t5.0\nmore"
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", world)
    launcher("SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=2")
    with pytest.raises(RuntimeError, match=r"4 processes, .* sees 1: .*5.0\) .*srun --mpi=pmi2 "):
        mpi.connect()
    launcher("PMI_SIZE=4 PMI_RANK=2")
    with pytest.raises(RuntimeError, match=r"does not understand the launcher; pip install '.*mpi"):
        mpi.connect()


# ---- one voice ----


class World:
    """MPI, whose ranks other than this one said `others`; `answers` if all of them did."""

    BYTE = None
    THREAD_MULTIPLE = 3

    def __init__(self, rank: int, everyone: list[str], answers: bool) -> None:
        self.COMM_WORLD = self
        self.rank, self.everyone, self.answers = rank, everyone, answers

    def Get_size(self) -> int:
        return len(self.everyone)

    def Iallgather(self, own: Any, rows: Any) -> Any:
        for rank, text in enumerate(self.everyone):
            said = own[0] if rank == self.rank else text.encode().ljust(own[0].size, b"\0")
            rows[0][rank] = memoryview(said)  # type: ignore[arg-type]
        return SimpleNamespace(Test=lambda: self.answers)


@pytest.mark.parametrize(
    ("rank", "everyone", "printed"),
    [
        (0, ["no", "no", "no"], "error: no\n"),
        (2, ["no", "no", "no"], ""),
        (1, ["no", "disk full – here", "no"], "error on rank 1: disk full – here\n"),
        (2, ["other", "no", "no"], ""),
    ],
)
def test_one_of_the_ranks_that_refuse_alike_speaks(
    rank: int,
    everyone: list[str],
    printed: str,
    launcher: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    launcher(f"PMI_SIZE=3 PMI_RANK={rank}")
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", World(rank, everyone, answers=True))
    assert gpt_ranks.refuse(everyone[rank], 2) == 2
    assert capsys.readouterr().err == printed


def test_who_refuses_alone_speaks_and_leaves(
    launcher: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The others are at work, and will not meet it in MPI_Finalize."""
    launcher("PMI_SIZE=2 PMI_RANK=1")
    codes: list[int] = []
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", World(1, ["", "no"], answers=False))
    monkeypatch.setattr(agreement.time, "monotonic", iter(range(100)).__next__)
    monkeypatch.setattr(agreement.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(gpt_ranks.os, "_exit", codes.append)
    gpt_ranks.refuse("no", 2)
    assert codes == [2]
    assert capsys.readouterr().err == "error on rank 1: no\n"


def test_without_mpi_the_first_speaks(
    launcher: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    for rank, printed in ((0, "error: no\n"), (1, "")):
        launcher(f"PMI_SIZE=2 PMI_RANK={rank}")
        assert gpt_ranks.refuse("no", 2) == 2
        assert capsys.readouterr().err == printed
    launcher("")
    assert gpt_ranks.refuse("no", 2) == 2
    assert capsys.readouterr().err == "error: no\n"
