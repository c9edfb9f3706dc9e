// What clients of the gateway and engines behind it send as JSON: the first byte says which.
#include "gateway/engine_json.h"
#include "gateway/openai_request.h"

using namespace troupe::gateway;

namespace {

void try_request(const std::variant<ApiRequest, ApiError>& read) {
  if (const auto* refusal = std::get_if<ApiError>(&read)) {
    if (to_json(*refusal).empty() || refusal->status < 400) __builtin_trap();
    return;
  }
  const auto& request = std::get<ApiRequest>(read);
  if (request.choices() == 0 || request.choices() > choices_max) __builtin_trap();
  for (size_t i = 0; i < request.choices(); ++i) {
    if (engine_arguments(request, i, "request").empty()) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text{reinterpret_cast<const char*>(data) + 1, size - 1};
  switch (data[0] % 3) {
    case 0:
      try_request(parse_completion(text));
      break;
    case 1:
      try_request(parse_chat(text));
      break;
    default:
      (void)parse_chunk(text);
  }
  return 0;
}
