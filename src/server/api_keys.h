// API keys: a file with one key per line, stored as salted hashes, so that the file does not give the keys away:
//   name role tenant salt-hex sha256-hex      # role: user | admin; tenant "-": the name
// `dougong keys new NAME` prints a key once and its line. Lookup is constant in time per key.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/http.h"

namespace dg {

struct ApiKey {
  std::string name, tenant;
  Role role = Role::kUser;
};

class ApiKeys {
 public:
  // Errors name file and line. A file that others may write is refused.
  static Result<std::shared_ptr<const ApiKeys>> load(const std::string& path);
  // Keys in plain text (--api-key, VLLM_API_KEY); role user and admin both.
  static std::shared_ptr<const ApiKeys> from_plain(const std::vector<std::string>& keys);
  // "Authorization: Bearer KEY" or "x-api-key: KEY" (Anthropic).
  std::optional<ApiKey> find(const HttpRequest& request) const;

  struct NewKey {
    std::string key, line;
  };
  static Result<NewKey> generate(std::string_view name, Role role, std::string_view tenant);

 private:
  struct Entry {
    ApiKey key;
    std::string salt, hash;
  };
  std::vector<Entry> entries_;
};

}  // namespace dg
