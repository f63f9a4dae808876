// Result<T>: the way an expected failure (file, network, configuration, bad request, no memory for one request)
// travels. A bug uses CHECK (check.h) instead; the two are never mixed and user input never reaches CHECK.
//
// An Error carries ONE line for a person: what failed, which object, what was expected and found, what to do.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace dg {

enum class ErrorKind {
  kInput,      // the user's file, flag or request is wrong: exit code 2, HTTP 400
  kIo,         // a file or connection could not be read or written: exit code 2
  kResource,   // not enough memory, blocks or file descriptors: exit code 3
  kDevice,     // an accelerator failed: exit code 4
  kCancelled,  // the caller asked to stop
};

struct Error {
  ErrorKind kind = ErrorKind::kInput;
  std::string message;
};

inline Error input_error(std::string message) { return {ErrorKind::kInput, std::move(message)}; }
inline Error io_error(std::string message) { return {ErrorKind::kIo, std::move(message)}; }
inline Error resource_error(std::string message) { return {ErrorKind::kResource, std::move(message)}; }

// Exit code of the process for an error that ends it; documented in `dougong --help`.
inline int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInput:
    case ErrorKind::kIo: return 2;
    case ErrorKind::kResource: return 3;
    case ErrorKind::kDevice: return 4;
    case ErrorKind::kCancelled: return 130;
  }
  return 1;
}

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    CHECK(ok()) << error().message;
    return *std::get_if<0>(&state_);
  }
  const T& value() const& {
    CHECK(ok()) << error().message;
    return *std::get_if<0>(&state_);
  }
  T&& value() && {
    CHECK(ok()) << error().message;
    return std::move(*std::get_if<0>(&state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const {
    CHECK(!ok());
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    CHECK(!ok());
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

}  // namespace dg

// TRY(expression): returns the error of a Result<void> expression from the calling function.
#define DG_TRY(expression)                                            \
  do {                                                                \
    auto dg_try_result = (expression);                                \
    if (!dg_try_result.ok()) return std::move(dg_try_result).error(); \
  } while (0)

// DG_ASSIGN(auto x, expression): unwraps a Result<T> or returns its error.
#define DG_CONCAT_INNER(a, b) a##b
#define DG_CONCAT(a, b) DG_CONCAT_INNER(a, b)
#define DG_ASSIGN(declaration, expression)                                                   \
  auto DG_CONCAT(dg_result_, __LINE__) = (expression);                                       \
  if (!DG_CONCAT(dg_result_, __LINE__).ok()) return DG_CONCAT(dg_result_, __LINE__).error(); \
  declaration = std::move(DG_CONCAT(dg_result_, __LINE__)).value()
