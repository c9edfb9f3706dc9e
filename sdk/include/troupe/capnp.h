// Cap'n Proto messages as objects that are read where they lie: nothing is decoded or copied, and
// what is not looked at costs nothing. For programs that use Cap'n Proto and link it by themselves;
// troupe.h does not include this.
//
//     auto ref = troupe::put_message<Order>(session, builder).value();
//     double total(const troupe::MessageRef<Order>& ref) {  // A task; refs travel.
//       const auto view = ref.view().value();
//       return view.root().getTotal();
//     }
#pragma once

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/io.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "troupe/session.h"

namespace troupe {

// A message in place. Its memory cannot change, and stays valid as long as any copy of the view
// lives. Thread-safe to read.
template <class Root>
class MessageView {
 public:
  // Throws kj::Exception where the message is malformed, as its own accessors do.
  typename Root::Reader root() const { return reader_->template getRoot<Root>(); }

  // Errors: invalid (these words are no message).
  static Result<MessageView> of(View<std::vector<uint64_t>> words) try {
    static_assert(sizeof(capnp::word) == sizeof(uint64_t));
    MessageView view;
    view.words_ = std::move(words);
    capnp::ReaderOptions options;
    // Against amplification by a stranger; processes of one job trust each other.
    options.traversalLimitInWords = std::numeric_limits<uint64_t>::max();
    const kj::ArrayPtr<const capnp::word> all{
        reinterpret_cast<const capnp::word*>(view.words_.data()), view.words_.size()};
    view.reader_ = std::make_shared<capnp::FlatArrayMessageReader>(all, options);
    // The root pointer is looked at now, so that what is no message fails here.
    (void)view.root();
    return view;
  } catch (const kj::Exception& failure) {
    return error(Code::invalid, std::string("the object is no Cap'n Proto message of this type: ") +
                                    failure.getDescription().cStr());
  }

 private:
  View<std::vector<uint64_t>> words_;
  std::shared_ptr<capnp::FlatArrayMessageReader> reader_;  // Reads words_.
};

// A ref to a message whose root is a `Root`. As an argument or a result it is a ref like any other.
template <class Root>
struct MessageRef {
  ObjectRef<std::vector<uint64_t>> words;  // In Cap'n Proto's stream format.

  // Errors: those of ObjectRef::view; invalid (no such message).
  Result<MessageView<Root>> view(std::chrono::nanoseconds timeout = no_timeout) const {
    TROUPE_TRY(auto all, words.view(timeout));
    return MessageView<Root>::of(std::move(all));
  }
};

// Copies the message, once, into the store of this node. Errors: those of Session::create; invalid
// (it has no root).
template <class Root>
Result<MessageRef<Root>> put_message(const Session& session, capnp::MessageBuilder& message) try {
  TROUPE_TRY(auto building, session.create<uint64_t>(capnp::computeSerializedSizeInWords(message)));
  kj::ArrayOutputStream out{kj::ArrayPtr<kj::byte>{reinterpret_cast<kj::byte*>(building.data()),
                                                   building.size() * sizeof(uint64_t)}};
  capnp::writeMessage(out, message);
  TROUPE_TRY(auto words, building.seal());
  return MessageRef<Root>{std::move(words)};
} catch (const kj::Exception& failure) {
  return error(Code::invalid,
               std::string("this message cannot be put: ") + failure.getDescription().cStr());
}

}  // namespace troupe
