#include "server/http_parser.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>

#include "server/http_text.h"

namespace dg {
namespace {

namespace beast_http = boost::beast::http;
using BeastError = boost::beast::error_code;
using BeastView = boost::beast::string_view;

constexpr size_t kMaxHeaders = 256;
// Room that a chunk header with its extensions, or a trailer field, may take.
constexpr size_t kMaxChunkHeaderBytes = 16 << 10;
// A body is reserved up to here at once; a client must send the rest before it costs memory.
constexpr uint64_t kMaxReserveBytes = 1 << 20;

std::string_view view(BeastView text) { return {text.data(), text.size()}; }

class Parser final : public beast_http::basic_parser<true> {
 public:
  explicit Parser(ParserLimits limits) : limits_(limits) {
    header_limit(static_cast<uint32_t>(std::min<size_t>(limits.max_header_bytes, UINT32_MAX)));
    body_limit(limits.max_body_bytes);
    eager(false);
  }

  HttpRequest request;
  std::string target;
  RequestParser::Failure failure;
  bool discard = false;
  bool head_seen = false;
  int version = 11;  // 10 or 11

 private:
  void on_request_impl(beast_http::verb, BeastView method, BeastView raw_target, int http_version, BeastError&) override {
    version = http_version;
    request.method = view(method);
    target = view(raw_target);
  }
  void on_field_impl(beast_http::field, BeastView name, BeastView value, BeastError& error) override {
    if (head_seen) return;  // trailers: nobody uses them
    if (request.headers.size() >= kMaxHeaders) {
      failure = {431, fmt::format("the request has more than {} headers; send fewer", kMaxHeaders)};
      error = beast_http::error::header_limit;
      return;
    }
    std::string lower(view(name));
    std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
    request.headers.emplace_back(std::move(lower), std::string(view(value)));
  }
  void on_header_impl(BeastError&) override { head_seen = true; }
  void on_body_init_impl(boost::optional<uint64_t> const& length, BeastError&) override {
    if (length && !discard) request.body.reserve(std::min(*length, kMaxReserveBytes));
  }
  size_t on_body_impl(BeastView bytes, BeastError& error) override { return add(bytes, error); }
  void on_chunk_header_impl(uint64_t size, BeastView, BeastError& error) override {
    // Checked here and not only on the data: the sum of sizes must not run over.
    if (size > limits_.max_body_bytes || received_ + size > limits_.max_body_bytes) error = beast_http::error::body_limit;
  }
  size_t on_chunk_body_impl(uint64_t, BeastView bytes, BeastError& error) override { return add(bytes, error); }
  void on_finish_impl(BeastError&) override {}
  void on_response_impl(int, BeastView, int, BeastError&) override {}

  size_t add(BeastView bytes, BeastError& error) {
    received_ += bytes.size();
    if (received_ > limits_.max_body_bytes) {
      error = beast_http::error::body_limit;
      return 0;
    }
    if (!discard) request.body.append(bytes.data(), bytes.size());
    return bytes.size();
  }

  ParserLimits limits_;
  uint64_t received_ = 0;
};

}  // namespace

struct RequestParser::Impl {
  explicit Impl(ParserLimits limits) : parser(limits), limits(limits) {}
  Parser parser;
  ParserLimits limits;
  State state = State::kHead;
  uint64_t received = 0;

