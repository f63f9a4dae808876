#include "server/http_transport.h"

#include <fmt/core.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/file.h"

namespace dg {
namespace {

constexpr size_t kMaxPemBytes = 4 << 20;

// Never ask for a passphrase on the terminal: a server would hang.
int no_passphrase(char*, int, int, void*) { return 0; }

int choose_http_1_1(SSL*, const unsigned char** out, unsigned char* out_length, const unsigned char* in, unsigned in_length, void*) {
  static constexpr unsigned char kHttp[] = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_length, kHttp, sizeof kHttp - 1, in, in_length) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_NOACK;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

std::string last_tls_reason() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : fmt::format("error {:#x}", code);
}

// A readable PEM file that holds `marker`; else an error that says which mistake it is.
Result<void> check_pem(const std::string& path, std::string_view option, std::string_view what, std::string_view marker) {
  Result<std::string> text = read_file(path, kMaxPemBytes);
  if (!text.ok()) return input_error(fmt::format("{}: {}", option, text.error().message));
  if (text->find(marker) == std::string::npos) {
    const char* found = text->empty()                                               ? "the file is empty"
                        : text->find("PRIVATE KEY-----") != std::string::npos       ? "found a private key"
                        : text->find("BEGIN CERTIFICATE-----") != std::string::npos ? "found a certificate"
                                                                                    : "found no PEM text";
    return input_error(fmt::format("{} {}: expected a PEM file with {}, {}; give the right file", option, path, what, found));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<TlsContext>> TlsContext::load(const std::string& certificate_path, const std::string& key_path) {
  DG_TRY(check_pem(certificate_path, "--ssl-certfile", "a certificate", "-----BEGIN CERTIFICATE-----"));
  DG_TRY(check_pem(key_path, "--ssl-keyfile", "a private key", "PRIVATE KEY-----"));
  ERR_clear_error();
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  if (context == nullptr) return resource_error("cannot create a TLS context: " + last_tls_reason());
  std::unique_ptr<TlsContext> tls(new TlsContext(context));
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);  // clients keep tickets; a cache would grow with them
  SSL_CTX_set_default_passwd_cb(context, no_passphrase);
  SSL_CTX_set_alpn_select_cb(context, choose_http_1_1, nullptr);
  if (SSL_CTX_use_certificate_chain_file(context, certificate_path.c_str()) != 1) {
    return input_error(
        fmt::format("--ssl-certfile {}: cannot use the certificate: {}; give a PEM file with the server's certificate "
                    "first, then its chain",
                    certificate_path, last_tls_reason()));
  }
  if (SSL_CTX_use_PrivateKey_file(context, key_path.c_str(), SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(context) != 1) {
    const int reason = ERR_GET_REASON(ERR_peek_last_error());
    if (reason == X509_R_KEY_VALUES_MISMATCH || reason == X509_R_KEY_TYPE_MISMATCH) {
      return input_error(fmt::format("--ssl-keyfile {}: the key does not belong to the certificate {}; give the key it was made with",
                                     key_path, certificate_path));
    }
    Result<std::string> text = read_file(key_path, kMaxPemBytes);
    if (text.ok() && text->find("ENCRYPTED") != std::string::npos) {
      return input_error(
          fmt::format("--ssl-keyfile {}: the key is encrypted with a passphrase; decrypt it with 'openssl pkey -in {} "
                      "-out FILE'",
                      key_path, key_path));
    }
    return input_error(fmt::format("--ssl-keyfile {}: cannot use the key: {}; give an unencrypted PEM key", key_path, last_tls_reason()));
  }
  return tls;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

Transport::Transport(int fd, const TlsContext* tls) : fd_(fd) {
  if (tls == nullptr) return;
  ssl_ = SSL_new(tls->get());
  // Without memory for it the handshake fails and the connection closes.
  if (ssl_ != nullptr && SSL_set_fd(ssl_, fd) == 1) {
    SSL_set_accept_state(ssl_);
  } else {
    fd_ = -1;
  }
}

Transport::~Transport() { SSL_free(ssl_); }

IoStatus Transport::tls_status(int result) {
  switch (SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ: return IoStatus::kWantRead;
    case SSL_ERROR_WANT_WRITE: return IoStatus::kWantWrite;
    default: return IoStatus::kClosed;
  }
}

IoStatus Transport::handshake(bool& plain_http) {
  plain_http = false;
  if (fd_ < 0) return IoStatus::kClosed;
  if (ssl_ == nullptr) return IoStatus::kDone;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  if (result == 1) return IoStatus::kDone;
  const IoStatus status = tls_status(result);
  if (status == IoStatus::kClosed) plain_http = ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_HTTP_REQUEST;
  return status;
}

IoResult Transport::read(char* data, size_t bytes) {
  if (fd_ < 0) return {IoStatus::kClosed};
  if (ssl_ != nullptr) {
    ERR_clear_error();
    size_t got = 0;
    const int result = SSL_read_ex(ssl_, data, bytes, &got);
    if (result == 1) return {IoStatus::kDone, got};
    return {tls_status(result)};
  }
  for (;;) {
    const ssize_t got = ::recv(fd_, data, bytes, 0);
    if (got > 0) return {IoStatus::kDone, static_cast<size_t>(got)};
    if (got == 0) return {IoStatus::kClosed};
    if (errno == EAGAIN || errno == EWOULDBLOCK) return {IoStatus::kWantRead};
    if (errno != EINTR) return {IoStatus::kClosed};
  }
}

IoResult Transport::write(const char* data, size_t bytes) {
  if (fd_ < 0) return {IoStatus::kClosed};
  if (ssl_ != nullptr) {
    ERR_clear_error();
    size_t written = 0;
    const int result = SSL_write_ex(ssl_, data, bytes, &written);
    if (result == 1) return {IoStatus::kDone, written};
    return {tls_status(result)};
  }
  for (;;) {
    const ssize_t written = ::send(fd_, data, bytes, MSG_NOSIGNAL);
    if (written >= 0) return {IoStatus::kDone, static_cast<size_t>(written)};
    if (errno == EAGAIN || errno == EWOULDBLOCK) return {IoStatus::kWantWrite};
    if (errno != EINTR) return {IoStatus::kClosed};
  }
}

void Transport::write_raw(std::string_view text) {
  if (fd_ >= 0) (void)!::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
}

void Transport::shutdown_write() {
  if (fd_ < 0) return;
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_)) {
    ERR_clear_error();
    SSL_shutdown(ssl_);
  }
  ::shutdown(fd_, SHUT_WR);
}

}  // namespace dg
