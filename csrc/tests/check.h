// Checks for the C++ tests: a failed one prints where it stands and the values, and result() makes main return 1.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <iostream>
#include <random>
#include <sstream>
#include <string>

#include "vggfast/error.h"

namespace vggfast::test {

inline long checks = 0;
inline long failures = 0;

template <class... Parts>
void report(const char* file, int line, const Parts&... parts) {
  constexpr long shown = 20;
  if (++failures > shown) return;
  std::ostringstream text;
  text.precision(17);
  (text << ... << parts);
  std::cerr << file << ":" << line << ": " << text.str() << "\n";
}

template <class Got, class Wanted, class... Parts>
void check_equal(const char* file, int line, const char* text, const Got& got, const Wanted& wanted,
                 const Parts&... parts) {
  ++checks;
  if (!(got == wanted)) report(file, line, text, " is ", got, ", expected ", wanted, "; ", parts...);
}

/// Fails unless body() throws an Error whose text has each of `texts` in it.
template <class Body>
void check_error(const char* file, int line, Body body, std::initializer_list<const char*> texts) {
  ++checks;
  try {
    body();
  } catch (const Error& error) {
    const std::string what = error.what();
    for (const char* text : texts) {
      if (what.find(text) == std::string::npos)
        report(file, line, "the error says '", what, "', expected '", text, "'");
    }
    return;
  }
  report(file, line, "no Error was thrown, expected '", *texts.begin(), "'");
}

/// Whether the next case of a sweep is to run: every one, or one in four where VGGFAST_TEST_SAMPLE has a word to draw
/// by.
inline bool sampled() {
  static const char* const word = std::getenv("VGGFAST_TEST_SAMPLE");
  if (word == nullptr || *word == 0) return true;
  static std::mt19937 generator = [] {
    const std::string letters = word;
    std::seed_seq seed(letters.begin(), letters.end());
    return std::mt19937(seed);
  }();
  return generator() % 4 == 0;
}

/// What main is to return: 0 where something was checked and nothing failed.
inline int result() {
  std::cout << checks << " checks, " << failures << " failed\n";
  return checks > 0 && failures == 0 ? 0 : 1;
}

}  // namespace vggfast::test

/// CHECK(condition, parts...): the parts are printed where the condition does not hold.
#define CHECK(condition, ...)                                                                                   \
  do {                                                                                                          \
    ++::vggfast::test::checks;                                                                                  \
    if (!(condition)) ::vggfast::test::report(__FILE__, __LINE__, #condition, "; " __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
#define CHECK_EQUAL(got, ...) ::vggfast::test::check_equal(__FILE__, __LINE__, #got, got, __VA_ARGS__)
/// CHECK_ERROR(expression, texts...)
#define CHECK_ERROR(expression, ...) \
  ::vggfast::test::check_error(__FILE__, __LINE__, [&] { (void)(expression); }, {__VA_ARGS__})
