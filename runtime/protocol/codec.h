// Encoding of the plain structs of messages.h as the Cap'n Proto structs of troupe.capnp.
// One walk over both serves every message: the n-th field of the plain struct is the schema's @n,
// written where the schema says that it lies.
#pragma once

#include "base/bytes.h"
#include "base/status.h"
#include "protocol/messages.h"

namespace troupe::protocol {

// Thread-safe. Defined for every struct of messages.h.
template <class T>
Bytes encode(const T& message);

// Errors: invalid (truncated, malformed, or beyond the nesting limit). Never reads outside `bytes`.
template <class T>
Result<T> decode(BytesView bytes);

}  // namespace troupe::protocol
