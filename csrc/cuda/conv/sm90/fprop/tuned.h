// The fastest tiles of fprop and dgrad, as benchmarks/tune.py measured them; it writes this file (choice.h says how it
// is read). By: nothing has been measured yet.
#pragma once

#include <array>

#include "cuda/conv/sm90/fprop/choice.h"

namespace vggfast::cuda::sm90 {

constexpr int tuned_num_sms = 0;

// clang-format off
constexpr std::array<TunedTile, 0> tuned_tiles{{
    // bytes, cin, cout, h, w, n, pool, tile
}};
// clang-format on

}  // namespace vggfast::cuda::sm90
