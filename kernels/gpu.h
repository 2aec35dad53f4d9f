// What NVRTC includes before every .cu file; the simulator's counterpart is sim.h.
#pragma once

// The block's dynamic shared memory, aligned to 1,024 bytes (what swizzled copies ask for at most).
#define DYNAMIC_SHARED(type, name)                                          \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes[]; \
    type* name = (type*)dynamic_shared_bytes
