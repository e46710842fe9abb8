// parallel_for and parallel_ranges: every unit once, workers within bounds, calls inside calls.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "vggfast/cpu.h"

namespace vggfast::test {
namespace {

using Counts = std::vector<std::atomic<int>>;

bool all_are(const Counts& counts, int expected) {
  return std::all_of(counts.begin(), counts.end(), [&](const std::atomic<int>& count) { return count == expected; });
}

void check_for(int64_t tasks, int threads) {
  Counts seen(static_cast<size_t>(tasks)), busy(static_cast<size_t>(std::max(threads, 1)));
  std::atomic<int> outside{0}, shared{0};
  cpu::parallel_for(tasks, threads, [&](int64_t task, int worker) {
    if (task < 0 || task >= tasks || worker < 0 || worker >= std::max(threads, 1)) {
      ++outside;
      return;
    }
    // Two threads of one number at once would share a scratch.
    if (++busy[static_cast<size_t>(worker)] != 1) ++shared;
    ++seen[static_cast<size_t>(task)];
    --busy[static_cast<size_t>(worker)];
  });
  CHECK(all_are(seen, 1), tasks, " tasks, ", threads, " threads");
  CHECK_EQUAL(outside.load(), 0, tasks, " tasks, ", threads, " threads");
  CHECK_EQUAL(shared.load(), 0, tasks, " tasks, ", threads, " threads");
}

void check_nested(int threads) {
  constexpr int64_t outer = 7, inner = 11;
  Counts seen(outer * inner);
  std::atomic<int> outside{0};
  cpu::parallel_for(outer, threads, [&](int64_t i, int) {
    cpu::parallel_for(inner, threads, [&](int64_t j, int worker) {
      if (worker < 0 || worker >= threads) ++outside;
      ++seen[static_cast<size_t>(i * inner + j)];
    });
  });
  CHECK(all_are(seen, 1), threads, " threads");
  CHECK_EQUAL(outside.load(), 0, threads, " threads");
}

void check_ranges(int64_t units, int64_t grain, int threads) {
  Counts seen(static_cast<size_t>(units));
  std::atomic<int> wrong{0}, short_pieces{0};
  cpu::parallel_ranges(units, grain, threads, [&](int64_t begin, int64_t end, int worker) {
    if (begin < 0 || begin >= end || end > units || worker < 0 || worker >= std::max(threads, 1)) {
      ++wrong;
      return;
    }
    if (end - begin < grain) ++short_pieces;
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  CHECK(all_are(seen, 1), units, " units, grain ", grain, ", ", threads, " threads");
  CHECK_EQUAL(wrong.load(), 0, units, " units, grain ", grain, ", ", threads, " threads");
  // Only the last piece may be shorter.
  CHECK(short_pieces <= 1, short_pieces.load(), " of ", units, " units, grain ", grain, ", ", threads, " threads");
}

/// What a task throws comes out on the caller's thread, whoever ran the task.
void check_errors(int threads) {
  std::string text;
  try {
    cpu::parallel_for(100, threads, [](int64_t task, int) {
      if (task == 7) throw std::runtime_error("task 7");
    });
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  CHECK_EQUAL(text, "task 7", threads, " threads");
}

void run_all() {
  for (int threads : {1, 2, 5}) check_errors(threads);
  for (int threads : {-1, 0, 1, 2, 3, 8}) {
    for (int64_t tasks : {0, 1, 2, 7, 1000}) check_for(tasks, threads);
    for (int64_t units : {0, 1, 5, 100, 1000}) {
      for (int64_t grain : {0, 1, 7, 64, 5000}) check_ranges(units, grain, threads);
    }
  }
  for (int threads : {1, 2, 3}) check_nested(threads);
  std::cout << "OpenMP runtime: " << openmp_runtime() << "\n";
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
