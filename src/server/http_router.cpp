#include "server/http_router.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace dg {
namespace {

constexpr size_t kMaxShownPath = 200;

// Levenshtein distance.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

// What a person can read in one line of a log.
std::string shown(std::string_view path) {
  std::string out(path.substr(0, kMaxShownPath));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return path.size() > kMaxShownPath ? out + "..." : out;
}

}  // namespace

Router::Router(std::vector<Route> routes, std::vector<std::string> allowed_origins)
    : routes_(std::move(routes)), origins_(std::move(allowed_origins)) {
  for (size_t i = 0; i < routes_.size(); ++i) {
    CHECK(routes_[i].handler) << routes_[i].path << " has no handler";
    for (size_t j = 0; j < i; ++j) {
      CHECK(routes_[i].method != routes_[j].method || routes_[i].path != routes_[j].path)
          << "route " << routes_[i].method << " " << routes_[i].path << " is given twice";
    }
  }
}

const Route* Router::find(const HttpRequest& request, HttpResponse& refusal) const {
  const Route* get = nullptr;
  for (const Route& route : routes_) {
    if (route.path != request.path) continue;
    if (route.method == request.method) return &route;
    if (route.method == "GET") get = &route;
  }
  if (request.method == "HEAD" && get != nullptr) return get;

  const std::string allowed = allow(request.path);
  if (request.method == "OPTIONS" && (!allowed.empty() || request.path == "*")) {
    refusal = {};
    refusal.status = 204;
    refusal.content_type.clear();
    refusal.headers.emplace_back("Allow", allowed.empty() ? "GET, HEAD, POST, OPTIONS" : allowed);
    if (!cors_headers(request.header("origin")).empty()) {
      refusal.headers.emplace_back("Access-Control-Allow-Methods", allowed.empty() ? "GET, HEAD, POST, OPTIONS" : allowed);
      std::string_view wanted = request.header("access-control-request-headers");
      refusal.headers.emplace_back("Access-Control-Allow-Headers",
                                   wanted.empty() ? std::string("authorization, content-type") : std::string(wanted));
      refusal.headers.emplace_back("Access-Control-Max-Age", "86400");
    }
  } else if (!allowed.empty()) {
    refusal = error_response(405, fmt::format("method {} is not allowed for {}; use {}", shown(request.method), request.path, allowed),
                             "invalid_request_error", "", "method_not_allowed");
    refusal.headers.emplace_back("Allow", allowed);
  } else {
    const std::string near = nearest(request.path);
    refusal = error_response(404,
                             fmt::format("there is no route {} {}{}", shown(request.method), shown(request.path),
                                         near.empty() ? "" : fmt::format("; the nearest is {}", near)),
                             "invalid_request_error", "", "unknown_url");
  }
  return nullptr;
}

std::string Router::allow(std::string_view path) const {
  std::string out;
  for (const Route& route : routes_) {
    if (route.path != path) continue;
    out += route.method + ", ";
    if (route.method == "GET") out += "HEAD, ";
  }
  return out.empty() ? out : out + "OPTIONS";
}

std::string Router::nearest(std::string_view path) const {
  const Route* best = nullptr;
  size_t best_distance = SIZE_MAX;
  for (const Route& route : routes_) {
    // A forgotten or doubled "/v1" is the usual mistake and stands nearer than a typing error.
    const bool suffix = path.size() > 1 && (route.path.ends_with(path) || path.ends_with(route.path));
    const size_t distance = suffix ? 1 : 2 * edit_distance(path.substr(0, kMaxShownPath), route.path);
    if (distance < best_distance) {
      best = &route;
      best_distance = distance;
    }
  }
  return best == nullptr ? "" : best->method + " " + best->path;
}

HttpHeaders Router::cors_headers(std::string_view origin) const {
  if (origin.empty()) return {};
  const bool all = std::find(origins_.begin(), origins_.end(), "*") != origins_.end();
  if (!all && std::find(origins_.begin(), origins_.end(), origin) == origins_.end()) return {};
  HttpHeaders headers = {{"Access-Control-Allow-Origin", all ? std::string("*") : std::string(origin)},
                         {"Access-Control-Expose-Headers", "x-request-id, retry-after"}};
  if (!all) headers.emplace_back("Vary", "Origin");
  return headers;
}

bool authorise(const ApiKeys* keys, Role needed, HttpRequest& request, HttpResponse& refusal) {
  if (keys == nullptr) {
    request.role = Role::kAdmin;
    return true;
  }
  if (std::optional<ApiKey> key = keys->find(request)) {
    request.role = key->role;
    request.key_name = key->name;
    request.tenant = key->tenant;
    if (needed != Role::kAdmin || key->role == Role::kAdmin) return true;
    refusal = error_response(403, fmt::format("the API key '{}' has role user; {} needs an admin key", key->name, request.path),
                             "permission_error", "", "insufficient_permissions");
    return false;
  }
  if (needed == Role::kOpen) return true;
  const bool given = !request.header("authorization").empty() || !request.header("x-api-key").empty();
  // OpenAI and Anthropic name the type differently; Anthropic's clients always send their version.
  const bool anthropic = !request.header("anthropic-version").empty();
  refusal = error_response(401,
                           given ? "the API key is not known to this server; send a valid one as 'Authorization: Bearer KEY'"
                                 : "the request has no API key; send one as 'Authorization: Bearer KEY'",
                           anthropic ? "authentication_error" : "invalid_request_error", "", "invalid_api_key");
  refusal.headers.emplace_back("WWW-Authenticate", "Bearer realm=\"dougong\"");
  return false;
}

}  // namespace dg
