// What the libstdc++ that a wheel carries asks of glibc, and glibc 2.28 does not have (VGGFAST_GLIBC in
// CMakeLists.txt).
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

extern "C" {

// Since 2.32 whether the process has one thread, so that counts need not be atomic. Nobody keeps it up to date here.
char __libc_single_threaded = 0;

// Since 2.36; behind std::random_device.
uint32_t arc4random() {
  uint32_t bits;
  if (getentropy(&bits, sizeof bits) != 0) std::abort();
  return bits;
}
}
