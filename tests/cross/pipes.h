// Whole reads and writes of a file descriptor.
#pragma once

#include <unistd.h>

#include <stdexcept>

#include "../../csrc/core.h"

namespace lorahub_edge::cross {

inline void write_all(int to, const void* bytes, index_t n) {
  for (const char* at = static_cast<const char*>(bytes); n > 0;) {
    const ssize_t written = write(to, at, static_cast<std::size_t>(n));
    if (written <= 0) throw std::runtime_error("the other end of the kernels' pipe is gone");
    at += written;
    n -= written;
  }
}

inline void read_all(int from, void* bytes, index_t n) {
  for (char* at = static_cast<char*>(bytes); n > 0;) {
    const ssize_t got = read(from, at, static_cast<std::size_t>(n));
    if (got <= 0) throw std::runtime_error("the other end of the kernels' pipe is gone");
    at += got;
    n -= got;
  }
}

template <typename T>
void write_value(int to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  write_all(to, &value, sizeof(value));
}

template <typename T>
T read_value(int from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value{};
  read_all(from, &value, sizeof(value));
  return value;
}

inline void write_text(int to, const std::string& text) {
  write_value(to, static_cast<index_t>(text.size()));
  write_all(to, text.data(), static_cast<index_t>(text.size()));
}

inline std::string read_text(int from) {
  std::string text(static_cast<std::size_t>(read_value<index_t>(from)), ' ');
  read_all(from, text.data(), static_cast<index_t>(text.size()));
  return text;
}

}  // namespace lorahub_edge::cross
