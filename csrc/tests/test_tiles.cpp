// Products of tiles in software against scalar loops that spell out the processor's rules, bit by bit; against the
// processor's own where it has tiles; and what is left where the kernel denies them.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <functional>
#include <thread>

#if defined(__x86_64__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#endif

#include "cpu/isa/amx.h"
#include "cpu/tile_kernels.h"
#include "tensors.h"

namespace vggfast::test {
namespace {

constexpr int n = 16, pairs = 16;
constexpr unsigned deadline = 300;  // of a child, seconds

struct Tiles {
  alignas(64) cpu::Bf16 a[n][2 * pairs], b[pairs][2 * n];
  alignas(64) float c[n][n];
};

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
float value(cpu::Bf16 x) { return flushed(std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16)); }

/// What tdpbf16ps makes of one element of c; or, as it does not, with one sum of all products.
float element(const Tiles& t, int row, int column, bool one_sum = false) {
  float sums[2] = {0, 0};
  for (int k = 0; k < pairs; ++k) {
    for (int odd : {0, 1}) {
      float& sum = sums[one_sum ? 0 : odd];
      sum = flushed(std::fma(value(t.a[row][2 * k + odd]), value(t.b[k][2 * column + odd]), sum));
    }
  }
  return flushed(flushed(t.c[row][column]) + flushed(sums[0] + sums[1]));
}

cpu::Bf16 bf16(float x) { return {static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16)}; }

using Draw = std::function<float(Random&)>;

float any_bits(Random& random) {
  const auto half = [&] { return static_cast<uint32_t>(random.integer(0, 0xffff)); };
  return std::bit_cast<float>(half() << 16 | half());
}
float special(Random& random) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), least = std::numeric_limits<float>::min();
  constexpr float values[] = {0.0f,      -0.0f,     infinity,
                              -infinity, NAN,       least,
                              -least,    least / 2, -least / 4,
                              1e38f,     -1e38f,    std::numeric_limits<float>::max(),
                              1.0f,      -1.0f,     std::numeric_limits<float>::denorm_min()};
  return values[random.integer(0, static_cast<int>(std::size(values)) - 1)];
}
Draw scaled(int low, int high) {
  return [=](Random& random) { return std::ldexp(static_cast<float>(random.real()), random.integer(low, high)); };
}

struct Distribution {
  const char* name;
  Draw factor, sum;
  bool rounds = true;  // whether its results depend on the order of the sums
};
const Distribution distributions[] = {
    {"usual", scaled(0, 0), scaled(0, 2)},
    {"of a wide range", scaled(-40, 40), scaled(-40, 40)},
    {"that nearly underflow", scaled(-66, -58), scaled(-126, -118)},
    {"denormal", scaled(-140, -110), scaled(-140, -120), false},
    {"that overflow", scaled(50, 68), scaled(110, 128)},
    {"of few values, which cancel", [](Random& r) { return static_cast<float>(r.integer(-2, 2)) * 0x1p-63f; },
     [](Random& r) { return static_cast<float>(r.integer(-2, 2)) * 0x1p-126f; }, false},
    {"special", special, special, false},
    {"rarely special", [](Random& r) { return r.integer(0, 30) ? static_cast<float>(r.real()) : special(r); },
     scaled(0, 0)},
    {"of any bits", any_bits, any_bits},
};

Tiles draw(const Distribution& d, Random& random) {
  Tiles t;
  for (auto& row : t.a)
    for (cpu::Bf16& x : row) x = bf16(d.factor(random));
  for (auto& row : t.b)
    for (cpu::Bf16& x : row) x = bf16(d.factor(random));
  for (auto& row : t.c)
    for (float& x : row) x = d.sum(random);
  return t;
}

