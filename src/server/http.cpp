#include "server/http.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg {

std::string_view HttpRequest::header(std::string_view lower_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_name) return value;
  }
  return {};
}

HttpResponse error_response(int status, std::string_view message, std::string_view type, std::string_view param, std::string_view code) {
  Json error = {{"message", message}, {"type", type}, {"param", nullptr}, {"code", nullptr}};
  if (!param.empty()) error["param"] = param;
  if (!code.empty()) error["code"] = code;
  HttpResponse response;
  response.status = status;
  // `replace`: a message may quote bytes of the client that are no UTF-8.
  response.body = Json{{"error", std::move(error)}}.dump(-1, ' ', false, Json::error_handler_t::replace);
  return response;
}

HttpResponse error_response(const Error& error, std::string_view param) {
  switch (error.kind) {
    case ErrorKind::kInput: return error_response(400, error.message, "invalid_request_error", param);
    case ErrorKind::kResource: {
      HttpResponse response = error_response(429, error.message, "rate_limit_error", param, "rate_limit_exceeded");
      response.headers.emplace_back("Retry-After", "1");
      return response;
    }
    case ErrorKind::kCancelled: return error_response(503, error.message, "server_error", param, "cancelled");
    case ErrorKind::kDevice:
    case ErrorKind::kIo: break;
  }
  return error_response(500, error.message, "server_error", param, "internal_error");
}

}  // namespace dg
