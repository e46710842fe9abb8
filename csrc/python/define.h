// Binding functions whose errors name the argument: pybind11's own list every signature that there is.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::python {

/// A parameter's name, and its value where the caller gives none.
struct Parameter {
  Parameter(const char* given) : name(given) {}  // NOLINT: a name alone is the usual case
  Parameter(const char* given, pybind11::object otherwise) : name(given), fallback(std::move(otherwise)) {}

  const char* name;
  pybind11::object fallback = {};
};

struct Manner {
  bool memory = true;  // whether tensors must have memory; where bytes of workspace are asked for, their shapes will do
  bool gil = false;    // whether the GIL is kept, as by what is done in no time
};

namespace detail {

/// What an error says of a value: a number itself, its type else.
inline std::string described(pybind11::handle value) {
  const bool is_short = value.is_none() || PyLong_Check(value.ptr()) || PyFloat_Check(value.ptr());
  return is_short ? std::string(pybind11::repr(value)) : Py_TYPE(value.ptr())->tp_name;
}

template <class T>
constexpr bool is_tensor = std::is_same_v<std::remove_cv_t<std::remove_pointer_t<std::remove_reference_t<T>>>, Tensor>;

template <class T>
constexpr const char* words_for() {
  using Value = std::remove_cv_t<std::remove_reference_t<T>>;
  if constexpr (is_tensor<T>) return std::is_pointer_v<T> ? "a TensorView or None" : "a TensorView";
  if constexpr (std::is_same_v<Value, Context>) return "a Context";
  if constexpr (std::is_same_v<Value, bool>) return "a bool";
  if constexpr (std::is_same_v<Value, std::optional<bool>>) return "a bool or None";
  if constexpr (std::is_integral_v<Value>)
    return std::is_signed_v<Value> ? "a whole number" : "a whole number from 0 on";
  if constexpr (std::is_floating_point_v<Value>) return "a number";
  if constexpr (std::is_same_v<Value, std::string>) return "a string";
  if constexpr (std::is_same_v<Value, std::array<float, 3>>) return "three numbers";
  if constexpr (std::is_same_v<Value, std::vector<pybind11::buffer>>) return "a list of arrays";
  if constexpr (std::is_same_v<Value, std::vector<int64_t>>) return "a list of whole numbers";
  if constexpr (std::is_same_v<Value, std::array<int64_t, 4>>) return "four whole numbers";
  return "of the type that it has in vggfast";
}

template <class T>
void load(pybind11::detail::make_caster<T>& caster, pybind11::handle value, const char* name, bool memory) {
  using Value = std::remove_cvref_t<T>;
  constexpr bool may_be_none = std::is_pointer_v<T> || std::is_same_v<Value, std::optional<std::string>> ||
                               std::is_same_v<Value, std::optional<bool>>;
  if ((value.is_none() && !may_be_none) || !caster.load(value, true)) {
    throw pybind11::type_error(std::string(name) + " must be " + words_for<T>() + ", got " + described(value));
  }
  if constexpr (is_tensor<T>) {
    const Tensor* t = pybind11::detail::cast_op<const Tensor*>(caster);
    VGGFAST_CHECK(!memory || !t || t->data || t->numel() == 0, name, " must have memory, got none for shape ",
                  describe(t->shape));
  }
}

template <class F, class R, class... Args, size_t... I>
auto named(std::vector<Parameter> parameters, F body, Manner manner, R (F::*)(Args...) const,
           std::index_sequence<I...>) {
  return [=](const pybind11::args& args, const pybind11::kwargs& kwargs) -> R {
    const size_t given = args.size() + kwargs.size();
    [[maybe_unused]] size_t used = args.size();
    [[maybe_unused]] const auto value = [&](size_t i) -> pybind11::handle {
      const Parameter& p = parameters[i];
      if (i < args.size()) return PyTuple_GET_ITEM(args.ptr(), static_cast<Py_ssize_t>(i));
      if (PyObject* found = given > args.size() ? PyDict_GetItemString(kwargs.ptr(), p.name) : nullptr) {
        ++used;
        return found;
      }
      if (!p.fallback) throw pybind11::type_error(std::string(p.name) + " is missing");
      return p.fallback;
    };
    [[maybe_unused]] const std::array<pybind11::handle, sizeof...(Args)> values{value(I)...};
    if (used != given || args.size() > sizeof...(Args)) {
      throw pybind11::type_error("there must be at most " + std::to_string(sizeof...(Args)) + " arguments, got " +
                                 std::to_string(given));
    }
    std::tuple<pybind11::detail::make_caster<Args>...> casters;
    (load<Args>(std::get<I>(casters), values[I], parameters[I].name, manner.memory), ...);
    std::optional<pybind11::gil_scoped_release> without_gil;
    if (!manner.gil) without_gil.emplace();
    return body(pybind11::detail::cast_op<Args>(std::get<I>(casters))...);
  };
}

}  // namespace detail

/// `body`, a lambda whose arguments have these names, as pybind11 is to bind it.
template <class F>
auto named(std::vector<Parameter> parameters, F body, Manner manner = {}) {
  return [&]<class R, class... Args>(R (F::*call)(Args...) const) {
    return detail::named(std::move(parameters), std::move(body), manner, call, std::index_sequence_for<Args...>());
  }(&F::operator());
}

}  // namespace vggfast::python
