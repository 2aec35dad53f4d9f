// Philox4x64-10 (Salmon et al., SC 2011): block `counter` of the stream `key`, four 64-bit words,
// equal bit for bit to tinytensor.random.philox_words.
#pragma once

// A draw of a captured step counts from `origin`, a key and a counter that are written before each
// replay; elsewhere it is null.
__device__ __forceinline__ void begin_draw(const unsigned long long* origin,
                                           unsigned long long& key, unsigned long long& counter) {
    if (origin) key = origin[0], counter += origin[1];
}

__device__ void philox(unsigned long long words[4], unsigned long long key,
                       unsigned long long counter) {
    unsigned long long x0 = counter, x1 = 0, x2 = 0, x3 = 0, key1 = 0;
    for (int round = 0; round < 10; round++) {
        unsigned long long high0 = __umul64hi(x0, 0xD2E7470EE14C6C93ull);
        unsigned long long low0 = x0 * 0xD2E7470EE14C6C93ull;
        unsigned long long high1 = __umul64hi(x2, 0xCA5A826395121157ull);
        unsigned long long low1 = x2 * 0xCA5A826395121157ull;
        x0 = high1 ^ x1 ^ key, x1 = low1, x2 = high0 ^ x3 ^ key1, x3 = low0;
        key += 0x9E3779B97F4A7C15ull, key1 += 0xBB67AE8584CAA73Bull;
    }
    words[0] = x0, words[1] = x1, words[2] = x2, words[3] = x3;
}
