#include "security/openssl.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include <array>

namespace troupe::security {
namespace {

BioPtr bio_over(std::string_view text) {
  return BioPtr{::BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))};
}

std::string take_text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<size_t>(size)};
}

// A key with a passphrase must fail, not ask the terminal.
int no_passphrase(char*, int, int, void*) {
  return 0;
}

}  // namespace

Error openssl_error(Code code, std::string_view doing) {
  // The oldest error is the cause; the later ones say who noticed.
  const unsigned long first = ::ERR_get_error();
  ::ERR_clear_error();
  if (first == 0) return error(code, std::string(doing));
  std::array<char, 256> reason{};
  ::ERR_error_string_n(first, reason.data(), reason.size());
  return error(code, fmt::format("{}: {}", doing, reason.data()));
}

Result<KeyPtr> read_key(std::string_view pem, std::string_view what) {
  const BioPtr bio = bio_over(pem);
  KeyPtr key{::PEM_read_bio_PrivateKey(bio.get(), nullptr, &no_passphrase, nullptr)};
  if (!key) return openssl_error(Code::data_loss, fmt::format("{} is no private key", what));
  return key;
}

Result<CertificatePtr> read_certificate(std::string_view pem, std::string_view what) {
  const BioPtr bio = bio_over(pem);
  CertificatePtr certificate{::PEM_read_bio_X509(bio.get(), nullptr, &no_passphrase, nullptr)};
  if (!certificate) {
    return openssl_error(Code::data_loss, fmt::format("{} is no certificate", what));
  }
  return certificate;
}

Result<std::string> write_key(EVP_PKEY* key) {
  const BioPtr bio{::BIO_new(::BIO_s_mem())};
  if (!bio ||
      ::PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return openssl_error(Code::internal, "write a private key");
  }
  return take_text(bio.get());
}

Result<std::string> write_certificate(X509* certificate) {
  const BioPtr bio{::BIO_new(::BIO_s_mem())};
  if (!bio || ::PEM_write_bio_X509(bio.get(), certificate) != 1) {
    return openssl_error(Code::internal, "write a certificate");
  }
  return take_text(bio.get());
}

Digest fingerprint_of(const X509* certificate) {
  Digest digest{};
  unsigned size = 0;
  const int done = ::X509_digest(certificate, ::EVP_sha256(), digest.data(), &size);
  TROUPE_ASSERT(done == 1 && size == digest.size(), "a parsed certificate has a SHA-256 digest");
  return digest;
}

}  // namespace troupe::security
