// RequestParser: bytes of a connection -> one HttpRequest, on Boost.Beast's parser (hidden in the .cpp). It owns no buffer:
// the connection keeps unconsumed bytes and offers them again with more behind them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "server/http.h"

namespace dg {

struct ParserLimits {
  size_t max_header_bytes, max_body_bytes;
};

class RequestParser {
 public:
  enum class State { kHead, kBody, kDone, kFailed };
  struct Failure {
    int status = 400;  // 400, 413, 431, 501 or 505
    std::string message;
  };

  explicit RequestParser(ParserLimits limits);
  ~RequestParser();

  // Consumes what it can of `bytes` and returns how many; it stops when the head is complete, so that the caller can
  // refuse the request before its body, and at the end of the request.
  size_t feed(std::string_view bytes);
  State state() const;
  const Failure& failure() const;

  HttpRequest& request();  // method, path, query, headers, body
  bool http_1_0() const;
  bool keep_alive() const;
  bool has_body() const;            // announced
  int64_t content_length() const;   // -1: chunked
  std::string_view target() const;  // as sent
  uint64_t received_bytes() const;  // of this request, head and body as sent
  void discard_body();              // parse it, keep nothing

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dg
