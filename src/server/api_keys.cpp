#include "server/api_keys.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_set>

#include "base/log.h"
#include "server/http_text.h"

namespace dg {
namespace {

constexpr size_t kMaxFileBytes = 4 << 20;
constexpr size_t kMaxKeyBytes = 512;
constexpr size_t kHashBytes = 32;
constexpr size_t kSaltBytes = 16;
constexpr int kKeyCharacters = 40;  // of 62: 238 bits

// SHA-256 of salt and key. A random key of 238 bits needs no slow hash: there is nothing to guess.
std::string salted_hash(std::string_view salt, std::string_view key) {
  // Fetched once: OpenSSL 3 looks an implicit algorithm up by name on every use. Lives as long as the process.
  static EVP_MD* const sha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  CHECK(sha256 != nullptr) << "OpenSSL has no SHA-256";
  const std::string text = std::string(salt) + std::string(key);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned bytes = 0;
  CHECK(EVP_Digest(text.data(), text.size(), digest, &bytes, sha256, nullptr) == 1 && bytes == kHashBytes);
  return {reinterpret_cast<char*>(digest), bytes};
}

std::optional<std::string> unhex(std::string_view text) {
  if (text.size() % 2 != 0) return std::nullopt;
  auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); i += 2) {
    const int high = digit(text[i]), low = digit(text[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
  }
  return out;
}

bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' || c == '-';
  });
}

std::vector<std::string_view> split_words(std::string_view line) {
  std::vector<std::string_view> words;
  for (size_t at = 0; (at = line.find_first_not_of(" \t\r", at)) != line.npos;) {
    const size_t end = std::min(line.find_first_of(" \t\r", at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

Result<std::string> read_key_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return io_error(fmt::format("key file {}: cannot open: {}; give a readable file", path, std::strerror(errno)));
  }
  // The permissions are those of the file that is read, not of one that takes its place in between.
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    return input_error(fmt::format("key file {}: expected a regular file; give a file with one key per line", path));
  }
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return input_error(
        fmt::format("key file {}: mode {:04o} lets other users change it; run 'chmod 600 {}'", path, info.st_mode & 07777u, path));
  }
  if ((info.st_mode & S_IROTH) != 0) {
    log_warning(fmt::format("key file {}: mode {:04o} lets every user read it; run 'chmod 600 {}'", path, info.st_mode & 07777u, path));
  }
  std::string text;
  char buffer[16384];
  for (;;) {
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got == 0) return text;
    if (got < 0) {
      if (errno == EINTR) continue;
      return io_error(fmt::format("key file {}: cannot read: {}", path, std::strerror(errno)));
    }
    text.append(buffer, static_cast<size_t>(got));
    if (text.size() > kMaxFileBytes) {
      return input_error(fmt::format("key file {}: larger than {} bytes; is it a key file?", path, kMaxFileBytes));
    }
  }
}

// What the client sent as its key; "" when none.
std::string_view sent_key(const HttpRequest& request) {
  std::string_view authorization = request.header("authorization");
  if (authorization.size() > 7 && equal_ignoring_case(authorization.substr(0, 7), "bearer ")) {
    authorization.remove_prefix(7);
    while (authorization.starts_with(' ')) authorization.remove_prefix(1);
    return authorization;
  }
  return request.header("x-api-key");
}

}  // namespace