bool same(float a, float b) {  // which of several NaN comes out is not laid down
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

Tiles product(const cpu::TileKernels& kernels, const Tiles& t) {
  Tiles out = t;
  kernels.product_bf16(t.a[0], t.b[0], out.c[0]);
  return out;
}

void check_bf16() {
  const cpu::TileKernels& kernels = cpu::amx_emulated::tiles();
  Random random(5);
  for (const Distribution& d : distributions) {
    int others = 0;  // results that another order of the sums would change
    for (int i = 0; i < 60; ++i) {
      const Tiles in = draw(d, random), out = product(kernels, in);
      for (int row = 0; row < n; ++row) {
        for (int column = 0; column < n; ++column) {
          const float got = out.c[row][column], expected = element(in, row, column);
          CHECK(same(got, expected), "numbers ", d.name, ": ", got, ", expected ", expected);
          others += !same(expected, element(in, row, column, true));
        }
      }
    }
    CHECK(others > 0 || !d.rounds, "numbers ", d.name);
  }
}

/// What was seen of the processor, in numbers.
void check_facts() {
  const auto one = [](float a, float b, float c) {
    Tiles t{};
    t.a[3][4] = bf16(a);
    t.b[2][2 * 5] = bf16(b);
    t.c[3][5] = c;
    return product(cpu::amx_emulated::tiles(), t).c[3][5];
  };
  constexpr float infinity = std::numeric_limits<float>::infinity(), least = std::numeric_limits<float>::min();
  CHECK_EQUAL(one(1.5f, 2, 0.25f), 3.25f);
  CHECK(std::isnan(one(infinity, 0, 1)));
  CHECK(std::isnan(one(1, 1, std::bit_cast<float>(0x7f800001u))), "a signalling NaN");
  CHECK_EQUAL(std::bit_cast<uint32_t>(one(0, 1, -0.0f)), 0u, "-0 and zeros");
  CHECK_EQUAL(std::bit_cast<uint32_t>(one(0, 1, -least / 2)), 0u, "a denormal and zeros");
  CHECK_EQUAL(one(least / 2, 0x1p100f, 0), 0.0f, "a denormal factor");
  CHECK_EQUAL(one(0x1p-70f, 0x1p-70f, least), least, "a product that vanishes");
}

void check_u8s8() {
  Random random(6);
  uint8_t a[n][64];
  int8_t b[pairs][64];
  int32_t c[n][n], got[n][n];
  for (int32_t start : {0, -70000, std::numeric_limits<int32_t>::max()}) {
    for (auto& row : a)
      for (uint8_t& x : row) x = static_cast<uint8_t>(random.integer(0, 255));
    for (auto& row : b)
      for (int8_t& x : row) x = static_cast<int8_t>(random.integer(-128, 127));
    for (auto& row : c) std::fill(std::begin(row), std::end(row), start);
    std::memcpy(got, c, sizeof c);
    cpu::amx_emulated::tiles().product_u8s8(a[0], b[0], got[0]);
    for (int row = 0; row < n; ++row) {
      for (int column = 0; column < n; ++column) {
        int64_t sum = start;
        for (int k = 0; k < 64; ++k) sum += a[row][k] * b[k / 4][column * 4 + k % 4];
        CHECK_EQUAL(got[row][column], static_cast<int32_t>(sum), "element ", row, ", ", column);
      }
    }
  }
}

void check_counts() {
  const TileCounts before = tile_counts();
  const Tiles t{};
  product(cpu::amx_emulated::tiles(), t);
  const TileCounts after = tile_counts();
  CHECK_EQUAL(after.products - before.products, 1);
  CHECK_EQUAL(after.stores - before.stores, 1);
  for (int i = 0; i < 8; ++i) CHECK_EQUAL(after.loads[i] - before.loads[i], i < 3, "register ", i);
}

/// How many of a few products of random numbers on these tiles are not those of the software.
int wrong_products(const cpu::TileKernels& tiles, unsigned seed) {
  Random random(seed);
  int wrong = 0;
  for (int i = 0; i < 4; ++i) {
    const Tiles in = draw(distributions[0], random);
    const Tiles got = product(tiles, in), expected = product(cpu::amx_emulated::tiles(), in);
    wrong += std::memcmp(got.c, expected.c, sizeof got.c) != 0;
    std::this_thread::yield();
  }
  return wrong;
}

int wrong_in_threads(const cpu::TileKernels& tiles, unsigned count) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i) threads.emplace_back([&, i] { wrong += wrong_products(tiles, i); });
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

