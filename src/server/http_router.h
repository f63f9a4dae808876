// Router: which route a request takes, and what is answered when it takes none. Immutable, any thread.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "server/api_keys.h"
#include "server/http.h"
#include "server/http_text.h"

namespace dg {

class Router {
 public:
  // A route given twice is a bug.
  Router(std::vector<Route> routes, std::vector<std::string> allowed_origins);

  // The route, or null with `refusal` filled: 404, 405, or the answer to OPTIONS (204). HEAD takes the route of GET.
  const Route* find(const HttpRequest& request, HttpResponse& refusal) const;

  // Headers that let a page of an allowed origin read the answer; none for other origins.
  HttpHeaders cors_headers(std::string_view origin) const;

 private:
  std::string allow(std::string_view path) const;  // "GET, HEAD, OPTIONS"; "" for an unknown path
  std::string nearest(std::string_view path) const;

  std::vector<Route> routes_;
  std::vector<std::string> origins_;
};

// Checks the key of a request against the role of its route, and fills tenant, key_name and role. False: `refusal` is a
// 401 or 403 in OpenAI's shape. `keys` may be null: everything is allowed.
bool authorise(const ApiKeys* keys, Role needed, HttpRequest& request, HttpResponse& refusal);

}  // namespace dg