Result<std::shared_ptr<const ApiKeys>> ApiKeys::load(const std::string& path) {
  DG_ASSIGN(std::string text, read_key_file(path));
  auto keys = std::make_shared<ApiKeys>();
  std::unordered_set<std::string> names;
  int line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++line_number;
    line = line.substr(0, line.find('#'));
    const std::vector<std::string_view> words = split_words(line);
    if (words.empty()) continue;
    auto bad = [&](std::string_view field, std::string_view expected, std::string_view found) {
      return input_error(fmt::format("key file {} line {}: {}: expected {}, found '{}'; make lines with 'dougong keys new NAME'", path,
                                     line_number, field, expected, found.substr(0, 80)));
    };
    if (words.size() != 5) return bad("fields", "5 (name role tenant salt hash)", std::to_string(words.size()));
    Entry entry;
    if (!valid_name(words[0])) return bad("name", "1 to 64 of A-Z a-z 0-9 . _ -", words[0]);
    entry.key.name = words[0];
    if (!names.insert(entry.key.name).second) return bad("name", "each name once", words[0]);
    if (words[1] != "user" && words[1] != "admin") return bad("role", "user or admin", words[1]);
    entry.key.role = words[1] == "admin" ? Role::kAdmin : Role::kUser;
    if (!valid_name(words[2])) return bad("tenant", "'-' or 1 to 64 of A-Z a-z 0-9 . _ -", words[2]);
    entry.key.tenant = words[2] == "-" ? words[0] : words[2];
    std::optional<std::string> salt = unhex(words[3]), hash = unhex(words[4]);
    if (!salt || salt->size() < 8 || salt->size() > 64) return bad("salt", "16 to 128 hex digits", words[3]);
    if (!hash || hash->size() != kHashBytes) return bad("hash", "64 hex digits", words[4]);
    entry.salt = std::move(*salt);
    entry.hash = std::move(*hash);
    keys->entries_.push_back(std::move(entry));
  }
  if (keys->entries_.empty()) {
    return input_error(fmt::format("key file {}: no key in it; add a line made with 'dougong keys new NAME'", path));
  }
  return std::shared_ptr<const ApiKeys>(std::move(keys));
}

std::shared_ptr<const ApiKeys> ApiKeys::from_plain(const std::vector<std::string>& plain) {
  auto keys = std::make_shared<ApiKeys>();
  for (size_t i = 0; i < plain.size(); ++i) {
    if (plain[i].empty()) continue;  // VLLM_API_KEY="": must not let empty keys in
    char salt[kSaltBytes];
    CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(salt), sizeof salt) == 1);
    Entry entry;
    entry.key = {.name = fmt::format("key-{}", i + 1), .tenant = fmt::format("key-{}", i + 1), .role = Role::kAdmin};
    entry.salt.assign(salt, sizeof salt);
    entry.hash = salted_hash(entry.salt, plain[i]);
    keys->entries_.push_back(std::move(entry));
  }
  return keys;
}

std::optional<ApiKey> ApiKeys::find(const HttpRequest& request) const {
  const std::string_view key = sent_key(request);
  if (key.empty() || key.size() > kMaxKeyBytes) return std::nullopt;
  // All entries, whether one has matched or not: the time tells nothing about which.
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    const std::string hash = salted_hash(entry.salt, key);
    if (CRYPTO_memcmp(hash.data(), entry.hash.data(), kHashBytes) == 0) found = &entry;
  }
  if (found == nullptr) return std::nullopt;
  return found->key;
}

Result<ApiKeys::NewKey> ApiKeys::generate(std::string_view name, Role role, std::string_view tenant) {
  static constexpr std::string_view kAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  if (!valid_name(name)) {
    return input_error(fmt::format("key name '{}': expected 1 to 64 of A-Z a-z 0-9 . _ -; choose another name", name.substr(0, 80)));
  }
  if (!tenant.empty() && !valid_name(tenant)) {
    return input_error(fmt::format("tenant '{}': expected 1 to 64 of A-Z a-z 0-9 . _ -; choose another name", tenant.substr(0, 80)));
  }
  if (role == Role::kOpen) return input_error(fmt::format("key '{}': the role is open, expected user or admin", name));
  std::string key = "dg-";
  while (key.size() < 3 + kKeyCharacters) {
    unsigned char byte = 0;
    if (RAND_bytes(&byte, 1) != 1) return io_error("cannot make a key: the system gives no random bytes");
    if (byte < 4 * kAlphabet.size()) key += kAlphabet[byte % kAlphabet.size()];  // the rest would favour some characters
  }
  char salt[kSaltBytes];
  if (RAND_bytes(reinterpret_cast<unsigned char*>(salt), sizeof salt) != 1) {
    return io_error("cannot make a key: the system gives no random bytes");
  }
  const std::string_view salt_bytes(salt, sizeof salt);
  std::string line = fmt::format("{} {} {} {} {}", name, role == Role::kAdmin ? "admin" : "user", tenant.empty() ? "-" : tenant,
                                 hex(salt_bytes), hex(salted_hash(salt_bytes, key)));
  return NewKey{std::move(key), std::move(line)};
}

}  // namespace dg
