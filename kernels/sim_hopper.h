// The simulated side of wgmma.cuh: what its functions call where there is no GPU. sim_hopper.cpp
// says what is checked.
#pragma once
#include <stdint.h>

// What cuda/tensor_map.py fills in: a matrix of matrices of 16-bit elements, the contiguous axis
// first, and the box that a copy takes of it. `base` stands in front: the launcher finds it there.
struct TensorMap {
    const char* base;
    uint64_t strides[3];  // in bytes, of all axes but the first
    uint32_t sizes[4], box[4];
    uint32_t element_bytes, swizzle_bytes;
};

namespace sim {
unsigned shared_address(const void* place);
void mbarrier_init(void* barrier, int arrivals);
void fence_mbarrier_init();
void mbarrier_arrive(void* barrier, int bytes);
void mbarrier_wait(void* barrier, int parity);
void copy_tensor(void* to, const TensorMap* map, int x, int y, int z, int w, void* barrier);
void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(int newest);
void wgmma(float* d, int n, uint64_t a, uint64_t b, bool add, bool mn_a, bool mn_b);
}  // namespace sim
