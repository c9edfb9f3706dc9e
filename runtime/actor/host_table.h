// The host's side of the plugin ABI: plain functions over a context, a call or a group.
#pragma once

#include "actor/context.h"
#include "sdk/include/troupe/plugin.h"

namespace troupe::actor {

// Lives as long as the process.
const troupe_host& host_table();

// A module's room for a message, on the stack of a call into it.
class TextRoom {
 public:
  troupe_text* text() { return &text_; }
  // What the module wrote; `otherwise` if nothing.
  std::string read(std::string_view otherwise) const;

 private:
  char data_[1024];
  troupe_text text_{data_, sizeof data_, 0};
};

}  // namespace troupe::actor
