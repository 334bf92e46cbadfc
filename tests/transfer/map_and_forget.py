"""A program for test_ipc_cache: the bundled UCX, over a fake libcuda, maps buffers of two peers and forgets one."""

from __future__ import annotations

import ctypes
import json
import os
import sys

from transfer.ipc_cache import Identity, _Key, forget, identity, open_library

LEGACY = 1  # cudaMalloc's memory
BUFFER = 0x7F0000000000
LENGTH = 0x200000


def main() -> None:
    cuda, ucx = ctypes.CDLL("libcuda.so.1"), open_library(sys.argv[1])
    cuda.last_closed_address.restype = ctypes.c_uint64
    namespace = identity().pid_namespace
    dead, living = Identity(os.getpid() + 1, namespace), Identity(os.getpid() + 2, namespace)

    def transfer(peer: Identity, number: int) -> int:
        base = BUFFER + 4 * number * LENGTH
        key = _Key(
            handle_type=LEGACY, buffer_id=number, pid=peer.pid, base=base, length=LENGTH, pid_namespace=namespace
        )
        mapped = ctypes.c_void_p()
        assert ucx.uct_cuda_ipc_map_memhandle(ctypes.byref(key), 0, ctypes.byref(mapped), 0) == 0
        ucx.uct_cuda_ipc_unmap_memhandle(peer.pid, namespace, ctypes.c_uint64(base), mapped, 0, 1)
        return int(mapped.value or 0)

    def told() -> list[int]:
        return [cuda.opened_count(), cuda.closed_count()]

    steps = {}
    places = [transfer(dead, number) for number in range(3)]
    kept = transfer(living, 0)
    steps["mapped"] = told()
    assert [transfer(dead, number) for number in range(3)] == places
    steps["used again"] = told()
    inside = [BUFFER + 4 * number * LENGTH + 4096 for number in range(3)]
    assert forget(dead, [*inside, inside[0], 0x1000])
    steps["forgotten"] = told()
    assert cuda.last_closed_address() == places[2]
    assert transfer(living, 0) == kept
    steps["the living is still mapped"] = told()
    transfer(dead, 1)
    steps["a new process with that pid"] = told()
    print(json.dumps(steps))


main()
