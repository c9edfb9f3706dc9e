// Owners of OpenSSL's objects, and its errors as ours. Private to this folder's .cc files.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "security/digest.h"

namespace troupe::security {

template <auto free_function>
struct Freer {
  template <class T>
  void operator()(T* object) const {
    free_function(object);
  }
};
using BioPtr = std::unique_ptr<BIO, Freer<&BIO_free_all>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freer<&EVP_PKEY_free>>;
using CertificatePtr = std::unique_ptr<X509, Freer<&X509_free>>;
using RequestPtr = std::unique_ptr<X509_REQ, Freer<&X509_REQ_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, Freer<&GENERAL_NAMES_free>>;
using ContextPtr = std::unique_ptr<SSL_CTX, Freer<&SSL_CTX_free>>;

// "doing: OpenSSL's reason"; empties this thread's queue of errors.
Error openssl_error(Code code, std::string_view doing);

// Each takes the first object of its kind in the text. Errors: data_loss; `what` names it there.
Result<KeyPtr> read_key(std::string_view pem, std::string_view what);
Result<CertificatePtr> read_certificate(std::string_view pem, std::string_view what);
Result<std::string> write_key(EVP_PKEY* key);
Result<std::string> write_certificate(X509* certificate);

// Of the DER form, as `openssl x509 -fingerprint -sha256` gives it.
Digest fingerprint_of(const X509* certificate);

}  // namespace troupe::security
