"""What a rank says about the machine that it runs on: which one it is, its GPUs, its addresses.

Host names answer none of these questions. Containers on two machines may have one name, and two on
one machine have two; a name may lead nowhere from outside, or to 127.0.1.1. So machines are told
apart by their kernel's own number, ranks share GPUs where they see the same ones, and others are
given every address to try.
"""

from __future__ import annotations

import importlib
import socket
import struct
from pathlib import Path

from ..backend import cuda_device_count, cupy

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of Linux: new at each start of the kernel
ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR of Linux's <linux/sockios.h>


def identity() -> str:
    """Equal for two processes of one machine, in containers too; elsewhere than on Linux its name.

    (Two machines under one name are then taken for one.)
    """
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()


def gpus() -> tuple[str, ...]:
    """The PCI addresses of the GPUs that CuPy shows to this process, in its order."""
    return tuple(str(cupy().cuda.Device(i).pci_bus_id) for i in range(cuda_device_count()))


def addresses() -> list[str]:
    """Where other processes may find this machine, the likeliest first: its name, its interfaces.

    Some may lead to another machine (127.0.0.1 does, from there): whoever answers must be asked.
    """
    found = [socket.gethostname()]
    for _, interface in socket.if_nameindex():
        address = _address_of(interface)
        if address is not None and not address.startswith("127."):
            found.append(address)
    return list(dict.fromkeys([*found, "127.0.0.1"]))


def _address_of(interface: str) -> str | None:
    """The IPv4 address of a network interface, where it has one and the system tells it (Linux)."""
    try:
        fcntl = importlib.import_module("fcntl")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("256s", interface.encode()[:15])
            answer = fcntl.ioctl(any_socket.fileno(), ADDRESS_OF_INTERFACE, request)
    except (ImportError, OSError):
        return None
    return socket.inet_ntoa(answer[20:24])
