// Philox4x32-10, the scalar definition, and the layout of its words over elements.
// Sources: see rounding.h.
#include "rounding.h"

#include "kernels.h"
#include "parallel.h"

namespace trn::numerics {
namespace reference {

uint32_t random_word(uint64_t seed, uint64_t offset, uint64_t index) {
  // 64 elements share 16 counters: element 16 * w + j of the group takes word w of counter j. A
  // vector of 4, 8 or 16 counters so gives whole vectors of neighbouring elements.
  const uint64_t counter = index / 64 * 16 + index % 16;
  const uint64_t word = index % 64 / 16;
  uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                   static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32)};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(product0)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return c[word];
}

}  // namespace reference

void random_words(uint64_t seed, uint64_t offset, uint64_t first, int64_t count, uint32_t* words) {
  const Kernels& k = kernels();
  parallel_for(0, count, 16384, [&](int64_t lo, int64_t hi) {
    k.random_words(seed, offset, first + static_cast<uint64_t>(lo), hi - lo, words + lo);
  });
}

}  // namespace trn::numerics
