// What a peer of another node may write into its stream: frames and calls, cut anywhere.
#include <boost/asio/io_context.hpp>

#include "transport/byte_stream.h"
#include "transport/socket_channel.h"

namespace troupe::transport {
namespace {

// Gives the input in pieces of the sizes that it begins with.
class InputStream final : public ByteStream {
 public:
  explicit InputStream(BytesView input) : input_(input) {}

  Async<Result<size_t>> read_some(std::span<uint8_t> out, std::vector<FileDescriptor>&) override {
    co_return take(out);
  }
  Async<Status> write(std::span<const uint8_t>, std::span<const FileDescriptor>) override {
    co_return ok();
  }
  void close() override {}
  void end_writing() override {}
  bool is_direct() const override { return true; }
  Result<size_t> try_read(std::span<uint8_t> out) override { return take(out); }
  Result<size_t> try_write(std::span<const uint8_t> bytes) override { return bytes.size(); }

 private:
  Result<size_t> take(std::span<uint8_t> out) {
    if (input_.empty()) return error(Code::unavailable, "the input's end");
    const size_t piece = 1 + size_t{input_[0]} * 13;
    const size_t count = std::min({piece, out.size(), input_.size()});
    std::copy_n(input_.begin(), count, out.begin());
    input_ = input_.subspan(count);
    return count;
  }

  BytesView input_;
};

// Answers every call with its own bytes.
class Echo final : public CallHandler {
 public:
  void take_call(const std::shared_ptr<CallChannel>& channel, uint64_t call,
                 BytesView payload) override {
    channel->count_call();
    channel->reply(call, payload.size(),
                   [&](uint8_t* out) { std::copy(payload.begin(), payload.end(), out); });
  }
  void cancel_call(const std::shared_ptr<CallChannel>&, uint64_t, uint8_t) override {}
  void recall_calls(const std::shared_ptr<CallChannel>&) override {}
  void channel_closed(const std::shared_ptr<CallChannel>&) override {}
};

Async<void> read_all(std::shared_ptr<SocketChannel> channel) {
  for (;;) {
    const auto frame = co_await channel->receive();
    if (!frame) break;
  }
}

void run(BytesView input) {
  static boost::asio::io_context loop;
  static Echo echo;
  static const auto port = [] {
    auto made = RingPort::create(loop.get_executor()).value();
    made->set_handler(&echo);
    return made;
  }();
  Scope scope{loop.get_executor()};
  const auto channel = std::make_shared<SocketChannel>(port.get(), loop.get_executor(),
                                                       std::make_unique<InputStream>(input));
  channel->start(scope);
  (void)channel->accept_calls(ProcessId{RawId{1, 2}});
  spawn(scope, read_all(channel));
  loop.restart();
  loop.run();
}

}  // namespace
}  // namespace troupe::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  troupe::transport::run({data, size});
  return 0;
}