/// No other thread or process disturbs a kernel's tiles, and a child has its parent's permission.
void check_threads_and_fork(const cpu::TileKernels& tiles, const std::string& name) {
  CHECK_EQUAL(wrong_in_threads(tiles, 64), 0, name, ", 64 threads");
  const pid_t child = fork();
  if (child == 0) {
    alarm(deadline);
    _exit(wrong_products(tiles, 64) + wrong_in_threads(tiles, 8) == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  CHECK_EQUAL(status, 0, name, ", in a child");
  CHECK_EQUAL(wrong_products(tiles, 65), 0, name, ", after a child");
}

/// The processor's own products, where it has tiles.
void check_hardware() {
  if (cpu::find_amx() != cpu::Amx::permitted) {
    std::cout << "skipped: tiles of the processor against those in software: " << cpu::describe(cpu::find_amx())
              << "\n";
    return;
  }
#if defined(__x86_64__)
  check_threads_and_fork(cpu::amx::tiles(), "amx");
  Random random(7);
  for (const Distribution& d : distributions) {
    for (int i = 0; i < 2000; ++i) {
      const Tiles in = draw(d, random);
      const Tiles got = product(cpu::amx::tiles(), in), expected = product(cpu::amx_emulated::tiles(), in);
      for (int row = 0; row < n; ++row)
        for (int column = 0; column < n; ++column)
          CHECK(same(got.c[row][column], expected.c[row][column]), "numbers ", d.name, ": ", got.c[row][column],
                " of the processor, ", expected.c[row][column], " of the software");
    }
  }
#endif
}

#if defined(__x86_64__)
/// From now on this process' arch_prctl fails with EACCES. Whether the system took that.
bool deny_arch_prctl() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = std::size(code), .filter = code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/// A process of its own, before this one has asked for tiles.
void check_denied() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(deadline);
    if (!deny_arch_prctl()) _exit(77);
    errno = 0;
    CHECK(cpu::find_amx(true, true) == cpu::Amx::denied);
    CHECK_EQUAL(errno, EACCES, "the filter's answer, not the kernel's");
    CHECK(cpu::find_amx() != cpu::Amx::permitted, "what the processor has is denied, too");
    const std::vector<std::string> isas = cpu_isas();
    CHECK_EQUAL(isas.front(), "amx-emulated");
    CHECK(isas.back() != "amx" && cpu_isa() == isas.back(), "in use is ", cpu_isa(), " of ..., ", isas.back());
    CHECK_ERROR(set_cpu_isa("amx"), "isa must be one of amx-emulated, portable", "got 'amx'");
    _exit(result());
  }
  int status = 0;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
    std::cout << "skipped: a denied arch_prctl: this system takes no seccomp filter\n";
  } else {
    CHECK_EQUAL(status, 0, "of the process without permission");
  }
}
#else
void check_denied() {}
#endif

void check_words() {
  using cpu::Amx;
  const auto words = [](Amx amx) { return std::string(cpu::describe(amx)); };
  CHECK_EQUAL(words(cpu::find_amx(false, true)), "the processor has none");
  CHECK_EQUAL(words(cpu::find_amx(true, false)),
              "the processor has it, the operating system does not save its registers");
  CHECK_EQUAL(words(Amx::denied), "the processor has it, the kernel denied permission");
  CHECK_EQUAL(amx_support(), words(cpu::find_amx()));
}

/// Tiles in software are there everywhere, and nobody gets them who does not ask.
void check_dispatch() {
  CHECK_EQUAL(cpu_isas().front(), "amx-emulated");
  CHECK(cpu_isa() != "amx-emulated");
  CHECK_EQUAL(cpu_isas().back() == "amx", cpu::find_amx() == cpu::Amx::permitted);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    CHECK_EQUAL(cpu::kernels().tiles != nullptr, isa.starts_with("amx"), isa);
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_denied();
  check_words();
  check_dispatch();
  check_bf16();
  check_facts();
  check_u8s8();
  check_counts();
  check_threads_and_fork(vggfast::cpu::amx_emulated::tiles(), "amx-emulated");
  check_hardware();
  return result();
}