  void fail(int status, std::string message) {
    state = State::kFailed;
    if (parser.failure.message.empty()) parser.failure = {status, std::move(message)};
  }
  void fail(const BeastError& error) {
    if (error == beast_http::error::body_limit) {
      return fail(413, fmt::format("the request body is larger than {} bytes; send less or raise --max-body-bytes", limits.max_body_bytes));
    }
    if (error == beast_http::error::header_limit) return header_too_large();
    if (error == beast_http::error::bad_version) {
      return fail(400, "the request line does not end with HTTP/1.0 or HTTP/1.1; send an HTTP/1.1 request");
    }
    fail(400, fmt::format("the request is no valid HTTP/1.1: {}", error.message()));
  }
  void header_too_large() {
    fail(431, fmt::format("the request line and headers are larger than {} bytes; send fewer or shorter headers", limits.max_header_bytes));
  }
  void head_complete();
};

// The head has been parsed: splits the target, and refuses what would be understood in two ways.
void RequestParser::Impl::head_complete() {
  HttpRequest& request = parser.request;
  std::string_view rest = parser.target;
  if (rest.starts_with("http://") || rest.starts_with("https://")) {  // absolute form, for proxies
    const size_t slash = rest.find('/', rest.find("//") + 2);
    rest = slash == rest.npos ? std::string_view("/") : rest.substr(slash);
  }
  const size_t question = rest.find('?');
  if (question != rest.npos) request.query = rest.substr(question + 1);
  std::optional<std::string> path = percent_decode(rest.substr(0, question));
  if (!path) return fail(400, "the path of the request has a bad percent escape; escape a byte as %HH, and no NUL");
  if (!path->starts_with('/') && !(*path == "*" && request.method == "OPTIONS")) {
    return fail(400, "the path of the request does not begin with '/'; send an absolute path");
  }
  request.path = std::move(*path);

  int hosts = 0, lengths = 0, encodings = 0;
  for (const auto& [name, value] : request.headers) {
    hosts += name == "host";
    lengths += name == "content-length";
    encodings += name == "transfer-encoding";
    if (name == "transfer-encoding" && !equal_ignoring_case(value, "chunked")) {
      return fail(501, "Transfer-Encoding: only 'chunked' is known; send the body chunked or with a Content-Length");
    }
  }
  // Two lengths, or a length and chunks: a proxy before us may see another end of the request (request smuggling).
  if (lengths + encodings > 1) return fail(400, "the request has more than one Content-Length or Transfer-Encoding; send one");
  if (hosts > 1 || (hosts == 0 && parser.version >= 11)) {
    return fail(400, fmt::format("the request has {} Host headers; send exactly one", hosts));
  }
  if (encodings > 0 && parser.version < 11) return fail(400, "a chunked body needs HTTP/1.1; send a Content-Length");
  state = parser.is_done() ? State::kDone : State::kBody;
}

RequestParser::RequestParser(ParserLimits limits) : impl_(std::make_unique<Impl>(limits)) {}
RequestParser::~RequestParser() = default;

size_t RequestParser::feed(std::string_view bytes) {
  Impl& i = *impl_;
  size_t consumed = 0;
  while (i.state == State::kHead || i.state == State::kBody) {
    const bool in_head = i.state == State::kHead;
    BeastError error;
    const size_t used = i.parser.put(boost::asio::const_buffer(bytes.data() + consumed, bytes.size() - consumed), error);
    consumed += used;
    i.received += used;
    const size_t left = bytes.size() - consumed;
    // Beast limits what it has not yet parsed; fields that arrive one by one are counted here.
    if (in_head && i.received + (i.parser.is_header_done() ? 0 : left) > i.limits.max_header_bytes) {
      i.header_too_large();
    } else if (error && error != beast_http::error::need_more) {
      i.fail(error);
    } else if (in_head && i.parser.is_header_done()) {
      i.head_complete();
      break;
    } else if (i.parser.is_done()) {
      i.state = State::kDone;
    } else if (error || used == 0 || left == 0) {
      if (!in_head && left > kMaxChunkHeaderBytes) i.fail(400, "a chunk header of the request body is too long; leave its extensions out");
      break;
    }
  }
  return consumed;
}

RequestParser::State RequestParser::state() const { return impl_->state; }
const RequestParser::Failure& RequestParser::failure() const { return impl_->parser.failure; }
HttpRequest& RequestParser::request() { return impl_->parser.request; }
bool RequestParser::http_1_0() const { return impl_->parser.version < 11; }
bool RequestParser::keep_alive() const { return impl_->parser.is_header_done() && impl_->parser.keep_alive(); }
bool RequestParser::has_body() const { return !impl_->parser.is_done(); }
std::string_view RequestParser::target() const { return impl_->parser.target; }
uint64_t RequestParser::received_bytes() const { return impl_->received; }
void RequestParser::discard_body() { impl_->parser.discard = true; }
int64_t RequestParser::content_length() const {
  const auto length = impl_->parser.content_length();
  return length ? static_cast<int64_t>(*length) : impl_->parser.chunked() ? -1 : 0;
}

}  // namespace dg
